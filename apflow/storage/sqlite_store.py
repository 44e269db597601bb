"""SQLite: commits inline when the store is idle, one writer thread with group commits when it is not."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import random
import sqlite3
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar, cast

from apflow.errors import StorageBusyError, StorageError
from apflow.storage import sqlite_connection as connection
from apflow.storage.outlive import outlive
from apflow.storage.sqlite_connection import BUSY, SQLiteTx, translated
from apflow.storage.store import WAIT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from apflow.clock import Clock
    from apflow.storage.store import Dialect, Durability, Tx

T = TypeVar("T")

BATCH_SIZE = 256
CHECKPOINT_COMMITS = 1_000
READERS = 4
POLL_SECONDS = (0.005, 0.05)


class SQLiteStore:
    """A SQLite database, in a file or in memory. See `Store` for what its methods do.

    An idle store commits on the calling thread, which costs less than a thread hop. As soon as something is
    queued, or somebody else holds the database's lock, one writer thread takes everything that was queued since
    its last commit into one transaction. Lock waits and WAL checkpoints happen only there.
    """

    dialect: Dialect = "sqlite"
    database_clock = False

    def __init__(self, url: str, *, clock: Clock, durability: Durability = "normal") -> None:
        self.url = url
        self.clock = clock
        self._target = connection.parse_url(url)
        self._durability = durability
        self._inline = durability == "normal"
        self._start_empty()

    def _start_empty(self) -> None:
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._wake = threading.Event()
        self._queue: deque[_Write] = deque()
        self._readers: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        self._watcher: sqlite3.Connection | None = None
        self._conn: sqlite3.Connection | None = None
        self._tx: SQLiteTx | None = None
        self._thread: threading.Thread | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._commits = 0
        self._closed = False

    def forget_after_fork(self) -> None:
        """Start again without the parent's connections, which stay open but are never used or closed here."""
        _inherited.append((self._conn, self._watcher, self._readers, self._pool, self._thread))
        self._start_empty()

    async def open(self) -> None:
        if self._conn is None:
            await asyncio.get_running_loop().run_in_executor(None, self.open_blocking)

    def open_blocking(self) -> None:
        """Open on the calling thread."""
        with self._opening:
            if self._closed:
                raise StorageError("this store was closed")
            if self._conn is None:
                conn = connection.connect(self._target, self._durability)
                try:
                    connection.make_schema(conn, self._target)
                except BaseException:
                    conn.close()
                    raise
                conn.execute("PRAGMA busy_timeout=0")
                self._tx = SQLiteTx(conn)
                self._conn = conn

    # -- writing ---------------------------------------------------------------------------------------------

    async def write(self, fn: Callable[[Tx], T], *, single: bool = False) -> T:  # noqa: ARG002 - for PostgreSQL
        if self._conn is None:
            await self.open()
        if self._inline and not self._queue and self._lock.acquire(blocking=False):
            try:
                done, result = self._commit_inline(fn)
            finally:
                self._lock.release()
            if done:
                return cast("T", result)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._enqueue(_Write(fn, loop, future))
        return await outlive(future)

    def write_blocking(self, fn: Callable[[Tx], T]) -> T:
        if self._conn is None:
            self.open_blocking()
        future: Future[T] = Future()
        self._enqueue(_Write(fn, None, future), urgent=True)
        return future.result(WAIT_SECONDS * 2)

    def _commit_inline(self, fn: Callable[[Tx], T]) -> tuple[bool, Any]:
        """Return `(True, result)`, or `(False, None)` when somebody else has the database's lock."""
        conn, tx = self._connection()
        try:
            conn.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF in BUSY:
                return False, None
            raise translated(error, self._target) from error
        try:
            result = fn(tx)
            conn.execute("COMMIT")
        except BaseException as error:
            self._roll_back(conn)
            if isinstance(error, sqlite3.Error):
                raise translated(error, self._target) from error
            raise
        self._commits += 1
        if self._commits >= CHECKPOINT_COMMITS and not self._target.memory:
            self._enqueue(None)
        return True, result

    def _connection(self) -> tuple[sqlite3.Connection, SQLiteTx]:
        if self._conn is None or self._tx is None:
            raise StorageError("this store was closed")
        return self._conn, self._tx

    @staticmethod
    def _roll_back(conn: sqlite3.Connection) -> None:
        if conn.in_transaction:
            conn.execute("ROLLBACK")

    def _enqueue(self, write: _Write | None, *, urgent: bool = False) -> None:
        if self._closed:
            raise StorageError("this store was closed")
        if write is not None:
            if urgent:
                self._queue.appendleft(write)
            else:
                self._queue.append(write)
        if self._thread is None:
            with self._opening:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name="apflow-writer", daemon=True)
                    self._thread.start()
        self._wake.set()

    def _work(self) -> None:
        """Commit what is queued, one batch after the other, until the store is closed."""
        while True:
            self._wake.wait()
            self._wake.clear()
            while self._queue:
                with self._lock:
                    batch = [self._queue.popleft() for _ in range(min(len(self._queue), BATCH_SIZE))]
                    self._commit_batch(batch)
                _deliver(batch)
            if self._commits >= CHECKPOINT_COMMITS and not self._target.memory:
                self._checkpoint()
            if self._closed and not self._queue:
                return

    def _commit_batch(self, batch: list[_Write]) -> None:
        conn, tx = self._connection()
        try:
            self._begin(conn)
            for write in batch:
                write.run_in_savepoint(conn, tx)
            conn.execute("COMMIT")
            self._commits += len(batch)
        except BaseException as error:  # noqa: BLE001 - every waiter has to learn of it
            self._roll_back(conn)
            outcome = translated(error, self._target) if isinstance(error, sqlite3.Error) else error
            for write in batch:
                write.result, write.error = None, outcome

    def _begin(self, conn: sqlite3.Connection) -> None:
        """Wait for the database's lock, with jitter so that processes that wait do not collide again."""
        deadline = time.monotonic() + WAIT_SECONDS
        pause = 0.001
        while True:
            try:
                conn.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in BUSY:
                    raise
                if time.monotonic() > deadline:
                    raise StorageBusyError(
                        f"{self._target.shown} has been locked by somebody else for {WAIT_SECONDS:g} s; "
                        "find the process that holds a write transaction open"
                    ) from error
                time.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(pause * 2, 0.05)
            else:
                return

    def _checkpoint(self) -> None:
        """Move the WAL into the database file, so that it does not grow for ever."""
        with self._lock, contextlib.suppress(sqlite3.OperationalError):  # busy readers: the next one will do it
            self._commits = 0
            self._connection()[0].execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    # -- reading ---------------------------------------------------------------------------------------------

    async def read(self, fn: Callable[[Tx], T]) -> T:
        await self.open()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="apflow-reader")
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.read_blocking, fn)

    def read_blocking(self, fn: Callable[[Tx], T]) -> T:
        if self._conn is None:
            self.open_blocking()
        if self._target.memory:
            with self._lock:
                return self._query(self._connection()[0], fn)
        try:
            conn = self._readers.get_nowait()
        except queue.Empty:
            conn = connection.connect(self._target, self._durability)
        try:
            return self._query(conn, fn)
        finally:
            self._readers.put(conn)

    def _query(self, conn: sqlite3.Connection, fn: Callable[[Tx], T]) -> T:
        try:
            conn.execute("BEGIN")
            return fn(SQLiteTx(conn))
        except sqlite3.Error as error:
            raise translated(error, self._target) from error
        finally:
            self._roll_back(conn)

    async def changed(self, run_id: str, seen: Any, timeout: float) -> Any:  # noqa: ARG002 - for PostgreSQL
        """Poll `PRAGMA data_version`, which changes when another connection commits."""
        pause, longest = POLL_SECONDS
        deadline = time.monotonic() + timeout
        version = self._data_version()
        while version == seen and time.monotonic() < deadline:
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, longest)
            version = self._data_version()
        return version

    def _data_version(self) -> Any:
        if self._target.memory:
            return self._connection()[0].total_changes
        if self._watcher is None:
            self._watcher = connection.connect(self._target, self._durability)
        return self._watcher.execute("PRAGMA data_version").fetchone()[0]

    def unwatch(self, run_id: str, seen: Any) -> None:
        """Nothing was registered."""

    # -- the rest --------------------------------------------------------------------------------------------

    def timestamp(self, moment: datetime) -> str:
        """Return UTC text as SQLAlchemy writes it, which sorts in the order of time."""
        return moment.isoformat(" ", "microseconds")[:26]

    def close(self) -> None:
        with self._opening:
            self._closed = True
        if self._thread is not None and self._thread is not threading.current_thread():
            self._wake.set()
            self._thread.join(WAIT_SECONDS)
        if self._pool is not None:
            self._pool.shutdown()
        with self._lock:
            for conn in (self._conn, self._watcher, *connection.drain(self._readers)):
                if conn is not None:
                    conn.close()
            self._conn = self._tx = self._watcher = None


class _Write:
    """One queued transaction and who waits for it."""

    __slots__ = ("error", "fn", "future", "loop", "result")

    def __init__(
        self,
        fn: Callable[[Tx], Any],
        loop: asyncio.AbstractEventLoop | None,
        future: asyncio.Future[Any] | Future[Any],
    ) -> None:
        self.fn, self.loop, self.future = fn, loop, future
        self.result: Any = None
        self.error: BaseException | None = None

    def run_in_savepoint(self, conn: sqlite3.Connection, tx: SQLiteTx) -> None:
        """Run it so that its failure undoes only itself.

        Raises:
            sqlite3.Error: The whole transaction is gone.
        """
        conn.execute("SAVEPOINT one")
        try:
            self.result = self.fn(tx)
        except BaseException as error:
            if not conn.in_transaction:
                raise
            conn.execute("ROLLBACK TO one")
            self.error = StorageError(f"a statement failed: {error}") if isinstance(error, sqlite3.Error) else error
        conn.execute("RELEASE one")

    def settle(self) -> None:
        """Hand the outcome to the waiter, unless it has gone."""
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


def _deliver(batch: list[_Write]) -> None:
    """Wake every waiter: one wake-up per event loop."""
    by_loop: dict[asyncio.AbstractEventLoop | None, list[_Write]] = {}
    for write in batch:
        by_loop.setdefault(write.loop, []).append(write)
    for loop, writes in by_loop.items():
        if loop is None:
            _settle_all(writes)
            continue
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(_settle_all, writes)


def _settle_all(writes: list[_Write]) -> None:
    for write in writes:
        write.settle()


#: Connections of a parent process: closing them here would disturb it, so they are only kept.
_inherited: list[Any] = []
