"""The floor: the commits that a durable run cannot do without, in the raw `sqlite3` module.

Usage: `python -m tests.benchmarks.floor_side DATABASE_FILE NORMAL|FULL`
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import uuid
from datetime import UTC, datetime

from .timing import Samples, plain_one_by_one
from .worker import Scenario, serve, take_standard_output

_TABLE = "CREATE TABLE run (id TEXT PRIMARY KEY, name TEXT, status TEXT, inputs TEXT, result TEXT, at TEXT)"
_INSERT = "INSERT INTO run VALUES (?, ?, ?, ?, ?, ?)"
_UPDATE = "UPDATE run SET status = ?, result = ?, at = ? WHERE id = ?"


class Floor:
    """A WAL database with one plain table, written one committed statement at a time."""

    def __init__(self, path: str, synchronous: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute(f"PRAGMA synchronous = {synchronous}")
        self._connection.execute(_TABLE)

    def root(self, count: int) -> Samples:
        """Insert a row when a run starts and update it when it ends: two commits each."""
        return plain_one_by_one(self._start_and_finish, count)

    def child(self, count: int) -> Samples:
        """Insert finished rows: one commit each."""
        return plain_one_by_one(self._insert_finished, count)

    def _start_and_finish(self, n: int) -> None:
        run_id = str(uuid.uuid4())
        self._commit(_INSERT, (run_id, "noop", "in_progress", json.dumps({"n": n}), None, _now()))
        self._commit(_UPDATE, ("completed", json.dumps(n), _now(), run_id))

    def _insert_finished(self, n: int) -> None:
        run_id = str(uuid.uuid4())
        self._commit(_INSERT, (run_id, "noop", "completed", json.dumps({"n": n}), json.dumps(n), _now()))

    def _commit(self, statement: str, values: tuple[str | None, ...]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute(statement, values)
        self._connection.execute("COMMIT")


def _now() -> str:
    return datetime.now(UTC).isoformat()


if __name__ == "__main__":
    floor = Floor(sys.argv[1], sys.argv[2])
    scenarios: dict[str, Scenario] = {"root": floor.root, "sync_root": floor.root, "child": floor.child}
    asyncio.run(serve(scenarios, take_standard_output()))
