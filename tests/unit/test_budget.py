"""Budgets as they are declared, the design document's token budget, and the options that take budgets."""

from __future__ import annotations

import pickle
from decimal import Decimal
from typing import Any, TypeVar

import pytest

import apflow
from apflow import Budget, BudgetExhaustedError, BudgetScope, CostPolicy, PolicyAction, TaskDefinitionError, TokenBudget
from apflow.governance.amounts import Amounts
from apflow.governance.budget import budgets

T = TypeVar("T")


def copy_of(value: T) -> T:
    copy: T = pickle.loads(pickle.dumps(value))  # noqa: S301 - our own bytes
    return copy


# -- Budget ------------------------------------------------------------------------------------------------------


def test_a_budget_knows_its_limits_by_unit() -> None:
    assert Budget(tokens=5).limits == {"tokens": 5}
    every = Budget(tokens=5, usd="0.50", requests=2)
    assert every.limits == {"tokens": 5, "usd": 500_000_000, "requests": 2}
    assert Budget(usd=Decimal("0.000000001")).limits == {"usd": 1}
    assert (every.per, every.window, every.tz, every.reserved) == ("run", None, "UTC", Amounts())


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, "a budget needs a limit: tokens=, usd= or requests="),
        *(({"tokens": value}, "tokens must be") for value in (0, -1, 1.5, True, "5", 2**53 + 1)),
        *(({"requests": value}, "requests must be") for value in (0, -1, True)),
        *(({"usd": value}, "usd ") for value in (0, "0", "-1", 0.5, "cheap", "0.0000000001", True)),
        *(({"tokens": 1, "per": value}, "per must be one of run, user, global") for value in ("task", "", None)),
        *(({"tokens": 1, "window": value}, "window must be") for value in ("1m", "2d", "", 24)),
        *(({"tokens": 1, "tz": value}, "tz ") for value in ("Mars/Olympus", "", None, "x" * 65)),
        *(({"tokens": 1, "name": value}, "name takes 1 to 255 characters") for value in ("", "x" * 256, 7)),
        ({"tokens": 10, "reserve": 11}, "reserve asks for 11 tokens, and the budget has 10"),
        ({"usd": "0.01", "reserve": {"usd": "0.02"}}, "reserve asks for 0.02 usd, and the budget has 0.01"),
        ({"usd": "1", "reserve": 1}, "reserve asks for 1 tokens, and the budget has 0"),
        ({"tokens": 1, "reserve": -1}, "reserve: tokens must be"),
        ({"tokens": 1, "reserve": {"words": 1}}, "reserve: has 'words'"),
    ],
)
def test_a_bad_budget_is_refused_by_the_name_of_its_field(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}"):
        Budget(**values)


def test_a_reservation_may_be_the_whole_budget() -> None:
    assert Budget(tokens=10, reserve=10).reserved == Amounts(tokens=10)
    assert Budget(tokens=10, usd="1", reserve={"tokens": 3, "usd": "1"}).reserved == Amounts(3, 1_000_000_000)


def test_what_the_option_takes() -> None:
    one = Budget(tokens=7)
    assert budgets(None) == ()
    assert budgets(7) == budgets(one) == budgets([one]) == budgets((one,)) == (one,)
    assert budgets([7, Budget(usd="1", per="user")]) == (one, Budget(usd="1", per="user"))
    with pytest.raises(ValueError, match="two limits of tokens per run"):
        budgets([7, 8])
    for wrong in (True, 1.5, "7", [True], ["7"], [[7]], {"tokens": 7}):
        with pytest.raises(ValueError, match="takes a number of tokens, a Budget or a list of them"):
            budgets(wrong)


def test_budgets_are_values() -> None:
    assert copy_of(Budget(tokens=1, usd="1")) == Budget(tokens=1, usd="1")
    assert hash(Budget(tokens=1)) == hash(Budget(tokens=1))
    with pytest.raises(AttributeError):
        Budget(tokens=1).tokens = 2  # type: ignore[misc]


# -- TokenBudget -------------------------------------------------------------------------------------------------


def token_budget(limit: int, used: int = 0) -> TokenBudget:
    return TokenBudget(BudgetScope.TASK, "r1", limit, used)


@pytest.mark.parametrize(
    ("used", "remaining", "utilization", "exhausted"),
    [
        (0, 1000, 0.0, False),
        (790, 210, 0.79, False),
        (999, 1, 0.999, False),
        (1000, 0, 1.0, True),
        (1500, 0, 1.5, True),
    ],
)
def test_a_token_budget_counts(used: int, remaining: int, utilization: float, exhausted: bool) -> None:
    budget = token_budget(1000, used)
    assert (budget.remaining, budget.is_exhausted) == (remaining, exhausted)
    assert budget.utilization == pytest.approx(utilization)


def test_a_token_budget_starts_unused() -> None:
    assert token_budget(1).used == 0


@pytest.mark.parametrize(("limit", "used", "named"), [(0, 0, "limit"), (-5, 0, "limit"), (1, -1, "used")])
def test_a_token_budget_takes_no_negative_numbers(limit: int, used: int, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named} must be >="):
        token_budget(limit, used)


@pytest.mark.parametrize("scope_id", ["", "   ", None])
def test_a_token_budget_belongs_to_somebody(scope_id: Any) -> None:
    with pytest.raises(ValueError, match=r"^scope_id must be a non-empty string"):
        TokenBudget(BudgetScope.USER, scope_id, 1)


def test_scopes_are_those_of_the_design_document() -> None:
    assert {scope.name: scope.value for scope in BudgetScope}.items() >= {"TASK": "task", "USER": "user"}.items()


# -- options of a task -------------------------------------------------------------------------------------------


async def work(model: str = "a") -> str:
    return model


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("budget", value) for value in (0, -5, 1.5, True, "1000", ["1000"], [Budget(tokens=1), 5], {"tokens": 5})),
        *(("policy", value) for value in (7, [7], {"name": "p"})),
        *(("models", value) for value in ("abc", [], ["a", "a"], [""], [1], {"a"})),
    ],
)
def test_a_bad_option_is_refused_at_decoration_by_name(option: str, value: Any) -> None:
    with pytest.raises(TaskDefinitionError, match=rf"^task 'work': {option} "):
        apflow.task(**{option: value})(work)
    with pytest.raises(TaskDefinitionError, match=rf"^task 'work': {option} "):
        apflow.task(work).with_options(**{option: value})


@pytest.mark.parametrize("value", [-1, True, "5", {"tokens": -1}, {"words": 1}])
def test_a_bad_reserve_is_refused_by_name(value: Any) -> None:
    with pytest.raises(TaskDefinitionError, match=r"^task 'work': reserve "):
        apflow.task(work).with_options(reserve=value)


def test_options_become_what_they_stand_for() -> None:
    stop = CostPolicy("stop", PolicyAction.BLOCK, 0.9)
    made = apflow.task(budget=1000, policy=[stop, "other"], models=["a", "b"])(work)
    options = made.definition.options
    assert options.budget == (Budget(tokens=1000),)
    assert (options.policy, options.models) == ((stop, "other"), ("a", "b"))
    assert apflow.task(policy="one")(work).definition.options.policy == ("one",)


# -- the error ---------------------------------------------------------------------------------------------------


def test_the_error_keeps_its_fields_through_pickle() -> None:
    error = BudgetExhaustedError("r1", 5, message="no", scope="user", budget="daily", limit=10, requested=7, model="m")
    copy = copy_of(error)
    assert (str(copy), vars(copy)) == (str(error), vars(error))
    assert (copy.run_id, copy.remaining, copy.scope, copy.requested, copy.retry_at) == ("r1", 5, "user", 7, None)
    assert copy.retryable is False


def test_the_error_can_be_made_as_the_design_document_makes_it() -> None:
    error = BudgetExhaustedError("r1", 0)
    assert (error.run_id, error.remaining) == ("r1", 0)
    assert "budget is exhausted" in str(error)
