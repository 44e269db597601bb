"""SQLite files that are locked, full, read-only or broken: a clear error, never a hung caller."""

from __future__ import annotations

import asyncio
import functools
import sqlite3
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

import apflow
from apflow import Runtime, create_session
from apflow.clock import SystemClock
from apflow.durability.ownership import LeaseKeeper
from apflow.errors import (
    StorageBusyError,
    StorageError,
    StorageFullError,
    StorageReadOnlyError,
    StorageUnavailableError,
)
from apflow.storage.sqlite_connection import WAL_BYTES
from apflow.storage.sqlite_store import CHECKPOINT_COMMITS, SQLiteStore

if TYPE_CHECKING:
    from apflow.storage.store import Tx

T = TypeVar("T")

pytestmark = pytest.mark.anyio

INSERT = "INSERT INTO apflow_tasks (id, name, status) VALUES (:id, :name, 'pending')"
HOLD = """
import sqlite3, sys, time
conn = sqlite3.connect(sys.argv[1], isolation_level=None)
conn.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
conn.execute("COMMIT")
"""


def insert(name: str, tx: Tx) -> int:
    return tx.execute(INSERT, {"id": str(uuid.uuid4()), "name": name})


def count(tx: Tx) -> int:
    row = tx.row("SELECT count(*) FROM apflow_tasks")
    assert row is not None
    return int(row[0])


adding = functools.partial(insert, "a")


@apflow.task
async def double(n: int) -> int:
    return n * 2


@apflow.task(checkpoint=True)
async def quadruple(n: int) -> int:
    return await double(await double(n))


@contextmanager
def locked(path: Path, seconds: float) -> Iterator[None]:
    """Have another process hold the write lock."""
    command = [sys.executable, "-c", HOLD, str(path), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "locked\n"
            yield
        finally:
            process.kill()


def replace(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Write a file anew, from what it holds now."""
    path.write_bytes(change(path.read_bytes() if path.exists() else b""))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.db"


@pytest.fixture
async def impatient(path: Path) -> AsyncIterator[SQLiteStore]:
    """A store that waits for a lock only for a moment."""
    store = SQLiteStore(f"sqlite:///{path}", clock=SystemClock(), wait_seconds=0.2)
    await store.open()
    yield store
    store.close()


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(f"sqlite:///{path}", clock=SystemClock())
    await store.open()
    yield store
    store.close()


# -- a lock ------------------------------------------------------------------------------------------------------


async def test_a_write_waits_for_a_lock_and_the_event_loop_goes_on(store: SQLiteStore, path: Path) -> None:
    ticks = 0
    with locked(path, 1.0):
        writes = [asyncio.create_task(store.write(adding)) for _ in range(10)]
        blocking = asyncio.create_task(asyncio.to_thread(store.write_blocking, adding))
        while not all(write.done() for write in writes):
            await asyncio.sleep(0.01)
            ticks += 1
            assert 0 <= await store.read(count) <= 11  # readers are never locked out
    assert [await write for write in writes] == [1] * 10
    assert await blocking == 1
    assert await store.read(count) == 11
    assert ticks > 10


async def test_a_lock_held_for_too_long_is_an_error(impatient: SQLiteStore, path: Path) -> None:
    with locked(path, 60):
        outcomes = await asyncio.gather(*(impatient.write(adding) for _ in range(3)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [StorageBusyError] * 3
        assert len({id(outcome) for outcome in outcomes}) == 3
        with pytest.raises(StorageBusyError, match="locked by somebody else"):
            await asyncio.to_thread(impatient.write_blocking, adding)
    assert await impatient.write(adding) == 1
    assert await impatient.read(count) == 1


async def test_a_blocking_write_that_waits_too_long_is_taken_back(impatient: SQLiteStore) -> None:
    entered, opened = threading.Event(), threading.Event()

    def block(tx: Tx) -> int:
        entered.set()
        assert opened.wait(20)
        return insert("gate", tx)

    blocked = asyncio.create_task(asyncio.to_thread(impatient.write_blocking, block))
    assert await asyncio.to_thread(entered.wait, 20)
    with pytest.raises(StorageBusyError):
        await asyncio.to_thread(impatient.write_blocking, adding)
    await asyncio.sleep(0.5)  # longer than the one that is being done may wait in the queue
    opened.set()
    assert await blocked == 1
    assert await impatient.read(count) == 1


async def test_lease_renewals_survive_any_error(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    renewed = threading.Event()
    failures = iter([StorageBusyError("busy"), TimeoutError(), ValueError("odd")])

    def write_blocking(fn: Any) -> Any:
        for error in failures:
            raise error
        renewed.set()
        return []

    monkeypatch.setattr(store, "write_blocking", write_blocking)
    keeper = LeaseKeeper(store, "me", 0.05, lambda: None)
    keeper.held["x"] = _Stopped()  # type: ignore[assignment]  # only asked to stop
    keeper.start()
    assert await asyncio.to_thread(renewed.wait, 20)
    keeper.close()


class _Stopped:
    id, epoch = "x", 1

    def stop(self, why: str) -> None: ...


# -- files that cannot be used -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails_when", ["idle", "queued"])
async def test_a_read_only_database(store: SQLiteStore, fails_when: str) -> None:
    await store.write(adding)
    assert store._conn is not None
    store._conn.execute("PRAGMA query_only=1")
    store._inline = fails_when == "idle"
    with pytest.raises(StorageReadOnlyError, match="read-only"):
        await store.write(adding)
    assert await store.read(count) == 1
    store._conn.execute("PRAGMA query_only=0")
    assert await store.write(adding) == 1


async def test_a_database_opened_read_only(store: SQLiteStore, path: Path) -> None:
    await store.write(adding)
    reading = create_session(f"sqlite:///file:{path}?mode=ro&uri=true")
    assert await reading.read(count) == 1
    with pytest.raises(StorageReadOnlyError):
        await reading.write(adding)
    reading.close()


@pytest.mark.parametrize("fails_when", ["idle", "queued"])
async def test_a_full_disk(store: SQLiteStore, fails_when: str) -> None:
    await store.write(adding)
    assert store._conn is not None
    pages = store._conn.execute("PRAGMA page_count").fetchone()[0]
    store._conn.execute(f"PRAGMA max_page_count={pages + 2}")
    store._inline = fails_when == "idle"
    large = functools.partial(insert, "x" * 100_000)
    writes = [store.write(fn) for fn in (adding, large, adding)]
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert isinstance(outcomes[1], StorageFullError)
    stored = 1 + sum(outcome == 1 for outcome in outcomes)
    assert await store.read(count) == stored
    store._conn.execute("PRAGMA max_page_count=100000")
    assert await store.write(large) == 1


async def test_no_result_is_reported_that_a_full_disk_did_not_take(path: Path) -> None:
    @apflow.task
    async def large() -> str:
        return "x" * 1_000_000

    async with Runtime(f"sqlite:///{path}", shutdown_seconds=1) as runtime:
        assert await double(1) == 2
        writer: Any = runtime.store
        pages = writer._conn.execute("PRAGMA page_count").fetchone()[0]
        writer._conn.execute(f"PRAGMA max_page_count={pages + 10}")
        with pytest.raises(StorageFullError, match="nothing was stored"):
            await large()
        assert await double(2) == 4
        writer._conn.execute("PRAGMA max_page_count=100000")
    with sqlite3.connect(path) as conn:
        rows = conn.execute("SELECT name, status FROM apflow_tasks WHERE result IS NOT NULL").fetchall()
    conn.close()
    assert [status for _, status in rows] == ["completed"] * 2


async def test_a_missing_folder(tmp_path: Path) -> None:
    store = create_session(f"sqlite:///{tmp_path / 'nowhere' / 'a.db'}")
    for _ in range(2):
        with pytest.raises(StorageUnavailableError, match="check that its folder exists"):
            await store.write(adding)
    with pytest.raises(StorageUnavailableError):
        store.read_blocking(count)
    (tmp_path / "nowhere").mkdir()
    assert await store.write(adding) == 1
    store.close()


async def test_a_file_that_is_no_database(path: Path) -> None:
    diary = "Dear diary, " * 1_000
    replace(path, lambda _: diary.encode())
    store = create_session(f"sqlite:///{path}")
    with pytest.raises(StorageError, match="not a sound SQLite database"):
        await store.open()
    store.close()
    replace(path, lambda content: content if content == diary.encode() else pytest.fail("it was changed"))


async def test_a_corrupt_file(store: SQLiteStore, path: Path) -> None:
    for _ in range(200):
        await store.write(functools.partial(insert, "x" * 500))
    store.close()
    replace(path, lambda content: content[:4096] + b"\x5a" * (len(content) - 4096))
    broken = SQLiteStore(f"sqlite:///{path}", clock=SystemClock())
    with pytest.raises(StorageError, match="not a sound SQLite database"):
        await broken.read(lambda tx: tx.rows("SELECT * FROM apflow_tasks"))
    broken.close()


# -- durability and the write-ahead log ----------------------------------------------------------------------------


async def test_full_durability_flushes_every_commit_off_the_event_loop(path: Path) -> None:
    store = SQLiteStore(f"sqlite:///{path}", clock=SystemClock(), durability="full")
    threads: set[str] = set()

    def note(tx: Tx) -> Any:
        threads.add(threading.current_thread().name)
        insert("a", tx)
        return tx.row("PRAGMA synchronous")

    assert await store.write(note) == (2,)
    assert await asyncio.gather(*(store.write(note) for _ in range(20))) == [(2,)] * 20
    assert threads == {"apflow-writer"}
    store.close()


async def test_full_durability_runs_tasks(database_url: str) -> None:
    async with Runtime(database_url, durability="full", shutdown_seconds=1):
        assert await quadruple(3) == 12
        assert await asyncio.gather(*(double(n) for n in range(20))) == [n * 2 for n in range(20)]


@pytest.mark.parametrize("how", ["one by one", "queued"])
async def test_the_write_ahead_log_stays_small(store: SQLiteStore, path: Path, how: str) -> None:
    update = "UPDATE apflow_tasks SET inputs = :text, updated_at = :text"
    wal = path.with_name("test.db-wal")
    await store.write(adding)
    largest = 0

    def change(n: int, tx: Tx) -> int:
        return tx.execute(update, {"text": f"{n:0500}"})

    for start in range(0, 20_000, 500):
        steps = [functools.partial(change, n) for n in range(start, start + 500)]
        if how == "queued":
            await asyncio.gather(*(store.write(step) for step in steps))
        else:
            for step in steps:
                await store.write(step)
        largest = max(largest, wal.stat().st_size)
    # 20,000 commits of at least one page of 4 KiB each would be 80 MB; a batch shares pages.
    assert largest < 4 * CHECKPOINT_COMMITS * 4_096


async def test_large_results_empty_the_log_sooner(store: SQLiteStore, path: Path) -> None:
    text = "x" * 1_000_000
    for _ in range(200):
        await store.write(functools.partial(insert, text))
    assert path.with_name("test.db-wal").stat().st_size < 3 * WAL_BYTES


async def test_a_long_reader_does_not_make_the_checkpoints_spin(store: SQLiteStore, path: Path) -> None:
    await store.write(adding)
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM apflow_tasks").fetchone()
    assert store._conn is not None
    checkpoints: list[str] = []
    await store.write(adding)  # the reader sees an older state from now on
    store._conn.set_trace_callback(lambda sql: checkpoints.append(sql) if "wal_checkpoint" in sql else None)
    for _ in range(3 * CHECKPOINT_COMMITS):
        await store.write(adding)
    await asyncio.sleep(0.1)
    store._conn.set_trace_callback(None)
    reader.close()
    assert 1 <= len(checkpoints) <= 3
    assert await store.read(count) == 2 + 3 * CHECKPOINT_COMMITS
