"""PostgreSQL through psycopg 3: a pool for transactions, one more connection to listen for ended runs."""

from __future__ import annotations

import asyncio
import functools
import random
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from apflow.errors import (
    MissingExtraError,
    StorageError,
    StorageFullError,
    StorageReadOnlyError,
    StorageUnavailableError,
)
from apflow.storage.outlive import outlive
from apflow.storage.store import WAIT_SECONDS

try:
    import psycopg
    import psycopg_pool
    from psycopg.types.string import TextLoader
except ImportError as error:
    raise MissingExtraError("psycopg", "postgres") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from apflow.clock import Clock
    from apflow.storage.store import Dialect, Durability, Row, Tx

T = TypeVar("T")

CONNECTIONS = 8
CHANNEL = "apflow_runs"
NOTHING: Mapping[str, Any] = {}


@functools.lru_cache(maxsize=512)
def converted(sql: str) -> str:
    """Return `sql` with psycopg's `%(name)s` where it has `:name`."""
    return re.sub(r"(?<![:\w]):([a-z_]\w*)", r"%(\1)s", sql.replace("%", "%%"))


class PostgresTx:
    """A transaction on one connection. See `Tx`."""

    __slots__ = ("conn",)
    dialect: Dialect = "postgresql"

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self.conn = conn

    def execute(self, sql: str, params: Mapping[str, Any] = NOTHING) -> int:
        return self.conn.execute(converted(sql), params).rowcount

    def rows(self, sql: str, params: Mapping[str, Any] = NOTHING) -> list[Row]:
        return self.conn.execute(converted(sql), params).fetchall()

    def row(self, sql: str, params: Mapping[str, Any] = NOTHING) -> Row | None:
        row: Row | None = self.conn.execute(converted(sql), params).fetchone()
        return row


class PostgresStore:
    """A PostgreSQL database. See `Store` for what its methods do.

    Leases use the database's clock, unless the runtime was given a clock of its own.
    """

    dialect: Dialect = "postgresql"

    def __init__(
        self, url: str, *, clock: Clock, durability: Durability = "normal", database_clock: bool = True
    ) -> None:
        self.url = re.sub(r"^(?:postgresql\+psycopg|postgres)://", "postgresql://", url)
        self.clock = clock
        self.database_clock = database_clock
        self._durability = durability
        self._start_empty()

    def _start_empty(self) -> None:
        self._opening = threading.Lock()
        self._pool: psycopg_pool.ConnectionPool[psycopg.Connection[Any]] | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._listener: _Listener | None = None
        self._closed = False

    def forget_after_fork(self) -> None:
        """Start again without the parent's connections, which stay open but are never used or closed here."""
        _inherited.append((self._pool, self._threads, self._listener))
        self._start_empty()

    async def open(self) -> None:
        if self._pool is None:
            await asyncio.get_running_loop().run_in_executor(None, self.open_blocking)

    def open_blocking(self) -> None:
        """Open on the calling thread."""
        with self._opening:
            if self._closed:
                raise StorageError("this store was closed")
            if self._pool is not None:
                return
            self._make_schema()
            # One connection is kept free of queued work for lease renewals.
            pool = psycopg_pool.ConnectionPool(
                self.url,
                min_size=1,
                max_size=CONNECTIONS + 1,
                open=False,
                configure=self._configure,
                timeout=5.0,
                name="apflow",
            )
            pool.open()
            self._threads = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="apflow-postgres")
            self._pool = pool

    def _make_schema(self) -> None:
        from apflow.storage.schema import ensure_schema

        try:
            with psycopg.connect(self.url, autocommit=True, connect_timeout=10) as conn:
                ensure_schema(conn, "postgresql")
        except psycopg.Error as error:
            raise _translated(error) from error

    def _configure(self, conn: psycopg.Connection[Any]) -> None:
        conn.autocommit = True
        conn.prepare_threshold = 2
        conn.adapters.register_loader("json", TextLoader)
        conn.adapters.register_loader("jsonb", TextLoader)
        if self._durability == "full":
            conn.execute("SET synchronous_commit = on")

    # -- transactions ----------------------------------------------------------------------------------------

    async def write(self, fn: Callable[[Tx], T], *, single: bool = False) -> T:
        if self._threads is None:
            await self.open()
        return await outlive(asyncio.get_running_loop().run_in_executor(self._executor(), self._run, fn, single))

    async def read(self, fn: Callable[[Tx], T]) -> T:
        return await self.write(fn)

    def write_blocking(self, fn: Callable[[Tx], T]) -> T:
        if self._pool is None:
            self.open_blocking()
        return self._run(fn, single=False)

    def read_blocking(self, fn: Callable[[Tx], T]) -> T:
        return self.write_blocking(fn)

    def _executor(self) -> ThreadPoolExecutor:
        if self._threads is None:
            raise StorageError("this store was closed")
        return self._threads

    def _run(self, fn: Callable[[Tx], T], single: bool) -> T:  # noqa: FBT001 - called through an executor
        """Run one transaction, again on a new connection when the old one broke or a deadlock chose it."""
        deadline = time.monotonic() + WAIT_SECONDS
        pause = 0.05
        while True:
            pool = self._pool
            if pool is None or self._closed:
                raise StorageError("this store was closed")
            try:
                with pool.connection() as conn:
                    if single:
                        return fn(PostgresTx(conn))
                    with conn.transaction():
                        return fn(PostgresTx(conn))
            except (psycopg.OperationalError, psycopg_pool.PoolTimeout) as error:
                if not _passing(error) or time.monotonic() > deadline:
                    raise _translated(error) from error
                time.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(pause * 2, 2.0)
            except psycopg.Error as error:
                raise _translated(error) from error

    # -- waiting ---------------------------------------------------------------------------------------------

    async def changed(self, run_id: str, seen: Any, timeout: float) -> Any:
        """Wait for a notification that names the run."""
        await self.open()
        with self._opening:
            if self._listener is None:
                self._listener = _Listener(self.url)
        return await self._listener.wait(run_id, seen, timeout)

    def unwatch(self, run_id: str, seen: Any) -> None:
        if self._listener is not None and seen is not None:
            self._listener.forget(run_id, seen)

    def timestamp(self, moment: datetime) -> datetime:
        """Return it unchanged: psycopg knows datetimes."""
        return moment

    def close(self) -> None:
        with self._opening:
            self._closed = True
            listener, threads, pool = self._listener, self._threads, self._pool
            self._listener = self._threads = self._pool = None
        if threads is not None:
            threads.shutdown()
        if listener is not None:
            listener.close()
        if pool is not None:
            pool.close()


class _Listener:
    """A thread that listens on a connection of its own and wakes whoever waits for a run."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._waiting: dict[str, set[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = {}
        self._listening = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="apflow-listener", daemon=True)
        self._thread.start()

    async def wait(self, run_id: str, seen: Any, timeout: float) -> Any:
        """Return at the next notification for `run_id`, or after `timeout` seconds, or a second when it is down."""
        loop = asyncio.get_running_loop()
        if seen is None:
            waiter = (loop, asyncio.Event())
            with self._lock:
                self._waiting.setdefault(run_id, set()).add(waiter)
            await loop.run_in_executor(None, self._listening.wait, 1.0)
            return waiter
        waiter = seen
        limit = timeout if self._listening.is_set() else min(timeout, 1.0)
        try:
            async with asyncio.timeout(limit):
                await waiter[1].wait()
        except TimeoutError:
            return waiter
        finally:
            waiter[1].clear()
        return waiter

    def forget(self, run_id: str, waiter: Any) -> None:
        """Wait for this run no longer."""
        with self._lock:
            waiters = self._waiting.get(run_id, set())
            waiters.discard(waiter)
            if not waiters:
                self._waiting.pop(run_id, None)

    def _work(self) -> None:
        while not self._closed:
            try:
                with psycopg.connect(self._url, autocommit=True, connect_timeout=5) as conn:
                    conn.execute(f"LISTEN {CHANNEL}")
                    self._listening.set()
                    self._wake_all()
                    while not self._closed:
                        for notice in conn.notifies(timeout=0.5):
                            self._wake(notice.payload)
            except psycopg.Error:
                self._listening.clear()
                if not self._closed:
                    time.sleep(0.5)

    def _wake_all(self) -> None:
        for run_id in list(self._waiting):
            self._wake(run_id)

    def _wake(self, run_id: str) -> None:
        with self._lock:
            waiters = list(self._waiting.get(run_id, ()))
        for loop, event in waiters:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

    def close(self) -> None:
        self._closed = True
        self._thread.join(2.0)


def _passing(error: BaseException) -> bool:
    """Whether another try on another connection could succeed."""
    if isinstance(
        error, psycopg_pool.PoolTimeout | psycopg.errors.DeadlockDetected | psycopg.errors.SerializationFailure
    ):
        return True
    state = getattr(error, "sqlstate", None)
    # Class 08: connection; 57P0x: the server is stopping or starting; None: the socket broke.
    return state is None or state.startswith("08") or state in {"57P01", "57P02", "57P03"}


def _translated(error: BaseException) -> StorageError:
    """Return the apflow error that says what happened and what to do; the server's address stays out of it."""
    state = getattr(error, "sqlstate", None) or ""
    if state.startswith("53"):
        return StorageFullError(f"the PostgreSQL server is out of resources ({state}); nothing was stored")
    if state == "25006":
        return StorageReadOnlyError("the PostgreSQL server is read-only (a standby?); connect to the primary")
    if state in {"42501", "28000", "28P01"}:
        return StorageError(f"the PostgreSQL server refused the user ({state}); check its password and rights")
    if isinstance(error, psycopg.OperationalError | psycopg_pool.PoolTimeout):
        return StorageUnavailableError(f"the PostgreSQL server cannot be reached: {error}")
    return StorageError(f"PostgreSQL: {error}")


_inherited: list[Any] = []
