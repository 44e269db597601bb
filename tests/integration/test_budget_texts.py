"""What `BudgetExhaustedError` says: the numbers are those that hold when it is raised, and nothing is said twice."""

from __future__ import annotations

import pytest

import apflow
from apflow import BudgetExhaustedError, CostPolicy, PolicyAction, Runtime

pytestmark = pytest.mark.anyio


async def test_what_was_reported_a_moment_ago_counts_in_the_numbers() -> None:
    @apflow.task(budget=1_000)
    async def spend() -> None:
        apflow.report_usage(input=600)
        apflow.report_usage(input=600)

    async with Runtime("sqlite:///:memory:"):
        with pytest.raises(BudgetExhaustedError) as caught:
            await spend()

    error = caught.value
    assert (error.settled, error.remaining, error.requested, error.overrun) == (600, 400, 600, 0)
    assert "600 tokens are settled, 0 tokens held, 600 tokens requested" in str(error)


async def test_what_did_not_fit_a_moment_ago_is_overrun_in_the_numbers() -> None:
    @apflow.task(budget=1_000)
    async def spend() -> None:
        with pytest.raises(BudgetExhaustedError):
            apflow.report_usage(input=1_300)
        apflow.report_usage(input=100)

    async with Runtime("sqlite:///:memory:"):
        with pytest.raises(BudgetExhaustedError) as caught:
            await spend()

    error = caught.value
    assert (error.settled, error.overrun, error.remaining, error.requested) == (1_000, 300, 0, 100)


async def test_a_policy_that_refuses_is_named_once() -> None:
    @apflow.task(policy=CostPolicy("half", PolicyAction.BLOCK, threshold=0.5))
    async def ask() -> None:
        return None

    @apflow.task(budget=1_000)
    async def agent() -> None:
        apflow.report_usage(input=600)
        await ask()

    async with Runtime("sqlite:///:memory:"):
        with pytest.raises(BudgetExhaustedError) as caught:
            await agent()

    assert caught.value.policy == "half"
    assert str(caught.value).count("'half'") == 1
