"""Reservations inside runs: what they draw on, what is taken off them, and what is left of them."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

import apflow
from apflow import Budget, BudgetExhaustedError, BudgetStatus, RetryPolicy, RunCancelledError, Runtime

pytestmark = pytest.mark.anyio

FAST = RetryPolicy(max_attempts=3, backoff_base_seconds=0.1, jitter=False)
SHARED = Budget(tokens=1000, per="user", name="shared")


@pytest.fixture
async def runtime(database_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(database_url, user="ada", shutdown_seconds=0.5) as made:
        yield made


@pytest.fixture(autouse=True)
async def _nothing_is_held_afterwards(runtime: Runtime) -> AsyncIterator[None]:
    yield
    row = await runtime.store.read(lambda tx: tx.row("SELECT COUNT(*) FROM apflow_budget_holds"))
    assert row == (0,)
    [status] = await runtime.budgets.explain("user", "ada")
    assert status.reserved == 0


async def status(runtime: Runtime) -> BudgetStatus:
    [found] = [one for one in await runtime.budgets.explain("user", "ada") if one.unit == "tokens"]
    return found


async def held(runtime: Runtime) -> tuple[int | Decimal, int | Decimal, int | Decimal]:
    """Return what is settled, reserved and overrun."""
    found = await status(runtime)
    return found.settled, found.reserved, found.overrun


@apflow.task(budget=SHARED)
async def spend(tokens: int) -> None:
    apflow.report_usage(input=tokens)


# -- a block -----------------------------------------------------------------------------------------------------


async def test_what_was_read_before_a_reservation_does_not_hide_it(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    @apflow.task(budget=SHARED)
    async def work() -> list[Any]:
        meter = apflow.current()._state.meter
        assert meter is not None
        read = meter.governor.store.read_blocking
        was_read, has_reserved = threading.Event(), threading.Event()

        def slow(fn: Callable[[Any], Any]) -> Any:
            found = read(fn)
            was_read.set()
            assert has_reserved.wait(60)
            return found

        monkeypatch.setattr(meter.governor.store, "read_blocking", slow)
        refreshing = asyncio.create_task(asyncio.to_thread(meter.governor.refresh_blocking))
        await asyncio.to_thread(was_read.wait, 60)
        async with apflow.reserve(tokens=300):
            has_reserved.set()
            await refreshing
            seen = [apflow.current().budget.remaining("tokens")]
        monkeypatch.undo()
        await asyncio.to_thread(meter.governor.refresh_blocking)
        return [*seen, apflow.current().budget.remaining("tokens")]

    assert await work() == [1000, 1000]


async def test_a_block_holds_its_amount_and_gives_the_rest_back(runtime: Runtime) -> None:
    @apflow.task(budget=SHARED)
    async def work() -> None:
        assert await held(runtime) == (0, 0, 0)
        async with apflow.reserve(tokens=300):
            assert await held(runtime) == (0, 300, 0)
            assert apflow.current().budget.remaining("tokens") == 1000
            apflow.report_usage(input=100)
            assert apflow.current().budget.remaining("tokens") == 900
        assert await held(runtime) == (100, 0, 0)

    await work()


async def test_a_block_is_refused_on_entering_and_the_run_may_go_on(runtime: Runtime) -> None:
    @apflow.task(budget=SHARED)
    async def work() -> str:
        async with apflow.current().reserve(tokens=600):
            with pytest.raises(BudgetExhaustedError) as caught:
                await other()
            refused = caught.value
        assert (refused.settled, refused.reserved, refused.requested, refused.remaining) == (0, 600, 500, 400)
        with pytest.raises(BudgetExhaustedError) as more:
            async with apflow.reserve(tokens=1001):
                raise AssertionError("never entered")
        assert (more.value.requested, more.value.limit, more.value.reserved) == (1001, 1000, 0)
        return "went on"

    async def other() -> None:
        await asyncio.create_task(taking(500), context=outside)

    outside = _context()
    assert await work() == "went on"
    [row] = await runtime.runs.list(name="work")
    assert row.status == "completed"
    decisions = await runtime.budgets.decisions(action="block")
    assert [(one.requested, one.reserved) for one in decisions] == [(1001, 0), (500, 600)]


def _context() -> contextvars.Context:
    return contextvars.copy_context()


@apflow.task(budget=SHARED)
async def taking(tokens: int) -> None:
    async with apflow.reserve(tokens=tokens):
        apflow.report_usage(input=tokens)


async def test_what_was_reported_before_is_known(runtime: Runtime) -> None:
    @apflow.task(budget=SHARED)
    async def work() -> str:
        apflow.report_usage(input=500)
        with pytest.raises(BudgetExhaustedError) as caught:
            async with apflow.reserve(tokens=600):
                raise AssertionError("never entered")
        assert (caught.value.settled, caught.value.requested) == (500, 600)
        async with apflow.reserve(tokens=500):
            apflow.report_usage(input=500)
        return "went on"

    assert await work() == "went on"
    assert await held(runtime) == (1000, 0, 0)


async def test_blocks_in_plain_functions(runtime: Runtime) -> None:
    @apflow.task(budget=SHARED)
    def work() -> str:
        with apflow.reserve(tokens=300):
            assert runtime.wait(held(runtime)) == (0, 300, 0)
            with apflow.reserve(tokens=200):
                apflow.report_usage(input=100)
                assert runtime.wait(held(runtime))[1] in (200, 300)
            apflow.report_usage(input=150)
        with pytest.raises(BudgetExhaustedError), apflow.reserve(tokens=751):
            raise AssertionError("never entered")
        return "went on"

    assert await asyncio.to_thread(work) == "went on"
    assert await held(runtime) == (250, 0, 0)


@pytest.mark.parametrize("kind", ["raises", "is cancelled"])
async def test_a_block_that_is_left_otherwise_gives_back_too(runtime: Runtime, kind: str) -> None:
    inside = asyncio.Event()

    @apflow.task(budget=SHARED)
    async def work() -> None:
        try:
            async with apflow.reserve(tokens=300):
                apflow.report_usage(input=50)
                inside.set()
                if kind == "raises":
                    raise KeyError("no")
                await asyncio.sleep(60)
        finally:
            assert (await held(runtime))[1] == 0

    run = await work.submit()
    await inside.wait()
    if kind == "is cancelled":
        await run.cancel()
    with pytest.raises(KeyError if kind == "raises" else RunCancelledError):
        await run
    assert await held(runtime) == (50, 0, 0)


async def test_several_blocks_at_once_never_pass_the_limit(runtime: Runtime) -> None:
    refused: list[int] = []

    async def one(number: int) -> None:
        try:
            async with apflow.reserve(tokens=300):
                await asyncio.sleep(0.05)
                apflow.report_usage(input=250)
        except BudgetExhaustedError:
            refused.append(number)

    @apflow.task(budget=SHARED)
    async def work() -> None:
        await asyncio.gather(*(one(number) for number in range(6)))

    await work()
    assert len(refused) == 3
    assert await held(runtime) == (750, 0, 0)


@pytest.mark.parametrize("amounts", [{}, {"tokens": 0}, {"tokens": -1}, {"usd": 0.5}, {"requests": True}])
async def test_a_block_needs_an_amount(runtime: Runtime, amounts: dict[str, int]) -> None:
    @apflow.task(budget=SHARED)
    async def work() -> str:
        with pytest.raises(ValueError, match=r"tokens|usd|requests"):
            apflow.reserve(**amounts)
        return "went on"

    assert await work() == "went on"


async def test_a_block_below_no_budget_holds_nothing(runtime: Runtime) -> None:
    @apflow.task
    async def free() -> str:
        async with apflow.reserve(tokens=5_000):
            apflow.report_usage(input=10)
        return "done"

    assert await free() == "done"
    await spend(1)


async def test_a_block_holds_on_every_budget_of_its_units(runtime: Runtime) -> None:
    runtime.prices.set("m", input="1", output="1")

    @apflow.task(budget=[SHARED, Budget(requests=10, usd="1", per="global", name="all")])
    async def work() -> dict[str, int | Decimal]:
        async with apflow.reserve(tokens=100, usd="0.25"):
            everybody = await runtime.budgets.explain("global")
            return {one.unit: one.reserved for one in everybody}

    assert await work() == {"requests": 0, "usd": Decimal("0.25")}


# -- nesting -----------------------------------------------------------------------------------------------------


async def test_inner_blocks_draw_on_outer_ones(runtime: Runtime) -> None:
    @apflow.task(budget=SHARED)
    async def work() -> None:
        async with apflow.reserve(tokens=600):
            async with apflow.reserve(tokens=200):
                assert await held(runtime) == (0, 600, 0)
                async with apflow.reserve(tokens=700):
                    # 200 of the inner block and 400 of the outer one, so 100 are missing.
                    assert await held(runtime) == (0, 700, 0)
                assert await held(runtime) == (0, 600, 0)
            assert await held(runtime) == (0, 600, 0)

    await work()


async def test_usage_is_taken_off_the_innermost_then_outwards_then_what_is_left(runtime: Runtime) -> None:
    @apflow.task(budget=SHARED)
    async def work() -> None:
        async with apflow.reserve(tokens=300):
            async with apflow.reserve(tokens=100):
                apflow.report_usage(input=250)
            # 100 of the inner one and 150 of the 200 that were left of the outer one.
            assert await held(runtime) == (250, 50, 0)
            apflow.report_usage(input=60)
        assert await held(runtime) == (310, 0, 0)

    await work()


async def test_only_what_fits_nowhere_is_overrun(runtime: Runtime) -> None:
    await spend(600)

    @apflow.task(budget=SHARED)
    async def work() -> None:
        async with apflow.reserve(tokens=300):
            apflow.report_usage(input=350)
            with pytest.raises(BudgetExhaustedError):
                apflow.report_usage(input=70)

    with pytest.raises(BudgetExhaustedError) as caught:
        await work()
    assert (caught.value.settled, caught.value.overrun, caught.value.requested) == (1000, 20, 70)
    assert await held(runtime) == (1000, 0, 20)


async def test_a_child_draws_on_the_block_that_it_is_called_in(runtime: Runtime) -> None:
    @apflow.task(budget=SHARED)
    async def work() -> None:
        async with apflow.reserve(tokens=1000):
            await taking(400)
            # Nothing is left for anybody else, and enough for another child.
            await taking.with_options(reserve=600)(600)
            assert await held(runtime) == (1000, 0, 0)

    await work()


async def test_what_a_child_leaves_goes_back_to_the_block_around_it(runtime: Runtime) -> None:
    @apflow.task(budget=SHARED)
    async def work() -> None:
        async with apflow.reserve(tokens=900):
            await spend.with_options(reserve=800)(50)
            assert await held(runtime) == (50, 850, 0)
            await spend.with_options(reserve=850)(850)
            assert await held(runtime) == (900, 0, 0)

    await work()


# -- attempts ----------------------------------------------------------------------------------------------------


async def test_each_attempt_holds_what_its_budget_says(runtime: Runtime) -> None:
    seen: list[tuple[int | Decimal, ...]] = []

    @apflow.task(budget=Budget(tokens=1000, per="user", name="shared", reserve=400), retry=FAST)
    async def work() -> None:
        seen.append(await held(runtime))
        apflow.report_usage(input=100)
        if apflow.current().attempt < 3:
            raise ValueError("again")

    await work()
    assert seen == [(0, 400, 0), (100, 400, 0), (200, 400, 0)]
    assert await held(runtime) == (300, 0, 0)


async def test_a_call_may_reserve_something_else(runtime: Runtime) -> None:
    seen: list[tuple[int | Decimal, ...]] = []

    @apflow.task(budget=Budget(tokens=1000, per="user", name="shared", reserve=400))
    async def work() -> None:
        seen.append(await held(runtime))

    await work.with_options(reserve=150)()
    await work.with_options(reserve=0)()
    await work.with_options(reserve=None)()
    with pytest.raises(BudgetExhaustedError) as caught:
        await work.with_options(reserve=1001)()
    assert (caught.value.requested, caught.value.remaining) == (1001, 1000)
    assert [reserved for _, reserved, _ in seen] == [150, 0, 400]


async def test_a_refused_attempt_holds_nothing_and_is_not_tried_again(runtime: Runtime) -> None:
    several = [SHARED, Budget(tokens=50, per="global", name="all")]

    @apflow.task(budget=several, retry=FAST)
    async def work() -> None:
        raise AssertionError("never admitted")

    with pytest.raises(BudgetExhaustedError) as caught:
        await work.with_options(reserve=100)()
    assert (caught.value.budget, caught.value.scope, caught.value.limit) == ("all", "global", 50)
    assert await held(runtime) == (0, 0, 0)
    [row] = await runtime.runs.list(name="work")
    assert (row.status, row.attempt_count) == ("failed", 1)


async def test_declared_calls_never_pass_the_limit(runtime: Runtime) -> None:
    @apflow.task(budget=Budget(tokens=1000, per="user", name="shared", reserve=100))
    async def work() -> None:
        await asyncio.sleep(0.05)
        apflow.report_usage(input=60, output=40)

    results = await asyncio.gather(*(work() for _ in range(30)), return_exceptions=True)
    assert [result for result in results if result is not None and not isinstance(result, BudgetExhaustedError)] == []
    assert results.count(None) == 10
    assert await held(runtime) == (1000, 0, 0)


async def test_holds_tell_who_and_until_when(runtime: Runtime) -> None:
    @apflow.task(budget=Budget(tokens=1000, per="user", name="shared", reserve=400))
    async def work() -> str:
        async with apflow.reserve(tokens=500):
            found = await status(runtime)
        assert (found.reserved, found.left, found.utilization) == (500, 500, 0.5)
        # The block has drawn the whole hold of the attempt, and 100 more.
        assert sum(hold.amount for hold in found.holds) == 500
        for hold in found.holds:
            assert (hold.run_id, hold.task) == (apflow.current().task_id, "work")
            assert hold.until is not None
            assert hold.since <= datetime.now(UTC) < hold.until
        return "done"

    assert await work() == "done"
    assert (await status(runtime)).holds == ()
