"""Defects of budgets that were found once, where threads, forks, cancellations or lost answers meet the ledger."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

import apflow
from apflow import Budget, BudgetExhaustedError, Runtime, StorageError
from apflow.governance import spending

if TYPE_CHECKING:
    from apflow.storage.store import Tx

T = TypeVar("T")

pytestmark = pytest.mark.anyio

SHARED = Budget(tokens=100, per="global", name="shared")
HELD = Budget(tokens=100, per="global", name="shared", reserve=80)


@pytest.fixture
async def runtime(database_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(database_url, lease_seconds=1, shutdown_seconds=0.5) as made:
        await made.ready()
        await made.governor.load_prices()
        yield made


Ledger = tuple[list[int], int, tuple[int, int, int]]
Step = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]


def between(runtime: Runtime, step: Step) -> None:
    """Have every write done by `step`, which is given the write."""
    real = runtime.store.write

    async def write(fn: Callable[[Tx], T], *, single: bool = False) -> T:
        result: T = await step(lambda: real(fn, single=single))
        return result

    runtime.store.write = write  # type: ignore[method-assign]  # a seam that only this needs


async def until(ask: Callable[[], Awaitable[object]]) -> None:
    """Ask again until it is so."""
    while not await ask():  # noqa: ASYNC110 - the database tells it
        await asyncio.sleep(0.01)


async def rows(runtime: Runtime, sql: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await runtime.store.read(lambda tx: tx.rows(sql))]


async def ledger(runtime: Runtime) -> Ledger:
    """Return the tokens of each event, how many holds there are, and what is settled, reserved and overrun."""
    events = sorted(total for (total,) in await rows(runtime, "SELECT total_tokens FROM apflow_usage_events"))
    [(held,)] = await rows(runtime, "SELECT COUNT(*) FROM apflow_budget_holds")
    [account] = await rows(runtime, "SELECT settled, reserved, overrun FROM apflow_budget_accounts")
    return events, held, (account[0], account[1], account[2])


# -- threads and forks -------------------------------------------------------------------------------------------

DURING_A_FLUSH = """
import asyncio, sys
import apflow

@apflow.task(budget=1000)
async def work(how: str) -> str:
    flushing.set()
    apflow.report_usage(input=10, cost_usd=0)
    await begun.wait()
    def helper() -> str:
        with apflow.reserve(tokens=10):
            apflow.report_usage(input=5, cost_usd=0)
        return "done"
    return helper() if how == "inline" else await asyncio.to_thread(helper)

async def main() -> None:
    async with apflow.Runtime(sys.argv[1]) as runtime:
        await runtime.ready()
        real = runtime.store.write
        async def write(fn, *, single=False):
            if flushing.is_set() and not begun.is_set():
                begun.set()
                await asyncio.sleep(0.2)
            return await real(fn, single=single)
        runtime.store.write = write
        print(await work.with_options(runtime=runtime)(sys.argv[2]))

flushing, begun = asyncio.Event(), asyncio.Event()
asyncio.run(main())
"""

FORKED = """
import os, signal, sys, warnings
import apflow

warnings.simplefilter("ignore", DeprecationWarning)

@apflow.task(budget=apflow.Budget(usd=1))
def work() -> str:
    with apflow.reserve(usd="0.1"):
        apflow.report_usage(input=10, model="m")
    return "done"

with apflow.Runtime(sys.argv[1]) as runtime:
    runtime.prices.set("m", input=1, output=1)
    here = work.with_options(runtime=runtime)
    here()
    governor = runtime.governor
    locks = (governor.lock, governor.known.lock, governor.accounts._lock, governor.prices._lock, runtime._governing)
    for lock in locks:
        with lock:
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                runtime.prices.set("m", input=2, output=2)
                os._exit(0 if here() == "done" else 1)
        print(os.waitpid(child, 0)[1], end=" ", flush=True)
"""


def run(program: str, *arguments: str) -> tuple[str, int]:
    """Run a program that must not hang and return what it printed and how it ended."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    return done.stdout.strip() or done.stderr, done.returncode


@pytest.mark.parametrize("how", ["inline", "thread"])
def test_a_plain_helper_reserves_while_reports_are_being_stored(database_url: str, how: str) -> None:
    assert run(DURING_A_FLUSH, database_url, how) == ("done", 0)


@pytest.mark.skipif(sys.platform == "win32", reason="nothing forks there")
def test_a_fork_while_a_thread_has_locked_what_governs(database_url: str) -> None:
    assert run(FORKED, database_url) == ("0 0 0 0 0", 0)


async def test_a_report_in_the_moment_in_which_others_are_taken(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    appending, cleared, appended = threading.Event(), threading.Event(), threading.Event()

    class Queue(deque[Any]):
        def append(self, event: Any) -> None:
            late = threading.current_thread().name == "late"
            if late:
                appending.set()
                cleared.wait(0.5)
            super().append(event)
            if late:
                appended.set()

        def clear(self) -> None:
            if self and appending.is_set():
                cleared.set()
                appended.wait(0.5)
            super().clear()

    @apflow.task(budget=SHARED)
    async def work() -> None:
        context = apflow.current()
        late = threading.Thread(target=lambda: context.report_usage(input=20, cost_usd=0), name="late")
        late.start()
        appending.wait()
        context.report_usage(input=1, cost_usd=0)
        await asyncio.to_thread(late.join)

    monkeypatch.setattr(spending, "deque", Queue)
    await work()
    assert await ledger(runtime) == ([1, 20], 0, (21, 0, 0))


async def test_usage_after_the_end_is_stored_before_the_runtime_is_left(database_url: str) -> None:
    over = threading.Event()
    threads: list[threading.Thread] = []

    @apflow.task(budget=SHARED)
    async def work() -> None:
        context = apflow.current()

        def later() -> None:
            over.wait()
            context.report_usage(input=20, cost_usd=0)

        threads.append(threading.Thread(target=later))
        threads[0].start()

    async def slowly(write: Callable[[], Awaitable[Any]]) -> Any:
        await asyncio.sleep(0.3)
        return await write()

    async with Runtime(database_url, shutdown_seconds=5) as runtime:
        await work()
        between(runtime, slowly)
        over.set()
        await asyncio.to_thread(threads[0].join)
    async with Runtime(database_url) as runtime:
        await runtime.ready()
        assert await ledger(runtime) == ([20], 0, (20, 0, 0))


# -- a database that fails ---------------------------------------------------------------------------------------


async def test_a_run_whose_end_nobody_could_store_is_let_go_and_carried_on(runtime: Runtime) -> None:
    lives: list[int] = []
    away = False

    async def fail(write: Callable[[], Awaitable[Any]]) -> Any:
        if away:
            raise StorageError("away")
        return await write()

    @apflow.task(budget=SHARED)
    async def work() -> str:
        nonlocal away
        lives.append(1)
        if len(lives) == 1:
            apflow.report_usage(input=10, cost_usd=0)
            away = True
        return f"life {len(lives)}"

    between(runtime, fail)
    started = await work.submit()
    with pytest.raises(StorageError):
        await started
    assert runtime.keeper.held == {}
    away = False
    await until(lambda: rows(runtime, "SELECT id FROM apflow_tasks WHERE status = 'completed'"))
    assert await (await runtime.runs.resume(started.id)) == "life 2"


async def test_an_end_that_was_cancelled_and_not_stored_is_not_taken_as_stored(runtime: Runtime) -> None:
    lives: list[int] = []
    inside = asyncio.Event()

    async def cancelled(write: Callable[[], Awaitable[Any]]) -> Any:
        if len(lives) == 1 and not inside.is_set():
            inside.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError as error:  # As the store says it.
                raise error from StorageError("away")
        return await write()

    @apflow.task(budget=SHARED)
    async def work() -> str:
        lives.append(1)
        apflow.report_usage(input=10, cost_usd=0)
        return f"life {len(lives)}"

    between(runtime, cancelled)
    calling = asyncio.create_task(work.with_options(key="k")())
    await inside.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert await ledger(runtime) == ([10], 0, (10, 0, 0))
    [row] = await rows(runtime, "SELECT status, lease_expires_at FROM apflow_tasks")
    assert row == ("in_progress", None)
    assert await work.with_options(key="k")() == "life 2"


async def test_an_overrun_that_a_lost_answer_told_of_fails_the_run(runtime: Runtime) -> None:
    lost = 0
    told = asyncio.Event()

    async def lose(write: Callable[[], Awaitable[Any]]) -> Any:
        nonlocal lost
        result = await write()
        if lost == 1:
            lost = 2
            told.set()
            raise StorageError("the answer got lost")
        return result

    @apflow.task(budget=SHARED)
    async def work() -> str:
        nonlocal lost
        lost = 1
        with pytest.raises(BudgetExhaustedError):
            apflow.report_usage(input=150, cost_usd=0)
        await told.wait()
        await asyncio.sleep(0.05)
        return "swallowed"

    between(runtime, lose)
    with pytest.raises(BudgetExhaustedError):
        await work()
    assert await ledger(runtime) == ([150], 0, (100, 0, 50))
    [record] = await runtime.runs.list()
    assert record.status == "failed"


# -- cancellations -----------------------------------------------------------------------------------------------


class Slow:
    """Holds one write up until it is cancelled, and tells of that only once the write is done, as the store does.

    Attributes:
        on: Whether it holds the next write up.
        inside: That write waits.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.on = False
        self.inside = asyncio.Event()
        between(runtime, self._step)

    async def _step(self, write: Callable[[], Awaitable[Any]]) -> Any:
        if not self.on:
            return await write()
        self.on = False
        self.inside.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await write()
            raise
        raise AssertionError("it was not cancelled")


async def test_a_cancelled_reservation_holds_nothing(runtime: Runtime) -> None:
    slow = Slow(runtime)

    @apflow.task(budget=SHARED)
    async def work() -> Ledger:
        slow.on = True
        entering = asyncio.create_task(apflow.reserve(tokens=80).__aenter__())
        await slow.inside.wait()
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        left = await ledger(runtime)
        async with apflow.reserve(tokens=80):
            apflow.report_usage(input=80, cost_usd=0)
        return left

    assert await work() == ([], 0, (0, 0, 0))
    assert await ledger(runtime) == ([80], 0, (80, 0, 0))


async def test_a_cancelled_admission_holds_nothing(runtime: Runtime) -> None:
    slow = Slow(runtime)

    @apflow.task(budget=HELD)
    async def child() -> None:
        raise AssertionError("never called")

    @apflow.task
    async def top() -> Ledger:
        slow.on = True
        calling = asyncio.create_task(child())
        await slow.inside.wait()
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        return await ledger(runtime)

    assert await top() == ([], 0, (0, 0, 0))


async def test_a_start_that_was_cancelled_after_its_commit_is_handed_back(runtime: Runtime) -> None:
    slow = Slow(runtime)

    @apflow.task(budget=HELD)
    async def work() -> str:
        return "done"

    slow.on = True
    calling = asyncio.create_task(work.with_options(key="k")())
    await slow.inside.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert await ledger(runtime) == ([], 0, (0, 0, 0))
    assert await rows(runtime, "SELECT status, lease_expires_at FROM apflow_tasks") == [("in_progress", None)]
    assert await work.with_options(key="k")() == "done"
    assert await ledger(runtime) == ([], 0, (0, 0, 0))
