"""SQLite connections: URLs, pragmas, and errors in apflow's words."""

from __future__ import annotations

import re
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apflow.errors import (
    StorageBusyError,
    StorageError,
    StorageFullError,
    StorageReadOnlyError,
    StorageUnavailableError,
)
from apflow.storage.store import WAIT_SECONDS

if TYPE_CHECKING:
    import queue
    from collections.abc import Mapping

    from apflow.storage.store import Dialect, Durability, Row

BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
NOTHING: Mapping[str, Any] = {}

#: How large the write-ahead log may be before it is emptied, whatever the number of commits.
WAL_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class Target:
    """Where a `sqlite://` URL points: what to give to `sqlite3.connect`, and how to name it to a person."""

    path: str
    uri: bool
    memory: bool

    @property
    def shown(self) -> str:
        return "the in-memory database" if self.memory else f"the database file {self.path}"


def parse_url(url: str) -> Target:
    """Read a URL of one of the three forms.

    `sqlite:///:memory:`, `sqlite:///file:NAME?mode=memory&cache=shared&uri=true` and `sqlite:///path` (four
    slashes for an absolute path).

    Raises:
        ValueError: It is none of them.
    """
    found = re.fullmatch(r"sqlite(?:\+pysqlite)?://(?:/(.*))?", url, re.DOTALL)
    if found is None:
        raise ValueError(f"not a SQLite URL: {url!r}; write sqlite:///path/to/file.db or sqlite:///:memory:")
    path = found.group(1) or ":memory:"
    if path == ":memory:":
        return Target(path, uri=False, memory=True)
    if path.startswith("file:"):
        path = re.sub(r"[?&]uri=true\b", lambda part: part.group()[0] if part.group()[0] == "?" else "", path)
        return Target(path.replace("?&", "?").rstrip("?"), uri=True, memory="mode=memory" in path)
    return Target(str(Path(path).expanduser().absolute()), uri=False, memory=False)


class SQLiteTx:
    """A transaction on one connection. See `Tx`."""

    __slots__ = ("_execute",)
    dialect: Dialect = "sqlite"

    def __init__(self, conn: sqlite3.Connection) -> None:
        self._execute = conn.execute

    def execute(self, sql: str, params: Mapping[str, Any] = NOTHING) -> int:
        return self._execute(sql, params).rowcount

    def rows(self, sql: str, params: Mapping[str, Any] = NOTHING) -> list[Row]:
        return self._execute(sql, params).fetchall()

    def row(self, sql: str, params: Mapping[str, Any] = NOTHING) -> Row | None:
        row: Row | None = self._execute(sql, params).fetchone()
        return row


def connect(target: Target, durability: Durability) -> sqlite3.Connection:
    """Open a connection in autocommit mode with the pragmas set.

    Raises:
        StorageError: It cannot be opened, or not be written.
    """
    try:
        conn = sqlite3.connect(
            target.path,
            timeout=5.0,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
            uri=target.uri,
        )
    except sqlite3.Error as error:
        raise translated(error, target) from error
    try:
        _prepare(conn, durability)
    except sqlite3.Error as error:
        conn.close()
        raise translated(error, target) from error
    return conn


def connect_impatient(target: Target, durability: Durability) -> sqlite3.Connection:
    """Do what `connect` does; the connection never waits for a lock that somebody else holds."""
    conn = connect(target, durability)
    conn.execute("PRAGMA busy_timeout=0")
    return conn


def _prepare(conn: sqlite3.Connection, durability: Durability) -> None:
    from apflow.storage.sqlite import SQLiteDialect

    for pragma in SQLiteDialect.get_pragma_statements():
        _set(conn, pragma)
    if durability == "full":
        conn.execute("PRAGMA synchronous=FULL")
    conn.execute("PRAGMA wal_autocheckpoint=0")
    conn.execute(f"PRAGMA journal_size_limit={WAL_BYTES}")


def _set(conn: sqlite3.Connection, pragma: str) -> None:
    """Set one pragma; changing to WAL asks for a lock that ignores the busy timeout, so it is tried again."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            conn.execute(pragma)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.025)
        else:
            return


def make_schema(conn: sqlite3.Connection, target: Target) -> None:
    """Make the tables, or upgrade them."""
    from apflow.storage.schema import ensure_schema

    try:
        ensure_schema(conn, "sqlite")
    except sqlite3.Error as error:
        raise translated(error, target) from error


def wal_path(conn: sqlite3.Connection, target: Target) -> Path | None:
    """Return where the write-ahead log of the database is; None for a database in memory."""
    file = conn.execute("PRAGMA database_list").fetchone()[2]
    return None if target.memory or not file else Path(f"{file}-wal")


def size(path: Path) -> int:
    """Return the bytes of a file; 0 when there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def drain(connections: queue.SimpleQueue[sqlite3.Connection]) -> list[sqlite3.Connection]:
    """Take all out of the queue."""
    drained = []
    while not connections.empty():
        drained.append(connections.get_nowait())
    return drained


def locked(target: Target, seconds: float) -> StorageBusyError:
    """Return the error of somebody who has waited this long for a lock."""
    return StorageBusyError(
        f"{target.shown} has been locked by somebody else for {seconds:g} s; "
        "find the process that holds a write transaction open"
    )


def translated(error: sqlite3.Error, target: Target) -> StorageError:
    """Return the apflow error that says what happened, where, and what to do."""
    where = target.shown
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in BUSY:
        return StorageBusyError(f"{where} is locked by somebody else; find who holds a write transaction open")
    if code == sqlite3.SQLITE_READONLY:
        return StorageReadOnlyError(f"{where} is read-only; check the permissions of the file and its folder")
    if code == sqlite3.SQLITE_FULL:
        return StorageFullError(f"no space left for {where}; nothing was stored. Free some and resume the run")
    if code == sqlite3.SQLITE_CANTOPEN:
        return StorageUnavailableError(f"{where} cannot be opened; check that its folder exists and is writable")
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return StorageError(f"{where} is not a sound SQLite database: {error}")
    if code == sqlite3.SQLITE_IOERR:
        return StorageUnavailableError(f"{where} failed to read or write: {error}")
    return StorageError(f"{where}: {error}")
