"""Defects of budgets, policies and prices that were found once, in what they count, allow and hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from typing import Any

import pytest

import apflow
from apflow import (
    Budget,
    BudgetExhaustedError,
    CircuitBreakerConfig,
    CircuitOpenError,
    RetryPolicy,
    Runtime,
    TaskDefinitionError,
)
from apflow.call import Call, CallNext

pytestmark = pytest.mark.anyio

TWICE = RetryPolicy(max_attempts=2, backoff_base_seconds=0.1, jitter=False)
SHARED = Budget(tokens=100, per="global", name="shared")


@pytest.fixture
async def runtime(database_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(database_url, shutdown_seconds=0.5) as made:
        yield made


async def rows(runtime: Runtime, sql: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await runtime.store.read(lambda tx: tx.rows(sql))]


async def accounts(runtime: Runtime) -> dict[str, tuple[int, int, int]]:
    """Return what is settled, reserved and overrun, by the name of the budget."""
    found = await rows(runtime, "SELECT name, settled, reserved, overrun FROM apflow_budget_accounts")
    return {name: (settled, reserved, overrun) for name, settled, reserved, overrun in found}


async def holds(runtime: Runtime) -> int:
    [(count,)] = await rows(runtime, "SELECT COUNT(*) FROM apflow_budget_holds")
    return int(count)


async def nothing_is_held(runtime: Runtime) -> bool:
    return await holds(runtime) == 0


async def until(ask: Callable[[], Awaitable[object]]) -> None:
    """Ask again until it is so."""
    while not await ask():  # noqa: ASYNC110 - the database tells it
        await asyncio.sleep(0.01)


async def counted(runtime: Runtime) -> list[int]:
    """Return the tokens of every event that is stored, in ascending order."""
    return sorted(total for (total,) in await rows(runtime, "SELECT total_tokens FROM apflow_usage_events"))


# -- limits ------------------------------------------------------------------------------------------------------


async def test_a_run_from_before_a_deployment_does_not_bring_its_old_limit_back(database_url: str) -> None:
    @apflow.task(name="kid")
    async def waiting() -> None:
        apflow.report_usage(input=10, cost_usd=0)
        lives.append(1)
        begun.set()
        if len(lives) == 1:
            await asyncio.sleep(60)

    @apflow.task(name="top", budget=Budget(tokens=100, per="global", name="g"))
    async def top_before() -> str:
        return (await waiting.submit()).id

    @apflow.task(name="top", budget=Budget(tokens=1000, per="global", name="g"))
    async def top_after(tokens: int) -> None:
        apflow.report_usage(input=tokens, cost_usd=0)

    lives: list[int] = []
    begun = asyncio.Event()
    async with Runtime(database_url, shutdown_seconds=0.1):
        run_id = await top_before()
        await asyncio.wait_for(begun.wait(), 60)
    async with Runtime(database_url, shutdown_seconds=0.1) as runtime:
        await (await runtime.runs.resume(run_id))
        await top_after(300)
        await top_after(100)
        [(limit, overrun)] = await rows(runtime, "SELECT hard_limit, overrun FROM apflow_budget_accounts")
    assert len(lives) == 2
    assert (limit, overrun) == (1000, 0)


async def test_two_tasks_that_give_one_budget_two_limits_are_told(runtime: Runtime) -> None:
    @apflow.task(budget=Budget(tokens=100, name="s", per="global"))
    async def small() -> None:
        raise AssertionError("never started")

    @apflow.task(budget=Budget(tokens=1000, name="s", per="global"))
    async def big() -> None:
        with pytest.raises(TaskDefinitionError, match=r"'big' and 'small'.*'s'"):
            await small()

    await big()
    [(limit,)] = await rows(runtime, "SELECT hard_limit FROM apflow_budget_accounts")
    assert limit == 1000


def test_two_budgets_of_a_task_on_one_account() -> None:
    async def two() -> None:
        raise AssertionError("never started")

    with pytest.raises(TaskDefinitionError, match="one account"):
        apflow.task(budget=[Budget(tokens=100), Budget(tokens=50)])(two)
    apflow.task(budget=[Budget(tokens=100), Budget(tokens=50, name="other"), Budget(requests=5)])(two)


# -- what this process believes of nested holds ------------------------------------------------------------------


def remaining() -> int | Decimal | None:
    return apflow.current().budget.remaining("tokens")


async def test_what_a_block_used_is_known_where_the_hold_around_it_goes_on(runtime: Runtime) -> None:
    @apflow.task(budget=Budget(tokens=100, reserve=100))
    async def work() -> tuple[object, object]:
        async with apflow.reserve(tokens=60):
            inside = remaining()
            apflow.report_usage(input=10)
            await until(lambda: counted(runtime))
        outside = remaining()
        apflow.report_usage(input=90)
        return inside, outside

    assert await work() == (100, 90)
    assert await accounts(runtime) == {"work": (100, 0, 0)}


async def test_a_block_does_not_hide_that_nothing_is_left(runtime: Runtime) -> None:
    @apflow.task(budget=Budget(tokens=100, reserve=100))
    async def work() -> None:
        async with apflow.reserve(tokens=60):
            apflow.report_usage(input=60)
            with pytest.raises(BudgetExhaustedError):
                apflow.report_usage(input=60)

    with pytest.raises(BudgetExhaustedError):
        await work()
    assert await accounts(runtime) == {"work": (100, 0, 20)}


async def test_what_counts_once_is_taken_off_a_hold_once(runtime: Runtime) -> None:
    @apflow.task
    async def child(_: int) -> None:
        apflow.report_usage(input=10, dedupe="the same")

    @apflow.task(budget=Budget(tokens=100, reserve=100))
    async def work() -> int | Decimal | None:
        await child(1)
        await child(2)
        left = remaining()
        apflow.report_usage(input=90)
        return left

    assert await work() == 90
    assert await accounts(runtime) == {"work": (100, 0, 0)}


# -- holds that are made with a run's start ----------------------------------------------------------------------


async def test_an_open_breaker_holds_nothing(runtime: Runtime) -> None:
    budget = Budget(tokens=100, per="global", name="shared", reserve=80)

    @apflow.task(budget=budget, breaker=CircuitBreakerConfig(failure_threshold=1))
    async def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await work()
    for _ in range(2):
        with pytest.raises(CircuitOpenError):
            await work()
        assert (await accounts(runtime), await holds(runtime)) == ({"shared": (0, 0, 0)}, 0)


@pytest.mark.parametrize("kind", ["answers", "raises"])
async def test_middleware_that_does_not_go_on_holds_nothing(runtime: Runtime, kind: str) -> None:
    async def stop(call: Call, call_next: CallNext) -> str:
        if kind == "answers":
            return "from a cache"
        raise ValueError("no")

    @apflow.task(budget=Budget(tokens=100, per="global", name="shared", reserve=80), middleware=[stop])
    async def work() -> str:
        raise AssertionError("never called")

    for _ in range(2):
        if kind == "answers":
            assert await work() == "from a cache"
        else:
            with pytest.raises(ValueError, match="no"):
                await work()
        assert (await accounts(runtime), await holds(runtime)) == ({"shared": (0, 0, 0)}, 0)


async def test_what_another_process_held_a_moment_ago_refuses_nothing(database_url: str, runtime: Runtime) -> None:
    go_on = asyncio.Event()

    @apflow.task(budget=Budget(tokens=100, per="global", name="shared", reserve=80))
    async def holder() -> None:
        await go_on.wait()

    @apflow.task(budget=SHARED)
    async def work() -> int | Decimal | None:
        left = remaining()
        go_on.set()
        await until(lambda: nothing_is_held(runtime))
        apflow.report_usage(input=50, cost_usd=0)
        return left

    async with Runtime(database_url, shutdown_seconds=0.5) as other:
        held = asyncio.create_task(holder.with_options(runtime=other)())
        await until(lambda: holds(runtime))
        assert await work.with_options(runtime=runtime)() == 20
        await held
    assert await accounts(runtime) == {"shared": (50, 0, 0)}


async def test_a_reservation_is_entered_once(runtime: Runtime) -> None:
    @apflow.task(budget=Budget(tokens=1000))
    async def work() -> int:
        reservation = apflow.reserve(tokens=100)
        async with reservation:
            with pytest.raises(RuntimeError, match="used once"):
                await reservation.__aenter__()
        with pytest.raises(RuntimeError, match="used once"):
            await reservation.__aenter__()
        return await holds(runtime)

    assert await work() == 0
    assert await accounts(runtime) == {"work": (0, 0, 0)}


# -- usage that is returned --------------------------------------------------------------------------------------


async def test_a_result_that_sums_up_its_own_attempt_counts_once(runtime: Runtime) -> None:
    attempts: list[int] = []

    @apflow.task(budget=Budget(tokens=1000), retry=TWICE)
    async def work() -> dict[str, Any]:
        attempts.append(1)
        apflow.report_usage(input=100, cost_usd=0)
        if len(attempts) == 1:
            raise ConnectionError("away")
        return {"token_usage": {"input": 100, "output": 0, "total": 100}}

    await work()
    assert await counted(runtime) == [100, 100]
    assert await accounts(runtime) == {"work": (200, 0, 0)}


async def test_returned_usage_is_priced_with_the_model_that_was_asked_for(runtime: Runtime) -> None:
    @apflow.task(budget=Budget(usd="1"))
    async def work(model: str = "m1") -> dict[str, Any]:
        return {"text": model, "token_usage": {"input": 10, "output": 5}}

    runtime.prices.set("m1", input="1", output="2")
    await work()
    assert await rows(runtime, "SELECT model, cost_nusd FROM apflow_usage_events") == [("m1", 20_000)]


# -- models and prices -------------------------------------------------------------------------------------------


@apflow.task
async def ask(model: str = "haiku") -> str:
    return model


async def test_an_inherited_chain_leaves_a_model_alone_that_it_does_not_name(runtime: Runtime) -> None:
    @apflow.task(budget=Budget(tokens=100), models=["opus", "sonnet"])
    async def top(model: str = "opus") -> tuple[str, str, str]:
        apflow.report_usage(input=85, cost_usd=0)
        return model, await ask(), await ask(model="opus")

    assert await top() == ("opus", "haiku", "sonnet")
    assert await runtime.budgets.decisions(action="block") == []


async def test_who_asks_for_the_model_that_governance_gave_is_not_downgraded_again(runtime: Runtime) -> None:
    @apflow.task(budget=SHARED, models=["opus", "sonnet", "haiku"])
    async def top(tokens: int, model: str = "opus") -> tuple[str, str]:
        apflow.report_usage(input=tokens, cost_usd=0)
        return model, await ask(model=model)

    assert (await top(85))[0] == "opus"
    assert await top(1) == ("sonnet", "sonnet")
    assert len(await runtime.budgets.decisions(action="downgrade")) == 2


async def test_a_price_at_one_provider_lets_the_run_begin(runtime: Runtime) -> None:
    @apflow.task(budget=Budget(usd="1"))
    async def work(model: str = "my-model") -> str:
        apflow.report_usage(provider="azure", input=10)
        return model

    runtime.prices.set("my-model", input="1", output="1", provider="azure")
    assert await work() == "my-model"
    assert await accounts(runtime) == {"work": (10_000, 0, 0)}


async def test_what_a_run_reserves_is_estimated_with_a_book_that_nobody_has_loaded(runtime: Runtime) -> None:
    @apflow.task(budget=Budget(tokens=1000, reserve=500))
    async def work(model: str = "gpt-4o") -> str:
        return model

    assert not runtime.prices.loaded
    await work()
    [record] = await runtime.runs.list()
    assert record.estimated_cost_usd == Decimal("0.005")


# -- large numbers -----------------------------------------------------------------------------------------------


async def test_a_budget_may_be_larger_than_the_column_in_the_row(runtime: Runtime) -> None:
    @apflow.task(budget=Budget(tokens=3_000_000_000))
    async def work() -> None:
        apflow.report_usage(input=2_500_000_000, cost_usd=0)

    await work()
    assert await accounts(runtime) == {"work": (2_500_000_000, 0, 0)}
    [record] = await runtime.runs.list()
    assert (record.status, record.token_budget) == ("completed", None)


@pytest.mark.parametrize("budget", [Budget(usd="5000000"), Budget(usd=1_000_000_000, reserve={"usd": 1_000_000_000})])
async def test_a_cost_beyond_the_column_in_the_row_ends_a_run_as_any_other(runtime: Runtime, budget: Budget) -> None:
    @apflow.task(budget=budget)
    async def work() -> None:
        apflow.report_usage(input=1, cost_usd="1500000")

    await work()
    assert await accounts(runtime) == {"work": (1_500_000 * 10**9, 0, 0)}
    [record] = await runtime.runs.list()
    assert (record.status, record.actual_cost_usd) == ("completed", Decimal("999999.999999"))


@pytest.mark.parametrize("budget", [None, Budget(usd=1)])
async def test_tokens_whose_price_nobody_could_pay_do_not_wedge_a_run(runtime: Runtime, budget: Budget | None) -> None:
    @apflow.task(budget=budget)
    async def work(model: str) -> None:
        try:
            apflow.report_usage(input=2**53)
        except BudgetExhaustedError:
            assert model == "m"

    runtime.prices.set("m", input="15", output="2")
    if budget is None:
        await work("m")
    else:
        with pytest.raises(BudgetExhaustedError):
            await work("m")
    [record] = await runtime.runs.list()
    assert record.status == ("completed" if budget is None else "failed")
    assert await rows(runtime, "SELECT total_tokens, cost_nusd FROM apflow_usage_events") == [(2**53, 10**18)]
