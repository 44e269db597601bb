"""Which tasks can be deleted, and what goes with them; the same in every store."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from apflow.errors import RunActiveError, RunNotFoundError, TaskFrozenError, TaskInUseError
from apflow.storage.owners import new_owner
from apflow.storage.repository import TaskRepository
from apflow.storage.store import Store, Tx
from tests.contract.ledger_rows import NOON, Counting, add_account, add_decision, add_event, add_task, insert, one
from tests.contract.task_nodes import add_child, add_node, left, running

pytestmark = pytest.mark.anyio

T = TypeVar("T")


@pytest.fixture
def tasks(store: Store) -> TaskRepository:
    return TaskRepository(store)


# -- one task ------------------------------------------------------------------------------------------------


async def test_a_task_goes_with_the_runs_of_its_function(tasks: TaskRepository, store: Store) -> None:
    await add_node(store, "a", status="completed", epoch=1)
    await add_child(store, "run", "a")
    await add_child(store, "inner", "run", epoch=1)
    await add_node(store, "b")
    await add_child(store, "other", "b")
    assert await tasks.delete_task("a") == 3
    assert await left(store) == "b other"


async def test_what_it_saved_goes_and_what_it_used_stays(tasks: TaskRepository, store: Store) -> None:
    for task_id in ("a", "b"):
        await add_node(store, task_id)
        await add_child(store, f"{task_id}1", task_id)
        for run in (task_id, f"{task_id}1"):
            saved = {"id": f"saved-{run}", "task_id": run, "checkpoint_data": "{}", "created_at": NOON}
            await insert(store, "task_checkpoints", **saved)
            await add_account(store, f"run-{run}", scope_id=run)
            await add_event(store, f"event-{run}", run)
            await add_decision(store, f"decision-{run}", run_id=run)
    await add_account(store, "user-a", scope_id="a", per="user")
    assert await tasks.delete_task("a") == 2
    assert await ids_in(store, "task_checkpoints") == ["saved-b", "saved-b1"]
    assert await ids_in(store, "apflow_budget_accounts") == ["run-b", "run-b1", "user-a"]
    assert await one(store, "SELECT COUNT(*) FROM apflow_usage_events") == (4,)
    assert await one(store, "SELECT COUNT(*) FROM apflow_decisions") == (4,)


async def ids_in(store: Store, table: str) -> list[str]:
    rows = await store.read(lambda tx: tx.rows(f"SELECT id FROM {table}"))
    return sorted(row[0] for row in rows)


@pytest.mark.parametrize("cascade", [False, True])
async def test_notes_about_executions_go_with_the_root(tasks: TaskRepository, store: Store, cascade: bool) -> None:
    await add_node(store, "a", task_tree_id="a")
    await add_node(store, "b", task_tree_id="a")
    for note, tree in (("t1", "a"), ("t2", "a"), ("t3", "other")):
        await add_task(store, note, kind="tree", task_tree_id=tree, epoch=1)
    assert await tasks.delete_task("b", cascade=cascade) == 1
    assert await left(store) == "a t1 t2 t3"
    assert await tasks.delete_task("a", cascade=cascade) == 1
    assert await left(store) == "t3"


async def test_the_root_of_a_tree_that_is_executed_stays(tasks: TaskRepository, store: Store) -> None:
    await add_node(store, "a", task_tree_id="a")
    await add_task(store, "t", kind="tree", task_tree_id="a", **running())
    with pytest.raises(RunActiveError):
        await tasks.delete_task("a")
    assert await left(store) == "a t"


@pytest.mark.parametrize("cascade", [False, True])
async def test_nobody_is_not_deleted(tasks: TaskRepository, store: Store, cascade: bool) -> None:
    await add_node(store, "a")
    with pytest.raises(RunNotFoundError) as caught:
        await tasks.delete_task("nobody", cascade=cascade)
    assert caught.value.run_id == "nobody"
    with pytest.raises(ValueError, match="task_id"):
        await tasks.delete_task("a\0b", cascade=cascade)
    assert await left(store) == "a"


# -- who needs it --------------------------------------------------------------------------------------------


async def test_a_task_that_others_need_stays(tasks: TaskRepository, store: Store) -> None:
    await add_node(store, "a")
    await add_node(store, "inside", parent_id="a")
    await add_child(store, "run", "a")
    await add_node(store, "inside-the-run", parent_id="run")
    await add_node(store, "needs", "a", status="completed")
    await add_node(store, "may-need", {"id": "a", "required": False})
    await add_node(store, "link", original_task_id="a", origin_type="link")
    await add_node(store, "copy", original_task_id="a", origin_type="copy")
    await add_node(store, "both", "a", parent_id="a")
    with pytest.raises(TaskInUseError, match="both") as caught:
        await tasks.delete_task("a")
    assert caught.value.ids == ("both", "inside", "inside-the-run", "may-need", "needs", "link")
    assert len((await left(store)).split()) == 9


@pytest.mark.parametrize(
    "blocker",
    [
        {"parent_id": "a"},
        {"parent_id": "a", "kind": None},
        {"dependencies": '["a"]'},
        {"dependencies": '[{"id": "a", "required": false}]', "kind": None},
        {"original_task_id": "a", "origin_type": "link"},
    ],
    ids=str,
)
async def test_one_reason_is_enough(tasks: TaskRepository, store: Store, blocker: dict[str, Any]) -> None:
    await add_node(store, "a")
    await add_node(store, "b", **blocker)
    with pytest.raises(TaskInUseError) as caught:
        await tasks.delete_task("a")
    assert caught.value.ids == ("b",)
    assert await left(store) == "a b"
    assert await tasks.delete_task("b") == 1
    assert await tasks.delete_task("a") == 1


@pytest.mark.parametrize(
    "other",
    [
        {"original_task_id": "a", "origin_type": "copy"},
        {"original_task_id": "a", "origin_type": "archive"},
        {"dependencies": '["aa", {"id": "b"}]'},
        {"task_tree_id": "a"},
    ],
    ids=str,
)
async def test_who_does_not_need_it_does_not_keep_it(
    tasks: TaskRepository, store: Store, other: dict[str, Any]
) -> None:
    await add_node(store, "a")
    await add_node(store, "b", **other)
    assert await tasks.delete_task("a") == 1
    assert await left(store) == "b"


async def test_a_message_names_a_few_and_the_error_all(tasks: TaskRepository, store: Store) -> None:
    await add_node(store, "a")
    others = [f"n{number:02}" for number in range(30)]
    for other in others:
        await add_node(store, other, "a")
    with pytest.raises(TaskInUseError, match=r"n09 and 20 more") as caught:
        await tasks.delete_task("a")
    assert caught.value.ids == tuple(others)
    assert "n10" not in str(caught.value)


async def test_a_task_may_depend_on_itself(tasks: TaskRepository, store: Store) -> None:
    await add_node(store, "a", "a", original_task_id="a", origin_type="link")
    assert await tasks.delete_task("a") == 1


async def test_an_archived_task_goes_only_with_cascade(tasks: TaskRepository, store: Store) -> None:
    await add_node(store, "a", origin_type="archive")
    with pytest.raises(TaskFrozenError, match=r"\ba\b"):
        await tasks.delete_task("a")
    assert await left(store) == "a"
    assert await tasks.delete_task("a", cascade=True) == 1


# -- all that need it ----------------------------------------------------------------------------------------


async def test_all_that_need_it_go_with_cascade(tasks: TaskRepository, store: Store) -> None:
    await add_node(store, "above", has_children=True)
    await add_node(store, "a", "source", parent_id="above")
    await add_node(store, "inside", parent_id="a")
    await add_child(store, "run", "inside")
    await add_node(store, "inside-the-run", parent_id="run")
    await add_node(store, "needs", {"id": "inside-the-run"})
    await add_node(store, "link", original_task_id="needs", origin_type="link")
    await add_node(store, "frozen", "link", origin_type="archive")
    await add_child(store, "last", "frozen")
    await add_node(store, "copy", original_task_id="a", origin_type="copy")
    await add_node(store, "source")
    await add_node(store, "beside", "source", parent_id="above")
    assert await tasks.delete_task("a", cascade=True) == 8
    assert await left(store) == "above beside copy source"


async def test_circles_and_broken_lists_do_not_stop_a_cascade(tasks: TaskRepository, store: Store) -> None:
    await add_node(store, "a", "c", parent_id="c")
    await add_node(store, "b", "a")
    await add_node(store, "c", "b", original_task_id="a", origin_type="link")
    await add_node(store, "odd", dependencies='{"id": "a"}')
    await add_node(store, "bare", dependencies='"a"')
    await add_node(store, "number", dependencies="5")
    if store.dialect == "sqlite":  # PostgreSQL takes no such text.
        await add_node(store, "broken", dependencies='["a"')
    assert await tasks.delete_task("a", cascade=True) == 3
    assert "odd" in await left(store)


async def test_a_long_chain_goes_at_once(tasks: TaskRepository, store: Store) -> None:
    def fill(tx: Tx) -> None:
        cast = "::json" if store.dialect == "postgresql" else ""
        sql = f"INSERT INTO apflow_tasks (id, name, kind, dependencies) VALUES (:id, 'work', 'node', :needs{cast})"
        for number in range(2500):
            tx.execute(sql, {"id": f"n{number}", "needs": json.dumps([f"n{number - 1}"])})

    await store.write(fill)
    counting = Counting(store)
    assert await TaskRepository(counting.as_store).delete_task("n1", cascade=True) == 2499
    assert await left(store) == "n0"


# -- what runs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cascade", [False, True])
async def test_a_running_task_stays(tasks: TaskRepository, store: Store, cascade: bool) -> None:
    await add_node(store, "a", **running())
    await add_node(store, "b")
    await add_child(store, "run", "b", **running())
    for task_id, active in (("a", "a"), ("b", "run")):
        with pytest.raises(RunActiveError) as caught:
            await tasks.delete_task(task_id, cascade=cascade)
        assert caught.value.run_id == active
    assert await left(store) == "a b run"


async def test_a_cascade_deletes_nothing_that_runs(tasks: TaskRepository, store: Store) -> None:
    await add_node(store, "a")
    await add_node(store, "b", "a")
    await add_child(store, "run", "b", **running())
    with pytest.raises(RunActiveError):
        await tasks.delete_task("a", cascade=True)
    assert await left(store) == "a b run"


def dead_owner() -> str:
    """Return an owner on this machine whose process is not the one that has its number now."""
    name, machine, pid, _, runtime = new_owner().rsplit(":", 4)
    return f"{name}:{machine}:{pid}:1:{runtime}"


@pytest.mark.parametrize(
    "state",
    [
        running(-5),
        running(owner=dead_owner()),
        running() | {"lease_expires_at": None},
        running() | {"epoch": None},
        running() | {"status": "completed"},
        running() | {"status": "cancelled"},
        running() | {"status": "pending"},
    ],
    ids=["lease ran out", "process died", "handed back", "not owned", "completed", "cancelled", "pending"],
)
async def test_what_nobody_runs_can_go(tasks: TaskRepository, store: Store, state: dict[str, Any]) -> None:
    await add_node(store, "a", **state)
    await add_child(store, "run", "a", **state)
    assert await tasks.delete_task("a") == 2


# -- who is left ---------------------------------------------------------------------------------------------


async def marks(store: Store, task_id: str) -> tuple[bool, bool]:
    row = await one(store, "SELECT has_children, has_references FROM apflow_tasks WHERE id = :id", id=task_id)
    return bool(row[0]), bool(row[1])


async def test_the_last_child_takes_the_mark_of_its_parent_along(tasks: TaskRepository, store: Store) -> None:
    await add_node(store, "a", has_children=True, has_references=True)
    await add_node(store, "b", parent_id="a")
    await add_node(store, "c", parent_id="a")
    await add_child(store, "run", "a")
    await add_node(store, "other", has_children=True)
    assert await tasks.delete_task("b") == 1
    assert await marks(store, "a") == (True, True)
    assert await tasks.delete_task("c") == 1
    assert await marks(store, "a") == (False, True)
    assert await marks(store, "other") == (True, False)


async def test_the_last_reference_takes_the_mark_of_the_original_along(tasks: TaskRepository, store: Store) -> None:
    await add_node(store, "a", has_children=True, has_references=True, origin_type="archive")
    await add_node(store, "b", original_task_id="a", origin_type="link")
    await add_node(store, "c", original_task_id="a", origin_type="copy")
    assert await tasks.delete_task("b") == 1
    assert await marks(store, "a") == (True, True)
    assert await tasks.delete_task("c", cascade=True) == 1
    assert await marks(store, "a") == (True, False)


async def test_a_lost_answer_is_no_missing_task(store: Store) -> None:
    class Twice(Counting):
        async def write(self, fn: Callable[[Tx], T], *, single: bool = False) -> T:
            await super().write(fn, single=single)
            return await super().write(fn, single=single)

    tasks = TaskRepository(Twice(store).as_store)
    await add_node(store, "a")
    await add_child(store, "run", "a")
    assert await tasks.delete_task("a") == 2
    with pytest.raises(RunNotFoundError):
        await tasks.delete_task("a")
