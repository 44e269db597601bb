"""The floor of a reservation: its two commits on the tables of the ledger, in the raw `sqlite3` module.

Usage: `python -m tests.benchmarks.ledger_floor_side DATABASE_URL`
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import uuid
from datetime import UTC, datetime

from apflow.storage.schema import ensure_schema
from apflow.storage.sqlite_connection import connect, parse_url

from .timing import Samples, plain_one_by_one
from .worker import serve, take_standard_output

# apflow empties the log by itself and waits in its own way; here SQLite does both.
_PRAGMAS = ("PRAGMA wal_autocheckpoint = 1000", "PRAGMA busy_timeout = 60000")
_ACCOUNT = "hot"

_OPEN = """
INSERT INTO apflow_budget_accounts
  (id, name, per, scope_id, unit, tz, hard_limit, settled, reserved, overrun, overridden, created_at)
VALUES (?, 'hot', 'global', '', 'tokens', 'UTC', 2000000000, 0, 0, 0, 0, ?) ON CONFLICT (id) DO NOTHING"""

_RESERVE = """
UPDATE apflow_budget_accounts SET reserved = reserved + ?
WHERE id = ? AND settled + reserved + ? <= hard_limit AND overrun = 0"""

_HOLD = """
INSERT INTO apflow_budget_holds (id, hold_id, account_id, run_id, owned_id, epoch, granted, amount, created_at)
VALUES (?, ?, ?, ?, ?, 1, ?, ?, ?)"""

_END = "DELETE FROM apflow_budget_holds WHERE id = ?"
_RELEASE = "UPDATE apflow_budget_accounts SET reserved = reserved - ? WHERE id = ?"


class LedgerFloor:
    """A database with apflow's settings (WAL, synchronous=NORMAL) and schema; several processes may have it open."""

    def __init__(self, url: str) -> None:
        self._connection = connect(parse_url(url), "normal")
        for pragma in _PRAGMAS:
            self._connection.execute(pragma)
        ensure_schema(self._connection, "sqlite")
        self._connection.execute(_OPEN, (_ACCOUNT, _now()))
        self._run_id = str(uuid.uuid4())

    def reserve(self, count: int) -> Samples:
        """Hold 1 token and give it back: two commits each."""
        return plain_one_by_one(self._hold_and_release, count)

    def _hold_and_release(self, _: int) -> None:
        hold_id, run_id = uuid.uuid4().hex, self._run_id
        row_id = f"{hold_id}:0"
        self._execute("BEGIN IMMEDIATE")
        if self._execute(_RESERVE, (1, _ACCOUNT, 1)).rowcount == 1:
            self._execute(_HOLD, (row_id, hold_id, _ACCOUNT, run_id, run_id, 1, 1, _now()))
        self._execute("COMMIT")
        self._execute("BEGIN IMMEDIATE")
        self._execute(_END, (row_id,))
        self._execute(_RELEASE, (1, _ACCOUNT))
        self._execute("COMMIT")

    def _execute(self, statement: str, values: tuple[str | int, ...] = ()) -> sqlite3.Cursor:
        return self._connection.execute(statement, values)


def _now() -> str:
    return datetime.now(UTC).isoformat()


if __name__ == "__main__":
    floor = LedgerFloor(sys.argv[1])
    asyncio.run(serve({"reserve": floor.reserve, "reserve_100": floor.reserve}, take_standard_output()))
