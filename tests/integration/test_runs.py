"""Recorded runs through the public API, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from pydantic import BaseModel

import apflow
from apflow import (
    KeyConflictError,
    RetryPolicy,
    RunActiveError,
    RunCancelledError,
    Runtime,
    SerializationError,
)

pytestmark = pytest.mark.anyio

FAST = RetryPolicy(max_attempts=3, backoff_base_seconds=0.1, jitter=False)


class Report(BaseModel):
    topic: str
    pages: list[str] = []


executed: list[object] = []


@pytest.fixture(autouse=True)
def _nothing_executed() -> None:
    executed.clear()


@pytest.fixture
async def runtime(database_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(database_url, shutdown_seconds=1) as made:
        yield made


@apflow.task
async def double(n: int) -> int:
    executed.append(n)
    return n * 2


@apflow.task
def triple(n: int) -> int:
    executed.append(n)
    return n * 3


@apflow.task(checkpoint=True)
async def report(topic: str) -> Report:
    return Report(topic=topic, pages=[str(await double(1)), str(triple(2))])


@apflow.task
async def count_to(n: int) -> AsyncIterator[int]:
    for number in range(n):
        executed.append(number)
        yield number


@apflow.task
def letters(word: str) -> Iterator[str]:
    yield from word


async def test_result_and_row_of_a_tree(runtime: Runtime) -> None:
    made = await report("tides")
    assert made == Report(topic="tides", pages=["2", "6"])
    [root] = await runtime.runs.list(name="report")
    assert (root.status, root.kind, root.inputs, root.result) == (
        "completed",
        "run",
        {"topic": "tides"},
        {"topic": "tides", "pages": ["2", "6"]},
    )
    tree = await runtime.runs.tree(root.id)
    assert [(row.name, row.result, row.parent_id, row.task_tree_id) for row in tree.walk()][1:] == [
        ("double", 2, root.id, root.id),
        ("triple", 6, root.id, root.id),
    ]


async def test_same_key_runs_once_and_gives_the_annotated_type(runtime: Runtime) -> None:
    keyed = report.with_options(key="k")
    first, second = await keyed("tides"), await keyed("tides")
    assert first == second
    assert isinstance(second, Report)
    assert executed == [1, 2]
    with pytest.raises(KeyConflictError):
        await keyed("winds")


async def test_same_key_at_once_runs_once(runtime: Runtime) -> None:
    results = await asyncio.gather(*(double.with_options(key="k")(4) for _ in range(20)))
    assert results == [8] * 20
    assert executed == [4]


async def test_keys_of_two_users_are_two_runs(runtime: Runtime) -> None:
    await double.with_options(key="k", user="ada")(1)
    await double.with_options(key="k", user="bob")(2)
    assert executed == [1, 2]
    assert [row.user_id for row in await runtime.runs.list()] == ["bob", "ada"]


async def test_submit_is_stored_when_it_returns(runtime: Runtime) -> None:
    run = await double.submit(3)
    row = await runtime.runs.get(run.id)
    assert row is not None
    assert row.accepted
    assert await run == 6
    assert run.status == "completed"


async def test_generator_streams_and_its_result_is_the_list(runtime: Runtime) -> None:
    assert [item async for item in count_to(3)] == [0, 1, 2]
    assert list(letters("abc")) == ["a", "b", "c"]
    assert await (await count_to.submit(2)) == [0, 1]
    assert letters.submit("xy").result(10) == ["x", "y"]
    assert [row.result for row in await runtime.runs.list()] == [["x", "y"], [0, 1], ["a", "b", "c"], [0, 1, 2]]


async def test_generator_body_waits_for_its_consumer(runtime: Runtime) -> None:
    stream = count_to(5)
    assert await anext(stream) == 0
    await asyncio.sleep(0.05)
    assert executed == [0]
    await stream.aclose()
    [row] = await runtime.runs.list()
    assert row.interrupted


async def test_plain_generator_left_early_is_interrupted(runtime: Runtime) -> None:
    stream = letters("abc")
    assert next(stream) == "a"
    stream.close()
    [row] = await runtime.runs.list()
    assert row.interrupted


async def test_map_keeps_order_and_bounds_concurrency(runtime: Runtime) -> None:
    running, most = 0, 0
    met = asyncio.Event()

    @apflow.task
    async def slow(n: int, plus: int = 0) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 2:
            met.set()
        await met.wait()  # The first one does not leave before the second one has come.
        await asyncio.sleep(0.02 / (n + 1))
        running -= 1
        return n + plus

    assert await slow.with_options(map_limit=2).map(range(6), plus=1) == [1, 2, 3, 4, 5, 6]
    assert most == 2


async def test_map_cancels_the_rest_at_the_first_error(runtime: Runtime) -> None:
    ended: list[int] = []
    others_run = asyncio.Semaphore(0)

    @apflow.task
    async def fails_at_one(n: int) -> int:
        if n == 1:
            await others_run.acquire()
            await others_run.acquire()
            raise ValueError("one")
        others_run.release()
        try:
            await asyncio.sleep(30)
        finally:
            ended.append(n)
        return n

    with pytest.raises(ValueError, match="one"):
        await fails_at_one.map(range(3))
    assert sorted(ended) == [0, 2]


async def test_failure_is_stored_and_raised(runtime: Runtime) -> None:
    @apflow.task
    async def fails() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await fails()
    [row] = await runtime.runs.list(status="failed")
    assert row.error == "ValueError: broken"
    assert row.error_info["type"] == "ValueError"


async def test_retry_reuses_finished_children_and_tries_failed_ones_again(runtime: Runtime) -> None:
    tries = {"step": 0, "flaky": 0}

    @apflow.task
    async def step() -> int:
        tries["step"] += 1
        return 1

    @apflow.task
    async def flaky() -> int:
        tries["flaky"] += 1
        if tries["flaky"] < 3:
            raise ConnectionError("away")
        return 2

    @apflow.task(checkpoint=True, retry=FAST)
    async def flow() -> int:
        return await step() + await flaky()

    assert await flow() == 3
    assert tries == {"step": 1, "flaky": 3}
    [row] = await runtime.runs.list(name="flow")
    assert (row.attempt_count, row.status) == (3, "completed")


async def test_without_checkpoint_a_retry_runs_children_again(runtime: Runtime) -> None:
    tries = 0

    @apflow.task(retry=FAST)
    async def flow() -> int:
        nonlocal tries
        tries += 1
        await double(1)
        if tries == 1:
            raise ConnectionError("away")
        return 1

    await flow()
    assert executed == [1, 1]


async def test_failed_key_continues_with_new_attempts(runtime: Runtime) -> None:
    tries = 0

    @apflow.task(checkpoint=True)
    async def flow() -> int:
        nonlocal tries
        tries += 1
        await double(1)
        if tries == 1:
            raise ValueError("first")
        return tries

    keyed = flow.with_options(key="k")
    with pytest.raises(ValueError, match="first"):
        await keyed()
    assert await keyed() == 2
    assert executed == [1]


async def test_interrupted_caller_leaves_a_resumable_run(runtime: Runtime) -> None:
    @apflow.task(checkpoint=True)
    async def flow() -> int:
        first = await double(1)
        if len(executed) == 1:
            executed.append("waiting")
            await asyncio.sleep(30)
        return first

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(flow(), 0.2)
    [row] = await runtime.runs.list(name="flow")
    assert row.interrupted
    run = await runtime.runs.resume(row.id)
    assert await run == 2
    assert executed == [1, "waiting"]


async def test_cancel_stops_the_function_and_its_children(runtime: Runtime) -> None:
    stopped = []

    @apflow.task
    async def child() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            stopped.append("child")
            raise

    @apflow.task
    async def flow() -> None:
        await child()

    run = await flow.submit()
    await asyncio.sleep(0.1)
    await run.cancel()
    with pytest.raises(RunCancelledError):
        await run
    assert stopped == ["child"]
    assert {row.name: row.status for row in await runtime.runs.list()} == {"flow": "cancelled", "child": "cancelled"}


async def test_direct_caller_of_a_cancelled_run_sees_run_cancelled(runtime: Runtime) -> None:
    @apflow.task
    async def flow() -> None:
        executed.append(apflow.current().task_id)
        begun.set()
        await asyncio.sleep(30)

    begun = asyncio.Event()
    caller = asyncio.ensure_future(flow())
    await begun.wait()
    await runtime.runs.cancel(str(executed[0]))
    with pytest.raises(RunCancelledError):
        await caller
    with pytest.raises(RunCancelledError):
        await runtime.runs.resume(str(executed[0]))


async def test_running_run_cannot_be_deleted_and_an_ended_tree_can(runtime: Runtime) -> None:
    gate = asyncio.Event()

    @apflow.task
    async def flow() -> int:
        await double(1)
        begun.set()
        await gate.wait()
        return 1

    begun = asyncio.Event()
    run = await flow.submit()
    await begun.wait()
    with pytest.raises(RunActiveError):
        await runtime.runs.delete(run.id)
    gate.set()
    await run
    assert await runtime.runs.delete(run.id) == 2
    assert await runtime.runs.count() == 0


async def test_result_that_json_cannot_carry_fails_the_run(runtime: Runtime) -> None:
    @apflow.task
    async def pair():  # type: ignore[no-untyped-def]  # noqa: ANN202 - untyped on purpose
        return (1, 2)

    with pytest.raises(SerializationError, match="tuple"):
        await pair()
    [row] = await runtime.runs.list()
    assert row.status == "failed"


async def test_explicit_checkpoint_is_restored_on_retry_and_removed_at_the_end(runtime: Runtime) -> None:
    seen: list[object] = []

    @apflow.task(retry=FAST)
    async def flow() -> int:
        ctx = apflow.current()
        seen.append(ctx.restored)
        await ctx.checkpoint({"page": len(seen)})
        if ctx.attempt < 3:
            raise ConnectionError("away")
        return 1

    await flow()
    assert seen == [None, {"page": 1}, {"page": 2}]
    assert await runtime.store.read(lambda tx: tx.row("SELECT COUNT(*) FROM task_checkpoints")) == (0,)
