"""Speed, measured side by side in one run: apflow, the raw `sqlite3` module, DBOS, and servers of MCP's and A2A's SDKs.

`scripts/bench` prepares the environments and calls this.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from .door_rows import DOOR_EXPERIMENTS, DOOR_ROWS
from .graph_rows import graph_experiments, graph_rows
from .line_up import line_up
from .machine import describe
from .measure import run
from .report import as_json, show
from .rows import EXPERIMENTS, ROWS
from .verdict import judge


def main() -> int:
    """Return 0 when everything of apflow was measured, whether or not the promises hold; else 1."""
    options = _options()
    machine = describe(options.dbos_python)
    results = {}
    experiments = EXPERIMENTS | DOOR_EXPERIMENTS | graph_experiments(quick=options.quick)
    chosen = {key: experiment for key, experiment in experiments.items() if key.startswith(options.only)}
    with (
        tempfile.TemporaryDirectory(prefix="apflow-bench-") as folder,
        line_up(Path(folder), options.dbos_python) as sides,
    ):
        for key, experiment in chosen.items():
            print(f"measuring {key} ...", file=sys.stderr)
            results[key] = run(experiment, sides, quick=options.quick)
    verdicts = [
        judge(row, results[row.experiment])
        for row in (*ROWS, *DOOR_ROWS, *graph_rows(quick=options.quick))
        if row.experiment in results
    ]
    show(verdicts, machine)
    options.json.write_text(json.dumps(as_json(verdicts, results, machine), indent=2) + "\n")
    return 0 if all(verdict.ours is not None for verdict in verdicts) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure apflow, sqlite3 and DBOS.")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, for a first look")
    parser.add_argument(
        "--only", metavar="START", default="", help="only experiments whose names start so: graph, mcp, a2a, pg, ..."
    )
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="default: bench.json")
    parser.add_argument("--dbos-python", help=argparse.SUPPRESS)
    return parser.parse_args()


sys.exit(main())
