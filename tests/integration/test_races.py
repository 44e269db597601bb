"""Several at once: takeovers, retries, slots, cancellations and ends that meet each other."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
import pytest

import apflow
from apflow import RetryPolicy, RunCancelledError, RunInterruptedError, Runtime
from apflow.background import Slots
from apflow.storage.outlive import outlive
from apflow.storage.postgres_connection import PostgresTx

if TYPE_CHECKING:
    from apflow.storage.store import Tx

T = TypeVar("T")

pytestmark = pytest.mark.anyio

FAST = RetryPolicy(max_attempts=3, backoff_base_seconds=0.1, jitter=False)

log: list[str] = []


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    log.clear()


@pytest.fixture
async def runtime(database_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(database_url, shutdown_seconds=1) as made:
        yield made


async def statuses(runtime: Runtime) -> dict[str, str | None]:
    """Return the status of every run, by the name of its task."""
    rows = await runtime.runs.list()
    return {row.name.rpartition(".")[2]: "interrupted" if row.interrupted else row.status for row in rows}


# -- who takes a run over --------------------------------------------------------------------------------------


async def test_many_who_call_a_failed_key_at_once_share_one_life(runtime: Runtime) -> None:
    @apflow.task
    async def flaky() -> int:
        log.append("flaky")
        if len(log) == 1:
            raise ValueError("not yet")
        await asyncio.sleep(0.05)
        return len(log)

    keyed = flaky.with_options(key="k")
    with pytest.raises(ValueError, match="not yet"):
        await keyed()
    assert await asyncio.gather(*(keyed() for _ in range(4))) == [2] * 4
    assert log == ["flaky"] * 2
    [row] = await runtime.runs.list()
    assert (row.status, row.epoch) == ("completed", 2)


async def test_a_clock_that_stands_still_does_not_let_two_take_one_run(database_url: str) -> None:
    class Stopped:
        def now(self) -> datetime:
            return datetime(2030, 1, 1, tzinfo=UTC)

        def monotonic(self) -> float:
            return 0

        async def sleep(self, seconds: float) -> None:
            await asyncio.sleep(0 * seconds)

    @apflow.task
    async def flaky() -> int:
        log.append("flaky")
        if len(log) == 1:
            raise ValueError("not yet")
        await asyncio.sleep(0.05)
        return len(log)

    async with Runtime(database_url, clock=Stopped()):
        keyed = flaky.with_options(key="k")
        with pytest.raises(ValueError, match="not yet"):
            await keyed()
        assert await asyncio.gather(*(keyed() for _ in range(4))) == [2] * 4
    assert log == ["flaky"] * 2


async def test_children_are_run_once_when_recovery_meets_the_replaying_parent(database_url: str) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    @apflow.task
    async def child(n: int) -> int:
        if go_on.is_set():
            log.append(f"child {n}")
        await go_on.wait()
        return n

    @apflow.task(checkpoint=True)
    async def parent() -> int:
        runs = [await child.submit(n) for n in range(5)]
        begun.set()
        return sum([await run for run in runs])

    async with Runtime(database_url, shutdown_seconds=0):
        run = await parent.submit()
        await begun.wait()
    go_on.set()
    async with Runtime(database_url) as runtime:
        resumed, *_ = await asyncio.gather(runtime.runs.resume(run.id), *(runtime.recover() for _ in range(3)))
        assert await resumed == 10
        assert await runtime.runs.count(status="completed") == 6
    assert sorted(log) == [f"child {n}" for n in range(5)]


# -- retries ---------------------------------------------------------------------------------------------------


async def test_what_a_failed_attempt_left_running_has_stopped_when_the_next_one_begins(runtime: Runtime) -> None:
    @apflow.task
    async def slow() -> int:
        attempt = apflow.current()._state.parent
        assert attempt is not None
        log.append(f"slow of attempt {attempt.attempt} begins")
        if attempt.attempt == 1:
            try:
                await asyncio.sleep(60)
            finally:
                log.append("slow of attempt 1 stops")
        return 1

    @apflow.task
    async def bad() -> int:
        await asyncio.sleep(0.05)
        if len(log) == 1:
            raise ConnectionError("away")
        return 2

    @apflow.task(checkpoint=True, retry=FAST)
    async def parent() -> list[int]:
        return list(await asyncio.gather(slow(), bad()))

    assert await parent() == [1, 2]
    assert log == ["slow of attempt 1 begins", "slow of attempt 1 stops", "slow of attempt 2 begins"]
    assert await statuses(runtime) == {"slow": "completed", "bad": "completed", "parent": "completed"}


async def test_a_child_that_failed_finds_its_state_in_the_next_attempt_of_its_parent(runtime: Runtime) -> None:
    restored: list[object] = []

    @apflow.task
    async def child() -> str:
        restored.append(apflow.current().restored)
        if len(restored) == 1:
            await apflow.checkpoint({"half": "done"})
            raise ConnectionError("away")
        return "done"

    @apflow.task(checkpoint=True, retry=FAST)
    async def parent() -> str:
        return await child()

    assert await parent() == "done"
    assert restored == [None, {"half": "done"}]
    assert await runtime.store.read(lambda tx: tx.rows("SELECT id FROM task_checkpoints", {})) == []


class Hesitant(dict[Any, Any]):
    """A dict that lets other threads go first, after it was asked and before the answer is used."""

    def get(self, key: Any, default: Any = None) -> Any:
        found = super().get(key, default)
        time.sleep(0.001)
        return found

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        time.sleep(0.001)
        return found


def test_equal_calls_from_many_threads_are_different_children(sqlite_url: str) -> None:
    @apflow.task
    def child(n: int) -> int:
        return n

    @apflow.task(checkpoint=True)
    def parent() -> int:
        apflow.current()._state.counters = Hesitant()
        return sum(child.map([1] * 64))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with Runtime(sqlite_url) as runtime:
            assert parent() == 64
            assert runtime.wait(runtime.runs.count(status="completed", name=child.name)) == 64
    finally:
        sys.setswitchinterval(interval)


# -- slots -----------------------------------------------------------------------------------------------------


async def test_a_run_that_was_cancelled_while_it_waited_leaves_no_slot_taken(sqlite_url: str) -> None:
    first = asyncio.Event()

    @apflow.task
    async def root(n: int) -> int:
        if n == 0:
            await first.wait()
        return n

    async with Runtime(sqlite_url, concurrency=1):
        runs = [await root.submit(n) for n in range(4)]
        await runs[1].cancel()
        await runs[3].cancel()
        first.set()
        assert [await runs[0], await runs[2]] == [0, 2]
        assert await (await root.submit(5)) == 5


async def test_a_slot_given_to_one_who_no_longer_wants_it_is_passed_on() -> None:
    slots = Slots(1)
    entered = asyncio.Event()
    leave = asyncio.Event()

    async def work(_: Any) -> str:
        entered.set()
        await leave.wait()
        return "worked"

    async def quick(_: Any) -> str:
        return "quick"

    call: Any = None
    holder = asyncio.create_task(slots.layer(call, work))
    await entered.wait()
    refuses = asyncio.create_task(slots.layer(call, quick))
    waits = asyncio.create_task(slots.layer(call, quick))
    await asyncio.sleep(0.01)
    leave.set()
    while not holder.done():  # noqa: ASYNC110 - the slot has to be given, but not yet to have arrived
        await asyncio.sleep(0)
    refuses.cancel()
    assert await waits == "quick"
    assert refuses.cancelled()
    assert await slots.layer(call, quick) == "quick"


# -- the end meets a cancellation --------------------------------------------------------------------------------


async def test_a_cancellation_during_the_final_write_does_not_lose_the_result(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = runtime.store.write

    async def cancelled_meanwhile(fn: Callable[[Tx], T], *, single: bool = False) -> T:
        if "_end_owned_in" not in repr(fn):
            return await write(fn, single=single)
        writing = asyncio.ensure_future(write(fn, single=single))
        me = asyncio.current_task()
        assert me is not None
        me.cancel()
        return await outlive(writing)

    @apflow.task
    async def answer() -> int:
        begun.set()
        await go_on.wait()
        return 42

    begun, go_on = asyncio.Event(), asyncio.Event()
    await runtime.ready()
    monkeypatch.setattr(runtime.store, "write", cancelled_meanwhile)
    run = await answer.with_options(key="k").submit()
    await begun.wait()
    joiner = asyncio.create_task(answer.with_options(key="k")())
    await asyncio.sleep(0.05)
    go_on.set()
    assert await run == 42
    assert await joiner == 42
    assert run.status == "completed"


async def test_cancel_does_not_overwrite_a_run_that_ends_meanwhile(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    rows = PostgresTx.rows

    def end() -> None:
        sql = "UPDATE apflow_tasks SET status = 'completed' WHERE epoch = 1 AND status = 'in_progress'"
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            ended.append(connection.execute(sql).rowcount)

    def rows_then_end(self: PostgresTx, sql: str, params: Any) -> list[tuple[Any, ...]]:
        found = rows(self, sql, params)
        if "below" in sql:
            owner.start()
            time.sleep(0.2)
        return found

    @apflow.task
    async def answer() -> int:
        return 42

    owner = threading.Thread(target=end)
    async with Runtime(postgres_url) as runtime:
        run = await answer.submit()
        await run
        # Its owner lives on another machine; its lease has just run out.
        sql = "UPDATE apflow_tasks SET status = 'in_progress', lease_expires_at = now() - interval '1 s', owner = 'b'"
        await runtime.store.write(lambda tx: tx.execute(sql, {}))
        monkeypatch.setattr(PostgresTx, "rows", rows_then_end)
        await runtime.runs.cancel(run.id)
        await asyncio.to_thread(owner.join)
        assert (run.status, ended) == ("cancelled", [0])


async def test_a_parent_that_was_cancelled_elsewhere_cannot_submit_another_child(database_url: str) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    @apflow.task
    async def child() -> None:
        log.append("child")

    @apflow.task
    async def parent() -> None:
        begun.set()
        await go_on.wait()
        await child.submit()

    async with Runtime(database_url) as here, Runtime(database_url) as there:
        run = await parent.with_options(runtime=here).submit()
        await begun.wait()
        await there.runs.cancel(run.id)
        go_on.set()
        with pytest.raises(RunCancelledError):
            await run
        assert await statuses(here) == {"parent": "cancelled"}
    assert log == []


async def test_submit_of_a_run_that_was_merely_called_makes_it_accepted(runtime: Runtime) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    @apflow.task
    async def answer() -> int:
        begun.set()
        await go_on.wait()
        return 42

    keyed = answer.with_options(key="k")
    caller = asyncio.create_task(keyed())
    await begun.wait()
    run = await keyed.submit()
    row = await runtime.runs.get(run.id)
    assert row is not None
    assert row.accepted
    caller.cancel()
    with pytest.raises(RunInterruptedError):
        await run
    go_on.set()
    recovered = {one.id: one for one in await runtime.recover()}
    assert await recovered.get(run.id, run) == 42
