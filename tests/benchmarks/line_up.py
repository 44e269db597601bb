"""Who takes part: every side by the name that the rows use."""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing, contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from .graph_rows import POSTGRES_SIZES, SIZES
from .graph_rows import side as graph_side
from .postgres import databases
from .sides import Crew, Missing, NotMeasuredError, Program, Side, Worker

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PROGRAMS = Path(__file__).parent / "programs"
_NO_DBOS = "DBOS could not be installed"
_GRAPHS_ON_POSTGRES = tuple(graph_side(nodes, postgres=True) for nodes in POSTGRES_SIZES)
_ON_POSTGRES = ("apflow-pg", "dbos-pg", "ungoverned-pg", "global-pg", *_GRAPHS_ON_POSTGRES)
_CREW = 4


@contextmanager
def line_up(folder: Path, dbos_python: str | None) -> Iterator[Mapping[str, Side]]:
    """Yield all sides, with their databases in `folder`; end their processes, then PostgreSQL, afterwards.

    Arguments:
        folder: An empty directory.
        dbos_python: The interpreter that has DBOS; None where it could not be installed.
    """
    with ExitStack() as stack:
        try:
            urls = stack.enter_context(databases(folder / "postgres", len(_ON_POSTGRES)))
        except NotMeasuredError as error:
            on_postgres: dict[str, Side] = dict.fromkeys(_ON_POSTGRES, Missing(str(error)))
        else:
            on_postgres = _on_postgres(folder, dict(zip(_ON_POSTGRES, urls, strict=True)), dbos_python)
        sides = _on_files(folder, dbos_python) | _budgets(folder) | _graphs(folder) | _doors(folder) | on_postgres
        for side in sides.values():
            stack.enter_context(closing(side))
        yield sides


def _on_files(folder: Path, dbos_python: str | None) -> dict[str, Side]:
    return {
        "floor": _floor(folder, "NORMAL"),
        "floor-full": _floor(folder, "FULL"),
        "apflow": _apflow(folder, "normal", _file_url(folder, "apflow-normal")),
        "apflow-full": _apflow(folder, "full", _file_url(folder, "apflow-full"), durability="full"),
        "apflow-first": _first_result(folder, "apflow", sys.executable),
        "dbos": _dbos(folder, "file", _file_url(folder, "dbos"), dbos_python),
        "dbos-first": _first_result(folder, "dbos", dbos_python),
        "import": Program(sys.executable, lambda: [str(_PROGRAMS / "import_apflow.py")]),
        "bare": Program(sys.executable, lambda: ["-c", "pass"]),
    }


def _budgets(folder: Path) -> dict[str, Side]:
    hot, floor = (_file_url(folder, name) for name in ("hot-4", "hot-floor-4"))
    return {
        "ungoverned": _governed(folder, "nothing"),
        "run": _governed(folder, "run"),
        "global": _governed(folder, "global"),
        "three": _governed(folder, "three"),
        "three-used": _governed(folder, "used"),
        "hot": _governed(folder, "nothing", name="hot"),
        "hot-floor": _ledger_floor(folder, "hot-floor"),
        "hot-4": Crew([_governed(folder, "nothing", name=f"hot-4-{n}", url=hot) for n in range(_CREW)]),
        "hot-floor-4": Crew([_ledger_floor(folder, f"hot-floor-4-{n}", url=floor) for n in range(_CREW)]),
    }


def _graphs(folder: Path) -> dict[str, Side]:
    sizes = {nodes for sizes in SIZES for nodes in sizes}
    return {graph_side(nodes): _graph(folder, graph_side(nodes), str(folder)) for nodes in sorted(sizes)}


def _doors(folder: Path) -> dict[str, Side]:
    return {
        "mcp": _door(folder, "mcp_side", "mcp", "plain"),
        "mcp-budget": _door(folder, "mcp_side", "mcp-budget", "budget"),
        "a2a": _door(folder, "a2a_side", "a2a", "plain"),
        "fastmcp": Worker(sys.executable, "mcp_side", "serve_fastmcp", log=folder / "fastmcp.log"),
        "a2a-sdk": Worker(sys.executable, "a2a_side", "serve_a2a", log=folder / "a2a-sdk.log"),
    }


def _on_postgres(folder: Path, urls: Mapping[str, str], dbos_python: str | None) -> dict[str, Side]:
    return {
        "apflow-pg": _apflow(folder, "pg", urls["apflow-pg"]),
        "dbos-pg": _dbos(folder, "pg", urls["dbos-pg"], dbos_python),
        "ungoverned-pg": _governed(folder, "nothing", name="ungoverned-pg", url=urls["ungoverned-pg"]),
        "global-pg": _governed(folder, "global", name="global-pg", url=urls["global-pg"]),
        **{name: _graph(folder, name, urls[name]) for name in _GRAPHS_ON_POSTGRES},
    }


def _floor(folder: Path, synchronous: str) -> Side:
    path = folder / f"floor-{synchronous}.db"
    return Worker(sys.executable, "floor_side", str(path), synchronous, log=path.with_suffix(".log"))


def _apflow(folder: Path, name: str, url: str, *, durability: str = "normal") -> Side:
    return Worker(sys.executable, "apflow_side", url, durability, log=folder / f"apflow-{name}.log")


def _governed(folder: Path, budgets: str, *, name: str = "", url: str = "") -> Worker:
    name = name or f"governed-{budgets}"
    url = url or _file_url(folder, name)
    return Worker(sys.executable, "governed_side", url, budgets, log=folder / f"{name}.log")


def _door(folder: Path, module: str, name: str, kind: str) -> Side:
    url = _file_url(folder, name)
    return Worker(sys.executable, module, "serve_apflow", url, kind, log=folder / f"{name}.log")


def _graph(folder: Path, name: str, target: str) -> Side:
    return Worker(sys.executable, "graph_side", target, log=folder / f"{name}.log")


def _ledger_floor(folder: Path, name: str, *, url: str = "") -> Worker:
    return Worker(sys.executable, "ledger_floor_side", url or _file_url(folder, name), log=folder / f"{name}.log")


def _dbos(folder: Path, name: str, url: str, python: str | None) -> Side:
    return Worker(python, "dbos_side", url, log=folder / f"dbos-{name}.log") if python else Missing(_NO_DBOS)


def _first_result(folder: Path, name: str, python: str | None) -> Side:
    if python is None:
        return Missing(_NO_DBOS)
    number = count()
    script = str(_PROGRAMS / f"first_result_{name}.py")
    return Program(python, lambda: [script, _file_url(folder, f"first-{name}-{next(number)}")])


def _file_url(folder: Path, name: str) -> str:
    return f"sqlite:///{folder / name}.db"
