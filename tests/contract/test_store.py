"""What every store promises: whole transactions, exact outcomes, and an end that loses nothing."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from apflow import create_session
from apflow.errors import StorageError

if TYPE_CHECKING:
    from apflow.storage.store import Store, Tx

pytestmark = pytest.mark.anyio

INSERT = "INSERT INTO apflow_tasks (id, name, status) VALUES (:id, :name, 'pending')"


def insert(name: str, tx: Tx, *, row_id: str | None = None) -> int:
    return tx.execute(INSERT, {"id": row_id or str(uuid.uuid4()), "name": name})


def adding(name: str) -> Any:
    return functools.partial(insert, name)


def names_in(tx: Tx) -> list[str]:
    return [name for (name,) in tx.rows("SELECT name FROM apflow_tasks ORDER BY name")]


class Gate:
    """A write that keeps the writing connection busy until it is opened."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self, tx: Tx) -> int:
        done = insert("gate", tx)
        self.entered.set()
        assert self.opened.wait(20)
        return done

    def occupy(self, store: Store) -> threading.Thread:
        thread = threading.Thread(target=store.write_blocking, args=(self,))
        thread.start()
        assert self.entered.wait(20)
        return thread


@pytest.fixture
def shut(store: Store) -> Store:
    """A store that was closed."""
    store.close()
    return store


async def test_what_was_written_is_read(store: Store) -> None:
    assert await store.write(adding("a")) == 1
    assert await store.write(adding("b"), single=True) == 1
    assert await store.read(names_in) == ["a", "b"]
    assert store.read_blocking(names_in) == ["a", "b"]
    assert await store.read(lambda tx: tx.row("SELECT name FROM apflow_tasks WHERE name = :n", {"n": "b"})) == ("b",)
    assert await store.read(lambda tx: tx.row("SELECT name FROM apflow_tasks WHERE name = :n", {"n": "c"})) is None
    assert await store.read(lambda tx: tx.dialect) == store.dialect


async def test_row_counts_are_exact(store: Store) -> None:
    for name in ("a", "a", "b"):
        await store.write(adding(name))
    update = "UPDATE apflow_tasks SET status = 'failed' WHERE name = :name"

    def rename(name: str, tx: Tx) -> int:
        return tx.execute(update, {"name": name})

    counts = [await store.write(functools.partial(rename, name), single=True) for name in "abc"]
    assert counts == [2, 1, 0]


async def test_signs_that_drivers_treat_specially_are_plain_text(store: Store) -> None:
    query = "SELECT name FROM apflow_tasks WHERE name LIKE '100%' AND name = :name"
    await store.write(adding("100% :name %s ?"))
    assert await store.read(lambda tx: tx.row(query, {"name": "100% :name %s ?"})) == ("100% :name %s ?",)


async def test_times_come_back_in_order(store: Store) -> None:
    early, late = (datetime(2026, 3, 29, 1, 30, 0, micros, tzinfo=UTC) for micros in (0, 1))
    params = {"id": str(uuid.uuid4()), "early": store.timestamp(early), "late": store.timestamp(late)}
    sql = "INSERT INTO apflow_tasks (id, name, status, created_at) VALUES (:id, 'a', 'pending', :early)"
    await store.write(lambda tx: tx.execute(sql, params))
    query = "SELECT count(*) FROM apflow_tasks WHERE created_at {} :late AND created_at = :early"
    smaller, greater = query.format("<"), query.format(">")
    assert await store.read(lambda tx: tx.row(smaller, params)) == (1,)
    assert await store.read(lambda tx: tx.row(greater, params)) == (0,)


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), StopIteration()])
async def test_an_exception_undoes_everything(store: Store, error: BaseException) -> None:
    def fail(tx: Tx) -> None:
        insert("lost", tx)
        raise error

    expected = RuntimeError if isinstance(error, StopIteration) else type(error)
    gate = Gate()
    thread = gate.occupy(store)
    queued = asyncio.create_task(_caught(store, fail))
    await asyncio.sleep(0.02)
    gate.opened.set()
    assert isinstance(await queued, expected)  # from the queue
    assert isinstance(await _caught(store, fail), expected)  # from an idle store
    await asyncio.to_thread(thread.join)
    assert await store.read(names_in) == ["gate"]


async def _caught(store: Store, fn: Any) -> BaseException | None:
    try:
        await store.write(fn)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is looked at
        return error
    return None


async def test_a_refused_statement_is_a_storage_error(store: Store) -> None:
    twice = str(uuid.uuid4())

    def clash(tx: Tx) -> None:
        insert("a", tx, row_id=twice)
        insert("b", tx, row_id=twice)

    with pytest.raises(StorageError):
        await store.write(clash)
    with pytest.raises(StorageError):
        await store.write(lambda tx: tx.execute("UPDATE nowhere SET a = 1"), single=True)
    with pytest.raises(StorageError):
        await store.read(lambda tx: tx.row("SELECT a FROM nowhere"))
    with pytest.raises(StorageError):
        store.read_blocking(lambda tx: tx.row("SELECT a FROM nowhere"))
    with pytest.raises(StorageError):
        await asyncio.to_thread(store.write_blocking, clash)
    assert await store.read(names_in) == []


async def test_one_failure_in_a_batch_undoes_only_itself(store: Store) -> None:
    taken = str(uuid.uuid4())
    await store.write(functools.partial(insert, "first", row_id=taken))

    def half(tx: Tx) -> None:
        insert("half", tx)
        insert("clash", tx, row_id=taken)

    def refuse(tx: Tx) -> None:
        insert("refused", tx)
        raise ValueError("no")

    gate = Gate()
    thread = gate.occupy(store)
    batch = [asyncio.create_task(store.write(fn)) for fn in (adding("a"), half, adding("b"), refuse, adding("c"))]
    await asyncio.sleep(0.02)
    gate.opened.set()
    outcomes = await asyncio.gather(*batch, return_exceptions=True)
    await asyncio.to_thread(thread.join)
    assert [type(outcome) for outcome in outcomes] == [int, StorageError, int, ValueError, int]
    assert await store.read(names_in) == ["a", "b", "c", "first", "gate"]


async def test_a_thousand_writes_at_once(store: Store) -> None:
    counts = await asyncio.gather(*(store.write(adding(f"{n:04}"), single=n % 2 == 0) for n in range(1_000)))
    assert counts == [1] * 1_000
    assert await store.read(names_in) == [f"{n:04}" for n in range(1_000)]


async def test_writes_from_many_loops_and_threads(store: Store) -> None:
    async def from_a_loop(which: int) -> None:
        await asyncio.gather(*(store.write(adding(f"loop{which}.{n:02}")) for n in range(50)))

    def from_a_thread(which: int) -> None:
        for n in range(25):
            store.write_blocking(adding(f"thread{which}.{n:02}"))

    with ThreadPoolExecutor(6) as threads:
        loops = [threads.submit(asyncio.run, from_a_loop(which)) for which in range(3)]
        plain = [threads.submit(from_a_thread, which) for which in range(3)]
        await from_a_loop(3)
        await asyncio.gather(*(asyncio.wrap_future(future) for future in [*loops, *plain]))
    expected = [f"loop{which}.{n:02}" for which in range(4) for n in range(50)]
    expected += [f"thread{which}.{n:02}" for which in range(3) for n in range(25)]
    assert await store.read(names_in) == expected


async def test_blocking_writes_go_first(store: Store) -> None:
    order: list[str] = []

    def noting(name: str) -> Any:
        def fn(tx: Tx) -> int:
            order.append(name)
            return insert(name, tx)

        return fn

    gates = [Gate() for _ in range(8)]  # as many as PostgreSQL has connections for queued writes
    occupied = [asyncio.create_task(store.write(gate)) for gate in gates if store.dialect == "postgresql"]
    thread = gates[0].occupy(store) if store.dialect == "sqlite" else None
    await asyncio.gather(*(asyncio.to_thread(gate.entered.wait, 20) for gate in gates[: len(occupied)]))
    queued = [asyncio.create_task(store.write(noting(f"queued{n}"))) for n in range(5)]
    await asyncio.sleep(0.02)
    renewal = threading.Thread(target=store.write_blocking, args=(noting("renewal"),))
    renewal.start()
    await asyncio.sleep(0.05)
    for gate in gates:
        gate.opened.set()
    await asyncio.gather(*occupied, *queued)
    await asyncio.to_thread(renewal.join)
    if thread is not None:
        await asyncio.to_thread(thread.join)
    assert order[0] == "renewal"
    assert sorted(order[1:]) == [f"queued{n}" for n in range(5)]


async def test_a_cancelled_waiter_learns_of_it_once_the_write_was_done(store: Store) -> None:
    gate = Gate()

    def wanted(tx: Tx) -> int:
        assert gate.opened.wait(20)
        return insert("wanted", tx)

    thread = gate.occupy(store)
    waiter = asyncio.create_task(store.write(wanted))
    await asyncio.sleep(0.02)
    for _ in range(3):
        waiter.cancel()
        await asyncio.sleep(0)
    assert not waiter.done()
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    await asyncio.to_thread(thread.join)
    assert await store.read(names_in) == ["gate", "wanted"]


async def test_a_waiter_whose_write_failed_is_still_cancelled(store: Store) -> None:
    gate = Gate()
    entered = threading.Event()

    def fail(tx: Tx) -> None:
        entered.set()
        assert gate.opened.wait(20)
        raise ValueError("no")

    thread = gate.occupy(store)
    waiter = asyncio.create_task(store.write(fail))
    await asyncio.sleep(0.02)
    waiter.cancel()
    await asyncio.sleep(0.02)
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError) as caught:
        await waiter
    await asyncio.to_thread(thread.join)
    assert isinstance(caught.value.__cause__, ValueError)


async def test_close_finishes_what_is_queued(store: Store) -> None:
    if store.url == "sqlite:///:memory:":
        pytest.skip("what was stored is gone with the store")
    gate = Gate()
    thread = gate.occupy(store)
    queued = [asyncio.create_task(store.write(adding(f"{n:03}"))) for n in range(300)]
    await asyncio.sleep(0.02)
    closing = asyncio.create_task(asyncio.to_thread(store.close))
    await asyncio.sleep(0.1)
    gate.opened.set()
    await closing
    await asyncio.to_thread(thread.join)
    assert await asyncio.gather(*queued) == [1] * 300
    again = create_session(store.url)
    assert await again.read(names_in) == [*(f"{n:03}" for n in range(300)), "gate"]
    again.close()


async def test_a_closed_store_refuses_everything(shut: Store) -> None:
    with pytest.raises(StorageError, match="closed"):
        await shut.open()
    with pytest.raises(StorageError, match="closed"):
        await shut.write(names_in)
    with pytest.raises(StorageError, match="closed"):
        await shut.read(names_in)
    with pytest.raises(StorageError, match="closed"):
        await asyncio.to_thread(shut.write_blocking, names_in)
    with pytest.raises(StorageError, match="closed"):
        shut.read_blocking(names_in)
    with pytest.raises(StorageError, match="closed"):
        await shut.changed("x", None, 0.1)
    shut.close()


async def test_writes_that_race_with_close_are_stored_or_refused(store: Store) -> None:
    stored: list[int] = []

    def write(first: int) -> None:
        for n in range(first, first + 1_000):
            try:
                store.write_blocking(functools.partial(insert, "x", row_id=f"{n:05}"))
            except StorageError:
                return
            stored.append(n)

    threads = [threading.Thread(target=write, args=(first,)) for first in (0, 10_000, 20_000)]
    for thread in threads:
        thread.start()
    await asyncio.sleep(0.1)
    await asyncio.to_thread(store.close)
    for thread in threads:
        await asyncio.to_thread(thread.join, 20)
        assert not thread.is_alive()
    if store.url == "sqlite:///:memory:":
        return
    again = create_session(store.url)
    rows = await again.read(lambda tx: tx.rows("SELECT id FROM apflow_tasks ORDER BY id"))
    again.close()
    assert [int(row_id) for (row_id,) in rows] == sorted(stored)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forking with threads is what is tested
async def test_a_forked_child_has_connections_of_its_own(store: Store) -> None:
    await store.write(adding("parent"))
    await store.read(names_in)
    gate = Gate()
    thread = gate.occupy(store)  # the child is born while the parent is in the middle of a write
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if store.url == "sqlite:///:memory:":
                code = 0 if store.read_blocking(names_in) == [] else 2
            else:
                code = 0 if store.read_blocking(names_in) == ["parent"] else 2
            store.close()
        finally:
            os._exit(code)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    gate.opened.set()
    await asyncio.to_thread(thread.join)
    assert os.waitstatus_to_exitcode(status) == 0
    await store.write(adding("parent again"))
    assert await store.read(names_in) == ["gate", "parent", "parent again"]


async def test_a_change_by_another_process_is_noticed(store: Store) -> None:
    run_id = str(uuid.uuid4())
    await store.write(functools.partial(insert, "a", row_id=run_id))
    seen = await store.changed(run_id, None, 5)
    nothing = await store.changed(run_id, seen, 0.1)
    other = store if store.url == "sqlite:///:memory:" else create_session(store.url)
    loop = asyncio.get_running_loop()
    began = loop.time()
    waiter = asyncio.create_task(store.changed(run_id, nothing, 30))
    await asyncio.sleep(0.05)

    def end(tx: Tx) -> None:
        tx.execute("UPDATE apflow_tasks SET status = 'completed' WHERE id = :id", {"id": run_id})
        if tx.dialect == "postgresql":
            tx.row("SELECT pg_notify('apflow_runs', :id)", {"id": run_id})

    await other.write(end)
    now = await waiter
    store.unwatch(run_id, now)
    assert loop.time() - began < 20
    if other is not store:
        other.close()
