"""The same key in eight processes at once, and a fresh database under several of them."""

from __future__ import annotations

from tests.crash.processes import Crew, Worker, until

PROCESSES = 8


def test_eight_processes_with_one_key_share_one_run(crew: Crew) -> None:
    workers = start_together(crew, "slow")
    results = [worker.finish()["result"] for worker in workers]
    assert len(set(results)) == 1
    assert [(one.pid, one.what) for one in crew.effects()] == [(results[0], "slow one")]
    assert crew.rows("SELECT status, epoch FROM apflow_tasks") == [("completed", 1)]


def test_one_of_the_others_takes_over_when_the_first_is_killed(crew: Crew) -> None:
    workers = start_together(crew, "first_waits")
    crew.until_done("enters one")
    (first,) = crew.effects()
    others = [worker for worker in workers if worker.pid != first.pid]
    (killed,) = [worker for worker in workers if worker.pid == first.pid]
    killed.kill()
    results = [worker.finish()["result"] for worker in others]
    assert len(results) == PROCESSES - 1
    assert len(set(results)) == 1
    assert [(one.pid, one.what) for one in crew.effects()] == [
        (first.pid, "enters one"),
        (results[0], "enters one"),
    ]
    assert crew.rows("SELECT status, epoch FROM apflow_tasks") == [("completed", 2)]


def test_four_processes_may_make_a_fresh_database_at_once(crew: Crew) -> None:
    workers = [crew.start("first_call", number, gate="start") for number in range(4)]
    release(crew, workers)
    assert [worker.finish() for worker in workers] == [{"result": f"number {number}"} for number in range(4)]
    assert crew.rows("SELECT status, COUNT(*) FROM apflow_tasks GROUP BY status") == [("completed", 4)]
    crew.check_sound()


def start_together(crew: Crew, task: str) -> list[Worker]:
    """Start workers of which half call and half submit, all at the same moment."""
    workers = [crew.start("call_once", task, how, gate="start") for how in ("call", "submit") * (PROCESSES // 2)]
    release(crew, workers)
    return workers


def release(crew: Crew, workers: list[Worker]) -> None:
    for worker in workers:
        until(lambda worker=worker: bool(worker.told()), "the worker is ready", crew.troubles)  # type: ignore[misc]
    crew.open("start")
