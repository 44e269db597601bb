"""PostgreSQL connections through psycopg 3: how they are made, used, renewed, and errors in apflow's words."""

from __future__ import annotations

import contextlib
import functools
import random
import re
import time
from typing import TYPE_CHECKING, Any, TypeVar

from apflow.errors import (
    MissingExtraError,
    StorageBusyError,
    StorageError,
    StorageFullError,
    StorageReadOnlyError,
    StorageUnavailableError,
)

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
    from psycopg.types.string import TextLoader
except ImportError as error:
    raise MissingExtraError("psycopg", "postgres") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from apflow.storage.store import Dialect, Durability, Row, Tx

T = TypeVar("T")

NOTHING: Mapping[str, Any] = {}

#: So that a server that vanished without a word is noticed; seconds, and milliseconds for the last.
DEFAULTS = {
    "fallback_application_name": "apflow",
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}


@functools.lru_cache(maxsize=512)
def converted(sql: str) -> str:
    """Return `sql` with psycopg's `%(name)s` where it has `:name`."""
    return re.sub(r"(?<![:\w]):([a-z_]\w*)", r"%(\1)s", sql.replace("%", "%%"))


def conninfo(url: str) -> str:
    """Return the URL with `DEFAULTS` for what it leaves open.

    Raises:
        ValueError: It is not a libpq URI.
    """
    try:
        given = conninfo_to_dict(re.sub(r"^(?:postgresql\+psycopg|postgres)://", "postgresql://", url))
    except psycopg.Error:
        raise ValueError("not a PostgreSQL URL; write postgresql://user@host:5432/name") from None
    merged: dict[str, Any] = {**DEFAULTS, **given}
    return make_conninfo("", **merged)


def make_schema(info: str) -> None:
    """Make the tables, or upgrade them."""
    from apflow.storage.schema import ensure_schema

    try:
        with psycopg.connect(info, autocommit=True) as conn:
            ensure_schema(conn, "postgresql")
    except psycopg.Error as error:
        raise translated(error) from error


class PostgresTx:
    """A transaction on one connection. See `Tx`."""

    __slots__ = ("_cursor",)
    dialect: Dialect = "postgresql"

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._cursor = conn.cursor()

    def execute(self, sql: str, params: Mapping[str, Any] = NOTHING) -> int:
        return self._cursor.execute(converted(sql), params).rowcount

    def rows(self, sql: str, params: Mapping[str, Any] = NOTHING) -> list[Row]:
        return self._cursor.execute(converted(sql), params).fetchall()

    def row(self, sql: str, params: Mapping[str, Any] = NOTHING) -> Row | None:
        row: Row | None = self._cursor.execute(converted(sql), params).fetchone()
        return row


class Session:
    """One connection after the other, for one thread at a time: a new one is made when the old one broke.

    Args:
        info: What `conninfo` returns.
        durability: With `"full"` the server flushes every commit.
        wait_seconds: For how long a transaction is tried again, or waits for a lock.
    """

    def __init__(self, info: str, durability: Durability, wait_seconds: float) -> None:
        self._info = info
        self._durability = durability
        self._wait_seconds = wait_seconds
        self._conn: psycopg.Connection[Any] | None = None
        self._tx: PostgresTx | None = None

    def run(self, fn: Callable[[Tx], T], *, single: bool, since: float) -> T:
        """Run one transaction, again when the connection broke or a deadlock chose it.

        Args:
            fn: What to run.
            single: It is one statement, which is a transaction of its own.
            since: When the waiting began, as `time.monotonic()`.

        Raises:
            StorageError: It was refused, or the server could not be reached for long.
        """
        pause = 0.0
        while True:
            try:
                return self._once(fn, single=single)
            except psycopg.Error as error:
                if not _passing(error) or time.monotonic() > since + self._wait_seconds:
                    raise translated(error) from error
            # An idle connection that broke tells nothing about the server, so the first try follows at once.
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(pause * 2, 1.0) or 0.05

    def _connect(self) -> psycopg.Connection[Any]:
        conn = psycopg.connect(self._info, autocommit=True)
        try:
            conn.prepare_threshold = 2
            conn.adapters.register_loader("json", TextLoader)
            conn.adapters.register_loader("jsonb", TextLoader)
            conn.execute(f"SET lock_timeout = {int(self._wait_seconds * 1000)}".encode())
            if self._durability == "full":
                conn.execute("SET synchronous_commit = on")
        except BaseException:
            conn.close()
            raise
        return conn

    def _once(self, fn: Callable[[Tx], T], *, single: bool) -> T:
        if self._conn is None or self._tx is None:
            self._conn = self._connect()
            self._tx = PostgresTx(self._conn)
        conn, tx = self._conn, self._tx
        try:
            if single:
                return fn(tx)
            conn.execute("BEGIN", prepare=False)
            result = fn(tx)
            _commit(conn)
        except BaseException:
            self._recover(conn)
            raise
        return result

    def _recover(self, conn: psycopg.Connection[Any]) -> None:
        """Leave the transaction; a connection on which that fails is given up."""
        with contextlib.suppress(psycopg.Error):
            conn.rollback()
            if not conn.broken and not conn.closed:
                return
        self.close()

    def close(self) -> None:
        """Close the connection. The next transaction makes another one."""
        conn, self._conn, self._tx = self._conn, None, None
        if conn is not None:
            conn.close()


def _commit(conn: psycopg.Connection[Any]) -> None:
    """Commit. PostgreSQL answers ROLLBACK, and no error, when a statement failed and `fn` went on."""
    if conn.execute("COMMIT", prepare=False).statusmessage != "COMMIT":
        raise StorageError("PostgreSQL: a statement of the transaction had failed; nothing was stored")


def _passing(error: psycopg.Error) -> bool:
    """Whether another try on another connection could succeed."""
    if isinstance(error, psycopg.errors.DeadlockDetected | psycopg.errors.SerializationFailure):
        return True
    if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return False
    state = error.sqlstate
    # Class 08: connection; 57P0x: the server is stopping or starting; None: the socket broke.
    return state is None or state.startswith("08") or state in {"57P01", "57P02", "57P03"}


def translated(error: psycopg.Error) -> StorageError:
    """Return the apflow error that says what happened and what to do; stored values stay out of it."""
    state = error.sqlstate or ""
    if state.startswith("53"):
        return StorageFullError(f"the PostgreSQL server is out of resources ({state}); nothing was stored")
    if state == "25006":
        return StorageReadOnlyError("the PostgreSQL server is read-only (a standby?); connect to the primary")
    if state == "55P03":
        return StorageBusyError("a row is locked by somebody else; find the transaction that is open for so long")
    if state in {"42501", "28000", "28P01"}:
        return StorageError(f"the PostgreSQL server refused the user ({state}); check its password and rights")
    if _passing(error):
        refused = str(error).rpartition("FATAL:")[2].strip()
        return StorageUnavailableError(f"the PostgreSQL server cannot be used: {refused}")
    return StorageError(f"PostgreSQL: {error.diag.message_primary or error}")
