"""Ctrl-C, and programs that end before their runs: the run is handed back and can be carried on at once."""

from __future__ import annotations

from signal import SIGINT

import pytest

from tests.crash.processes import Crew

ROW = "SELECT status, lease_expires_at, epoch FROM apflow_tasks WHERE epoch IS NOT NULL"


@pytest.mark.parametrize("how", ["async", "block", "plain", "result", "end"])
def test_an_interrupted_program_hands_its_run_back(crew: Crew, how: str) -> None:
    worker = crew.start("interrupted", how, gate="never")
    crew.until_done("waits")
    if how == "end":
        assert worker.wait() == 0, worker.troubles()
    else:
        worker.send(SIGINT)
        assert worker.wait() == -SIGINT, worker.troubles()
        assert "KeyboardInterrupt" in crew.done()
    assert "mark second step" not in crew.done()
    assert crew.rows(ROW) == [("in_progress", None, 1)]

    assert crew.start("finish_interrupted", how).finish() == {"result": "finished"}
    assert crew.done().count("mark first step") == 1
    assert crew.rows(ROW) == [("completed", None, 2)]
