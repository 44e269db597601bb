"""Budgets, holds and models over kill -9, takeovers and owners that wake up too late."""

from __future__ import annotations

from collections.abc import Iterator
from signal import SIGCONT

import pytest

from tests.crash.budget_flows import LATE
from tests.crash.budget_nursery import BudgetNursery
from tests.crash.processes import Crew, Nursery, Worker
from tests.crash.test_zombies import stop_at_rest

ACCOUNTS = "SELECT name, settled, reserved, overrun FROM apflow_budget_accounts ORDER BY name"
HOLDS = "SELECT amount, epoch FROM apflow_budget_holds"
EVENTS = "SELECT task, total_tokens FROM apflow_usage_events WHERE total_tokens > 0 ORDER BY created_at"
ROOTS = "SELECT name, status, epoch FROM apflow_tasks WHERE parent_id IS NULL"
CHILDREN = "SELECT name, status, epoch FROM apflow_tasks WHERE parent_id IS NOT NULL"


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = BudgetNursery()
    yield made
    made.close()


# -- a budget over a kill ------------------------------------------------------------------------------------------


def test_a_resumed_run_has_what_its_budget_had_left_and_nothing_is_charged_twice(crew: Crew) -> None:
    killed = crew.start("call", "journey", [300, 100, 1])
    crew.until_done("holds")
    killed.kill()
    assert crew.rows(ACCOUNTS) == [("journey", 600, 300, 0)]
    assert crew.rows(HOLDS) == [(300, 1)]

    heir = crew.start("call", "journey", [300, 100, 1], gate="go on", sweeps=False)
    crew.until_done("enters again")
    # The takeover itself has released it: this process does not sweep.
    assert (crew.rows(ACCOUNTS), crew.rows(HOLDS)) == ([("journey", 600, 0, 0)], [])
    crew.open("go on")
    assert heir.finish() == {"result": "arrived"}
    assert [one for one in crew.done() if one.startswith("step")] == [
        "step 600",
        "step 300",
        "step 100",
        "step 1 refused, 1000 settled",
    ]
    assert crew.rows(ACCOUNTS) == [("journey", 1_000, 0, 0)]
    assert crew.rows(EVENTS) == [("step", 600), ("step", 300), ("step", 100)]


def test_a_resumed_run_that_uses_more_than_was_left_fails(crew: Crew) -> None:
    crew.start("call", "waste").die()
    assert crew.start("call", "waste").finish() == {"result": "BudgetExhaustedError"}
    assert crew.done().count("step 600") == 1
    assert crew.rows(ACCOUNTS) == [("waste", 1_000, 0, 100)]
    assert crew.rows(EVENTS) == [("step", 600), ("waste", 500)]
    assert crew.rows(ROOTS) == [("waste", "failed", 2)]


# -- the model over a kill -----------------------------------------------------------------------------------------


def test_a_run_that_was_downgraded_keeps_its_model_when_its_budget_was_raised_meanwhile(crew: Crew) -> None:
    crew.start("call", "use_shared", 1_000).finish()
    crew.start("call", "think", "large").die()
    assert crew.start("raise_limit", "shared", 100_000).finish() == {"raised": 100_000}
    assert crew.start("call", "think", "large").finish() == {"result": "small"}
    assert [one for one in crew.done() if one != "thinks"] == ["thinks with small, small"] * 2
    assert crew.rows("SELECT model_to FROM apflow_decisions WHERE action = 'downgrade'") == [("small",)]


@pytest.mark.parametrize("task", ["think_and_use", "think_in_silence"])
def test_a_run_that_was_not_downgraded_keeps_its_model_when_little_is_left(crew: Crew, task: str) -> None:
    crew.start("call", task).die()
    assert crew.rows("SELECT settled >= 1000 FROM apflow_budget_accounts") == [(True,)]
    assert crew.start("call", task).finish() == {"result": "large"}
    lives = [one for one in crew.done() if one.startswith("thinks with")]
    assert len(lives) == 2
    assert len(set(lives)) == 1


@pytest.mark.parametrize("used", [0, 1_000])
def test_a_child_that_was_interrupted_keeps_its_model(crew: Crew, used: int) -> None:
    """Downgraded or not: it is the model that it was given which stays."""
    crew.start("call", "use_shared", used).finish()
    crew.start("call", "ask").die()
    if used:
        crew.start("raise_limit", "shared", 100_000).finish()
    model = "small" if used else "large"
    assert crew.start("call", "ask").finish() == {"result": model}
    assert [one for one in crew.done() if one != "thinks"] == [f"thinks with {model}, {model}"] * 2


# -- submitted runs that others take over --------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "settled", "status"), [(300, 300, "completed"), (1_200, 1_000, "failed")])
def test_a_submitted_child_counts_on_the_budget_of_a_parent_that_nobody_runs(
    crew: Crew, tokens: int, settled: int, status: str
) -> None:
    crew.start("call", "sends_errand", tokens).die()
    heir = crew.start("watch", "leave")
    crew.until_rows(CHILDREN, [("errand", status, 2)])
    crew.open("leave")
    heir.finish()
    assert crew.rows(ROOTS) == [("sends_errand", "in_progress", 1)]
    crew.start("sweep").finish()
    assert crew.rows(ACCOUNTS) == [("sends_errand", settled, 0, tokens - settled)]
    assert crew.rows(EVENTS) == [("errand", tokens)]


def test_a_takeover_keeps_the_options_that_a_run_was_submitted_with(crew: Crew) -> None:
    owner = crew.start("submit", "under_options", "all")
    crew.until_done("governed")
    owner.kill()
    assert crew.rows(HOLDS) == [(40, 1)]
    heir = crew.start("watch", "leave", gate="go on")
    crew.until_rows(HOLDS, [(40, 2)])
    crew.open("go on")
    crew.until_rows(ROOTS, [("under_options", "completed", 2)])
    crew.open("leave")
    heir.finish()
    said = [one for one in crew.done() if one != "governed"]
    assert said[:2] == ["model first, 500 left"] * 2
    assert said[2:] == ["child's model second", "refused by careful, budget mine"]
    assert crew.rows(ACCOUNTS) == [("mine", 450, 0, 0)]


def test_a_takeover_of_a_run_without_options_governs_nothing(crew: Crew) -> None:
    crew.start("submit", "errand", "none", 300).die()
    heir = crew.start("watch", "leave")
    crew.until_rows(ROOTS, [("errand", "completed", 2)])
    crew.open("leave")
    heir.finish()
    assert crew.rows(ACCOUNTS) == []
    assert crew.rows(EVENTS) == [("errand", 300)]


# -- an owner that is late -----------------------------------------------------------------------------------------


def test_what_a_stopped_owner_has_used_is_counted_once_it_wakes_up(crew: Crew) -> None:
    zombie = crew.start("call_late", gate="never")
    crew.until_done(*(f"{name} waits" for name in LATE))
    stop_at_rest(crew, zombie)
    let_an_heir_finish(crew)

    zombie.send(SIGCONT)
    check_late(crew, zombie)
    assert {f"{name} cancelled" for name in LATE} <= set(crew.done())
    assert "late reserve refused: RunCancelledError" in crew.done()


def test_what_an_owner_that_cannot_renew_has_used_is_counted_once(crew: Crew) -> None:
    zombie = crew.start("call_late", gate="late", renews=False)
    crew.until_done(*(f"{name} waits" for name in LATE))
    let_an_heir_finish(crew)

    crew.open("late")
    check_late(crew, zombie)
    assert "late reserve refused: FencedError" in crew.done()


def let_an_heir_finish(crew: Crew) -> None:
    """Have the runs taken over once their leases have run out; what their owner held is free then."""
    assert crew.start("call_late").finish() == {"outcomes": ["spent"] * len(LATE)}
    assert crew.rows(ACCOUNTS) == [("held", 90, 0, 0), ("late", 90, 0, 0), ("named", 90, 0, 0)]
    assert crew.rows(HOLDS) == []


def check_late(crew: Crew, zombie: Worker) -> None:
    """The runs are their heir's, and the late usage is on the ledger, unless it has a name that was reported before."""
    assert zombie.finish() == {"outcomes": ["FencedError"] * len(LATE)}
    late, named, block = LATE
    assert sorted(crew.rows(EVENTS)) == [(late, 70), (late, 90), (named, 90), (block, 70), (block, 90)]
    assert crew.rows(ACCOUNTS) == [("held", 160, 0, 0), ("late", 160, 0, 0), ("named", 90, 0, 0)]
    assert crew.rows(HOLDS) == []
    assert sorted(crew.rows(ROOTS)) == [(name, "completed", 2) for name in LATE]
