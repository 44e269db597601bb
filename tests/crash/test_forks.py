"""A forked child of a process with a live runtime: a process of its own, that leaves its parent alone."""

from __future__ import annotations

import json

from tests.crash.processes import Crew

OWNERS = "SELECT DISTINCT owner FROM apflow_tasks WHERE epoch IS NOT NULL"


def test_forks_inside_runs(crew: Crew) -> None:
    worker = crew.start("fork_inside", gate="later")
    crew.until_done("forks done")
    crew.open("later")
    assert worker.finish() == {"result": f"beside the forks by {worker.pid}"}
    check_forks(crew, worker.pid, "bare fork", "library fork", "fork of a plain task")
    assert {"bare fork ends with 0", "library fork ends with 0", "fork of a plain task ends with 0"} <= set(crew.done())


def test_forks_that_leave_as_programs_do(crew: Crew) -> None:
    worker = crew.start("fork_outside", gate="later")
    crew.until_done("forks done")
    assert worker.told() == [{"statuses": [0, 0]}]
    crew.open("later")
    assert worker.finish() == {"result": f"beside the forks by {worker.pid}"}
    check_forks(crew, worker.pid, "left fork", "right fork")


def test_what_a_fork_stores_stays_when_its_parent_leaves(crew: Crew) -> None:
    # By the books that it inherits from SQLite, the child would hold its parent's locks and take none of its own.
    assert crew.start("outlive").finish() == {"status": 0}
    names = ("the parent", "the child, beside its parent", "the parent again", "the child, alone")
    stored = {json.dumps(name) for name in names}
    query = "SELECT CAST(result AS TEXT) FROM apflow_tasks WHERE status = 'completed'"
    assert {result for (result,) in crew.rows(query)} == stored
    crew.check_sound()


def test_no_fork_finds_sqlite_locked(sqlite_crew: Crew) -> None:
    # Without precautions every third of these children waits for ever for a mutex of SQLite.
    assert sqlite_crew.start("fork_often", 30).finish() == {"forked": 30}


def check_forks(crew: Crew, parent: int, *names: str) -> None:
    lines = crew.effects()
    for name in names:
        (pid,) = {one.pid for one in lines if one.what == f"{name} is outside"}
        assert pid != parent
        marks = [one for one in lines if one.what.startswith(f"mark {name}, ")]
        assert sorted(marks) == [(pid, f"mark {name}, {how}") for how in ("async", "plain", "submitted")]
    assert crew.rows("SELECT DISTINCT status, COALESCE(epoch, 1) FROM apflow_tasks") == [("completed", 1)]
    pids = {int(owner.rsplit(":", 4)[2]) for (owner,) in crew.rows(OWNERS)}
    assert pids == {one.pid for one in lines}
    crew.check_sound()
