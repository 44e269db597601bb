"""Fifty calls at once on one budget in one process: what is declared never passes it, what is not is on the ledger."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

import apflow
from apflow import AsyncTask, Budget, BudgetExhaustedError, Runtime, SyncTask
from tests.contract.raw_database import RawDatabase

pytestmark = pytest.mark.anyio

CALLS = 50
LIMIT = 1_000

#: Runs whose function was entered.
runs: list[str] = []
#: Keeps undeclared calls until all have started.
together = threading.Barrier(CALLS)
waiting: list[asyncio.Future[None]] = []


@pytest.fixture
async def runtime(database_url: str) -> AsyncIterator[Runtime]:
    runs.clear()
    waiting.clear()
    async with Runtime(database_url) as made:
        yield made


def use() -> int:
    runs.append(apflow.current().task_id)
    apflow.report_usage(input=60, output=40)
    return 100


@apflow.task
async def child() -> int:
    await asyncio.sleep(0)
    return use()


@apflow.task(budget=LIMIT)
async def family() -> list[str]:
    return await outcomes([child.with_options(reserve=100)() for _ in range(CALLS)])


@apflow.task
def plain_child() -> int:
    return use()


@apflow.task(budget=LIMIT)
async def plain_family() -> list[str]:
    call = plain_child.with_options(reserve=100)
    return await outcomes([asyncio.to_thread(call) for _ in range(CALLS)])


@apflow.task(budget=Budget(tokens=LIMIT, per="user", reserve=100))
async def per_user() -> int:
    await asyncio.sleep(0)
    return use()


@apflow.task(budget=Budget(tokens=LIMIT, per="global", reserve=100))
async def per_global() -> int:
    await asyncio.sleep(0)
    return use()


@apflow.task(budget=Budget(tokens=LIMIT, per="user", reserve=100))
def plain_per_user() -> int:
    return use()


@apflow.task(budget=Budget(tokens=LIMIT, per="global", reserve=100))
def plain_per_global() -> int:
    return use()


@apflow.task
async def careless_child() -> int:
    await all_started()
    return use()


@apflow.task(budget=LIMIT)
async def careless_family() -> list[str]:
    ended = await outcomes([careless_child() for _ in range(CALLS)])
    with pytest.raises(BudgetExhaustedError):
        await careless_child()
    return ended


@apflow.task(budget=Budget(tokens=LIMIT, per="user"))
async def careless_per_user() -> int:
    await all_started()
    return use()


@apflow.task(budget=Budget(tokens=LIMIT, per="global"))
async def careless_per_global() -> int:
    await all_started()
    return use()


@apflow.task(budget=Budget(tokens=LIMIT, per="global"))
def plain_careless() -> int:
    together.wait()
    return use()


@apflow.task
async def child_that_stops() -> None:
    apflow.report_usage(input=70)
    raise asyncio.CancelledError


@apflow.task(budget=LIMIT)
async def stopped_family() -> None:
    with pytest.raises(asyncio.CancelledError):
        await child_that_stops()


async def all_started() -> None:
    """Wait until every call has started; one that comes later passes."""
    mine = asyncio.get_running_loop().create_future()
    waiting.append(mine)
    if len(waiting) >= CALLS:
        for one in waiting:
            if not one.done():
                one.set_result(None)
    await mine


async def outcomes(calls: list[Any]) -> list[str]:
    ended = await asyncio.gather(*calls, return_exceptions=True)
    return [type(one).__name__ if isinstance(one, BaseException) else str(one) for one in ended]


def from_threads(call: Callable[[], int]) -> list[str]:
    """Call from fifty threads that are no apflow's own."""

    def one_call(_: int) -> str:
        try:
            return str(call())
        except BudgetExhaustedError as error:
            return type(error).__name__

    with ThreadPoolExecutor(CALLS) as pool:
        return list(pool.map(one_call, range(CALLS)))


async def check(runtime: Runtime, ended: list[str]) -> None:
    """Ten have succeeded and the others never began."""
    assert Counter(ended) == {"100": 10, "BudgetExhaustedError": 40}
    await check_ledger(runtime, LIMIT, 0, entered=10)


async def check_overrun(runtime: Runtime, ended: list[str]) -> None:
    """All have begun, and at most ten have succeeded.

    Reports are judged in their order and settled in that of the commits: one that was stopped may have fitted.
    """
    assert Counter(ended) <= Counter({"100": 10, "BudgetExhaustedError": CALLS})
    await check_ledger(runtime, LIMIT, 4 * LIMIT, entered=CALLS)


async def check_ledger(runtime: Runtime, settled: int, overrun: int, *, entered: int) -> None:
    """Ledger, report and rows agree about what was used, and nothing is held."""
    assert len(runs) == len(set(runs)) == entered
    assert (await runtime.usage.by("task")).total.total_tokens == settled + overrun
    with closing((database := RawDatabase(runtime.store.url)).connection):
        account = database.rows("SELECT settled, reserved, overrun FROM apflow_budget_accounts")
        assert account == [(settled, 0, overrun)]
        assert database.rows("SELECT * FROM apflow_budget_holds") == []
        used = database.rows("SELECT run_id, total_tokens FROM apflow_usage_events")
    assert sorted(used) == sorted((run, 100) for run in runs)


@pytest.mark.parametrize("parent", [family, plain_family], ids=lambda one: one.definition.name)
async def test_ten_of_fifty_declared_children_fit_their_parents_budget(
    runtime: Runtime, parent: AsyncTask[[], list[str]]
) -> None:
    await check(runtime, await parent.with_options(runtime=runtime)())


@pytest.mark.parametrize("task", [per_user, per_global], ids=lambda one: one.definition.name)
async def test_ten_of_fifty_declared_calls_fit_a_shared_budget(runtime: Runtime, task: AsyncTask[[], int]) -> None:
    call = task.with_options(runtime=runtime, user="ada")
    await check(runtime, await outcomes([call() for _ in range(CALLS)]))


@pytest.mark.parametrize("task", [per_user, per_global], ids=lambda one: one.definition.name)
async def test_ten_of_fifty_submitted_runs_fit_a_shared_budget(runtime: Runtime, task: AsyncTask[[], int]) -> None:
    submitted = [await task.with_options(runtime=runtime, user="ada").submit() for _ in range(CALLS)]
    await check(runtime, await outcomes(list(submitted)))


@pytest.mark.parametrize("task", [plain_per_user, plain_per_global], ids=lambda one: one.definition.name)
async def test_ten_of_fifty_plain_calls_from_threads_fit_a_shared_budget(
    runtime: Runtime, task: SyncTask[[], int]
) -> None:
    call = task.with_options(runtime=runtime, user="ada")
    await check(runtime, await asyncio.to_thread(from_threads, call))


async def test_each_user_has_a_budget_of_its_own(runtime: Runtime) -> None:
    calls = [per_user.with_options(runtime=runtime, user=user)() for _ in range(20) for user in ("ada", "ben")]
    assert Counter(await outcomes(calls)) == {"100": 20, "BudgetExhaustedError": 20}
    by_user = await runtime.usage.by("user")
    assert [(row.key, row.total_tokens) for row in by_user] == [("ada", LIMIT), ("ben", LIMIT)]


async def test_each_run_has_a_budget_of_its_own(runtime: Runtime) -> None:
    parents = [family.with_options(runtime=runtime)() for _ in range(3)]
    for ended in await asyncio.gather(*parents):
        assert Counter(ended) == {"100": 10, "BudgetExhaustedError": 40}
    assert (await runtime.usage.by("task")).total.total_tokens == 3 * LIMIT


@pytest.mark.parametrize("task", [careless_per_user, careless_per_global], ids=lambda one: one.definition.name)
async def test_the_overrun_of_undeclared_calls_is_on_the_ledger_and_the_next_is_refused(
    runtime: Runtime, task: AsyncTask[[], int]
) -> None:
    call = task.with_options(runtime=runtime, user="ada")
    ended = await outcomes([call() for _ in range(CALLS)])
    with pytest.raises(BudgetExhaustedError, match=r"1000 .*4000"):
        await call()
    await check_overrun(runtime, ended)


async def test_the_overrun_of_undeclared_children_is_on_the_ledger_and_the_next_is_refused(runtime: Runtime) -> None:
    ended = await careless_family.with_options(runtime=runtime)()
    await check_overrun(runtime, ended)


async def test_the_overrun_of_undeclared_plain_calls_is_on_the_ledger_and_the_next_is_refused(
    runtime: Runtime,
) -> None:
    call = plain_careless.with_options(runtime=runtime)
    ended = await asyncio.to_thread(from_threads, call)
    with pytest.raises(BudgetExhaustedError):
        await asyncio.to_thread(call)
    await check_overrun(runtime, ended)


async def test_usage_of_a_child_that_was_cancelled_at_once_has_a_row(runtime: Runtime) -> None:
    await stopped_family.with_options(runtime=runtime)()
    (row,) = await runtime.runs.list(name="child_that_stops")
    assert row.token_usage == {"input": 70, "output": 0, "total": 70}


async def test_a_run_that_is_cancelled_while_prices_are_loaded_is_stored_as_its_caller_is_told(
    runtime: Runtime,
) -> None:
    load, loading, loaded = runtime.governor.load_prices, asyncio.Event(), asyncio.Event()

    async def load_slowly() -> None:
        loading.set()
        await loaded.wait()
        await load()

    setattr(runtime.governor, "load_prices", load_slowly)  # noqa: B010 - the rest of the governor stays as it is
    call = asyncio.ensure_future(per_user.with_options(runtime=runtime, user="ada")())
    await loading.wait()
    call.cancel()
    await asyncio.sleep(0)
    loaded.set()
    await asyncio.gather(call, return_exceptions=True)
    (row,) = await runtime.runs.list(name="per_user")
    assert row.status == "completed"
    await check_ledger(runtime, 100, 0, entered=1)
