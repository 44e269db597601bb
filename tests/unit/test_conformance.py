"""The conformance run takes nothing for passed that was not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.suite import SCENARIOS, judge


def check(status: str, **more: Any) -> dict[str, Any]:
    return {"id": "it", "description": "It works", "status": status, **more}


def test_a_scenario_holds_when_all_its_checks_do() -> None:
    outcome = judge("ping", [check("SUCCESS"), check("INFO"), check("SUCCESS")])
    assert (outcome.passed, outcome.checks, outcome.problems, outcome.holds) == (2, 2, (), True)


@pytest.mark.parametrize("status", ["FAILURE", "WARNING", "SKIPPED"])
def test_a_check_without_success_says_why(status: str) -> None:
    outcome = judge("ping", [check("SUCCESS"), check(status, errorMessage="no answer"), check(status)])
    assert (outcome.passed, outcome.checks, outcome.holds) == (1, 3, False)
    assert outcome.problems == ("it: no answer", "it: It works")


@pytest.mark.parametrize("checks", [[], [check("INFO")]])
def test_nothing_checked_is_nothing_passed(checks: list[dict[str, Any]]) -> None:
    assert not judge("ping", checks).holds


@pytest.mark.parametrize("scenario", ["tools-call-simple-text", "tools-call-error"])
def test_an_answer_has_to_be_the_right_one(scenario: str) -> None:
    wrong = judge(scenario, [check("SUCCESS", details={"result": {"content": [{"text": "unknown tool"}]}})])
    assert not wrong.holds
    assert "the answer is not" in wrong.problems[0]


def test_no_scenario_is_there_twice() -> None:
    assert len(set(SCENARIOS)) == len(SCENARIOS) == 9
