"""A flow of six steps is killed at and inside every step, and another process finishes it."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.crash.processes import Crew
from tests.crash.voyage import STEPS

#: Steps that die when their function has returned. Those with children have no effect behind those, hence no others.
RETURNING = (*STEPS[:-1], "voyage")

TREE = """
SELECT t.name, p.name, t.kind, t.status, t.inputs, t.result, t.attempt_count, t.error, t.lease_expires_at
FROM apflow_tasks t LEFT JOIN apflow_tasks p ON p.id = t.parent_id
WHERE t.task_tree_id = (SELECT id FROM apflow_tasks WHERE idempotency_key = '{key}')"""

STORED = """
SELECT t.id FROM apflow_tasks t WHERE t.status = 'completed'
UNION SELECT c.task_id FROM task_checkpoints c"""


@pytest.mark.parametrize("where", ["before", "after", "returned", "inside", "stored"])
def test_a_killed_flow_is_finished_without_repeating_a_stored_step(crew: Crew, where: str) -> None:
    calm = crew.start("sail", "calm", journal="calm").finish()
    assert [line.split()[0] for line in crew.done("calm") if not line.startswith("sail_leg")] == [
        step for step in STEPS if not step.startswith("sail_leg")
    ]
    tree = shape(crew, "calm")

    for point in points(where, calm["writes"]):
        crew.start("sail", point, journal=point, point=point).die()
        before = Counter(crew.done(point))
        stored = {run_id for (run_id,) in crew.rows(STORED)}
        check_point(point, before, stored)
        again = crew.start("sail", point, journal=point).finish()
        after = Counter(crew.done(point)) - before

        assert again["log"] == calm["log"], point
        assert shape(crew, point) == tree, point
        assert set(before.values()) | set(after.values()) <= {1}, point
        repeated = [line for line in after if is_stored(line, stored)]
        assert repeated == [], point
        assert {line.split()[0] for line in before + after} == set(STEPS), point

    assert crew.rows("SELECT * FROM task_checkpoints") == []
    crew.check_sound()


def points(where: str, writes: int) -> list[str]:
    if where in ("before", "after"):
        return [f"{step} {where}" for step in STEPS]
    if where == "returned":
        return [f"{step} {where}" for step in RETURNING]
    return [f"write {number} {where}" for number in range(1, writes + 1)]


def is_stored(line: str, stored: set[str]) -> bool:
    return line.split()[1] in stored


def check_point(point: str, before: Counter[str], stored: set[str]) -> None:
    """The process died where it was to die: in the body of this step, so that it is not stored yet."""
    step, _, where = point.partition(" ")
    lines = [line for line in before if line.startswith(step)]
    if where == "before":
        assert lines == []
    elif where in ("after", "returned") and step in STEPS:
        assert [is_stored(line, stored) for line in lines] == [False]


def shape(crew: Crew, key: str) -> list[str]:
    """Return what the rows of a voyage say, ids and times apart."""
    return sorted(map(repr, crew.rows(TREE.format(key=key))))
