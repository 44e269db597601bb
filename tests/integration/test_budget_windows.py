"""Budgets over time and in dollars: windows, limits that change while runs are going, prices, and users."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

import apflow
from apflow import Budget, BudgetExhaustedError, Runtime, SystemClock, UnpricedModelError, UserRequiredError

pytestmark = pytest.mark.anyio

# Half past eleven in the evening in Berlin.
EVENING = datetime(2026, 3, 1, 22, 30, tzinfo=UTC)
MIDNIGHT = datetime(2026, 3, 1, 23, 0, tzinfo=UTC)
DAILY = Budget(tokens=1000, per="user", window="1d", tz="Europe/Berlin", name="daily")


class Wall(SystemClock):
    """A clock that shows what the test has set."""

    def __init__(self) -> None:
        self.time = EVENING

    def now(self) -> datetime:
        return self.time


@pytest.fixture
def clock() -> Wall:
    return Wall()


@pytest.fixture
async def runtime(database_url: str, clock: Wall) -> AsyncIterator[Runtime]:
    # The lease outlasts what the clock is moved by.
    async with Runtime(database_url, user="ada", clock=clock, lease_seconds=7_200, shutdown_seconds=0.5) as made:
        yield made


@apflow.task(budget=DAILY)
async def spend(tokens: int) -> None:
    apflow.report_usage(input=tokens)


async def days(runtime: Runtime) -> list[tuple[Any, ...]]:
    """Return start, settled, reserved and overrun of each day, the oldest first."""
    found = await runtime.budgets.explain("user", "ada", history=True)
    return [(one.window_start, one.settled, one.reserved, one.overrun) for one in found]


# -- windows -----------------------------------------------------------------------------------------------------


async def test_a_new_window_begins_anew(runtime: Runtime, clock: Wall) -> None:
    await spend(900)
    with pytest.raises(BudgetExhaustedError) as caught:
        await spend(200)
    assert caught.value.window_end == caught.value.retry_at == MIDNIGHT
    assert MIDNIGHT.isoformat() in str(caught.value)
    clock.time = MIDNIGHT - timedelta(seconds=1)
    with pytest.raises(BudgetExhaustedError) as refused:
        await spend(1)
    assert (refused.value.overrun, refused.value.retry_at) == (100, MIDNIGHT)
    clock.time = MIDNIGHT
    await spend(200)
    assert await days(runtime) == [
        (datetime(2026, 2, 28, 23, tzinfo=UTC), 1000, 0, 100),
        (MIDNIGHT, 200, 0, 0),
    ]
    [today] = await runtime.budgets.explain("user", "ada")
    assert (today.left, today.window, today.tz, today.window_end) == (800, "1d", DAILY.tz, MIDNIGHT + timedelta(days=1))


async def test_a_budget_without_a_window_has_no_time_to_come_back(runtime: Runtime) -> None:
    with pytest.raises(BudgetExhaustedError) as caught:
        await spend.with_options(budget=10)(20)
    assert caught.value.retry_at is None
    assert "window" not in str(caught.value)


async def test_usage_after_midnight_is_that_of_the_next_day(runtime: Runtime, clock: Wall) -> None:
    @apflow.task(budget=DAILY)
    async def long() -> None:
        apflow.report_usage(input=700)
        clock.time = MIDNIGHT + timedelta(minutes=1)
        apflow.report_usage(input=600)

    await long()
    assert [settled for _, settled, _, _ in await days(runtime)] == [700, 600]


async def test_a_hold_settles_in_its_own_window(runtime: Runtime, clock: Wall) -> None:
    @apflow.task(budget=DAILY)
    async def long() -> None:
        async with apflow.reserve(tokens=300):
            clock.time = MIDNIGHT + timedelta(minutes=1)
            assert [reserved for _, _, reserved, _ in await days(runtime)] == [300]
            apflow.report_usage(input=350)
        assert [row[1:] for row in await days(runtime)] == [(300, 0, 0), (50, 0, 0)]

    await long()


async def test_what_is_left_of_a_hold_goes_back_to_its_own_window(runtime: Runtime, clock: Wall) -> None:
    @apflow.task(budget=DAILY)
    async def long() -> None:
        clock.time = MIDNIGHT + timedelta(minutes=1)
        apflow.report_usage(input=100)

    await long.with_options(reserve=400)()
    assert [row[1:] for row in await days(runtime)] == [(100, 0, 0), (0, 0, 0)]


async def test_time_zones_are_budgets_of_their_own(runtime: Runtime) -> None:
    elsewhere = Budget(tokens=1000, per="user", window="1d", tz="Asia/Tokyo", name="daily")
    await spend(600)
    await spend.with_options(budget=elsewhere)(700)
    found = {one.tz: one.settled for one in await runtime.budgets.explain("user", "ada")}
    assert found == {"Europe/Berlin": 600, "Asia/Tokyo": 700}


# -- limits at run time ------------------------------------------------------------------------------------------


async def test_a_budget_is_raised_while_a_run_is_going(runtime: Runtime) -> None:
    reported, raised = asyncio.Event(), asyncio.Event()

    @apflow.task(budget=Budget(tokens=100))
    async def work() -> str:
        apflow.report_usage(input=90)
        reported.set()
        await raised.wait()
        apflow.report_usage(input=90)
        return "done"

    run = await work.submit()
    await reported.wait()
    [now] = await runtime.budgets.set_limit("work", per="run", scope_id=run.id, tokens=200)
    assert now.limit == 200
    raised.set()
    assert await run == "done"
    [status] = await runtime.budgets.explain("run", run.id)
    assert (status.settled, status.overrun, status.left) == (180, 0, 20)


async def test_another_process_may_raise_it(runtime: Runtime, database_url: str, clock: Wall) -> None:
    @apflow.task(budget=DAILY)
    async def work() -> dict[str, Any]:
        async with Runtime(database_url, clock=clock) as other:
            await other.budgets.set_limit("daily", per="user", scope_id="ada", tokens=3000)
        return {"token_usage": {"input": 2000, "output": 0, "total": 2000}}

    await spend(900)
    await work()
    assert [row[1:] for row in await days(runtime)] == [(2900, 0, 0)]


async def test_raising_heals_an_overrun(runtime: Runtime) -> None:
    with pytest.raises(BudgetExhaustedError):
        await spend(1100)
    with pytest.raises(BudgetExhaustedError):
        await spend(1)
    await runtime.budgets.set_limit("daily", per="user", scope_id="ada", tokens=1101)
    await spend(1)
    assert [row[1:] for row in await days(runtime)] == [(1101, 0, 0)]


async def test_the_limit_in_the_code_counts_until_one_is_set(runtime: Runtime) -> None:
    def daily(tokens: int) -> Any:
        return spend.with_options(budget=Budget(tokens=tokens, per="user", window="1d", tz=DAILY.tz, name="daily"))

    async def limit() -> int | Decimal:
        [status] = await runtime.budgets.explain("user", "ada")
        return status.limit

    await daily(1000)(10)
    await daily(2000)(10)
    assert await limit() == 2000
    await runtime.budgets.set_limit("daily", per="user", scope_id="ada", tokens=50)
    await daily(3000)(20)
    assert await limit() == 50
    with pytest.raises(BudgetExhaustedError):
        await daily(3000)(20)


# -- whose budget ------------------------------------------------------------------------------------------------


async def test_users_have_budgets_of_their_own(runtime: Runtime) -> None:
    await spend(1000)
    await spend.with_options(user="grace")(900)
    found = await runtime.budgets.explain("user", "grace")
    assert [(one.scope_id, one.settled) for one in found] == [("grace", 900)]


async def test_a_budget_per_user_needs_a_user(database_url: str) -> None:
    async with Runtime(database_url) as nobodys:
        with pytest.raises(UserRequiredError, match=r"'spend'.*with_options"):
            await spend(1)
        with pytest.raises(UserRequiredError):
            await spend.submit(1)
        assert await nobodys.runs.count() == 0
        await spend.with_options(user="ada")(1)
        assert [row.user_id for row in await nobodys.runs.list()] == ["ada"]


async def test_a_call_may_have_no_budget_or_another_one(runtime: Runtime) -> None:
    await spend.with_options(budget=None)(5000)
    assert await runtime.budgets.explain("user", "ada") == []
    with pytest.raises(BudgetExhaustedError):
        await spend.with_options(budget=5)(6)
    await spend.with_options(budget=[Budget(tokens=10), Budget(requests=1, per="global")])(10)
    [everybody] = await runtime.budgets.explain("global")
    assert (everybody.name, everybody.unit, everybody.left) == ("spend", "requests", 0)
    row = (await runtime.usage.by("user")).total
    assert (row.total_tokens, row.runs) == (5016, 3)


# -- dollars -----------------------------------------------------------------------------------------------------


@apflow.task(budget=Budget(usd="0.01"))
async def pays(read: int, model: str = "mine") -> str:
    apflow.report_usage(input=read)
    return apflow.current().task_id


async def test_dollars_are_counted_to_the_nano_dollar(runtime: Runtime) -> None:
    runtime.prices.set("mine", input="0.50", output="2")
    run_id = await pays(19_999)
    [status] = await runtime.budgets.explain("run", run_id)
    assert (status.unit, status.settled, status.left) == ("usd", Decimal("0.0099995"), Decimal("0.0000005"))
    # One cent is 20,000 tokens.
    await pays(20_000)
    with pytest.raises(BudgetExhaustedError) as caught:
        await pays(20_001)
    error = caught.value
    assert (error.unit, error.limit, error.requested) == ("usd", Decimal("0.01"), Decimal("0.0100005"))
    assert "0.01 USD" in str(error)
    assert "0.0100005 USD" in str(error)
    assert (await runtime.usage.by("model")).total.cost_usd == Decimal("0.03")


async def test_dollars_are_rounded_up(runtime: Runtime) -> None:
    runtime.prices.set("mine", input="0.0001", output="0")
    await pays(1)
    assert (await runtime.usage.by("model")).total.cost_usd == Decimal("0.000000001")


async def test_a_price_of_zero_has_to_be_said(runtime: Runtime) -> None:
    with pytest.raises(UnpricedModelError):
        await pays(1, "llama-local")
    runtime.prices.set("llama-*", input=0, output="0")
    await pays(10**9, "llama-local")
    [row] = [one for one in await runtime.usage.by("model") if one.key == "llama-local"]
    assert (row.cost_usd, row.unpriced_events, row.input_tokens) == (Decimal(0), 0, 10**9)


async def test_an_unpriced_model_is_refused_before_the_function_runs(runtime: Runtime) -> None:
    executed: list[str] = []

    @apflow.task(budget=Budget(usd="1"), retry=3)
    async def works(model: str) -> None:
        executed.append(model)

    with pytest.raises(UnpricedModelError, match=r"'nobody-knows'.*runtime\.prices\.set\('nobody-knows'") as caught:
        await works("nobody-knows")
    assert (caught.value.model, executed) == ("nobody-knows", [])
    [row] = await runtime.runs.list(name="works")
    assert (row.status, row.attempt_count) == ("failed", 1)
    runtime.prices.set("nobody-knows", input=1, output=1)
    await works("nobody-knows")
    assert executed == ["nobody-knows"]


@pytest.mark.parametrize("swallowed", [False, True])
@pytest.mark.parametrize("model", ["nobody-knows", None])
async def test_an_unpriced_report_fails_the_run(runtime: Runtime, model: str | None, *, swallowed: bool) -> None:
    @apflow.task(budget=Budget(usd="1"), retry=3)
    async def works() -> str:
        try:
            apflow.report_usage(model=model, input=10)
        except UnpricedModelError:
            if not swallowed:
                raise
        return "done"

    with pytest.raises(UnpricedModelError) as caught:
        await works()
    assert caught.value.model == model
    [row] = await runtime.runs.list(name="works")
    assert (row.status, row.attempt_count, row.result) == ("failed", 1, "done" if swallowed else None)
    assert (row.token_usage, row.actual_cost_usd) == ({"input": 10, "output": 0, "total": 10}, None)
    assert (await runtime.usage.by("model")).total.unpriced_events == 1


async def test_a_cost_that_the_usage_brings_along_needs_no_price(runtime: Runtime) -> None:
    @apflow.task(budget=Budget(usd="1"))
    async def works() -> None:
        apflow.report_usage(model="nobody-knows", input=10, cost_usd="0.25")

    await works()
    assert (await runtime.usage.by("model")).total.cost_usd == Decimal("0.25")


async def test_without_a_budget_in_dollars_it_is_counted_as_unpriced(runtime: Runtime) -> None:
    @apflow.task(budget=1000)
    async def works(model: str) -> None:
        apflow.report_usage(input=10)

    runtime.prices.set("mine", input=1, output=1)
    await works("nobody-knows")
    await works("mine")
    table = await runtime.usage.by("model")
    assert {row.key: (row.cost_usd, row.unpriced_events) for row in table} == {
        "nobody-knows": (Decimal(0), 1),
        "mine": (Decimal("0.00001"), 0),
    }
    assert (table.total.unpriced_events, table.total.cost_usd) == (1, Decimal("0.00001"))
    rows = {row.inputs["model"]: row.actual_cost_usd for row in await runtime.runs.list(name="works")}
    assert rows == {"nobody-knows": None, "mine": Decimal("0.00001")}


async def test_cached_tokens_cost_what_they_cost(runtime: Runtime) -> None:
    runtime.prices.set("gpt-mine", input="2.50", cache_read="1.25", output="10")
    runtime.prices.set("claude-mine", input="3", cache_read="0.30", cache_write="3.75", output="15")
    # Chat completions count cached tokens in, messages count them apart.
    chat = {
        "id": "chatcmpl-abcdefghijklmnop",
        "model": "gpt-mine",
        "usage": {"prompt_tokens": 1000, "completion_tokens": 101, "prompt_tokens_details": {"cached_tokens": 601}},
    }
    message = {
        "id": "msg_abcdefghijklmnopqrstuvw",
        "type": "message",
        "model": "claude-mine",
        "usage": {"input_tokens": 333, "output_tokens": 77}
        | {"cache_read_input_tokens": 600, "cache_creation_input_tokens": 67},
    }

    @apflow.task(budget=Budget(usd="1"))
    async def asks(response: dict[str, Any]) -> str:
        apflow.report_usage(response)
        return apflow.current().task_id

    of_chat, of_message = await asks(chat), await asks(message)
    # 399 * 2.50 + 601 * 1.25 + 101 * 10 = 2,758.75 micro-dollars.
    # 333 * 3 + 600 * 0.30 + 67 * 3.75 + 77 * 15 = 2,585.25 micro-dollars.
    expected = {"gpt-mine": Decimal("0.00275875"), "claude-mine": Decimal("0.00258525")}
    assert {row.key: row.cost_usd for row in await runtime.usage.by("model")} == expected
    for run_id, cost in ((of_chat, expected["gpt-mine"]), (of_message, expected["claude-mine"])):
        [status] = await runtime.budgets.explain("run", run_id)
        assert status.settled == cost
    rows = await runtime.store.read(lambda tx: tx.rows("SELECT cost_nusd FROM apflow_usage_events ORDER BY 1"))
    assert [row[0] for row in rows] == [2_585_250, 2_758_750]
    costs = {row.id: row.actual_cost_usd for row in await runtime.runs.list(name="asks")}
    assert costs == {of_chat: Decimal("0.002759"), of_message: Decimal("0.002586")}


async def test_a_child_pays_from_a_budget_in_dollars_above_it(runtime: Runtime) -> None:
    runtime.prices.set("mine", input="1", output="1")

    @apflow.task
    async def child(model: str) -> None:
        apflow.report_usage(input=6_000)

    @apflow.task(budget=Budget(usd="0.01"))
    async def parent() -> str:
        with pytest.raises(UnpricedModelError):
            await child("nobody-knows")
        await child("mine")
        with pytest.raises(BudgetExhaustedError) as caught:
            await child("mine")
        assert (caught.value.budget, caught.value.unit) == ("parent", "usd")
        return apflow.current().task_id

    run_id = await parent()
    [status] = await runtime.budgets.explain("run", run_id)
    assert (status.settled, status.overrun) == (Decimal("0.01"), Decimal("0.002"))
