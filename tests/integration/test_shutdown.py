"""Runs that outlive their parent or their runtime."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator

import pytest

import apflow
from apflow import RunEndedError, RunInterruptedError, Runtime

pytestmark = pytest.mark.anyio


@pytest.fixture
async def runtime(sqlite_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(sqlite_url, shutdown_seconds=0.5) as made:
        yield made


@apflow.task
async def double(n: int) -> int:
    return n * 2


# -- children that outlive their parent --------------------------------------------------------------------------


async def test_nothing_starts_in_the_name_of_a_run_that_has_ended(runtime: Runtime) -> None:
    late: list[asyncio.Task[None]] = []

    async def orphan() -> None:
        await ended.wait()
        for refused in (double, double.submit):
            with pytest.raises(RunEndedError, match="has ended"):
                await refused(1)
        with pytest.raises(RunEndedError):
            await apflow.checkpoint({})
        with pytest.raises(RunEndedError):
            await apflow.progress(1, 2)

    @apflow.task
    async def parent() -> None:
        late.append(asyncio.create_task(orphan()))

    ended = asyncio.Event()
    await parent()
    ended.set()
    await late[0]
    assert await runtime.runs.count() == 1


@pytest.mark.parametrize("outcome", ["completed", "failed", "cancelled"])
async def test_a_child_that_never_came_back_is_not_in_progress_for_ever(runtime: Runtime, outcome: str) -> None:
    begun = asyncio.Event()
    children: list[asyncio.Task[None]] = []

    @apflow.task
    async def child() -> None:
        await apflow.checkpoint({"has": "a row"})
        begun.set()
        await asyncio.sleep(60)

    @apflow.task
    async def parent() -> None:
        children.append(asyncio.create_task(child()))
        await begun.wait()
        if outcome == "failed":
            raise ValueError("parent")
        if outcome == "cancelled":
            await asyncio.sleep(60)

    run = await parent.submit()
    await begun.wait()
    if outcome == "cancelled":
        await run.cancel()
    await asyncio.wait([asyncio.ensure_future(_quietly(run))])
    [row] = await runtime.runs.list(name="child")
    assert (run.status, row.status) == (outcome, "cancelled" if outcome == "cancelled" else "failed")
    assert row.error == "apflow.RunEndedError: the run above it ended first"
    children[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await children[0]


async def _quietly(run: apflow.Run[None]) -> None:
    try:
        await run
    except Exception:  # noqa: BLE001 - the row is looked at
        return


async def test_an_orphan_that_ends_after_its_parent_is_not_stored(runtime: Runtime) -> None:
    children: list[asyncio.Task[int]] = []
    go_on = asyncio.Event()

    @apflow.task
    async def child() -> int:
        await go_on.wait()
        return 1

    @apflow.task
    async def parent() -> None:
        children.append(asyncio.create_task(child()))
        await asyncio.sleep(0)

    await parent()
    go_on.set()
    with pytest.raises(RunEndedError):
        await children[0]
    assert [row.name for row in await runtime.runs.list()] == ["parent"]


# -- shutdown ----------------------------------------------------------------------------------------------------


async def test_leaving_waits_for_what_was_submitted(sqlite_url: str) -> None:
    @apflow.task
    async def short() -> int:
        await asyncio.sleep(0.1)
        return 1

    @apflow.task
    def short_too() -> int:
        time.sleep(0.1)
        return 2

    async with Runtime(sqlite_url):
        runs = [await short.submit(), short_too.submit()]
    assert [await run for run in runs] == [1, 2]


@pytest.mark.parametrize("entered", ["async with", "with"])
async def test_leaving_hands_back_what_takes_too_long(sqlite_url: str, entered: str) -> None:
    lives: list[str] = []

    @apflow.task(checkpoint=True)
    async def long() -> int:
        result = await double(2)
        lives.append("async")
        if lives.count("async") == 1:
            await asyncio.sleep(60)
        return result

    @apflow.task
    def long_too() -> int:
        lives.append("plain")
        while lives.count("plain") == 1 and not apflow.current().cancelled:
            time.sleep(0.01)
        return 5

    if entered == "with":
        runs = await asyncio.to_thread(_submit_and_leave, sqlite_url, long, long_too)
    else:
        async with Runtime(sqlite_url, shutdown_seconds=0.3):
            runs = [await long.submit(), long_too.submit()]
    for run in runs:
        with pytest.raises(RunInterruptedError):
            await run
    async with Runtime(sqlite_url) as second:
        taken = {run.id: run for run in await second.recover()}
        again = [taken.get(run.id) or await second.runs.resume(run.id) for run in runs]
        assert [await run for run in again] == [4, 5]
        assert await second.runs.count(name="double") == 1
        assert {row.recoveries for row in await second.runs.list() if row.kind == "run"} == {0}


def _submit_and_leave(
    url: str, long: apflow.AsyncTask[[], int], long_too: apflow.SyncTask[[], int]
) -> list[apflow.Run[int]]:
    with Runtime(url, shutdown_seconds=0.3) as runtime:
        return [runtime.wait(long.submit()), long_too.submit()]


async def test_leaving_hands_runs_that_were_taken_over_back_at_once(sqlite_url: str) -> None:
    lives = 0

    @apflow.task
    async def taken_twice() -> int:
        nonlocal lives
        lives += 1
        (first, again, again)[lives - 1].set()
        if lives < 3:
            await asyncio.sleep(60)
        return lives

    first, again = asyncio.Event(), asyncio.Event()
    async with Runtime(sqlite_url, shutdown_seconds=0):
        run = await taken_twice.submit()
        await first.wait()
    # Waiting for it would be stopped by the time limit of the test.
    async with Runtime(sqlite_url, shutdown_seconds=600) as second:
        await second.recover()
        await again.wait()
    async with Runtime(sqlite_url) as third:
        assert await (await third.runs.resume(run.id)) == 3


async def test_a_plain_call_that_died_with_its_caller_is_not_carried_on_unasked(runtime: Runtime) -> None:
    lives = 0

    @apflow.task
    async def called() -> int:
        nonlocal lives
        lives += 1
        if lives == 1:
            await asyncio.sleep(60)
        return lives

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(called(), 0.05)
    assert await runtime.recover() == []
    [run] = await runtime.recover(everything=True)
    assert await run == 2


async def test_a_deaf_plain_function_does_not_hold_leaving_up_for_ever(sqlite_url: str) -> None:
    begun, go_on = threading.Event(), threading.Event()

    @apflow.task
    def deaf() -> None:
        begun.set()
        go_on.wait(60)

    async with Runtime(sqlite_url, shutdown_seconds=0.2):
        run = deaf.submit()
        await asyncio.to_thread(begun.wait)
    assert not go_on.is_set()
    go_on.set()
    with pytest.raises(RunInterruptedError):
        await run
