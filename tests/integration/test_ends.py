"""How runs end when they do not simply return: timeouts, cancellation, leftovers and shutdown."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator

import pytest

import apflow
from apflow import RetryPolicy, RunCancelledError, RunEndedError, Runtime, RunTimeoutError

pytestmark = pytest.mark.anyio

FAST = RetryPolicy(max_attempts=3, backoff_base_seconds=0.1, jitter=False)


@pytest.fixture
async def runtime(sqlite_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(sqlite_url, shutdown_seconds=0.5) as made:
        yield made


@apflow.task
async def double(n: int) -> int:
    return n * 2


@apflow.task
def triple(n: int) -> int:
    return n * 3


# -- timeouts --------------------------------------------------------------------------------------------------


async def test_timeout_cancels_a_coroutine_and_is_retried(runtime: Runtime) -> None:
    cancelled: list[int] = []

    @apflow.task(timeout=0.05, retry=FAST)
    async def slow() -> int:
        attempt = apflow.current().attempt
        if attempt == 3:
            return attempt
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(attempt)
            raise
        return 0

    assert await slow() == 3
    assert cancelled == [1, 2]
    [row] = await runtime.runs.list()
    assert (row.status, row.attempt_count) == ("completed", 3)


async def test_last_timeout_fails_the_run(runtime: Runtime) -> None:
    @apflow.task(timeout=0.05)
    async def slow() -> None:
        await asyncio.sleep(60)

    with pytest.raises(RunTimeoutError, match=r"timeout of 0\.05 s") as caught:
        await slow()
    assert (caught.value.seconds, caught.value.still_running) == (0.05, False)
    assert isinstance(caught.value, TimeoutError)
    [row] = await runtime.runs.list()
    assert (row.status, row.error_info["type"]) == ("failed", "apflow.RunTimeoutError")


async def test_a_timeout_error_of_the_function_itself_stays_what_it_is(runtime: Runtime) -> None:
    @apflow.task(timeout=60)
    async def impatient() -> None:
        await asyncio.wait_for(asyncio.sleep(60), 0.01)

    with pytest.raises(TimeoutError) as caught:
        await impatient()
    assert not isinstance(caught.value, RunTimeoutError)


async def test_plain_function_sees_its_timeout_and_can_do_no_more(runtime: Runtime) -> None:
    refused: list[str] = []

    @apflow.task(timeout=0.05, retry=FAST)
    def slow() -> int:
        ctx = apflow.current()
        if ctx.attempt == 2:
            return triple(1)
        while not ctx.cancelled:
            time.sleep(0.01)
        for late in (lambda: triple(1), lambda: triple.submit(1), lambda: ctx.checkpoint({"late": True})):
            with pytest.raises(RunCancelledError, match="timeout"):
                late()
            refused.append("once")
        raise ValueError("what it says by then does not count")

    assert await asyncio.to_thread(slow) == 3
    assert len(refused) == 3
    [row] = await runtime.runs.list(name="slow")
    assert (row.status, row.attempt_count, row.error) == ("completed", 2, None)
    assert await runtime.runs.count(name="triple") == 1


async def test_plain_function_that_does_not_stop_fails_and_is_not_retried(runtime: Runtime) -> None:
    calls, go_on = 0, threading.Event()

    @apflow.task(timeout=0.05, retry=FAST)
    def deaf() -> None:
        nonlocal calls
        calls += 1
        go_on.wait(60)

    run = deaf.submit()
    with pytest.raises(RunTimeoutError, match="still running") as caught:
        await run
    assert caught.value.still_running
    assert not go_on.is_set()
    go_on.set()
    assert calls == 1
    [row] = await runtime.runs.list()
    assert (row.status, row.attempt_count) == ("failed", 1)


async def test_direct_caller_of_a_deaf_function_gets_the_error_when_its_thread_is_back(runtime: Runtime) -> None:
    @apflow.task(timeout=0.05)
    def deaf() -> str:
        time.sleep(1)
        try:
            apflow.checkpoint({"late": True})
        except apflow.RunError as error:
            errors.append(type(error))
        return "too late"

    errors: list[type] = []
    with pytest.raises(RunTimeoutError):
        deaf()
    assert errors == [RunEndedError]


# -- cancel ----------------------------------------------------------------------------------------------------


async def test_cancel_of_a_submitted_plain_run(runtime: Runtime) -> None:
    begun = threading.Event()

    @apflow.task
    def watchful() -> None:
        begun.set()
        while not apflow.current().cancelled:
            time.sleep(0.01)

    run = watchful.submit()
    await asyncio.to_thread(begun.wait)
    await run.cancel()
    assert run.status == "cancelled"
    with pytest.raises(RunCancelledError):
        await run


async def test_cancel_of_a_run_that_waits_for_its_slot(sqlite_url: str) -> None:
    gate = asyncio.Event()
    begun: list[int] = []
    first = asyncio.Event()

    @apflow.task
    async def waits(n: int) -> None:
        begun.append(n)
        first.set()
        await gate.wait()

    async with Runtime(sqlite_url, concurrency=1):
        runs = [await waits.submit(n) for n in range(3)]
        await first.wait()
        await runs[1].cancel()
        gate.set()
        await runs[2]
        assert [run.status for run in runs] == ["completed", "cancelled", "completed"]
    assert begun == [0, 2]


async def test_cancel_from_another_runtime_is_seen_with_the_next_renewal(sqlite_url: str) -> None:
    begun = asyncio.Event()

    @apflow.task
    async def long() -> None:
        begun.set()
        await asyncio.sleep(60)

    async with Runtime(sqlite_url, lease_seconds=1) as here, Runtime(sqlite_url) as elsewhere:
        run = await long.with_options(runtime=here).submit()
        await begun.wait()
        await elsewhere.runs.cancel(run.id)
        with pytest.raises(RunCancelledError):
            await run
        assert run.status == "cancelled"


async def test_cancel_is_not_forgotten_when_the_owner_leaves_first(sqlite_url: str) -> None:
    lives = 0

    @apflow.task
    async def long() -> None:
        nonlocal lives
        lives += 1
        begun.set()
        await asyncio.sleep(60)

    begun = asyncio.Event()
    async with Runtime(sqlite_url) as elsewhere:
        async with Runtime(sqlite_url, shutdown_seconds=0) as here:
            run = await long.with_options(runtime=here).submit()
            await begun.wait()
            await elsewhere.runs.cancel(run.id)
        for taken in await elsewhere.recover():
            with pytest.raises(RunCancelledError):
                await taken
        row = await elsewhere.runs.get(run.id)
        assert row is not None
        assert row.status == "cancelled"
    assert lives == 1


async def test_cancel_ends_an_interrupted_run_at_once_and_for_good(runtime: Runtime) -> None:
    @apflow.task
    async def long() -> None:
        await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(long.with_options(key="k")(), 0.05)
    [row] = await runtime.runs.list()
    assert row.interrupted
    await runtime.runs.cancel(row.id)
    [row] = await runtime.runs.list()
    assert (row.status, row.interrupted) == ("cancelled", False)
    with pytest.raises(RunCancelledError):
        await long.with_options(key="k")()
    with pytest.raises(RunCancelledError):
        await runtime.runs.resume(row.id)
    assert await runtime.recover(everything=True) == []


async def test_cancel_reaches_submitted_children_and_theirs(runtime: Runtime) -> None:
    ended: list[str] = []
    deepest = asyncio.Event()

    @apflow.task
    async def leaf() -> None:
        deepest.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("leaf")

    @apflow.task
    async def branch() -> None:
        await (await leaf.submit())

    @apflow.task
    async def root() -> None:
        await (await branch.submit())

    run = await root.submit()
    await deepest.wait()
    await run.cancel()
    assert ended == ["leaf"]
    assert {row.name: row.status for row in await runtime.runs.list()} == dict.fromkeys(
        ["root", "branch", "leaf"], "cancelled"
    )


async def test_a_function_that_swallows_its_cancellation_ends_once(runtime: Runtime) -> None:
    begun = asyncio.Event()

    @apflow.task
    async def stubborn(*, calls: bool) -> str:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if calls:
                await double(1)
        await asyncio.sleep(0.01)
        return "so there"

    for calls, status in ((True, "cancelled"), (False, "completed")):
        begun.clear()
        run = await stubborn.submit(calls=calls)
        await begun.wait()
        await run.cancel()
        assert run.status == status
    assert await runtime.runs.count(name="double") == 0


async def test_cancel_that_meets_the_end_leaves_nothing_behind(runtime: Runtime) -> None:
    """Whatever comes first, the caller gets the result or RunCancelledError, and no cancellation of its own."""
    outcomes: set[str] = set()

    @apflow.task
    async def short(turns: int) -> str:
        begun.set_result(apflow.current().task_id)
        for _ in range(turns):
            await asyncio.sleep(0)
        return "done"

    async def caller(turns: int) -> str:
        try:
            outcome = await short(turns)
        except RunCancelledError:
            outcome = "cancelled"
        for _ in range(5):
            await asyncio.sleep(0)
        current = asyncio.current_task()
        assert current is not None
        assert current.cancelling() == 0
        return outcome

    for turn in range(100):
        begun: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        calling = asyncio.create_task(caller(turn % 10))
        run_id = await begun
        for _ in range(turn // 10):
            await asyncio.sleep(0)
        await runtime.runs.cancel(run_id)
        outcome = await calling
        row = await runtime.runs.get(run_id)
        assert row is not None
        assert row.status == {"done": "completed", "cancelled": "cancelled"}[outcome]
        outcomes.add(outcome)
    assert outcomes == {"done", "cancelled"}


# -- what only interrupts ----------------------------------------------------------------------------------------


async def test_wait_for_and_task_group_interrupt_and_leave_no_children_open(runtime: Runtime) -> None:
    @apflow.task
    async def flow() -> None:
        await double(1)
        await asyncio.sleep(60)

    async def fails() -> None:
        await asyncio.sleep(0.05)
        raise ValueError("sibling")

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(flow(), 0.05)

    async def together() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(flow())
            group.create_task(fails())

    with pytest.raises(ExceptionGroup) as caught:
        await together()
    assert [str(error) for error in caught.value.exceptions] == ["sibling"]
    flows = await runtime.runs.list(name="flow")
    assert [row.interrupted for row in flows] == [True, True]
    assert await runtime.runs.count(status="completed") == 2


async def test_final_writes_survive_a_second_cancellation(runtime: Runtime) -> None:
    @apflow.task
    async def flow() -> None:
        await asyncio.sleep(60)

    for _ in range(20):
        calling = asyncio.create_task(flow())
        await asyncio.sleep(0.01)
        calling.cancel()
        await asyncio.sleep(0)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
    assert await runtime.runs.count(status="interrupted") == 20
