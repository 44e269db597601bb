"""The processes that the bench asks: they answer, or say in one line why not."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.benchmarks.door_rows import DOOR_EXPERIMENTS
from tests.benchmarks.graph_rows import SHAPES, graph_experiments
from tests.benchmarks.line_up import line_up
from tests.benchmarks.rows import EXPERIMENTS
from tests.benchmarks.sides import Crew, NotMeasuredError, Program, Worker

if TYPE_CHECKING:
    from pathlib import Path


def rows(path: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


@pytest.mark.parametrize("scenario", ["root", "child"])
def test_the_floor_answers_again_and_again(tmp_path: Path, scenario: str) -> None:
    floor = Worker(sys.executable, "floor_side", str(tmp_path / "f.db"), "NORMAL", log=tmp_path / "log")
    with closing(floor):
        for _ in range(2):
            sample = floor.measure(scenario, 3)
            assert 0 < sample.median < 10
            assert 0 < sample.mean < 10


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    floor = Worker(sys.executable, "floor_side", str(tmp_path / "no" / "f.db"), "NORMAL", log=tmp_path / "log")
    with closing(floor), pytest.raises(NotMeasuredError, match="unable to open database file"):
        floor.measure("root", 1)


def test_a_program_is_timed_until_its_first_line() -> None:
    script = "import time; print('done', flush=True); time.sleep(60)"
    assert Program(sys.executable, lambda: ["-c", script]).measure("first", 1).median < 30


def test_a_program_that_fails_says_why() -> None:
    with pytest.raises(NotMeasuredError, match="ZeroDivisionError"):
        Program(sys.executable, lambda: ["-c", "1 / 0"]).measure("first", 1)


def test_governed_runs_are_governed(tmp_path: Path) -> None:
    path = tmp_path / "g.db"
    side = Worker(sys.executable, "governed_side", f"sqlite:///{path}", "used", log=tmp_path / "log")
    with closing(side):
        for scenario in ("root", "reserve", "reserve_100"):
            assert side.measure(scenario, 3).median > 0
    used = rows(
        path, "SELECT per, sum(settled) FROM apflow_budget_accounts WHERE name = 'spend' GROUP BY per ORDER BY per"
    )
    assert used == [("global", 30), ("run", 30), ("user", 30)]
    assert rows(path, "SELECT sum(reserved), sum(overrun) FROM apflow_budget_accounts") == [(0, 0)]
    assert rows(path, "SELECT count(*) FROM apflow_budget_holds") == [(0,)]


def test_a_crew_works_on_one_account(tmp_path: Path) -> None:
    path = tmp_path / "f.db"
    crew = Crew(
        [Worker(sys.executable, "ledger_floor_side", f"sqlite:///{path}", log=tmp_path / f"log-{n}") for n in range(2)]
    )
    with closing(crew):
        for _ in range(2):
            assert crew.measure("reserve", 5).median > 0
    assert rows(path, "SELECT reserved, settled FROM apflow_budget_accounts") == [(0, 0)]
    assert rows(path, "SELECT count(*) FROM apflow_budget_holds") == [(0,)]


def test_graphs_are_measured_in_all_their_parts(database_url: str, tmp_path: Path) -> None:
    target = database_url if database_url.startswith("postgres") else str(tmp_path)
    side = Worker(sys.executable, "graph_side", target, log=tmp_path / "log")
    clocks = {f"{what}_{clock}" for what in ("create", "execute", "root") for clock in ("cpu", "wall")}
    with closing(side):
        for shape in SHAPES:
            sample = side.measure(shape, 250)
            assert set(sample.parts) == clocks
            assert all(0 < seconds < 10 for seconds in sample.parts.values())
        assert set(side.measure("chain_memory", 5).parts) == {"create", "execute", "kept"}


@pytest.mark.parametrize("scenario", ["sleepers", "plain_sleepers"])
def test_sleeping_nodes_are_measured_against_their_longest_path(tmp_path: Path, scenario: str) -> None:
    side = Worker(sys.executable, "graph_side", str(tmp_path), log=tmp_path / "log")
    with closing(side):
        sample = side.measure(scenario, 3)
    assert min(sample.median, sample.parts["longest"]) > 0.59


@pytest.mark.parametrize(
    ("module", "program", "scenarios"),
    [
        ("mcp_side", ("serve_apflow", "plain"), ("call", "calls")),
        ("mcp_side", ("serve_apflow", "budget"), ("call",)),
        ("mcp_side", ("serve_fastmcp",), ("call",)),
        ("a2a_side", ("serve_apflow", "plain"), ("send",)),
        ("a2a_side", ("serve_a2a",), ("send",)),
    ],
)
def test_calls_from_outside_are_measured(
    tmp_path: Path, module: str, program: tuple[str, ...], scenarios: tuple[str, ...]
) -> None:
    name, *kind = program
    arguments = (name, f"sqlite:///{tmp_path}/d.db", *kind) if kind else program
    side = Worker(sys.executable, module, *arguments, log=tmp_path / "log")
    with closing(side):
        for scenario in scenarios:
            assert 0 < side.measure(scenario, 3).median < 60
    if kind:
        assert rows(tmp_path / "d.db", "SELECT DISTINCT name, status FROM apflow_tasks") == [("echo", "completed")]


def test_everybody_in_an_experiment_takes_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APFLOW_TEST_POSTGRES_URL", "postgresql://127.0.0.1:1/nobody")
    with line_up(tmp_path, None) as sides:
        full, quick = graph_experiments(quick=False), graph_experiments(quick=True)
        for experiment in (*EXPERIMENTS.values(), *DOOR_EXPERIMENTS.values(), *full.values(), *quick.values()):
            assert set(experiment.counts) <= set(sides)
        with pytest.raises(NotMeasuredError, match="no PostgreSQL server"):
            sides["global-pg"].measure("root", 1)
