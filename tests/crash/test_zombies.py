"""An owner that lost its run finds that out, stops, and stores nothing any more."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path
from signal import SIGCONT, SIGSTOP

import psycopg

from tests.contract.raw_database import RawDatabase
from tests.crash.effects import LOOK_SECONDS
from tests.crash.processes import Crew, Worker, until

LATE = ["returning", "raising", "retrying", "calling", "submitting", "saving", "telling"]


def test_a_stopped_owner_is_fenced_when_it_wakes_up(crew: Crew) -> None:
    names = ["listening", "deaf", "patient"]
    zombie = crew.start("call_all", names, gate="never")
    crew.until_done(*(f"{name} waits" for name in names))
    stop_at_rest(crew, zombie)

    heir = crew.start("call_all", names)
    assert heir.finish() == {"outcomes": [1, 2, 3]}
    assert crew.rows("SELECT DISTINCT status, epoch FROM apflow_tasks WHERE epoch IS NOT NULL") == [("completed", 2)]
    assert [crew.done().count(f"mark {name}") for name in ("listening", "deaf")] == [1, 1]
    before = crew.everything()

    zombie.send(SIGCONT)
    assert zombie.finish() == {"outcomes": ["FencedError"] * 3}
    assert crew.everything() == before
    late = [one.what for one in crew.effects() if one.pid == zombie.pid and "cancelled" in one.what]
    assert sorted(late) == ["deaf cancelled", "listening cancelled", "patient cancelled"]
    refused = {"child refused: RunCancelledError", "submission refused: RunCancelledError"}
    assert refused | {"checkpoint refused: RunCancelledError"} <= set(crew.done())


def test_no_write_of_an_owner_that_cannot_renew_is_stored(crew: Crew) -> None:
    zombie = crew.start("call_all", LATE, gate="late", renews=False)
    crew.until_done(*(f"{name} waits" for name in LATE))

    assert crew.start("call_all", LATE).finish() == {"outcomes": [1, 2, 3, 4, 5, 6, 7]}
    before = crew.everything()

    crew.open("late")
    assert zombie.finish() == {"outcomes": ["FencedError"] * len(LATE)}
    assert crew.everything() == before
    refused = {f"{what} refused: FencedError" for what in ("child", "submission", "checkpoint", "progress")}
    assert refused <= set(crew.done())
    assert [crew.done().count(f"{name} waits") for name in LATE] == [2] * len(LATE)


def stop_at_rest(crew: Crew, worker: Worker) -> None:
    """Stop a process, but not in the middle of a write: nobody else could write until it goes on."""
    while True:
        worker.send(SIGSTOP)
        until(lambda: state(worker.pid) == "T", "the process stands still")
        if can_write(crew):
            return
        worker.send(SIGCONT)
        time.sleep(LOOK_SECONDS)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def can_write(crew: Crew) -> bool:
    database = RawDatabase(crew.url)
    with contextlib.closing(database.connection) as connection:
        try:
            if database.dialect == "sqlite":
                connection.execute("PRAGMA busy_timeout=0")
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
            else:
                connection.execute("SELECT * FROM apflow_tasks FOR UPDATE NOWAIT")
        except (sqlite3.OperationalError, psycopg.errors.LockNotAvailable):
            return False
    return True
