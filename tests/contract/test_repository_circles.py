"""Tasks that would be inside themselves, depend on themselves, or hang on tasks that are not there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from apflow.errors import TaskFrozenError, TaskTreeError
from apflow.storage.repository import TaskRepository
from apflow.storage.store import Store, Tx
from tests.contract.ledger_rows import Counting, add_task, one
from tests.contract.task_nodes import add_node, left

pytestmark = pytest.mark.anyio


@pytest.fixture
def tasks(store: Store) -> TaskRepository:
    return TaskRepository(store)


async def test_a_task_does_not_move_into_what_is_inside_it(tasks: TaskRepository, store: Store) -> None:
    await add_node(store, "a")
    await add_node(store, "b", parent_id="a")
    await add_node(store, "c", parent_id="b")
    before = await tasks.get_task_by_id("a")
    with pytest.raises(TaskTreeError, match=r"parent_id: .* inside each other: 'a' -> 'c' -> 'b' -> 'a'") as caught:
        await tasks.update_task("a", parent_id="c", name="other")
    assert caught.value.ids == ("a", "c", "b")
    with pytest.raises(TaskTreeError, match=r"parent_id: .*'b' -> 'b'"):
        await tasks.update_task("b", parent_id="b")
    assert await tasks.get_task_by_id("a") == before
    assert await tasks.update_task("c", parent_id="a")
    assert await tasks.update_task("b", parent_id="c")
    assert await tasks.update_task("a", parent_id=None)


async def test_a_task_does_not_depend_on_what_depends_on_it(tasks: TaskRepository, store: Store) -> None:
    await add_node(store, "a", parent_id=None)
    await add_node(store, "b", "a")
    await add_node(store, "beside", "a")
    await add_node(store, "c", {"id": "b", "required": False}, "beside")
    before = await tasks.get_task_by_id("a")
    with pytest.raises(TaskTreeError, match=r"dependencies: .* on each other: 'a' -> 'c' -> 'b' -> 'a'") as caught:
        await tasks.update_task("a", dependencies=[{"id": "c", "required": False}])
    assert caught.value.ids == ("a", "c", "b")
    with pytest.raises(TaskTreeError, match=r"dependencies: .*'b' -> 'b'"):
        await tasks.update_task("b", dependencies=["a", "b"])
    assert await tasks.get_task_by_id("a") == before
    assert await tasks.update_task("c", dependencies=["a", "b", "beside"])
    assert await tasks.update_task("c", dependencies=[])
    assert await tasks.update_task("a", dependencies=["c"])


async def test_a_child_may_depend_on_its_parent_and_the_other_way_round(tasks: TaskRepository) -> None:
    await tasks.create_task(id="a", name="work")
    await tasks.create_task(id="b", name="work", parent_id="a", dependencies=["a"])
    await tasks.create_task(id="c", name="work", parent_id="a")
    assert await tasks.update_task("a", dependencies=["c"])


@pytest.mark.parametrize("column", ["parent_id", "dependencies"])
async def test_a_new_task_closes_no_circle(tasks: TaskRepository, store: Store, column: str) -> None:
    value: Any = "new" if column == "parent_id" else json.dumps(["new"])
    await add_node(store, "old", **{column: value})  # Of other making: it names what is not there.
    for target in ("new", "old"):
        with pytest.raises(TaskTreeError, match=rf"{column}: .*'new'") as caught:
            await tasks.create_task(id="new", name="work", **{column: target if column == "parent_id" else [target]})
        assert "new" in caught.value.ids
    assert await left(store) == "old"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("parent_id", "nobody"),
        ("parent_id", ""),
        ("dependencies", ["a", "nobody"]),
        ("dependencies", [{"id": "nobody"}]),
        ("dependencies", ["no\0body"]),
    ],
)
async def test_what_is_not_there_is_refused_by_name(
    tasks: TaskRepository, store: Store, column: str, value: Any
) -> None:
    await add_node(store, "a")
    await add_node(store, "b")
    name = value if isinstance(value, str) else next(iter(json.loads(json.dumps(value))[-1:]))
    name = name["id"] if isinstance(name, dict) else name
    for change in (tasks.update_task("b", **{column: value}), tasks.create_task(name="work", **{column: value})):
        with pytest.raises(TaskTreeError, match=rf"{column}: there is no task") as caught:
            await change
        assert caught.value.ids == (name,)
    assert await left(store) == "a b"
    assert await one(store, "SELECT parent_id, dependencies FROM apflow_tasks WHERE id = 'b'") == (None, None)


async def test_many_that_are_not_there_are_counted(tasks: TaskRepository) -> None:
    with pytest.raises(TaskTreeError, match=r"'n09' and 5 more") as caught:
        await tasks.create_task(name="work", dependencies=[f"n{number:02}" for number in range(15)])
    assert len(caught.value.ids) == 15


async def test_what_cannot_be_read_is_no_circle(tasks: TaskRepository, store: Store) -> None:
    await add_node(store, "odd", dependencies='{"id": "b"}')
    await add_node(store, "bare", dependencies='"b"')
    await add_node(store, "mixed", dependencies='[5, null, ["b"], {"ID": "b"}, {"id": 5}]')
    await add_node(store, "nul", dependencies='["\\u0000"]')
    needs = ["odd", "bare", "mixed", "nul"]
    if store.dialect == "sqlite":  # PostgreSQL takes no such text.
        await add_node(store, "broken", dependencies='["b"')
        needs.append("broken")
    await tasks.create_task(id="b", name="work", dependencies=needs)
    assert await tasks.update_task("b", dependencies=needs)
    assert await tasks.update_task("b", dependencies={"id": "b"})


async def test_a_frozen_task_is_refused_as_frozen(tasks: TaskRepository, store: Store) -> None:
    await add_node(store, "a", origin_type="archive")
    with pytest.raises(TaskFrozenError):
        await tasks.update_task("a", parent_id="a")
    assert await tasks.update_task("nobody", parent_id="a") is False


async def test_circles_of_others_do_not_hold_up_a_change(tasks: TaskRepository, store: Store) -> None:
    await add_node(store, "x", "y", parent_id="y")
    await add_node(store, "y", "x", parent_id="x")
    await add_task(store, "run", kind="run")
    assert await tasks.update_task("run", parent_id="y", dependencies=["x"])


async def test_the_way_round_may_be_long(tasks: TaskRepository, store: Store) -> None:
    count = 5000

    def fill(tx: Tx) -> None:
        cast = "::json" if store.dialect == "postgresql" else ""
        sql = (
            "INSERT INTO apflow_tasks (id, name, kind, parent_id, dependencies) "
            f"VALUES (:id, 'work', 'node', :parent, :needs{cast})"
        )
        for number in range(count):
            above = f"n{number - 1}" if number else None
            tx.execute(sql, {"id": f"n{number}", "parent": above, "needs": json.dumps([above] if above else [])})

    await store.write(fill)
    counting = Counting(store)
    for column, value in (("parent_id", f"n{count - 1}"), ("dependencies", [f"n{count - 1}"])):
        with pytest.raises(TaskTreeError, match=rf"{column}: .*\({count} tasks in all\)"):
            await TaskRepository(counting.as_store).update_task("n0", **{column: value})
    assert counting.queries < 10
    assert await tasks.update_task("n1", parent_id=None, dependencies=[])
    assert await tasks.update_task("n0", parent_id=f"n{count - 1}", dependencies=[f"n{count - 1}"])


async def test_other_changes_ask_nothing_more(store: Store) -> None:
    await add_node(store, "a")
    counting = Counting(store)
    assert await TaskRepository(counting.as_store).update_task("a", status="failed", parent_id=None, dependencies=None)
    assert counting.queries == 0
