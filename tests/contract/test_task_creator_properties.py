"""Any valid forest is stored and found again as it was; any that is spoiled is refused, and names what spoils it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import apflow
from apflow.engine.creator import TaskCreator
from apflow.engine.tree import TaskTreeNode
from apflow.errors import TaskTreeError
from apflow.storage.repository import TaskRepository
from apflow.storage.store import Store

Task = dict[str, Any]
numbers = count()

shared = settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@apflow.task
async def creator_leaf(value: int = 0, dependencies: dict[str, Any] | None = None) -> int:
    return value


@st.composite
def forests(draw: st.DrawFn) -> list[Task]:
    """A valid array in any order: parents and dependencies point at tasks that were drawn before."""
    run = next(numbers)
    tasks: list[Task] = []
    for place in range(draw(st.integers(1, 8))):
        before = [task["id"] for task in tasks]
        some = st.lists(st.sampled_from(before or [""]), unique=True, max_size=3 if before else 0)
        needs: list[str] = draw(some)
        task: Task = {"id": f"{run}-{place}", "name": "creator_leaf", "priority": draw(st.integers(0, 3))}
        task["inputs"] = {"value": draw(st.integers())}
        if draw(st.booleans()) and before:
            task["parent_id"] = draw(st.sampled_from(before))
        if needs:
            task["dependencies"] = [{"id": need, "required": draw(st.booleans())} for need in needs]
            if draw(st.booleans()):
                task["inputs"] = {"value": {"$from": needs[0], "default": draw(st.text())}}
        tasks.append(task)
    return draw(st.permutations(tasks))


def shape(tree: TaskTreeNode) -> Any:
    return tree.task.model_dump(), [shape(child) for child in tree.children]


@pytest.mark.anyio
async def test_valid_forests_are_found_as_they_were_made(store: Store) -> None:
    creator, repository = TaskCreator(store), TaskRepository(store)

    async def check(array: list[Task]) -> None:
        made = await creator.create_task_trees_from_array(array)
        roots = [task["id"] for task in array if "parent_id" not in task]
        assert [tree.task.id for tree in made] == roots
        for tree in made:
            rows = await repository.get_tree(tree.task.id)
            assert [shape(again) for again in creator.build_task_trees_from_task_models(rows)] == [shape(tree)]
        given = {task["id"]: task for task in array}
        nodes = [node for tree in made for node in tree.walk()]
        assert sorted(node.task.id for node in nodes) == sorted(given)
        for node in nodes:
            task = given[node.task.id]
            assert (node.task.inputs, node.task.priority) == (task["inputs"], task["priority"])
            assert node.task.dependencies == task.get("dependencies")
            assert [child.task.id for child in node.children] == [
                one["id"] for one in array if one.get("parent_id") == node.task.id
            ]

    await asyncio.to_thread(_each, forests(), check, asyncio.get_running_loop())


def _each(examples: Any, check: Callable[..., Any], loop: asyncio.AbstractEventLoop) -> None:
    """Run a coroutine function of the loop for each example, in a thread of Hypothesis's own."""

    @shared
    @given(examples)
    def example(drawn: Any) -> None:
        asyncio.run_coroutine_threadsafe(check(drawn), loop).result(60)

    example()


# -- spoiling ------------------------------------------------------------------------------------------------


def with_dependency(task: Task, need: str) -> None:
    task["dependencies"] = [*(task.get("dependencies") or ()), {"id": need, "required": True}]


def same_id(draw: st.DrawFn, array: list[Task]) -> set[str]:
    task = draw(st.sampled_from(array))
    array.insert(draw(st.integers(0, len(array))), {"id": task["id"], "name": "creator_leaf"})
    return {task["id"]}


def unknown_parent(draw: st.DrawFn, array: list[Task]) -> set[str]:
    task = draw(st.sampled_from(array))
    task["parent_id"] = "nobody"
    return {task["id"], "nobody"}


def unknown_dependency(draw: st.DrawFn, array: list[Task]) -> set[str]:
    task = draw(st.sampled_from(array))
    with_dependency(task, "nobody")
    return {task["id"], "nobody"}


def own_dependency(draw: st.DrawFn, array: list[Task]) -> set[str]:
    task = draw(st.sampled_from(array))
    with_dependency(task, task["id"])
    return {task["id"]}


def dependency_twice(draw: st.DrawFn, array: list[Task]) -> set[str]:
    first, second = array[0], array[-1]
    second["dependencies"], second["inputs"] = [], {}
    for _ in range(2):
        with_dependency(second, "there")
    return {second["id"], "there"} if first is not second else {second["id"]}


def ring_of_dependencies(draw: st.DrawFn, array: list[Task]) -> set[str]:
    ring: list[Task] = draw(st.lists(st.sampled_from(array), min_size=1, unique_by=lambda task: task["id"]))
    for task, other in zip(ring, [*ring[1:], ring[0]], strict=True):
        task["dependencies"], task["inputs"] = [], {}
        with_dependency(task, other["id"])
    return {task["id"] for task in ring}


def ring_of_parents(draw: st.DrawFn, array: list[Task]) -> set[str]:
    ring: list[Task] = draw(st.lists(st.sampled_from(array), min_size=1, unique_by=lambda task: task["id"]))
    for task, other in zip(ring, [*ring[1:], ring[0]], strict=True):
        task["parent_id"] = other["id"]
    return {task["id"] for task in ring}


def id_of_the_database(draw: st.DrawFn, array: list[Task]) -> set[str]:
    array.append({"id": "there", "name": "creator_leaf"})
    return {"there"}


def tree_of_the_database(draw: st.DrawFn, array: list[Task]) -> set[str]:
    root = next(task for task in array if "parent_id" not in task)
    root["task_tree_id"] = "there"
    return {root["id"]}


def no_executor(draw: st.DrawFn, array: list[Task]) -> set[str]:
    task = draw(st.sampled_from(array))
    task["name"] = "creator_nobody"
    return {task["id"]}


def wrong_inputs(draw: st.DrawFn, array: list[Task]) -> set[str]:
    task = draw(st.sampled_from(array))
    task["inputs"] = draw(st.sampled_from([{"value": "one"}, {"unknown": 1}, {"value": {"$from": "nobody"}}]))
    return {task["id"]}


SPOILING = [
    *(same_id, unknown_parent, unknown_dependency, own_dependency, dependency_twice, ring_of_dependencies),
    *(ring_of_parents, id_of_the_database, tree_of_the_database, no_executor, wrong_inputs),
]


@st.composite
def spoiled(draw: st.DrawFn) -> tuple[list[Task], set[str]]:
    array = draw(forests())
    spoil = draw(st.sampled_from(SPOILING))
    return array, spoil(draw, array)


@pytest.mark.anyio
async def test_spoiled_forests_are_refused_and_nothing_is_written(store: Store) -> None:
    creator = TaskCreator(store)
    await creator.create_task_trees_from_array([{"id": "there", "name": "creator_leaf"}])

    async def check(drawn: tuple[list[Task], set[str]]) -> None:
        array, ids = drawn
        with pytest.raises(TaskTreeError) as caught:
            await creator.create_task_trees_from_array(array)
        assert ids <= set(caught.value.ids)
        assert all(repr(one) in str(caught.value) for one in ids)
        rows = await store.read(lambda tx: tx.rows("SELECT id FROM apflow_tasks"))
        assert rows == [("there",)]

    await asyncio.to_thread(_each, spoiled(), check, asyncio.get_running_loop())
