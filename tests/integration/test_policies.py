"""Cost policies around real runs: stopping, giving notice, cheaper models, and what is judged."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

import apflow
from apflow import Budget, BudgetExhaustedError, CostPolicy, PolicyAction, PolicyNotFoundError, RetryPolicy, Runtime
from apflow.call import Call, CallNext

pytestmark = pytest.mark.anyio

FAST = RetryPolicy(max_attempts=3, backoff_base_seconds=0.1, jitter=False)
SHARED = Budget(tokens=1000, per="user", name="shared")
CHAIN = ["opus", "sonnet", "haiku"]
STOP = CostPolicy("stop", PolicyAction.BLOCK, 0.8)
TELL = CostPolicy("tell", PolicyAction.NOTIFY, 0.8)
CHEAPER = CostPolicy("cheaper", PolicyAction.DOWNGRADE, 0.8, CHAIN)
NOTHING = CostPolicy("nothing", PolicyAction.CONTINUE, 0.1)


@pytest.fixture
async def runtime(database_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(database_url, user="ada", policies=[STOP, TELL, CHEAPER], shutdown_seconds=0) as made:
        yield made


@apflow.task(budget=SHARED)
async def spend(tokens: int) -> None:
    apflow.report_usage(input=tokens)


@apflow.task(budget=SHARED, policy="stop")
async def guarded() -> str:
    return "done"


@apflow.task(budget=SHARED, policy="tell")
async def noticed() -> str:
    return "done"


@apflow.task(budget=SHARED, policy="cheaper")
async def asks(model: str = "opus") -> tuple[str, str | None]:
    return model, apflow.current().model


async def decided(runtime: Runtime, **wanted: Any) -> list[tuple[str, str | None, str | None]]:
    """Return action, policy and model given of each decision, the oldest first."""
    found = await runtime.budgets.decisions(**wanted)
    return [(one.action, one.policy, one.model_to) for one in reversed(found)]


# -- block -------------------------------------------------------------------------------------------------------


async def test_a_budget_is_enforced_from_end_to_end(runtime: Runtime) -> None:
    @apflow.task(budget=Budget(tokens=1000, per="user"))
    async def work(tokens: int) -> dict[str, Any]:
        return {"text": "done", "token_usage": {"input": tokens, "output": 0, "total": tokens}}

    assert (await work(600))["text"] == "done"
    with pytest.raises(BudgetExhaustedError) as second:
        await work(600)
    with pytest.raises(BudgetExhaustedError) as third:
        await work(600)
    assert (second.value.requested, second.value.overrun, second.value.settled) == (600, 200, 1000)
    assert (third.value.requested, third.value.overrun, third.value.settled) == (0, 200, 1000)
    rows = await runtime.runs.list(name="work")
    assert [row.status for row in rows] == ["failed", "failed", "completed"]
    # The second one did its work: it is kept. The third never ran.
    assert rows[0].result is rows[0].token_usage is None
    assert rows[1].result["text"] == "done"
    [status] = await runtime.budgets.explain("user", "ada")
    assert (status.name, status.settled, status.overrun, status.left) == ("work", 1000, 200, 0)


@pytest.mark.parametrize(("used", "admitted"), [(790, True), (799, True), (800, False), (1000, False)])
async def test_a_policy_acts_from_its_threshold_on(runtime: Runtime, *, used: int, admitted: bool) -> None:
    await spend(used)
    if admitted:
        assert await guarded() == "done"
        assert await decided(runtime) == []
        return
    with pytest.raises(BudgetExhaustedError) as caught:
        await guarded()
    error = caught.value
    assert (error.limit, error.settled, error.reserved, error.requested) == (1000, used, 0, 0)
    assert (error.scope, error.budget, error.unit) == ("user", "shared", "tokens")
    assert error.policy == ("stop" if used < 1000 else None)  # A full budget needs no policy.
    assert await decided(runtime, action="block") == [("block", error.policy, None)]


async def test_a_blocked_run_is_stored_and_never_retried(runtime: Runtime) -> None:
    await spend(900)
    with pytest.raises(BudgetExhaustedError, match=r"'stop'.*90%.*80%"):
        await guarded.with_options(retry=FAST)()
    [row] = await runtime.runs.list(name="guarded")
    assert (row.status, row.attempt_count, row.cost_policy) == ("failed", 1, "stop")
    assert row.error_info["type"] == "apflow.BudgetExhaustedError"
    [decision] = await runtime.budgets.decisions(run_id=row.id)
    assert (decision.action, decision.task, decision.user_id, decision.attempt) == ("block", "guarded", "ada", 1)
    assert (decision.budget, decision.per, decision.unit) == ("shared", "user", "tokens")
    assert (decision.hard_limit, decision.settled, decision.requested) == (1000, 900, 0)


async def test_a_policy_stops_a_retry(runtime: Runtime) -> None:
    executed: list[int] = []

    @apflow.task(budget=1000, policy="stop", retry=FAST)
    async def greedy() -> None:
        executed.append(apflow.current().attempt)
        apflow.report_usage(input=450)
        raise ValueError("again")

    with pytest.raises(BudgetExhaustedError) as caught:
        await greedy()
    assert executed == [1, 2]
    assert (caught.value.policy, caught.value.settled) == ("stop", 900)


# -- notify ------------------------------------------------------------------------------------------------------


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record for record in caplog.records if record.name.startswith("apflow.governance")]
    return [record.getMessage() for record in found if record.levelno == logging.WARNING]


async def test_notice_is_given_once_in_a_tree(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    @apflow.task
    async def tree() -> list[str]:
        return [await noticed() for _ in range(3)]

    await spend(800)
    assert await tree() == ["done"] * 3
    [warning] = warnings(caplog)
    assert "noticed" in warning
    assert "'tell'" in warning
    assert "80%" in warning
    assert "ada" not in warning
    assert await decided(runtime) == [("notify", "tell", None)]
    await noticed()
    assert len(warnings(caplog)) == 2
    assert await decided(runtime) == [("notify", "tell", None)] * 2


async def test_no_notice_below_the_threshold(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    await spend(790)
    assert await noticed() == "done"
    assert warnings(caplog) == []
    assert await decided(runtime) == []


async def test_continue_does_nothing(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    await spend(900)
    assert await noticed.with_options(policy=NOTHING)() == "done"
    assert warnings(caplog) == []
    assert await decided(runtime) == []


# -- downgrade ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("used", "asked", "given"),
    [(790, "opus", "opus"), (800, "opus", "sonnet"), (800, "sonnet", "haiku"), (800, "another", "opus")],
)
async def test_the_model_after_the_one_asked_for_is_given(runtime: Runtime, used: int, asked: str, given: str) -> None:
    await spend(used)
    assert await asks(asked) == (given, given)
    [row] = await runtime.runs.list(name="asks")
    assert row.inputs == {"model": asked}
    expected = [("downgrade", "cheaper", given)] if used == 800 else []
    assert await decided(runtime) == expected
    for decision in await runtime.budgets.decisions():
        assert (decision.model_from, decision.settled) == (asked, 800)


async def test_a_chain_without_a_next_model_stops_the_run(runtime: Runtime) -> None:
    await spend(800)
    with pytest.raises(BudgetExhaustedError, match="no model follows 'haiku'") as caught:
        await asks.with_options(retry=FAST)("haiku")
    assert (caught.value.policy, caught.value.model) == ("cheaper", "haiku")
    assert await decided(runtime) == [("block", "cheaper", None)]
    [row] = await runtime.runs.list(name="asks")
    assert (row.status, row.attempt_count) == ("failed", 1)


async def test_a_function_without_the_argument_has_it_in_its_context(runtime: Runtime) -> None:
    @apflow.task(budget=SHARED, policy="cheaper")
    async def bare() -> str | None:
        return apflow.current().model

    @apflow.task(budget=SHARED, policy="cheaper")
    async def optional(model: str | None = None) -> tuple[str | None, str | None]:
        return model, apflow.current().model

    @apflow.task(budget=SHARED, policy="cheaper")
    async def numbered(model: int = 7) -> tuple[int, str | None]:
        return model, apflow.current().model

    assert (await bare(), await optional(), await numbered()) == (None, (None, None), (7, None))
    await spend(800)
    assert await bare() == "sonnet"
    assert await optional() == ("sonnet", "sonnet")
    # An argument of another type is something else.
    assert await numbered() == (7, "sonnet")


@pytest.mark.parametrize("submitted", [False, True])
async def test_plain_functions_get_the_model_too(runtime: Runtime, *, submitted: bool) -> None:
    @apflow.task(budget=SHARED, policy="cheaper")
    def plain(model: str) -> tuple[str, str | None]:
        return model, apflow.current().model

    await spend(800)
    result = await plain.submit("opus") if submitted else await asyncio.to_thread(plain, "opus")
    assert result == ("sonnet", "sonnet")


async def test_middleware_outside_of_governance_sees_the_model_asked_for(runtime: Runtime) -> None:
    seen: list[Any] = []

    async def looks(call: Call, call_next: CallNext) -> Any:
        seen.append((call.model, call.arguments["model"]))
        return await call_next(call)

    await spend(800)
    assert await asks.with_options(middleware=[looks])("opus") == ("sonnet", "sonnet")
    assert seen == [("opus", "opus")]


async def test_a_retry_keeps_the_model(runtime: Runtime) -> None:
    seen: list[str] = []

    @apflow.task(budget=1000, policy="cheaper", retry=FAST)
    async def unlucky(model: str = "opus") -> str:
        seen.append(model)
        ctx = apflow.current()
        if ctx.attempt < 3:
            apflow.report_usage(input=800 if ctx.attempt == 1 else 100)
            raise ValueError("again")
        return model

    assert await unlucky() == "sonnet"
    # From its second attempt on the budget is nearly full: one step down, and it stays there.
    assert seen == ["opus", "sonnet", "sonnet"]
    assert await decided(runtime) == [("downgrade", "cheaper", "sonnet")]


async def test_usage_without_a_model_is_that_of_the_model_given(runtime: Runtime) -> None:
    @apflow.task(budget=SHARED, policy="cheaper")
    async def works(model: str = "opus") -> None:
        apflow.report_usage(input=10)

    await works()
    await spend(800)
    await works()
    assert {row.key: row.input_tokens for row in await runtime.usage.by("model")} == {
        "opus": 10,
        "sonnet": 10,
        None: 800,
    }


async def test_models_are_a_chain_from_eighty_percent_on(runtime: Runtime) -> None:
    @apflow.task(budget=SHARED, models=CHAIN)
    async def works(model: str | None = None) -> tuple[str | None, str | None]:
        return model, apflow.current().model

    assert await works() == ("opus", "opus")
    await spend(790)
    assert await works() == ("opus", "opus")
    assert await works("haiku") == ("haiku", "haiku")
    await spend(10)
    assert await works() == ("sonnet", "sonnet")
    assert await works("sonnet") == ("haiku", "haiku")
    with pytest.raises(BudgetExhaustedError):
        await works("haiku")


async def test_models_without_a_budget_name_the_first(runtime: Runtime) -> None:
    @apflow.task(models=CHAIN)
    async def works() -> str | None:
        return apflow.current().model

    assert await works() == "opus"
    assert await works.with_options(models=["other"])() == "other"
    assert await works.with_options(models=None)() is None


async def test_a_downgrading_policy_of_its_own_wins_over_models(runtime: Runtime) -> None:
    late = CostPolicy("late", PolicyAction.DOWNGRADE, 0.9, ["opus", "tiny"])
    works = asks.with_options(policy=late, models=CHAIN)
    await spend(850)
    assert await works() == ("opus", "opus")
    await spend(50)
    assert await works() == ("tiny", "tiny")


# -- downgrade, and replay ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["retried", "resumed"])
async def test_a_replaying_parent_finds_its_downgraded_child(database_url: str, kind: str) -> None:
    executed: list[str] = []
    both, gate = asyncio.Event(), asyncio.Event()

    @apflow.task(budget=SHARED, policy=CHEAPER)
    async def child(model: str) -> str:
        executed.append(model)
        return model

    @apflow.task(checkpoint=True, retry=FAST)
    async def parent() -> list[str]:
        models = [await child("opus"), await child("another")]
        both.set()
        if kind == "retried" and apflow.current().attempt == 1:
            raise ValueError("again")
        if kind == "resumed":
            await gate.wait()
        return models

    async with Runtime(database_url, user="ada", shutdown_seconds=0) as runtime:
        await spend(800)
        run = await parent.submit()
        await both.wait()
        if kind == "retried":
            assert await run == ["sonnet", "opus"]
    if kind == "resumed":
        gate.set()
        async with Runtime(database_url, user="ada") as runtime:
            # More is left now, and still it is the same child.
            await runtime.budgets.set_limit("shared", per="user", scope_id="ada", tokens=10_000)
            await runtime.recover()
            assert await (await runtime.runs.resume(run.id)) == ["sonnet", "opus"]
    assert executed == ["sonnet", "opus"]


async def test_a_resumed_run_keeps_its_model(database_url: str) -> None:
    seen: list[str] = []
    begun, gate = asyncio.Event(), asyncio.Event()

    @apflow.task(budget=SHARED, policy=CHEAPER)
    async def slow(model: str = "opus") -> str | None:
        seen.append(model)
        begun.set()
        await gate.wait()
        return apflow.current().model

    async with Runtime(database_url, user="ada", shutdown_seconds=0):
        await spend(800)
        run = await slow.submit()
        await begun.wait()
    gate.set()
    async with Runtime(database_url, user="ada") as runtime:
        await runtime.budgets.set_limit("shared", per="user", scope_id="ada", tokens=10_000)
        await runtime.recover()
        assert await (await runtime.runs.resume(run.id)) == "sonnet"
        assert seen == ["sonnet", "sonnet"]
        # Another run asks anew.
        assert await slow() == "opus"


async def test_an_unfinished_child_keeps_its_model(database_url: str) -> None:
    seen: list[str] = []
    begun, gate = asyncio.Event(), asyncio.Event()

    @apflow.task(budget=SHARED, policy=CHEAPER)
    async def child(model: str = "opus") -> str:
        seen.append(model)
        begun.set()
        await gate.wait()
        return model

    @apflow.task(checkpoint=True)
    async def parent() -> str:
        return await child()

    async with Runtime(database_url, user="ada", shutdown_seconds=0):
        await spend(800)
        run = await parent.submit()
        await begun.wait()
    gate.set()
    async with Runtime(database_url, user="ada") as runtime:
        await runtime.budgets.set_limit("shared", per="user", scope_id="ada", tokens=10_000)
        await runtime.recover()
        assert await (await runtime.runs.resume(run.id)) == "sonnet"
    assert seen == ["sonnet", "sonnet"]


# -- several, by name, and of the parent -------------------------------------------------------------------------


async def test_each_policy_acts_from_its_own_threshold_on(runtime: Runtime) -> None:
    policies = [CostPolicy("early", PolicyAction.NOTIFY, 0.5), CHEAPER, CostPolicy("end", PolicyAction.BLOCK, 0.9)]
    works = asks.with_options(policy=policies)
    assert await works() == ("opus", "opus")
    await spend(500)
    assert await works() == ("opus", "opus")
    assert await decided(runtime) == [("notify", "early", None)]
    await spend(300)
    assert await works() == ("sonnet", "sonnet")
    assert sorted(await decided(runtime))[:1] == [("downgrade", "cheaper", "sonnet")]
    assert len(await decided(runtime)) == 3
    await spend(100)
    with pytest.raises(BudgetExhaustedError) as caught:
        await works()
    assert caught.value.policy == "end"
    # What is stopped needs neither a notice nor a cheaper model.
    assert len(await decided(runtime)) == 4
    [row] = await runtime.runs.list(name="asks", limit=1)
    assert row.cost_policy == "end"


async def test_the_most_restrictive_action_wins_at_one_threshold(runtime: Runtime) -> None:
    await spend(800)
    for policies in ([TELL, CHEAPER, STOP], [STOP, CHEAPER, TELL]):
        with pytest.raises(BudgetExhaustedError) as caught:
            await asks.with_options(policy=policies)()
        assert caught.value.policy == "stop"
    assert await decided(runtime) == [("block", "stop", None)] * 2


async def test_an_unknown_policy_is_refused_before_anything_is_written(runtime: Runtime) -> None:
    wrong = guarded.with_options(policy=["stop", "missing"])
    with pytest.raises(PolicyNotFoundError, match=r"'missing'.*'cheaper', 'stop', 'tell'"):
        await wrong()
    with pytest.raises(PolicyNotFoundError):
        await wrong.submit()
    assert await runtime.runs.count() == 0
    assert await runtime.budgets.explain("user", "ada") == []


async def test_two_policies_of_one_name_are_refused(sqlite_url: str) -> None:
    with pytest.raises(ValueError, match="'stop'"):
        Runtime(sqlite_url, policies=[STOP, CostPolicy("stop", PolicyAction.NOTIFY, 0.1)])


@pytest.mark.parametrize("submitted", [False, True])
async def test_policies_of_a_parent_apply_to_its_children(runtime: Runtime, *, submitted: bool) -> None:
    @apflow.task
    async def child(model: str) -> str:
        return model

    @apflow.task
    async def between() -> str:
        return await child("opus")

    async def ask() -> str:
        return await (await between.submit()) if submitted else await between()

    @apflow.task(budget=1000, policy=["stop", CostPolicy("half", PolicyAction.DOWNGRADE, 0.5, CHAIN)])
    async def parent() -> list[str]:
        models = [await ask()]
        apflow.report_usage(input=500)
        models.append(await ask())
        apflow.report_usage(input=300)
        try:
            models.append(await ask())
        except BudgetExhaustedError as error:
            models.append(f"{error.policy} {error.budget}")
        return models

    # A refused child that the parent handles does not fail the parent.
    assert await parent() == ["opus", "sonnet", "stop parent"]
    [row] = await runtime.runs.list(name="parent")
    assert row.status == "completed"


async def test_a_policy_without_a_budget_above_does_nothing(runtime: Runtime) -> None:
    always = CostPolicy("always", PolicyAction.BLOCK, 0.0001)
    assert await asks.with_options(budget=None, policy=always)() == ("opus", "opus")


# -- what is judged ----------------------------------------------------------------------------------------------


async def test_the_fullest_budget_decides(runtime: Runtime) -> None:
    everybody = Budget(requests=10, per="global", name="calls")
    several = [SHARED, everybody]
    for _ in range(7):
        await spend.with_options(budget=several)(10)
    works = guarded.with_options(budget=several)
    assert await works() == "done"
    await spend.with_options(budget=several)(10)
    with pytest.raises(BudgetExhaustedError) as caught:
        await works()
    error = caught.value
    assert (error.scope, error.budget, error.unit, error.limit, error.settled) == ("global", "calls", "requests", 10, 8)


async def test_a_budget_of_a_run_above_is_judged(runtime: Runtime) -> None:
    @apflow.task(budget=100)
    async def parent() -> str | None:
        await spend(85)
        try:
            return await guarded()
        except BudgetExhaustedError as error:
            return error.budget

    # The user has used 8.5 % of theirs, but the run above 85 % of its own.
    assert await parent() == "parent"
    assert await guarded() == "done"


async def test_what_others_hold_counts_and_what_encloses_does_not(runtime: Runtime) -> None:
    @apflow.task(budget=SHARED)
    async def holding() -> list[str]:
        async with apflow.reserve(tokens=800):
            inside = await guarded()
            other = await asyncio.create_task(outsider(), context=no_run)
        return [inside, other, await guarded()]

    async def outsider() -> str:
        try:
            return await guarded()
        except BudgetExhaustedError as error:
            return f"{error.policy}: {error.settled} settled, {error.reserved} reserved"

    no_run = contextvars.copy_context()
    assert await holding() == ["done", "stop: 0 settled, 800 reserved", "done"]
