"""Task trees under budgets and policies: those of their tasks, of their rows, and of the runs around them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

import apflow
from apflow import Budget, CostPolicy, PolicyAction, RetryPolicy
from tests.integration.tree_helpers import Bench, bench, column, ended, rows, task

pytestmark = pytest.mark.anyio

log: list[Any] = []
FAST = RetryPolicy(max_attempts=3, backoff_base_seconds=0.1, jitter=False)
POLICIES = [
    CostPolicy("tv_block", PolicyAction.BLOCK, threshold=0.5),
    CostPolicy("tv_down", PolicyAction.DOWNGRADE, threshold=0.5, downgrade_chain=["large", "small"]),
    CostPolicy("tv_notify", PolicyAction.NOTIFY, threshold=0.5),
]


@pytest.fixture
async def made(database_url: str) -> AsyncIterator[Bench]:
    log.clear()
    async with bench(database_url, policies=POLICIES) as found:
        yield found


async def accounts(made: Bench) -> dict[tuple[str, str], tuple[int, int, int]]:
    """Return what is settled, reserved and overrun, by the name of the budget and what it counts for."""
    found = await rows(made.store, "SELECT name, scope_id, settled, reserved, overrun FROM apflow_budget_accounts")
    return {(name, scope): (settled, reserved, overrun) for name, scope, settled, reserved, overrun in found}


async def failures(made: Bench) -> dict[str, str]:
    return {one: str(error).split(":")[0].rpartition(".")[2] for one, error in (await made.errors()).items() if error}


@apflow.task(name="tv_use")
async def use(tokens: int = 10) -> str:
    log.append(apflow.current().task_id)
    apflow.report_usage(input=tokens, cost_usd=0, model="m")
    return apflow.current().task_id


@apflow.task(name="tv_model")
async def model_of(model: str = "large") -> str:
    log.append(apflow.current().task_id)
    apflow.report_usage(input=60, cost_usd=0)
    if apflow.current().attempt == 1:
        raise ConnectionError("once more")
    return model


# -- budgets of tasks --------------------------------------------------------------------------------------------


async def test_a_budget_for_all_blocks_the_nodes_beyond_it(made: Bench) -> None:
    @apflow.task(name="tv_shared", budget=Budget(tokens=25, per="global", reserve=10))
    async def shared() -> None:
        log.append(apflow.current().task_id)
        apflow.report_usage(input=10, cost_usd=0)

    chain = [task(f"n{n}", "tv_shared", *([f"n{n - 1}"] if n else [])) for n in range(4)]
    outcome = await ended(made.execute(*chain))
    assert outcome["status"] == "completed"
    assert await made.statuses() == {"n0": "completed", "n1": "completed", "n2": "failed", "n3": "cancelled"}
    assert await failures(made) == {"n2": "BudgetExhaustedError", "n3": "RunCancelledError"}
    assert log == ["n0", "n1"]
    assert set((await accounts(made)).values()) == {(20, 0, 0)}


async def test_a_budget_per_run_counts_for_each_node_by_itself(made: Bench) -> None:
    @apflow.task(name="tv_own", budget=25)
    async def own(tokens: int) -> None:
        apflow.report_usage(input=tokens, cost_usd=0)

    await ended(made.execute(*(task(f"n{n}", "tv_own", inputs={"tokens": 10 * n}) for n in range(4))))
    assert await made.statuses() == {**dict.fromkeys(("n0", "n1", "n2"), "completed"), "n3": "failed"}
    assert await failures(made) == {"n3": "BudgetExhaustedError"}
    assert (await accounts(made))["tv_own", "n3"] == (25, 0, 5)


async def test_twenty_nodes_at_once_never_use_more_than_there_is(made: Bench) -> None:
    @apflow.task(name="tv_crowd", budget=Budget(tokens=100, per="global", reserve=9))
    async def crowd() -> None:
        await asyncio.sleep(0)
        apflow.report_usage(input=9, cost_usd=0)

    await ended(made.execute(task("r", "tv_use"), *(task(f"n{n}", "tv_crowd", "r") for n in range(20))), 60)
    statuses = list((await made.statuses()).values())
    [(settled, reserved, overrun)] = (await accounts(made)).values()
    assert (reserved, overrun) == (0, 0)
    assert settled <= 100
    completed = statuses.count("completed") - 1
    assert settled == 9 * completed
    assert completed >= 1
    assert statuses.count("failed") == 20 - completed
    assert set((await failures(made)).values()) <= {"BudgetExhaustedError"}


async def test_a_budget_per_user_goes_by_the_user_of_the_row(made: Bench) -> None:
    @apflow.task(name="tv_user", budget=Budget(tokens=15, per="user"))
    async def per_user() -> None:
        apflow.report_usage(input=10, cost_usd=0)

    def of(user: str | None, *names: str) -> list[dict[str, Any]]:
        more = {} if user is None else {"user_id": user}
        return [task(one, "tv_user", *names[:at][-1:], **more) for at, one in enumerate(names)]

    await ended(made.execute(task("r", "tv_use"), *of("ada", "a1", "a2", "a3"), *of("bob", "b1"), *of(None, "c1")))
    found = await accounts(made)
    assert {scope: values[0] for (name, scope), values in found.items() if name == "tv_user"} == {"ada": 15, "bob": 10}
    assert await failures(made) == {"a2": "BudgetExhaustedError", "a3": "RunCancelledError", "c1": "UserRequiredError"}


async def test_retries_and_checkpoints_of_a_task_work_in_a_tree(made: Bench) -> None:
    @apflow.task(name="tv_research", retry=FAST, checkpoint=True, budget=100)
    async def research() -> list[str]:
        found = [await use(10), await use(20)]
        if apflow.current().attempt < 3:
            raise ConnectionError("away")
        return found

    await ended(made.execute(task("r", "tv_research"), task("a", "tv_use", "r")))
    assert (await made.statuses()) == {"r": "completed", "a": "completed"}
    assert len(log) == 3  # its children once, and a
    assert await accounts(made) == {("tv_research", "r"): (30, 0, 0)}


async def test_a_node_that_is_executed_again_goes_on_with_what_it_finished(made: Bench) -> None:
    broken = True

    @apflow.task(name="tv_again", checkpoint=True, budget=100)
    async def again() -> str:
        first = await use(10)
        if broken:
            raise ConnectionError("away")
        return first

    await ended(made.execute(task("r", "tv_again")))
    assert (await made.statuses())["r"] == "failed"
    broken = False
    assert (await ended(made.manager.execute_task("r")))["result"] == log[0]
    assert len(log) == 1
    assert await accounts(made) == {("tv_again", "r"): (10, 0, 0)}


# -- budgets and policies of rows --------------------------------------------------------------------------------


async def test_a_rows_own_budget(made: Bench) -> None:
    tight, wide = {"token_budget": 5}, {"token_budget": 50}
    await ended(made.execute(task("r", "tv_use", **wide), task("a", "tv_use", **tight), task("b", "tv_use")))
    assert await made.statuses() == {"r": "completed", "a": "failed", "b": "completed"}
    assert await accounts(made) == {("tv_use", "r"): (10, 0, 0), ("tv_use", "a"): (5, 0, 5)}


@pytest.mark.parametrize(("of_task", "of_row"), [(20, 50), (50, 20)])
async def test_of_two_limits_the_smaller_one_counts(made: Bench, of_task: int, of_row: int) -> None:
    @apflow.task(name="tv_limited", budget=Budget(tokens=of_task, reserve=of_task))
    async def limited() -> int | Decimal | None:
        return apflow.current().budget.remaining("tokens")

    outcome = await ended(made.execute(task("r", "tv_limited", token_budget=of_row)))
    assert outcome["result"] == 20


@pytest.mark.parametrize("policy", ["tv_block", "tv_down", "tv_notify"])
async def test_a_rows_own_policy(made: Bench, policy: str, caplog: pytest.LogCaptureFixture) -> None:
    retry = {"max_attempts": 2, "backoff_strategy": "fixed", "backoff_base_seconds": 0.1}
    outcome = await ended(made.execute(task("r", "tv_model", token_budget=200, cost_policy=policy, **retry)))
    assert outcome["status"] == "completed"  # below the threshold when it was tried again
    log.clear()
    outcome = await ended(made.execute(task("s", "tv_model", token_budget=120, cost_policy=policy, **retry)))
    expected: dict[str, Any] = {"tv_block": None, "tv_down": "small", "tv_notify": "large"}
    assert outcome["result"] == expected[policy]
    assert log == (["s"] if policy == "tv_block" else ["s", "s"])
    assert await failures(made) == ({"s": "BudgetExhaustedError"} if policy == "tv_block" else {})
    assert ("reached" in caplog.text or "notif" in caplog.text.lower()) == (policy == "tv_notify")


async def test_a_policy_that_nobody_knows_fails_its_node_only(made: Bench) -> None:
    await ended(made.execute(task("r", "tv_use", cost_policy="tv_nobody"), task("a", "tv_use")))
    assert await made.statuses() == {"r": "failed", "a": "completed"}
    assert await failures(made) == {"r": "PolicyNotFoundError"}


async def test_a_task_with_a_policy_of_its_own_is_executed_again(made: Bench) -> None:
    broken = True

    @apflow.task(name="tv_inline", budget=100, policy=CostPolicy("tv_inline_policy", PolicyAction.BLOCK, threshold=0.9))
    async def inline() -> str:
        if broken:
            raise ConnectionError("away")
        return "fine"

    await ended(made.execute(task("r", "tv_inline")))
    broken = False
    assert (await ended(made.manager.execute_task("r")))["result"] == "fine"


# -- budgets around a tree ---------------------------------------------------------------------------------------


async def test_the_budget_of_an_agent_covers_the_tree_that_it_executes(made: Bench) -> None:
    @apflow.task(name="tv_agent", budget=Budget(tokens=25))
    async def agent() -> str:
        return str((await made.manager.execute_task("n0"))["status"])

    await made.create(*(task(f"n{n}", "tv_use", *([f"n{n - 1}"] if n else [])) for n in range(4)))
    assert await ended(agent()) == "completed"  # it has seen how the tree ended, and has used nothing by itself
    assert await made.statuses() == {"n0": "completed", "n1": "completed", "n2": "failed", "n3": "cancelled"}
    [(settled, reserved, overrun)] = (await accounts(made)).values()
    assert (settled, reserved, overrun) == (25, 0, 5)


async def test_usage_and_costs_stand_at_the_node(made: Bench) -> None:
    @apflow.task(name="tv_costly")
    async def costly(usd: str) -> None:
        apflow.report_usage(input=100, output=10, cost_usd=usd, model="m")
        await use(5)

    await ended(made.execute(task("r", "tv_costly", inputs={"usd": "0.25"}), task("a", "tv_use")))
    usage = await column(made.store, "CAST(token_usage AS TEXT)")
    assert {one: json.loads(found)["total"] for one, found in usage.items()} == {"r": 110, "a": 10}
    cost = await column(made.store, "actual_cost_usd")
    assert {one: Decimal(str(usd)) for one, usd in cost.items()} == {"r": Decimal("0.25"), "a": Decimal(0)}
    events = await rows(made.store, "SELECT run_id, root_run_id, task, total_tokens FROM apflow_usage_events")
    child = next(one for one in log if one != "a")
    assert sorted(events) == sorted([("r", "r", "tv_costly", 110), (child, "r", "tv_use", 5), ("a", "r", "tv_use", 10)])
