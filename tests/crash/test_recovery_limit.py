"""How often a run is taken over from processes that died."""

from __future__ import annotations

from tests.crash.processes import Crew


def test_a_run_that_kills_its_processes_is_given_up(crew: Crew) -> None:
    crew.start("submit", "deadly").die()
    for _ in range(2):
        crew.start("watch", "leave", recovery_limit=2).die()
    last = crew.start("watch", "leave", recovery_limit=2)
    crew.until_rows("SELECT status FROM apflow_tasks", [("failed",)])
    crew.open("leave")
    last.finish()

    assert crew.done() == ["deadly, attempt 1"] * 3
    ((error,),) = crew.rows("SELECT error FROM apflow_tasks")
    assert error.startswith("apflow.RecoveryLimitError: ")
    assert "3 times" in error


def test_a_run_that_gets_on_is_not_given_up(crew: Crew) -> None:
    crew.start("submit", "deadly_steps").die()
    for _ in range(4):
        crew.start("watch", "leave", recovery_limit=2).die()
    last = crew.start("watch", "leave", recovery_limit=2)
    crew.until_rows("SELECT status FROM apflow_tasks WHERE name = 'deadly_steps'", [("completed",)])
    crew.open("leave")
    last.finish()
    assert crew.done() == [f"step {number}" for number in range(5) for _ in range(2)]


def test_an_orderly_hand_back_is_no_recovery(crew: Crew) -> None:
    owner = crew.start("submit", "errand", "handed on", gate="never")
    crew.until_done("errand handed on")
    owner.kill()
    for life in range(4):
        heir = crew.start("watch", f"leave {life}", gate="never", recovery_limit=1, shutdown_seconds=0)
        crew.until_rows("SELECT epoch FROM apflow_tasks", [(life + 2,)])
        crew.open(f"leave {life}")
        heir.finish()
        assert crew.rows("SELECT status, lease_expires_at FROM apflow_tasks") == [("in_progress", None)]
    last = crew.start("watch", "leave", recovery_limit=1)
    crew.until_rows("SELECT status, recoveries FROM apflow_tasks", [("completed", 1)])
    crew.open("leave")
    last.finish()
