"""Who executes a task tree: one process at a time, the next one where the last one stopped."""

from __future__ import annotations

from collections import Counter
from signal import SIGCONT
from typing import Any

import pytest

from tests.crash.processes import Crew, Worker, until
from tests.crash.random_trees import random_tree
from tests.crash.test_zombies import stop_at_rest
from tests.crash.tree_checks import check_trees_sound

NODES = "SELECT id, status, epoch FROM apflow_tasks WHERE kind = 'node' ORDER BY id"
TREES = "SELECT status, epoch, recoveries FROM apflow_tasks WHERE kind = 'tree'"
LEASES = "SELECT COUNT(*) FROM apflow_tasks WHERE status = 'in_progress' AND lease_expires_at IS NOT NULL"
CHECKPOINTS = "SELECT COUNT(*) FROM task_checkpoints WHERE CAST(checkpoint_data AS TEXT) LIKE '%2]%'"
FOR_FEW = "tests.crash.tree_for_few"


def node(name: str, executor: str, needs: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    """Return a task dictionary; all are inside the root."""
    parent = {} if name == "root" else {"parent_id": "root"}
    return {"id": name, "name": executor, "inputs": {"name": name}, "dependencies": list(needs), **parent, **more}


ROOT = node("root", "grow", inputs={"number": 1})
WALK = node("walk", "walk", ("root",), inputs={"number": 6})


def garden(*kinds: str) -> list[dict[str, Any]]:
    """Return a tree in which a node of each kind stands between the root and an end that waits for all."""
    middle = [WALK if kind == "walk" else node(kind, kind, ("root",)) for kind in kinds]
    return [ROOT, *middle, node("end", "look_back", kinds, inputs={})]


# -- owners that wake up too late ------------------------------------------------------------------------------------


def test_a_stopped_process_finds_its_tree_finished_and_changes_nothing(crew: Crew) -> None:
    kinds = ("wait_here", "ignore_the_end", "wait_plainly", "walk")
    zombie = plant_and_wait(crew, kinds, lease_seconds=1)
    crew.until_rows(CHECKPOINTS, [(1,)])
    stop_at_rest(crew, zombie)

    heir = crew.start("execute", "root", lease_seconds=1)
    assert heir.finish()["status"] == "completed"
    before = crew.everything()
    zombie.send(SIGCONT)
    assert zombie.finish()["status"] == "completed"  # it has waited for what the other one made of it

    assert crew.everything() == before
    late = [one.what for one in crew.effects() if one.pid == zombie.pid and not one.what.startswith(("waits", "leaf"))]
    refused = [f"{what} refused: RunCancelledError" for what in ("child", "submission", "checkpoint")]
    told = ["grow root", "walks from 0 walk", "ignore_the_end cancelled", "wait_plainly cancelled", *refused]
    assert sorted(late) == sorted(told)
    assert [crew.done().count(line) for line in ("grow root", "looks back end", "restored 3 walk")] == [1, 1, 1]
    check_trees_sound(crew)


def test_a_process_that_cannot_renew_stores_nothing_more_of_its_tree(crew: Crew) -> None:
    kinds = ("wait_here", "come_late", "wait_plainly")
    zombie = plant_and_wait(crew, kinds, lease_seconds=1, renews=False)
    assert crew.start("execute", "root", lease_seconds=1).finish()["status"] == "completed"
    before = crew.everything()
    crew.open("late")
    assert zombie.finish()["status"] == "completed"  # it has waited for what the other one made of it
    assert crew.everything() == before
    assert [line for line in crew.done() if "refused" in line or "accepted" in line] == [
        "child refused: FencedError",
        "checkpoint refused: RunCancelledError",
    ]
    assert crew.done().count("looks back end") == 1
    check_trees_sound(crew)


def plant_and_wait(crew: Crew, kinds: tuple[str, ...], **options: Any) -> Worker:
    """Start a process that has a tree half done and waits."""
    crew.start("plant", garden(*kinds)).finish()
    worker = crew.start("execute", "root", gate="late", **options)
    waiting = (f"walks from 0 {kind}" if kind == "walk" else f"waits {kind}" for kind in kinds)
    crew.until_done(*waiting)
    return worker


# -- two at once -----------------------------------------------------------------------------------------------------


def test_two_processes_that_execute_one_tree_share_one_execution(crew: Crew) -> None:
    crew.start("plant", random_tree(7, "calm", nodes=40)).finish()
    workers = [crew.start("execute", "calm-0", gate="go", waits=True) for _ in range(3)]
    for worker in workers:
        until(lambda worker=worker: bool(worker.told()), "the worker is ready", crew.troubles)  # type: ignore[misc]
    crew.open("go")
    outcomes = [worker.finish() for worker in workers]
    assert outcomes == [outcomes[0]] * 3
    assert (outcomes[0]["task_id"], outcomes[0]["status"]) == ("calm-0", "completed")
    assert set(Counter(crew.done()).values()) == {1}
    assert {epoch for _, _, epoch in crew.rows(NODES)} == {1}
    assert crew.rows(TREES) == [("completed", 1, 0)]
    check_trees_sound(crew)


# -- cancelled and handed back ---------------------------------------------------------------------------------------


def test_another_process_cancels_the_tree(crew: Crew) -> None:
    owner = plant_and_wait(crew, ("wait_here", "wait_plainly", "walk"), lease_seconds=1)
    assert crew.start("cancel", "root").finish()["task_id"] == "root"
    assert owner.finish()["status"] == "completed"  # the root itself had completed
    cancelled = dict.fromkeys(("end", "wait_here", "wait_plainly", "walk"), "cancelled")
    assert statuses(crew) == {"root": "completed", **cancelled}
    assert {"wait_plainly cancelled", "cleaned up walk"} <= set(crew.done())
    assert "looks back end" not in crew.done()
    check_trees_sound(crew)


def test_another_process_cancels_one_task_and_what_needs_it(crew: Crew) -> None:
    tree = [
        *garden("wait_here", "wait_plainly"),
        node("beside", "look_back", ("wait_plainly",), inputs={}),
        node("optional", "look_back", inputs={}),
    ]
    tree[-1]["dependencies"] = [{"id": "wait_here", "required": False}]
    crew.start("plant", tree).finish()
    owner = crew.start("execute", "root", gate="late", lease_seconds=1)
    crew.until_done("waits wait_here", "waits wait_plainly")
    crew.start("cancel", "wait_here").finish()
    crew.until_done("looks back optional")
    crew.open("late")
    owner.finish()
    completed = dict.fromkeys(("root", "wait_plainly", "beside", "optional"), "completed")
    assert statuses(crew) == {"wait_here": "cancelled", "end": "cancelled", **completed}
    check_trees_sound(crew)


def test_a_process_that_leaves_hands_its_tree_back_and_another_continues_at_once(crew: Crew) -> None:
    kinds = ("wait_here", "wait_plainly", "walk")
    first = plant_and_wait(crew, kinds, lease_seconds=600, shutdown_seconds=0.5, leave="leave 1")
    crew.open("leave 1")
    assert first.finish() == {"error": "RunInterruptedError"}
    assert crew.rows(LEASES) == [(0,)]
    assert crew.start("recover_trees").finish() == {"counts": [{"completed": 5, "failed": 0, "cancelled": 0}]}
    assert crew.rows(TREES) == [("completed", 2, 0)]
    assert [crew.done().count(one) for one in ("grow root", "looks back end")] == [1, 1]
    check_trees_sound(crew)


def statuses(crew: Crew) -> dict[str, str]:
    return {one: status for one, status, _ in crew.rows(NODES)}


# -- executors that not everybody has --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rare_brew", "rare_mix"])
def test_only_a_process_that_has_the_executors_takes_a_tree_over(crew: Crew, kind: str) -> None:
    inputs = {"name": "x"} if kind == "rare_brew" else {"number": 3}
    tree = [ROOT, node("wait", "wait_here", ("root",)), node("secret", kind, ("wait",), inputs=inputs)]
    stranger = crew.start("watch", "leave")
    crew.start("plant", tree, knows=FOR_FEW).finish()
    owner = crew.start("execute", "root", gate="never", knows=FOR_FEW)
    crew.until_done("waits wait")
    owner.kill()
    assert crew.start("recover_trees").finish() == {"counts": []}
    assert crew.rows(TREES) == [("in_progress", 1, 0)]

    crew.start("watch_knowing", "leave", FOR_FEW)
    crew.until_rows(TREES, [("completed", 2, 1)])
    crew.open("leave")
    assert stranger.finish() == {"left": True}
    assert [one for one in crew.effects() if one.pid == stranger.pid] == []
    assert crew.done().count("grow root") == 1
    check_trees_sound(crew)


# -- checkpoints of executor classes ---------------------------------------------------------------------------------


def test_an_executor_goes_on_from_its_checkpoint_after_a_kill_and_when_it_is_retried(crew: Crew) -> None:
    retried = node("retried", "walk", ("walk",), inputs={"number": 4}, params={"fails": True}, max_attempts=2)
    crew.start("plant", [ROOT, WALK, retried | {"backoff_base_seconds": 0.1}]).finish()
    owner = crew.start("execute", "root", gate="never")
    crew.until_rows(CHECKPOINTS, [(1,)])
    owner.kill()
    crew.start("execute", "root").finish()
    assert [line for line in crew.done() if line != "grow root"] == [
        "walks from 0 walk",
        "restored 3 walk",
        "walks from 3 walk",
        "walks from 0 retried",
        "restored 3 retried",
        "walks from 3 retried",
    ]
    rows = crew.rows("SELECT id, CAST(result AS TEXT), attempt_count FROM apflow_tasks WHERE name = 'walk' ORDER BY id")
    assert rows == [("retried", "[0,1,2,3]", 2), ("walk", "[0,1,2,3,4,5]", 1)]
    check_trees_sound(crew)


# -- how often a tree is taken over ----------------------------------------------------------------------------------


def test_a_tree_that_gets_on_is_not_given_up(sqlite_crew: Crew) -> None:
    names = ["root", *(f"n{number:02}" for number in range(1, 15))]
    tree = [node(name, "kill_once", (names[place - 1],) if place else ()) for place, name in enumerate(names)]
    sqlite_crew.start("plant", tree).finish()
    sqlite_crew.start("execute", "root", recovery_limit=2).die()
    for _ in names[1:]:
        sqlite_crew.start("recover_trees", recovery_limit=2).die()
    sqlite_crew.start("recover_trees", recovery_limit=2).finish()
    assert set(statuses(sqlite_crew).values()) == {"completed"}
    assert sqlite_crew.done() == [f"kills once {name}" for name in names for _ in range(2)]
    check_trees_sound(sqlite_crew)


def test_a_node_that_kills_its_processes_is_given_up_and_what_needs_it_is_cancelled(crew: Crew) -> None:
    tree = [
        ROOT,
        node("kill", "kill", ("root",), inputs={}),
        node("needs", "wait_here", ("kill",)),
        node("needs more", "wait_here", ("needs",)),
        node("beside", "press", ("root",), inputs={"number": 1}),
        node("optional", "wait_here", priority=3) | {"dependencies": [{"id": "kill", "required": False}]},
    ]
    crew.start("plant", tree).finish()
    worker = crew.start("execute", "root", recovery_limit=2)
    kills = 0
    while worker.wait() != 0:
        worker.die()
        kills += 1
        worker = crew.start("recover_trees", recovery_limit=2)

    gone = dict.fromkeys(("needs", "needs more"), "cancelled")
    assert statuses(crew) == {"kill": "failed", **gone, **dict.fromkeys(("root", "beside", "optional"), "completed")}
    # One more for each of the two nodes beside it that completes in a later life than the first.
    assert 3 <= crew.done().count("kills kill") == kills <= 5
    ((error,),) = crew.rows("SELECT error FROM apflow_tasks WHERE id = 'kill'")
    assert error.startswith("apflow.RecoveryLimitError: ")
    check_trees_sound(crew)


def test_a_tree_that_never_gets_to_its_nodes_is_given_up_until_it_is_executed_again(sqlite_crew: Crew) -> None:
    sqlite_crew.start("plant", [ROOT]).finish()
    sqlite_crew.start("execute", "root", point="write 2 inside").die()
    for _ in range(2):
        sqlite_crew.start("recover_trees", point="write 2 inside", recovery_limit=0).die()
    assert sqlite_crew.start("recover_trees", recovery_limit=0).finish() == {"counts": []}
    ((status, error),) = sqlite_crew.rows("SELECT status, error FROM apflow_tasks WHERE kind = 'tree'")
    assert (status, error.partition(":")[0]) == ("failed", "apflow.RecoveryLimitError")
    assert sqlite_crew.start("execute", "root", recovery_limit=0).finish()["status"] == "completed"
    assert sqlite_crew.done() == ["grow root"]
    check_trees_sound(sqlite_crew)
