"""The wait between two attempts goes on in the next life."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.processes import Crew

FLAKY = "SELECT status, attempt_count FROM apflow_tasks WHERE name = 'flaky'"


@pytest.mark.parametrize("parent", [False, True])
def test_a_run_killed_between_attempts_waits_only_for_the_rest(crew: Crew, tmp_path: Path, parent: bool) -> None:
    task = ("call", "flaky_child") if parent else ("submit", "flaky")
    (tmp_path / "time").write_text("0")
    crew.start(*task, point="sleep 1").die()
    assert crew.done() == ["attempt 1", "sleeps 60"]

    (tmp_path / "time").write_text("45")
    heir = crew.start(*task) if parent else crew.start("watch", "leave")
    crew.until_rows(FLAKY, [("failed", 3)])
    assert crew.done()[2:] == ["sleeps 15", "attempt 2", "sleeps 60", "attempt 3"]
    crew.open("leave")
    assert heir.wait() == (1 if parent else 0), heir.troubles()
