"""SQLite: commits inline when the store is idle, one writer thread with group commits when it is not."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import queue
import random
import sqlite3
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, TypeVar, cast

from apflow.errors import StorageError
from apflow.storage import sqlite_connection as connection
from apflow.storage.outlive import outlive
from apflow.storage.queued import Write, deliver
from apflow.storage.sqlite_connection import BUSY, SQLiteTx, translated
from apflow.storage.sqlite_fork import in_sqlite
from apflow.storage.sqlite_watcher import Watcher
from apflow.storage.store import WAIT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from apflow.clock import Clock
    from apflow.storage.store import Dialect, Durability, Tx

T = TypeVar("T")

BATCH_SIZE = 256
CHECKPOINT_COMMITS = 1_000
MEASURED_COMMITS = 16
READERS = 4


class SQLiteStore:
    """A SQLite database, in a file or in memory. See `Store` for what its methods do.

    An idle store commits on the calling thread, which costs less than a thread hop. As soon as something is
    queued, or somebody else holds the database's lock, one writer thread takes everything that was queued since
    its last commit into one transaction. Lock waits and WAL checkpoints happen only there.

    Args:
        url: What `parse_url` takes.
        clock: Where the time comes from.
        durability: With `"full"` every commit is flushed to the disk, and all of them in the writer thread.
        wait_seconds: How long a write waits for a lock that somebody else holds.
    """

    dialect: Dialect = "sqlite"
    database_clock = False

    def __init__(
        self, url: str, *, clock: Clock, durability: Durability = "normal", wait_seconds: float = WAIT_SECONDS
    ) -> None:
        self.url = url
        self.clock = clock
        self._target = connection.parse_url(url)
        self._durability = durability
        self._inline = durability == "normal"
        self._wait_seconds = wait_seconds
        self._start_empty()
        in_sqlite.include(self)

    def _start_empty(self) -> None:
        self.lock = threading.Lock()
        self._opening = threading.Lock()
        self._entrance = threading.Lock()
        self._wake = threading.Event()
        self._queue: deque[Write] = deque()
        self._readers: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        self._watcher = Watcher(self._target, self._durability, lambda: self._connection()[0].total_changes)
        self._conn: sqlite3.Connection | None = None
        self._tx: SQLiteTx | None = None
        self._thread: threading.Thread | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._wal: Path | None = None
        self._wal_limit = connection.WAL_BYTES
        self._commits = 0
        self._checkpoint_due = False
        self._closed = False

    async def open(self) -> None:
        if self._conn is None:
            await asyncio.get_running_loop().run_in_executor(None, self.open_blocking)

    def open_blocking(self) -> None:
        """Open on the calling thread."""
        with self._opening, in_sqlite:
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
                self._wal = connection.wal_path(conn, self._target)
                self._tx = SQLiteTx(conn)
                self._conn = conn

    # -- writing ---------------------------------------------------------------------------------------------

    async def write(self, fn: Callable[[Tx], T], *, single: bool = False) -> T:  # noqa: ARG002 - for PostgreSQL
        if self._conn is None:
            await self.open()
        idle = not self._queue and not self._checkpoint_due
        if self._inline and idle and self.lock.acquire(blocking=False):
            try:
                done, result = self._commit_inline(fn)
            finally:
                self.lock.release()
            if done:
                return cast("T", result)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._enqueue(Write(fn, loop, future))
        return await outlive(future)

    def write_blocking(self, fn: Callable[[Tx], T]) -> T:
        if self._conn is None:
            self.open_blocking()
        future: Future[T] = Future()
        write = Write(fn, None, future)
        self._enqueue(write, urgent=True)
        if not wait([future], self._wait_seconds * 2).done and self._withdraw(write):
            raise connection.locked(self._target, self._wait_seconds * 2)
        return future.result()

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
        self._count(1)
        return True, result

    def _connection(self) -> tuple[sqlite3.Connection, SQLiteTx]:
        if self._conn is None or self._tx is None:
            raise StorageError("this store was closed")
        return self._conn, self._tx

    @staticmethod
    def _roll_back(conn: sqlite3.Connection) -> None:
        with contextlib.suppress(sqlite3.Error):  # whatever it is, the error that led here tells more
            if conn.in_transaction:
                conn.execute("ROLLBACK")

    def _enqueue(self, write: Write, *, urgent: bool = False) -> None:
        with self._entrance:
            if self._closed:
                raise StorageError("this store was closed")
            if urgent:
                self._queue.appendleft(write)
            else:
                self._queue.append(write)
            self._wake_writer()

    def _withdraw(self, write: Write) -> bool:
        """Take a write back that waits too long; False when it is being done."""
        with self._entrance:
            try:
                self._queue.remove(write)
            except ValueError:
                return False
            return True

    def _wake_writer(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="apflow-writer", daemon=True)
            self._thread.start()
        self._wake.set()

    def _work(self) -> None:
        """Commit what is queued, one batch after the other, until the store is closed."""
        while True:
            self._wake.wait()
            self._wake.clear()
            while self._queue or self._checkpoint_due:
                with self.lock:
                    with self._entrance:
                        batch = [self._queue.popleft() for _ in range(min(len(self._queue), BATCH_SIZE))]
                    if batch:
                        self._commit_batch(batch)
                deliver(batch)
                if self._checkpoint_due:
                    self._checkpoint()
            if self._closed and not self._queue:
                return

    def _commit_batch(self, batch: list[Write]) -> None:
        conn = self._conn
        try:
            conn, tx = self._connection()
            self._begin(conn)
            for write in batch:
                self._run_in_savepoint(write, conn, tx)
            conn.execute("COMMIT")
        except BaseException as error:  # noqa: BLE001 - every waiter has to learn of it
            if conn is not None:
                self._roll_back(conn)
            outcome = translated(error, self._target) if isinstance(error, sqlite3.Error) else error
            for write in batch:
                write.result, write.error = None, copy.copy(outcome)  # each waiter adds its own traceback
        else:
            self._count(len(batch))

    def _run_in_savepoint(self, write: Write, conn: sqlite3.Connection, tx: SQLiteTx) -> None:
        """Run a write so that its failure undoes only itself.

        Raises:
            sqlite3.Error: The whole transaction is gone.
        """
        conn.execute("SAVEPOINT one")
        try:
            write.result = write.fn(tx)
        except BaseException as error:
            if not conn.in_transaction:
                raise
            conn.execute("ROLLBACK TO one")
            write.error = translated(error, self._target) if isinstance(error, sqlite3.Error) else error
        conn.execute("RELEASE one")

    def _begin(self, conn: sqlite3.Connection) -> None:
        """Wait for the database's lock, with jitter so that processes that wait do not collide again."""
        deadline = time.monotonic() + self._wait_seconds
        pause = 0.001
        while True:
            try:
                conn.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in BUSY:
                    raise
                if time.monotonic() > deadline:
                    raise connection.locked(self._target, self._wait_seconds) from error
                time.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(pause * 2, 0.05)
            else:
                return

    # -- the write-ahead log ---------------------------------------------------------------------------------

    def _count(self, writes: int) -> None:
        """Have the writer thread checkpoint after many commits, or sooner after large ones."""
        if self._wal is None:
            return
        before = self._commits
        self._commits += writes
        measured = before // MEASURED_COMMITS != self._commits // MEASURED_COMMITS
        if self._commits >= CHECKPOINT_COMMITS or (measured and connection.size(self._wal) > self._wal_limit):
            self._checkpoint_due = True
            with self._entrance:
                if not self._closed:  # else closing the last connection does it
                    self._wake_writer()

    def _checkpoint(self) -> None:
        """Move the WAL into the database file, so that it does not grow for ever.

        Somebody who reads for long keeps it from being emptied; it is tried again after as many writes more.
        """
        with self.lock:
            self._commits = 0
            self._checkpoint_due = False
            if self._conn is None or self._wal is None:
                return
            emptied = False
            with contextlib.suppress(sqlite3.Error):  # the next write tells what is wrong
                busy, pages, moved = self._conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                emptied = not busy and pages == moved
            self._wal_limit = connection.WAL_BYTES + (0 if emptied else connection.size(self._wal))

    # -- reading ---------------------------------------------------------------------------------------------

    async def read(self, fn: Callable[[Tx], T]) -> T:
        if self._conn is None:
            await self.open()
        with self._entrance:
            if self._closed:
                raise StorageError("this store was closed")
            if self._pool is None:
                self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="apflow-reader")
            future = asyncio.get_running_loop().run_in_executor(self._pool, self.read_blocking, fn)
        return await future

    def read_blocking(self, fn: Callable[[Tx], T]) -> T:
        if self._conn is None:
            self.open_blocking()
        if self._target.memory:
            with self.lock:
                return self._query(self._connection()[0], fn)
        with in_sqlite:
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
        """Poll the version of the database, which changes when another connection commits."""
        if self._conn is None:
            await self.open()
        return await self._watcher.changed(seen, timeout)

    def unwatch(self, run_id: str, seen: Any) -> None:
        """Nothing was registered."""

    # -- the rest --------------------------------------------------------------------------------------------

    def timestamp(self, moment: datetime) -> str:
        """Return UTC text as SQLAlchemy writes it, which sorts in the order of time."""
        return moment.isoformat(" ", "microseconds")[:26]

    def close(self) -> None:
        with self._opening, self._entrance:
            self._closed = True
        if self._thread is not None and self._thread is not threading.current_thread():
            self._wake.set()
            self._thread.join()
        if self._pool is not None:
            self._pool.shutdown()
        self._watcher.close()
        with self.lock:
            self._close_connections()
            self._conn = self._tx = None

    def _close_connections(self) -> None:
        for conn in (self._conn, *connection.drain(self._readers)):
            if conn is not None:
                conn.close()

    # -- forks -----------------------------------------------------------------------------------------------

    def let_go(self) -> None:
        """Close the connections for the moment of a fork. A database in memory has nothing to share."""
        if not self._target.memory:
            self._close_connections()
            self._watcher.let_go()

    def take_up(self) -> None:
        """Open again what `let_go` closed."""
        if self._conn is not None and not self._target.memory:
            self._conn = self._tx = None
            self._conn = connection.connect_impatient(self._target, self._durability)
            self._tx = SQLiteTx(self._conn)
            self._watcher.take_up()

    def forget_after_fork(self) -> None:
        """Start again in the child, without connections."""
        _inherited.append((self._conn, self._watcher, self._readers, self._pool, self._thread))
        self._start_empty()


#: What a parent process had: if a connection was in use when it forked, closing it here would disturb the parent.
_inherited: list[Any] = []
