"""Forests from arrays of task dictionaries: what is stored, and what is refused before anything is."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import apflow
from apflow.engine.creator import TaskCreator
from apflow.engine.executable import ExecutableTask
from apflow.engine.registry import executor_register
from apflow.errors import StorageError, TaskInUseError, TaskTreeError
from apflow.storage.repository import TaskRepository
from apflow.storage.store import Store, Tx
from tests.contract.ledger_rows import add_task

pytestmark = pytest.mark.anyio

Task = dict[str, Any]


@apflow.task
async def creator_add(left: int, right: int = 1) -> int:
    return left + right


@apflow.task
async def creator_gather(dependencies: dict[str, Any]) -> int:
    return len(dependencies)


@executor_register
class CreatorEcho(ExecutableTask):
    id = "creator_echo"
    name = "Echo"
    description = "Returns what it is given."

    def __init__(self, loud: bool = False) -> None:
        self.loud = loud

    async def execute(self, inputs: dict[str, Any]) -> Any:
        return inputs

    def get_input_schema(self) -> dict[str, Any]:
        return {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


@pytest.fixture
def creator(store: Store) -> TaskCreator:
    return TaskCreator(store)


@pytest.fixture
def tasks(store: Store) -> TaskRepository:
    return TaskRepository(store)


def task(task_id: str | None = None, *needs: Any, **fields: Any) -> Task:
    base: Task = {"name": "creator_add", "inputs": {"left": 1}}
    if task_id is not None:
        base["id"] = task_id
    if needs:
        base["dependencies"] = list(needs)
    return base | fields


async def stored(store: Store) -> int:
    (count,) = await store.read(lambda tx: tx.row("SELECT COUNT(*) FROM apflow_tasks")) or (0,)
    return int(count)


async def refusal(creator: TaskCreator, *array: Any) -> TaskTreeError:
    before = await stored(creator.store)
    with pytest.raises(TaskTreeError) as caught:
        await creator.create_task_trees_from_array(array)
    assert await stored(creator.store) == before
    return caught.value


# -- what is stored ------------------------------------------------------------------------------------------


async def test_a_tree_is_stored_as_it_is_returned(creator: TaskCreator, tasks: TaskRepository) -> None:
    array = [
        task("a", user_id="ada"),
        task("b", parent_id="a", priority=0, token_budget=5, cost_policy="thrifty", max_attempts=2),
        task("c", "b", {"id": "a", "required": False}, parent_id="b", inputs={"left": {"$from": "b"}}),
        task("d", parent_id="a", name="creator_echo", inputs={"text": "ü\0"}, params={"loud": True}),
        task("e", parent_id="d", backoff_strategy="fixed", backoff_base_seconds=0.5, estimated_cost_usd=1.25),
        task("f", parent_id="d", name="Sum", schemas={"method": "creator_add"}, user_id="bob"),
    ]
    before = copy.deepcopy(array)
    tree = await creator.create_task_tree_from_array(array)
    assert array == before
    nodes = {node.task.id: node.task for node in tree.walk()}
    assert list(nodes) == list("abcdef")
    for task_id, node in nodes.items():
        row = await tasks.get_task_by_id(task_id)
        assert row is not None
        assert row.model_dump() == node.model_dump()
        assert (row.kind, row.epoch, row.status, str(row.progress), row.attempt_count) == (
            "node",
            0,
            "pending",
            "0.00",
            0,
        )
        assert (row.origin_type, row.task_tree_id) == ("create", "a")
        assert row.has_children is (task_id in "abd")
        assert row.user_id == ("bob" if task_id == "f" else "ada")
    assert nodes["a"].dependencies is None
    assert nodes["c"].dependencies == [{"id": "b", "required": True}, {"id": "a", "required": False}]
    assert (nodes["a"].priority, nodes["a"].max_attempts, nodes["a"].backoff_strategy) == (2, None, None)
    assert (nodes["b"].priority, nodes["b"].token_budget, nodes["b"].max_attempts) == (0, 5, 2)
    assert (nodes["d"].inputs, nodes["d"].params) == ({"text": "ü\0"}, {"loud": True})
    assert (str(nodes["e"].backoff_base_seconds), str(nodes["e"].estimated_cost_usd)) == ("0.50", "1.250000")
    times = [node.created_at for node in nodes.values()]
    assert times[0] is not None
    assert times == [times[0] + timedelta(microseconds=place) for place in range(6)]


async def test_a_forest_is_stored_whole(creator: TaskCreator, store: Store) -> None:
    array = [task("b1", parent_id="b"), task("a"), task("b"), task("c", "a", "b1", task_tree_id="grove")]
    trees = await creator.create_task_trees_from_array(array)
    assert [[node.task.id for node in tree.walk()] for tree in trees] == [["a"], ["b", "b1"], ["c"]]
    assert [tree.task.task_tree_id for tree in trees] == ["a", "b", "grove"]
    assert trees[1].children[0].task.task_tree_id == "b"
    assert await stored(store) == 4
    first = await creator.create_task_tree_from_array([task("x"), task("y")])
    assert (first.task.id, await stored(store)) == ("x", 6)


async def test_rows_make_the_same_trees_again(creator: TaskCreator, tasks: TaskRepository) -> None:
    array = [task("a"), task("c", parent_id="a"), task("b", parent_id="a"), task("z"), task("d", parent_id="b")]
    made = await creator.create_task_trees_from_array(array)
    rows = await tasks.list_tasks()
    again = creator.build_task_trees_from_task_models(rows)
    assert [tree.to_dict() for tree in again] == [tree.to_dict() for tree in made]
    root = next(row for row in rows if row.id == "a")
    assert creator.build_task_tree_from_task_models(root, rows).to_dict() == made[0].to_dict()


async def test_a_parent_of_the_database_takes_tasks_in(creator: TaskCreator, tasks: TaskRepository) -> None:
    await creator.create_task_tree_from_array(
        [task("a", user_id="ada", task_tree_id="grove"), task("b", parent_id="a")]
    )
    trees = await creator.create_task_trees_from_array(
        [task("c", "b", parent_id="b"), task("d", parent_id="c"), task("e")]
    )
    assert [tree.task.id for tree in trees] == ["c", "e"]
    assert [(node.task.task_tree_id, node.task.user_id) for node in trees[0].walk()] == [("grove", "ada")] * 2
    rows = await tasks.get_tree("a")
    assert [(row.id, row.has_children) for row in rows] == [("a", True), ("b", True), ("c", True), ("d", False)]


async def test_ids_are_made_up_where_none_is_given(creator: TaskCreator) -> None:
    trees = await creator.create_task_trees_from_array([task(), task()])
    assert len({tree.task.id for tree in trees}) == 2


async def test_a_chain_may_be_ten_thousand_long(creator: TaskCreator, store: Store) -> None:
    if store.url == "sqlite:///:memory:":
        pytest.skip("one SQLite database is enough")
    array = [task("0")]
    array += [task(str(one), str(one - 1), parent_id=str(one - 1)) for one in range(1, 10_000)]
    tree = await creator.create_task_tree_from_array(array)
    assert sum(1 for _ in tree.walk()) == await stored(store) == 10_000


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.fixture
async def there(creator: TaskCreator, store: Store) -> None:
    """A tree of two nodes, an archived node, and a run that is no node."""
    await creator.create_task_tree_from_array([task("root", task_tree_id="grove"), task("leaf", parent_id="root")])
    await add_task(store, "old", kind="node", origin_type="archive", task_tree_id="old")
    await add_task(store, "run", kind="run")


REFUSED: list[tuple[list[Task], str, set[str]]] = [
    ([], "no root", set()),
    ([task("a"), task("a")], "tasks[0] and tasks[1] have this id", {"a"}),
    ([task("leaf")], "'leaf': the database has a task with this id", {"leaf"}),
    ([task("run")], "'run': the database has", {"run"}),
    ([task("a", parent_id="nobody")], "parent 'nobody', which does not exist", {"a", "nobody"}),
    ([task("a", parent_id="run")], "parent 'run', which does not exist", {"a", "run"}),
    ([task("a", "nobody")], "depends on 'nobody', which does not exist", {"a", "nobody"}),
    ([task("a", "run")], "depends on 'run', which does not exist", {"a", "run"}),
    ([task("a", "a")], "'a' depends on itself", {"a"}),
    ([task("a"), task("b", "a", {"id": "a", "required": False})], "'b' depends on 'a' twice", {"a", "b"}),
    (
        [task("a", "b"), task("b", "c"), task("c", "a")],
        "depend on each other: 'a' -> 'b' -> 'c' -> 'a'",
        {"a", "b", "c"},
    ),
    (
        [task("r"), task("a", parent_id="b"), task("b", parent_id="a")],
        "inside each other: 'a' -> 'b' -> 'a'",
        {"a", "b"},
    ),
    ([task("a", parent_id="b"), task("b", parent_id="a")], "no root", {"a", "b"}),
    ([task("a", parent_id="a")], "inside each other: 'a' -> 'a'", {"a"}),
    ([task("a", task_tree_id="t"), task("b", task_tree_id="t")], "have one task_tree_id, 't'", {"a", "b"}),
    ([task("a"), task("b", task_tree_id="a")], "have one task_tree_id, 'a'", {"a", "b"}),
    ([task("a", task_tree_id="grove")], "'a': the database has a tree with the task_tree_id 'grove'", {"a"}),
    ([task("grove")], "'grove': the database has a tree with the task_tree_id 'grove'", {"grove"}),
    ([task(task_tree_id="grove")], "tasks[0]: the database has a tree with the task_tree_id 'grove'", {"grove"}),
    ([task("a"), task("b", parent_id="a", task_tree_id="t")], "'b' has another task_tree_id", {"b"}),
    ([task("a", parent_id="leaf", task_tree_id="t")], "'a' has another task_tree_id", {"a"}),
    ([task("a", parent_id="old")], "'old', which is archived", {"a", "old"}),
    (
        [task("a", name="creator_nobody")],
        "'a': no decorated task and no executor class has the id 'creator_nobody'",
        {"a"},
    ),
    ([task("a", schemas={"method": "creator_no"})], "id 'creator_no'", {"a"}),
    ([task("a", inputs={"left": "secret-7"})], "'a': ", {"a"}),
    ([task("a", inputs={})], "'left'", {"a"}),
    ([task("a", inputs=None)], "'left'", {"a"}),
    ([task("a", inputs={"left": 1, "middle": 2})], "'middle'", {"a"}),
    ([task("a", params={"left": 1})], "takes no params", {"a"}),
    ([task("a", name="creator_echo", inputs={"text": 7})], "'a': ", {"a"}),
    ([task("a", name="creator_echo", inputs={"text": "x"}, params={"soft": True})], "'a': ", {"a"}),
    ([task("a", inputs={"left": {"$from": "root"}})], "refer to 'root', which is not among its dependencies", {"a"}),
    ([task("a", "leaf", inputs={"left": 1, "dependencies": {}})], "use another name", {"a"}),
    ([task("a", priority=9)], "'a': priority must be", {"a"}),
    ([task("a", colour="red")], "'a' has unknown keys 'colour'", {"a"}),
    ([{"id": "a"}], "'a' has no name", {"a"}),
    ([task(priority=9)], "tasks[0]: priority must be", set()),
    ([5], "tasks[0] is of type int", set()),  # type: ignore[list-item]
]


@pytest.mark.usefixtures("there")
async def test_what_makes_no_tree_is_refused(creator: TaskCreator) -> None:
    for array, text, ids in REFUSED:
        error = await refusal(creator, *array)
        assert text in str(error)
        assert ids <= set(error.ids), text
        assert "secret-7" not in str(error)


@pytest.mark.parametrize("array", ["abc", {"name": "creator_add"}], ids=str)
async def test_an_array_is_a_list(creator: TaskCreator, array: Any) -> None:
    with pytest.raises(TaskTreeError, match="list of dictionaries"):
        await creator.create_task_trees_from_array(array)


@pytest.mark.usefixtures("there")
async def test_problems_of_all_kinds_are_told_at_once(creator: TaskCreator) -> None:
    error = await refusal(
        creator,
        *(task(f"e{number}", name="creator_nobody") for number in range(100)),
        task("root"),
        task("a", "b", "c", "nowhere"),
        task("b", "a", parent_id="nobody"),
        task("c", priority=7),
        task("c"),
    )
    for text in (
        "creator_nobody",
        "'root': the database",
        "'a' -> 'b'",
        "'nowhere'",
        "'nobody'",
        "priority",
        "have this id",
    ):
        assert text in str(error)
    assert str(error).count("\n- ") == 21
    assert "and 86 more" in str(error)
    assert {"e99", "root", "a", "b", "c", "nowhere", "nobody"} <= set(error.ids)


async def test_references_are_checked_when_they_are_filled(creator: TaskCreator) -> None:
    array = [
        task("a"),
        task("b", "a", inputs={"left": {"$from": "a"}}),
        task("c", "a", name="creator_gather", inputs={}),
        task("d", "a", name="creator_echo", inputs={"text": {"$from": "a", "path": "x"}}),
    ]
    array.append(task("own", name="creator_gather", inputs={"dependencies": {"x": 1}}))
    assert len(await creator.create_task_trees_from_array(array)) == 5
    error = await refusal(creator, task("e", name="creator_gather", inputs={}))
    assert "'dependencies'" in str(error)


# -- others at the same time ---------------------------------------------------------------------------------


async def test_of_several_with_the_same_ids_one_wins(creator: TaskCreator, store: Store) -> None:
    arrays = [[task(f"{number}-root"), *(task(f"t{one}") for one in range(40))] for number in range(4)]
    arrays[1].reverse()
    outcomes = await asyncio.gather(
        *(creator.create_task_trees_from_array(array) for array in arrays), return_exceptions=True
    )
    lost = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert len(lost) == 3
    assert all(isinstance(error, TaskTreeError) and {"t0", "t39"} & set(error.ids) for error in lost)
    assert await stored(store) == 41


async def test_a_parent_that_is_deleted_meanwhile_leaves_no_orphan(creator: TaskCreator, tasks: TaskRepository) -> None:
    for turn in range(5):
        await creator.create_task_tree_from_array([task(f"{turn}-parent")])
        child = creator.create_task_tree_from_array([task(f"{turn}-child", parent_id=f"{turn}-parent")])
        gone = tasks.delete_task(f"{turn}-parent")
        first, second = await asyncio.gather(*((child, gone) if turn % 2 else (gone, child)), return_exceptions=True)
        failed = [error for error in (first, second) if isinstance(error, BaseException)]
        assert [type(error) for error in failed] in ([TaskTreeError], [TaskInUseError])
        assert len(await tasks.get_tree(f"{turn}-parent")) == (2 if isinstance(failed[0], TaskInUseError) else 0)


async def test_an_answer_that_was_lost_is_no_duplicate(creator: TaskCreator, store: Store) -> None:
    class Twice:
        """Runs every write again after it was committed, as after a commit whose answer was lost."""

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        async def write(self, fn: Callable[[Tx], Any]) -> Any:
            await store.write(fn)
            return await store.write(fn)

    twice = TaskCreator(Twice())  # type: ignore[arg-type]
    tree = await twice.create_task_tree_from_array([task("a"), task("b", parent_id="a")])
    assert [node.task.id for node in tree.walk()] == ["a", "b"]
    assert await stored(store) == 2
    assert {"a"} <= set((await refusal(creator, task("a"))).ids)


async def test_a_failure_of_the_database_leaves_nothing(creator: TaskCreator, store: Store) -> None:
    def refuse(tx: Tx) -> None:
        if tx.dialect == "sqlite":
            body = "BEGIN SELECT RAISE(ABORT, 'no'); END"
            tx.execute(f"CREATE TRIGGER no BEFORE INSERT ON apflow_tasks WHEN new.id = 'last' {body}")
        else:
            tx.execute("ALTER TABLE apflow_tasks ADD CONSTRAINT no CHECK (id <> 'last')")

    await store.write(refuse)
    with pytest.raises(StorageError):
        await creator.create_task_trees_from_array([*(task() for _ in range(50)), task("last")])
    assert await stored(store) == 0
