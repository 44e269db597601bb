"""200 children under one `gather`, killed at random and resumed in another order."""

from __future__ import annotations

import random

from tests.crash.flows import SHIPS
from tests.crash.processes import Crew

KILLS = 3
COMPLETED = "SELECT id FROM apflow_tasks WHERE name = 'ship' AND status = 'completed'"


def test_no_finished_child_runs_again_whatever_the_order(crew: Crew) -> None:
    seed = random.getrandbits(32)
    dice = random.Random(seed)
    finished: set[str] = set()
    for life in range(KILLS + 1):
        journal, order = f"life {life}", dice.getrandbits(32)
        if life < KILLS:
            point = die_at(dice, left=SHIPS - len(finished))
            crew.start("send_fleet", journal=journal, point=point, order=order).die()
        else:
            point = "the end"
            told = crew.start("send_fleet", journal=journal, order=order).finish()
            assert told == {"fleet": sorted(number // 2 * 2 for number in range(SHIPS))}, seed
        crew.until_settled()
        ran = [line.removeprefix("ship ") for line in crew.done(journal)]
        assert len(set(ran)) == len(ran), f"seed {seed}, life {life} until {point}"
        assert finished.isdisjoint(ran), f"seed {seed}, life {life} until {point}"
        now = {run_id for (run_id,) in crew.rows(COMPLETED)}
        assert finished <= now <= finished | set(ran), f"seed {seed}, life {life} until {point}"
        finished = now
    assert len(finished) == SHIPS
    assert crew.rows("SELECT COUNT(*) FROM apflow_tasks") == [(SHIPS + 1,)]
    assert crew.rows("SELECT status, recoveries FROM apflow_tasks WHERE name = 'fleet'")[0][0] == "completed"
    crew.check_sound()


def die_at(dice: random.Random, *, left: int) -> str:
    """Return a point that the next life reaches. Its first write is the takeover.

    A kill behind a write may leave nothing to do: PostgreSQL may have stored what all ships wrote in one batch.
    """
    number = dice.randint(1, max(1, left // 2))
    if left and dice.random() < 0.5:
        return f"ship {number} {dice.choice(['before', 'after'])}"
    return f"write {number} {dice.choice(['inside', 'stored'])}"
