"""The design document's budget manager, over the ledger."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from apflow import BudgetManager, BudgetScope, Store, TaskRepository
from tests.contract.ledger_rows import add_account, add_task, one

pytestmark = pytest.mark.anyio


@pytest.fixture
def manager(store: Store) -> BudgetManager:
    return BudgetManager(TaskRepository(store))


def usage(read: int, written: int = 0) -> dict[str, int]:
    return {"input": read, "output": written, "total": read + written}


async def row_usage(store: Store, task_id: str) -> Any:
    [value] = await one(store, "SELECT token_usage FROM apflow_tasks WHERE id = :id", id=task_id)
    return json.loads(value) if isinstance(value, str) else value


# -- checking ----------------------------------------------------------------------------------------------------


async def test_a_task_without_a_budget_is_unlimited(manager: BudgetManager, store: Store) -> None:
    await add_task(store, "r1")
    checked = await manager.check_budget("r1")
    assert (checked.allowed, checked.remaining, checked.utilization, checked.budget) == (True, -1, 0.0, None)


@pytest.mark.parametrize(
    ("used", "allowed", "remaining", "utilization"),
    [(0, True, 1000, 0.0), (790, True, 210, 0.79), (800, True, 200, 0.8), (999, True, 1, 0.999), (1000, False, 0, 1.0)],
)
async def test_a_budget_is_checked_against_what_was_used(
    manager: BudgetManager, store: Store, *, used: int, allowed: bool, remaining: int, utilization: float
) -> None:
    await add_task(store, "r1", token_budget=1000)
    await manager.update_usage("r1", usage(used))
    checked = await manager.check_budget("r1")
    assert (checked.allowed, checked.remaining) == (allowed, remaining)
    assert checked.utilization == pytest.approx(utilization)
    assert checked.budget is not None
    assert (checked.budget.scope, checked.budget.scope_id) == (BudgetScope.TASK, "r1")
    assert (checked.budget.limit, checked.budget.used) == (1000, used)


async def test_usage_of_a_row_that_an_older_version_wrote_counts(manager: BudgetManager, store: Store) -> None:
    await add_task(store, "r1", token_budget=1000, token_usage=json.dumps(usage(900, 200)))
    checked = await manager.check_budget("r1")
    assert (checked.allowed, checked.remaining, checked.utilization) == (False, 0, 1.1)


async def test_what_runs_below_the_task_counts(manager: BudgetManager, store: Store) -> None:
    await add_task(store, "r1", token_budget=1000)
    await add_account(store, "a", settled=950, overrun=60)
    checked = await manager.check_budget("r1")
    assert checked.budget is not None
    assert (checked.allowed, checked.budget.used) == (False, 1010)


# -- updating ----------------------------------------------------------------------------------------------------


async def test_usage_accumulates(manager: BudgetManager, store: Store) -> None:
    await add_task(store, "r1", token_budget=1000)
    first = await manager.update_usage("r1", usage(100, 50))
    second = await manager.update_usage("r1", usage(200, 25))
    assert first is not None
    assert second is not None
    assert (first.used, second.used, second.remaining) == (150, 375, 625)
    assert await row_usage(store, "r1") == usage(300, 75)
    checked = await manager.check_budget("r1")
    assert checked.budget == second


async def test_exhaustion_is_seen(manager: BudgetManager, store: Store) -> None:
    await add_task(store, "r1", token_budget=1000)
    for used, exhausted in ((600, False), (399, False), (1, True), (500, True)):
        budget = await manager.update_usage("r1", usage(used))
        assert budget is not None
        assert budget.is_exhausted is exhausted
    checked = await manager.check_budget("r1")
    assert checked.budget is not None
    assert (checked.allowed, checked.budget.used, checked.remaining, checked.utilization) == (False, 1500, 0, 1.5)
    account = await one(store, "SELECT hard_limit, settled, reserved, overrun FROM apflow_budget_accounts")
    assert tuple(account) == (1000, 1000, 0, 500)


async def test_a_task_without_a_budget_keeps_its_usage(manager: BudgetManager, store: Store) -> None:
    await add_task(store, "r1")
    assert await manager.update_usage("r1", usage(10, 5)) is None
    assert await manager.update_usage("r1", usage(1)) is None
    assert await row_usage(store, "r1") == usage(11, 5)


async def test_what_is_left_out_is_nothing_or_the_sum(manager: BudgetManager, store: Store) -> None:
    await add_task(store, "r1", token_budget=1000)
    await manager.update_usage("r1", {"input": 7})
    await manager.update_usage("r1", {"output": 5})
    budget = await manager.update_usage("r1", {"total": 100})
    assert budget is not None
    assert budget.used == 112
    assert await row_usage(store, "r1") == {"input": 7, "output": 5, "total": 112}


@pytest.mark.parametrize("field", ["input", "output", "total"])
@pytest.mark.parametrize("value", [-1, 1.5, "7", True])
async def test_a_wrong_number_is_refused_by_name(manager: BudgetManager, store: Store, field: str, value: Any) -> None:
    await add_task(store, "r1", token_budget=1000)
    with pytest.raises(ValueError, match=rf"token_usage\['{field}'\] must be"):
        await manager.update_usage("r1", {"input": 5, "output": 5, field: value})
    assert await row_usage(store, "r1") is None
    assert await one(store, "SELECT COUNT(*) FROM apflow_usage_events") == (0,)


@pytest.mark.parametrize("task_id", ["", "  "])
async def test_a_task_has_an_id(manager: BudgetManager, task_id: str) -> None:
    with pytest.raises(ValueError, match=r"^task_id must be a non-empty string"):
        await manager.check_budget(task_id)
    with pytest.raises(ValueError, match=r"^task_id must be a non-empty string"):
        await manager.update_usage(task_id, usage(1))


async def test_an_unknown_task_is_a_key_error(manager: BudgetManager) -> None:
    with pytest.raises(KeyError, match="Task not found: nobody"):
        await manager.check_budget("nobody")
    with pytest.raises(KeyError, match="Task not found: nobody"):
        await manager.update_usage("nobody", usage(1))


async def test_concurrent_updates_add_up_exactly(manager: BudgetManager, store: Store) -> None:
    await add_task(store, "r1", token_budget=1000)
    others = [BudgetManager(TaskRepository(store)) for _ in range(3)]
    await asyncio.gather(*(one.update_usage("r1", usage(3, 2)) for _ in range(20) for one in [manager, *others]))
    checked = await manager.check_budget("r1")
    assert checked.budget is not None
    assert checked.budget.used == 400
    assert await row_usage(store, "r1") == usage(240, 160)
    assert await one(store, "SELECT COUNT(*), SUM(total_tokens) FROM apflow_usage_events") == (80, 400)


async def test_an_event_says_whose_usage_it_was(manager: BudgetManager, store: Store) -> None:
    await add_task(store, "root")
    await add_task(store, "r1", parent_id="root", task_tree_id="root", name="step", user_id="ada", attempt_count=2)
    await manager.update_usage("r1", usage(3, 4))
    columns = "run_id, root_run_id, task, user_id, attempt, source, input_tokens, output_tokens, total_tokens"
    event = await one(store, f"SELECT {columns} FROM apflow_usage_events")
    assert tuple(event) == ("r1", "root", "step", "ada", 2, "updated", 3, 4, 7)


# -- above -------------------------------------------------------------------------------------------------------


async def test_budgets_of_tasks_above_count_too(manager: BudgetManager, store: Store) -> None:
    await add_task(store, "root", name="root", token_budget=1000)
    await add_task(store, "middle", name="middle", parent_id="root")
    await add_task(store, "leaf", name="leaf", parent_id="middle", token_budget=100)
    await add_task(store, "other", name="other", parent_id="root", token_budget=100)
    budget = await manager.update_usage("leaf", usage(80))
    assert budget is not None
    assert (budget.scope_id, budget.limit, budget.used) == ("leaf", 100, 80)
    assert await manager.update_usage("middle", usage(15)) is None
    remaining = {name: (await manager.check_budget(name)).remaining for name in ("root", "middle", "leaf", "other")}
    assert remaining == {"root": 905, "middle": -1, "leaf": 20, "other": 100}
    # The row of a task has its own usage only.
    assert await row_usage(store, "root") is None


async def test_what_fits_is_settled_on_each_budget_by_itself(manager: BudgetManager, store: Store) -> None:
    await add_task(store, "root", name="root", token_budget=50)
    await add_task(store, "leaf", name="leaf", parent_id="root", token_budget=100)
    await manager.update_usage("leaf", usage(80))
    sql = "SELECT settled, overrun FROM apflow_budget_accounts WHERE scope_id = :id"
    assert tuple(await one(store, sql, id="root")) == (50, 30)
    assert tuple(await one(store, sql, id="leaf")) == (80, 0)
    assert (await manager.check_budget("root")).allowed is False
    assert (await manager.check_budget("leaf")).allowed is True


async def test_concurrent_updates_below_one_task_add_up(manager: BudgetManager, store: Store) -> None:
    await add_task(store, "root", name="root", token_budget=1000)
    names = [f"leaf{number}" for number in range(4)]
    for name in names:
        await add_task(store, name, name="leaf", parent_id="root", token_budget=500)
    await asyncio.gather(*(manager.update_usage(name, usage(2)) for _ in range(15) for name in names))
    assert (await manager.check_budget("root")).remaining == 1000 - 4 * 15 * 2
    assert [(await manager.check_budget(name)).remaining for name in names] == [470] * 4
