"""The official MCP conformance suite, and the explorer page in a browser, against a server of ours.

`scripts/conformance` prepares the environment and calls this.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING

import httpx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .explorer import try_out
from .needs import NotHereError
from .suite import SCENARIOS, Outcome, run

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT = Path(__file__).resolve().parents[2]
_PATIENCE_SECONDS = 60.0
_EXPLORER = "explorer"


def main() -> int:
    """Return 0 when everything passed, else 1."""
    chosen = _chosen()
    shots = Path(tempfile.mkdtemp(prefix="apflow-explorer-"))
    outcomes, news = [], Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="apflow-conformance-") as folder, _server(Path(folder)) as url:
        for name in chosen:
            news.print(f"trying {name} ...", highlight=False)
            outcomes.append(_try(name, url, shots))
    _show(outcomes, sorted(shots.iterdir()))
    return 0 if all(outcome.holds for outcome in outcomes) else 1


def _chosen() -> list[str]:
    known = [*SCENARIOS, _EXPLORER]
    parser = argparse.ArgumentParser(prog="scripts/conformance", description="Test the MCP server and its explorer.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these: {', '.join(known)}")
    names: list[str] = parser.parse_args().names
    if not set(names).issubset(known):
        parser.error(f"there are {', '.join(known)}")
    return names or known


def _try(name: str, url: str, shots: Path) -> Outcome:
    try:
        return try_out(url, shots) if name == _EXPLORER else run(name, f"{url}/mcp")
    except NotHereError as error:
        return Outcome(name, 0, 1, (str(error),))


@contextmanager
def _server(folder: Path) -> Iterator[str]:
    """Start the server on a free port, with its database in `folder`; yield its address, and stop it.

    Raises:
        RuntimeError: It has ended, or does not answer.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.conformance.server", str(port)]
    log = folder / "server.log"
    with log.open("wb") as file:
        environment = os.environ | {"PYTHONPATH": str(_ROOT)}
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=file)
    try:
        url = f"http://127.0.0.1:{port}"
        _await_health(process, url, log)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_health(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = monotonic() + _PATIENCE_SECONDS
    while process.poll() is None and monotonic() < deadline:
        try:
            if httpx.get(f"{url}/healthz", trust_env=False).is_success:
                return
        except httpx.HTTPError:
            sleep(0.1)
    raise RuntimeError(f"the server does not answer:\n{log.read_text(errors='replace')}")


def _show(outcomes: list[Outcome], shots: list[Path]) -> None:
    table = Table()
    for heading in ("scenario", "checks", "passes?", "why not"):
        table.add_column(heading)
    for outcome in outcomes:
        passes = "yes" if outcome.holds else "[bold red]no[/]"
        checks = f"{outcome.passed}/{outcome.checks}"
        table.add_row(outcome.scenario, checks, passes, escape("\n".join(outcome.problems)))
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(table)
    for shot in shots:
        console.print(f"Screenshot: {shot}", highlight=False, soft_wrap=True)


sys.exit(main())
