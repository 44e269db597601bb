"""PostgreSQL: a few threads with a connection each, and one more connection to listen for ended runs."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from apflow.errors import StorageError
from apflow.storage.outlive import outlive
from apflow.storage.postgres_connection import Session, conninfo, make_schema
from apflow.storage.postgres_listener import Listener
from apflow.storage.queued import Write, deliver
from apflow.storage.store import WAIT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from apflow.clock import Clock
    from apflow.storage.store import Dialect, Durability, Tx

T = TypeVar("T")

CONNECTIONS = 8


class PostgresStore:
    """A PostgreSQL database. See `Store` for what its methods do.

    Every transaction runs in one of a few threads that keep a connection open each; threads are started as they
    are needed. One more connection is kept free of queued work for lease renewals.

    Args:
        url: A libpq URI.
        clock: Where the time comes from.
        durability: With `"full"` the server flushes every commit, even if it is configured not to.
        database_clock: Leases use the database's clock, not `clock`.
        wait_seconds: For how long a transaction is tried again while the server is away, or waits for a lock.
    """

    dialect: Dialect = "postgresql"

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        durability: Durability = "normal",
        database_clock: bool = True,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self.url = url
        self.clock = clock
        self.database_clock = database_clock
        self._conninfo = conninfo(url)
        self._durability = durability
        self._wait_seconds = wait_seconds
        self._start_empty()

    def _start_empty(self) -> None:
        self._opening = threading.Lock()
        self._entrance = threading.Lock()
        self._urgent = threading.Lock()
        self._renewals: Session | None = None
        self._queue: queue.SimpleQueue[Write | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._pending = 0
        self._listener: Listener | None = None
        self._opened = self._closed = False

    def forget_after_fork(self) -> None:
        """Start again without the parent's connections, which stay open but are never used or closed here."""
        _inherited.append((self._renewals, self._queue, self._threads, self._listener))
        self._start_empty()

    async def open(self) -> None:
        if not self._opened or self._closed:
            await asyncio.get_running_loop().run_in_executor(None, self.open_blocking)

    def open_blocking(self) -> None:
        """Open on the calling thread."""
        with self._opening:
            if self._closed:
                raise StorageError("this store was closed")
            if self._opened:
                return
            make_schema(self._conninfo)
            self._renewals = self._session()
            self._opened = True

    def _session(self) -> Session:
        return Session(self._conninfo, self._durability, self._wait_seconds)

    # -- transactions ----------------------------------------------------------------------------------------

    async def write(self, fn: Callable[[Tx], T], *, single: bool = False) -> T:
        if not self._opened:
            await self.open()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._enqueue(Write(fn, loop, future, single=single))
        return await outlive(future)

    async def read(self, fn: Callable[[Tx], T]) -> T:
        return await self.write(fn)

    def write_blocking(self, fn: Callable[[Tx], T]) -> T:
        since = time.monotonic()
        if not self._opened:
            self.open_blocking()
        with self._urgent:
            if self._closed or self._renewals is None:
                raise StorageError("this store was closed")
            return self._renewals.run(fn, single=False, since=since)

    def read_blocking(self, fn: Callable[[Tx], T]) -> T:
        if not self._opened:
            self.open_blocking()
        future: Future[T] = Future()
        self._enqueue(Write(fn, None, future))
        return future.result()

    def _enqueue(self, write: Write) -> None:
        with self._entrance:
            if self._closed:
                raise StorageError("this store was closed")
            self._pending += 1
            self._queue.put(write)
            if len(self._threads) < min(self._pending, CONNECTIONS):
                name = f"apflow-postgres-{len(self._threads)}"
                thread = threading.Thread(target=self._work, args=(self._queue,), name=name, daemon=True)
                self._threads.append(thread)
                thread.start()

    def _work(self, jobs: queue.SimpleQueue[Write | None]) -> None:
        """Run what is queued, one transaction after the other, until the store is closed."""
        session = self._session()
        while (write := jobs.get()) is not None:
            try:
                write.result = session.run(write.fn, single=write.single, since=write.since)
            except BaseException as error:  # noqa: BLE001 - whoever waits has to learn of it
                write.error = error
            with self._entrance:
                self._pending -= 1
            deliver((write,))
            del write
        session.close()

    # -- waiting ---------------------------------------------------------------------------------------------

    async def changed(self, run_id: str, seen: Any, timeout: float) -> Any:
        """Wait for a notification that names the run."""
        await self.open()
        with self._entrance:
            if self._closed:
                raise StorageError("this store was closed")
            if self._listener is None:
                self._listener = Listener(self._conninfo)
            listener = self._listener
        return await listener.wait(run_id, seen, timeout)

    def unwatch(self, run_id: str, seen: Any) -> None:
        if self._listener is not None and seen is not None:
            self._listener.forget(run_id, seen)

    def timestamp(self, moment: datetime) -> datetime:
        """Return it unchanged: psycopg knows datetimes."""
        return moment

    def close(self) -> None:
        with self._opening, self._entrance:
            self._closed = True
            threads, self._threads = self._threads, []
            listener, self._listener = self._listener, None
        for _ in threads:
            self._queue.put(None)
        for thread in threads:
            thread.join()
        if listener is not None:
            listener.close()
        with self._urgent:
            if self._renewals is not None:
                self._renewals.close()


#: Connections of a parent process: closing them here would disturb it, so they are only kept.
_inherited: list[Any] = []
