"""Many processes spend from one account at once, some of them are killed, and no limit is ever passed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from signal import SIGKILL

import pytest

from tests.contract.raw_database import RawDatabase
from tests.crash.budget_flows import CALLS
from tests.crash.budget_nursery import BudgetNursery
from tests.crash.budget_stress import LIMIT
from tests.crash.processes import Crew, Nursery, Worker, until

ROUNDS = 3
BETWEEN_SAMPLES_SECONDS = 0.002
#: How much is settled when the next of the doomed processes is killed.
KILLED_AT = (LIMIT // 10, LIMIT // 3, LIMIT // 2)

ACCOUNT = "SELECT settled, reserved, hard_limit, overrun FROM apflow_budget_accounts"
#: Rows of runs whose usage is not the sum of their events.
OUT_OF_STEP = """
SELECT e.run_id, e.task, e.total, t.status, t.token_usage
FROM (SELECT run_id, MAX(task) AS task, SUM(total_tokens) AS total FROM apflow_usage_events GROUP BY run_id) e
LEFT JOIN apflow_tasks t ON t.id = e.run_id
WHERE t.token_usage IS NULL OR e.total <> CAST({total} AS BIGINT)"""


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = BudgetNursery()
    yield made
    made.close()


@pytest.mark.timeout(300)
def test_eight_processes_never_pass_the_limit_of_one_account(crew: Crew) -> None:
    with closing((database := RawDatabase(crew.url)).connection):
        database.ensure()
    doomed = [crew.start("stress", number, None, gate="start") for number in range(len(KILLED_AT))]
    others = [crew.start("stress", number, ROUNDS, gate="start") for number in range(len(doomed), 8)]
    release(crew, [*doomed, *others])

    samples = watch_the_account(crew, doomed, others)
    assert [worker.wait() for worker in doomed] == [-SIGKILL] * len(doomed)
    outcomes: Counter[str] = sum((Counter(worker.finish()["outcomes"]) for worker in others), Counter())
    assert set(outcomes) == {"done", "refused", "ValueError", "cancelled"}, crew.troubles()
    assert len({settled for settled, _, _, _ in samples}) > 10

    told = crew.start("sweep").finish()
    assert told["again"] == 0
    ((settled, reserved, limit, overrun),) = crew.rows(ACCOUNT)
    assert (reserved, limit, overrun) == (0, LIMIT, 0)
    assert crew.rows("SELECT * FROM apflow_budget_holds") == []
    assert settled == told["used"] == sum(tokens for tokens in events(crew).values())
    check_nothing_lost(crew, doomed)
    crew.check_sound()


@pytest.mark.parametrize("task", ["call_per_user", "call_per_global"])
def test_ten_of_fifty_declared_calls_from_four_processes_fit_a_shared_budget(crew: Crew, task: str) -> None:
    ended = call_from_four(crew, task)
    assert ended == {100: 10, "BudgetExhaustedError": 40}
    check_account(crew, overrun=0, events=10)


def test_the_overrun_of_undeclared_calls_from_four_processes_is_on_the_ledger(crew: Crew) -> None:
    ended = call_from_four(crew, "call_undeclared")
    # A process judges by what it knows. A call that it stops at once may still be one of the ten that fit.
    assert set(ended) <= {100, "BudgetExhaustedError"}
    assert ended[100] <= 10
    assert crew.start("call_many", "call_undeclared", 1, gate="start").finish() == {
        "outcomes": ["BudgetExhaustedError"]
    }
    assert crew.done() == ["started"] * CALLS
    check_account(crew, overrun=4_000, events=CALLS)


def call_from_four(crew: Crew, task: str) -> Counter[object]:
    """Make fifty calls from four processes at once and return how they ended."""
    with closing((database := RawDatabase(crew.url)).connection):
        database.ensure()
    workers = [crew.start("call_many", task, calls, gate="start") for calls in (13, 13, 12, 12)]
    release(crew, workers)
    return Counter(outcome for worker in workers for outcome in worker.finish()["outcomes"])


def check_account(crew: Crew, *, overrun: int, events: int) -> None:
    """The budget is full, nothing is held, and ledger and report agree."""
    assert crew.rows(ACCOUNT) == [(1_000, 0, 1_000, overrun)]
    assert crew.rows("SELECT * FROM apflow_budget_holds") == []
    assert crew.rows("SELECT total_tokens FROM apflow_usage_events") == [(100,)] * events
    assert crew.start("sweep").finish() == {"swept": 0, "again": 0, "used": 1_000 + overrun}


def watch_the_account(crew: Crew, doomed: list[Worker], others: list[Worker]) -> list[tuple[int, int, int, int]]:
    """Sample the account until the others end, and kill the doomed in the middle."""
    samples: list[tuple[int, int, int, int]] = []
    left = list(zip(KILLED_AT, doomed, strict=True))
    with closing((database := RawDatabase(crew.url)).connection):
        while any(worker.poll() is None for worker in others):
            for settled, reserved, limit, overrun in database.rows(ACCOUNT):
                assert settled + reserved <= limit == LIMIT
                assert overrun == 0
                assert reserved >= 0
                assert not samples or settled >= samples[-1][0]
                samples.append((settled, reserved, limit, overrun))
            time.sleep(BETWEEN_SAMPLES_SECONDS)
            if left and samples and samples[-1][0] >= left[0][0]:
                left.pop(0)[1].kill()
    for _, worker in left:
        worker.kill()
    return samples


def events(crew: Crew) -> dict[str, int]:
    """Return the tokens of all usage events, by the name that each was reported under."""
    rows = crew.rows("SELECT provider, total_tokens FROM apflow_usage_events")
    found = dict(rows)
    assert len(found) == len(rows)
    return found


def check_nothing_lost(crew: Crew, doomed: list[Worker]) -> None:
    """Whatever a process saw committed is stored, those that were killed included; and all rows are in step."""
    stored = events(crew)
    killed = {worker.pid for worker in doomed}
    seen = {name: (one.pid, int(tokens)) for one in crew.effects() for _, name, tokens in [one.what.split()]}
    assert {name: tokens for name, (_, tokens) in seen.items() if stored.get(name) != tokens} == {}
    assert killed & {pid for pid, _ in seen.values()}
    assert {name for name in stored if int(name.split("-")[0]) not in killed} <= set(seen)
    total = "token_usage ->> '$.total'" if crew.url.startswith("sqlite") else "token_usage ->> 'total'"
    assert crew.rows(OUT_OF_STEP.format(total=total)) == []


def release(crew: Crew, workers: list[Worker]) -> None:
    for worker in workers:
        until(lambda worker=worker: bool(worker.told()), "the worker is ready", crew.troubles)  # type: ignore[misc]
    crew.open("start")
