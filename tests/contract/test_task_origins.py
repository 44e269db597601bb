"""New trees from trees that are there: copies that run again, links, and archives."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import apflow
from apflow.engine.creator import TaskCreator
from apflow.engine.tree import TaskTreeNode
from apflow.errors import RunNotFoundError, TaskTreeError
from apflow.storage.repository import TaskRepository
from apflow.storage.store import Store, Tx
from apflow.storage.tables import TaskModel
from tests.contract.ledger_rows import NOON, add_task

pytestmark = pytest.mark.anyio


@apflow.task
async def origin_work(value: int = 0, dependencies: dict[str, Any] | None = None) -> int:
    return value


@apflow.task
async def origin_other(value: str) -> str:
    return value


@pytest.fixture
def creator(store: Store) -> TaskCreator:
    return TaskCreator(store)


@pytest.fixture
def tasks(store: Store) -> TaskRepository:
    return TaskRepository(store)


RESULTS: dict[str, Any] = {"a": {"n": 1}, "b": 1.0, "c": "x", "d": [None], "e": False}


@pytest.fixture
async def done(creator: TaskCreator, tasks: TaskRepository) -> None:
    """A completed tree: e after c and d (optional), c and d after b, all inside a; b also waits for a task outside."""
    array: list[dict[str, Any]] = [
        {"id": "outside", "name": "origin_work"},
        {"id": "a", "name": "origin_work", "user_id": "ada", "priority": 1},
        {"id": "b", "parent_id": "a", "dependencies": ["outside"]},
        {"id": "c", "parent_id": "b", "dependencies": ["b"], "inputs": {"value": {"$from": "b", "path": "n"}}},
        {"id": "d", "parent_id": "b", "dependencies": ["b"], "max_attempts": 3, "token_budget": 100},
        {"id": "e", "parent_id": "a", "dependencies": ["c", {"id": "d", "required": False}]},
    ]
    await creator.create_task_trees_from_array([{"name": "origin_work"} | task for task in array])
    for place, (task_id, result) in enumerate(RESULTS.items()):
        await complete(tasks, task_id, result, place)


async def complete(tasks: TaskRepository, task_id: str, result: Any, minute: int = 0) -> None:
    end = {"status": "completed", "progress": 1, "result": result, "attempt_count": 2, "actual_cost_usd": "0.5"}
    usage = {"input": 1, "output": 2, "total": 3}
    times = {"started_at": NOON, "completed_at": NOON + timedelta(minutes=minute)}
    assert await tasks.update_task(task_id, token_usage=usage, **end, **times)


def by_original(tree: TaskTreeNode) -> dict[str, TaskModel]:
    return {node.task.original_task_id or "": node.task for node in tree.walk()}


async def count(store: Store) -> int:
    (found,) = await store.read(lambda tx: tx.row("SELECT COUNT(*) FROM apflow_tasks")) or (0,)
    return int(found)


async def referred(tasks: TaskRepository) -> str:
    return "".join(sorted(task.id for task in await tasks.list_tasks() if task.has_references))


# -- copies --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("done")
async def test_a_copy_waits_to_run(creator: TaskCreator, tasks: TaskRepository) -> None:
    tree = await creator.from_copy("a")
    new = by_original(tree)
    assert list(new) == list("abcde")
    assert not {task.id for task in new.values()} & set(RESULTS)
    for original, task in new.items():
        assert (task.status, task.origin_type, task.kind, task.epoch) == ("pending", "copy", "node", 0)
        assert (task.result, task.started_at, task.completed_at, task.token_usage, task.actual_cost_usd) == (None,) * 5
        assert (float(task.progress or 0), task.attempt_count, task.user_id) == (0.0, 0, "ada")
        assert task.task_tree_id == tree.task.id
        old = await tasks.get_task_by_id(original)
        assert old is not None
        assert (task.name, task.priority, task.params) == (old.name, old.priority, old.params)
        assert (task.max_attempts, task.token_budget, task.has_children) == (
            old.max_attempts,
            old.token_budget,
            old.has_children,
        )
    assert tree.task.parent_id is None
    assert new["c"].parent_id == new["d"].parent_id == new["b"].id
    assert new["b"].dependencies == [{"id": "outside", "required": True}]
    assert new["c"].inputs == {"value": {"$from": new["b"].id, "path": "n"}}
    assert new["e"].dependencies == [{"id": new["c"].id, "required": True}, {"id": new["d"].id, "required": False}]
    assert await referred(tasks) == "abcde"


@pytest.mark.usefixtures("done")
async def test_a_part_of_a_tree_is_copied_as_a_tree(creator: TaskCreator) -> None:
    tree = await creator.from_copy("b")
    assert sorted(by_original(tree)) == ["b", "c", "d"]
    assert (tree.task.parent_id, tree.task.task_tree_id) == (None, tree.task.id)
    again = await creator.from_copy(tree.task.id)
    assert set(by_original(again)) == {node.task.id for node in tree.walk()}


@pytest.mark.usefixtures("done")
async def test_overrides_replace_fields(creator: TaskCreator) -> None:
    changes: dict[str, dict[str, Any]] = {
        "b": {"name": "origin_other", "inputs": {"value": "ü"}, "priority": 0, "cost_policy": "thrifty"},
        "d": {"token_budget": None, "max_attempts": 7, "params": {}},
        "e": {"inputs": {"value": {"$from": "d", "default": 1}}},
    }
    new = by_original(await creator.from_copy("a", overrides=changes))
    b, d = new["b"], new["d"]
    assert (b.name, b.inputs, b.priority, b.cost_policy) == ("origin_other", {"value": "ü"}, 0, "thrifty")
    assert (d.token_budget, d.max_attempts, d.params, d.priority) == (None, 7, {}, 2)
    assert new["e"].inputs == {"value": {"$from": d.id, "default": 1}}


@pytest.mark.usefixtures("done")
async def test_a_start_runs_only_what_depends_on_it(creator: TaskCreator, tasks: TaskRepository) -> None:
    for start, pending in (("c", "ce"), ("d", "de"), ("b", "bcde"), ("e", "e"), ("a", "a")):
        new = by_original(await creator.from_copy("a", start=start))
        assert sorted(new) == list("abcde")
        for original, task in new.items():
            assert task.result is None
            if original in pending:
                assert (task.status, task.origin_type) == ("pending", "copy")
                continue
            assert (task.status, task.origin_type, str(task.progress)) == ("completed", "link", "1.00")
            assert (task.completed_at, task.token_usage) == (NOON + timedelta(minutes="abcde".index(original)), None)
    assert await referred(tasks) == "abcde"


@pytest.mark.usefixtures("done")
async def test_what_did_not_complete_runs_again_too(creator: TaskCreator, tasks: TaskRepository) -> None:
    await tasks.update_task("d", status="failed", error="no")
    new = by_original(await creator.from_copy("a", start="c"))
    assert {original: task.status for original, task in new.items()} == {
        "a": "completed",
        "b": "completed",
        "c": "pending",
        "d": "pending",
        "e": "pending",
    }
    assert new["d"].error is None


@pytest.mark.usefixtures("done")
async def test_links_point_at_the_real_thing(creator: TaskCreator, tasks: TaskRepository) -> None:
    first = by_original(await creator.from_copy("a", start="e"))
    await complete(tasks, first["e"].id, 5)
    second = by_original(await creator.from_link(first["a"].id))
    assert set(second) == {"a", "b", "c", "d", first["e"].id}
    third = by_original(await creator.from_copy(second["a"].id, start=second["c"].id))
    assert {original for original, task in third.items() if task.origin_type == "link"} == {"a", "b", "d"}
    assert {original for original, task in third.items() if task.origin_type == "copy"} == {
        second["c"].id,
        second[first["e"].id].id,
    }


REFUSED: list[tuple[dict[str, Any], str, set[str]]] = [
    ({"start": "outside"}, "no task 'outside' inside task 'a'", {"outside"}),
    ({"overrides": {"outside": {}}}, "'outside' of overrides is not inside", {"outside"}),
    ({"overrides": {"b": {"priority": 0}}, "start": "c"}, "'b' of overrides has completed", {"b"}),
    ({"overrides": {"b": {"priority": 9}}}, "'b': priority must be", {"b"}),
    ({"overrides": {"b": {"id": "x"}}}, "'b': overrides are", {"b"}),
    ({"overrides": {"b": 5}}, "'b': overrides are", {"b"}),
    ({"overrides": {"b": {"name": None}}}, "'b': has no name", {"b"}),
    ({"overrides": {"b": {"name": "origin_nobody"}}}, "'origin_nobody'", {"b"}),
    ({"overrides": {"b": {"inputs": {"value": "secret-7"}}}}, "'b': ", {"b"}),
    ({"overrides": {"b": {"inputs": {"value": {"$from": "c"}}}}}, "'b': inputs refer to 'c'", {"b", "c"}),
]


@pytest.mark.usefixtures("done")
async def test_a_copy_that_cannot_run_is_refused(creator: TaskCreator, store: Store, tasks: TaskRepository) -> None:
    for options, text, ids in REFUSED:
        with pytest.raises(TaskTreeError) as caught:
            await creator.from_copy("a", **options)
        assert text in str(caught.value)
        assert ids <= set(caught.value.ids)
        assert "secret-7" not in str(caught.value)
    assert (await count(store), await referred(tasks)) == (6, "")


async def test_a_task_whose_executor_is_gone_is_not_copied(creator: TaskCreator, store: Store) -> None:
    await add_task(store, "a", name="origin_gone", kind="node", status="completed")
    await add_task(store, "b", name="origin_work", kind="node", parent_id="a", status="failed")
    with pytest.raises(TaskTreeError, match=r"'a': .*'origin_gone'") as caught:
        await creator.from_copy("a")
    assert caught.value.ids == ("a",)
    new = by_original(await creator.from_copy("a", start="b"))
    assert (new["a"].status, new["b"].status) == ("completed", "pending")


async def test_masked_secrets_are_copied_as_they_are(creator: TaskCreator, store: Store) -> None:
    await add_task(store, "a", name="origin_work", kind="node", inputs=json.dumps({"value": "***"}))
    assert (await creator.from_copy("a")).task.inputs == {"value": "***"}


async def test_rows_of_version_1_are_copied(creator: TaskCreator, store: Store) -> None:
    await add_task(store, "a", name="old", schemas=json.dumps({"method": "origin_work"}), created_at=None)
    await add_task(store, "b", name="origin_work", parent_id="a", dependencies='["a"]')
    new = by_original(await creator.from_copy("a"))
    assert new["b"].dependencies == [{"id": new["a"].id, "required": True}]
    assert new["a"].schemas == {"method": "origin_work"}


async def test_rows_that_are_inside_each_other_are_copied_once(creator: TaskCreator, store: Store) -> None:
    await add_task(store, "a", name="origin_work", parent_id="b")
    await add_task(store, "b", name="origin_work", parent_id="a")
    tree = await creator.from_copy("a")
    assert [node.task.original_task_id for node in tree.walk()] == ["a", "b"]


# -- links and archives --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("done")
async def test_a_link_has_no_result_of_its_own(creator: TaskCreator, tasks: TaskRepository) -> None:
    tree = await creator.from_link("a")
    new = by_original(tree)
    assert sorted(new) == list("abcde")
    for task in new.values():
        assert (task.status, task.origin_type, str(task.progress)) == ("completed", "link", "1.00")
        assert (task.result, task.token_usage, task.actual_cost_usd, task.attempt_count) == (None, None, None, 0)
    assert new["e"].dependencies == [{"id": new["c"].id, "required": True}, {"id": new["d"].id, "required": False}]
    assert (tree.status, tree.progress) == ("completed", 1.0)
    assert await referred(tasks) == "abcde"


@pytest.mark.usefixtures("done")
async def test_only_what_completed_is_linked(creator: TaskCreator, tasks: TaskRepository, store: Store) -> None:
    await tasks.update_task("c", status="failed")
    await tasks.update_task("d", status="pending")
    with pytest.raises(TaskTreeError, match="has not completed") as caught:
        await creator.from_link("a")
    assert set(caught.value.ids) == {"c", "d"}
    assert (await count(store), await referred(tasks)) == (6, "")


KEPT = (
    "status",
    "progress",
    "result",
    "error",
    "error_info",
    "token_usage",
    "actual_cost_usd",
    "attempt_count",
    "model",
)
TIMES = ("created_at", "started_at", "completed_at")


@pytest.mark.usefixtures("done")
async def test_an_archive_is_what_was_there(creator: TaskCreator, tasks: TaskRepository) -> None:
    await tasks.update_task("d", status="failed", result=None, error="no", error_info={"kind": "x"}, model="m")
    await tasks.update_task("e", status="cancelled", result=None)
    new = by_original(await creator.from_archive("a"))
    assert sorted(new) == list("abcde")
    for original, task in new.items():
        old = await tasks.get_task_by_id(original)
        assert old is not None
        assert task.origin_type == "archive"
        for name in (*KEPT, *TIMES):
            assert (name, getattr(task, name)) == (name, getattr(old, name))
    assert (new["b"].result, type(new["b"].result)) == (1.0, float)
    assert await referred(tasks) == "abcde"


@pytest.mark.usefixtures("done")
async def test_an_archive_of_links_has_the_results(creator: TaskCreator) -> None:
    linked = await creator.from_link("a")
    names = {node.task.id: node.task.original_task_id for node in linked.walk()}
    new = by_original(await creator.from_archive(linked.task.id))
    assert {names[original]: task.result for original, task in new.items()} == RESULTS


@pytest.mark.usefixtures("done")
@pytest.mark.parametrize("status", ["pending", "in_progress"])
async def test_what_has_not_ended_is_not_archived(
    creator: TaskCreator, tasks: TaskRepository, store: Store, status: str
) -> None:
    await tasks.update_task("c", status=status)
    with pytest.raises(TaskTreeError, match="'c' has not ended") as caught:
        await creator.from_archive("a")
    assert caught.value.ids == ("c",)
    assert await count(store) == 6


# -- all three -----------------------------------------------------------------------------------------------


async def test_a_task_that_is_not_there(creator: TaskCreator, store: Store) -> None:
    await add_task(store, "run", kind="run")
    for make in (creator.from_copy, creator.from_link, creator.from_archive):
        for task_id in ("nobody", "run"):
            with pytest.raises(RunNotFoundError):
                await make(task_id)
        with pytest.raises(ValueError, match="task_id"):
            await make("")


@pytest.mark.usefixtures("done")
async def test_an_answer_that_was_lost_makes_no_second_tree(store: Store) -> None:
    class Twice:
        """Runs every write again after it was committed, as after a commit whose answer was lost."""

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        async def write(self, fn: Callable[[Tx], Any]) -> Any:
            await store.write(fn)
            return await store.write(fn)

    tree = await TaskCreator(Twice()).from_copy("a")  # type: ignore[arg-type]
    assert (len(list(tree.walk())), await count(store)) == (5, 11)


async def test_a_deep_tree_is_copied(creator: TaskCreator) -> None:
    array: list[dict[str, Any]] = [{"id": "0", "name": "origin_work"}]
    array += [{"id": str(n), "name": "origin_work", "parent_id": str(n - 1)} for n in range(1, 1100)]
    await creator.create_task_tree_from_array(array)
    tree = await creator.from_copy("0")
    assert [node.task.original_task_id for node in tree.walk()] == [task["id"] for task in array]
