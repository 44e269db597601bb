"""Which tasks there are, how many, and how they hang together; the same from every store."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from apflow.storage.repository import TaskRepository
from apflow.storage.store import Store, Tx
from apflow.storage.tables import TaskModel
from tests.contract.ledger_rows import NOON, Counting, add_task
from tests.contract.task_nodes import add_child, add_node

pytestmark = pytest.mark.anyio


@pytest.fixture
def tasks(store: Store) -> TaskRepository:
    return TaskRepository(store)


def ids(found: list[TaskModel]) -> str:
    return "".join(task.id for task in found)


# -- filters and order ---------------------------------------------------------------------------------------


@pytest.fixture
async def mixed(store: Store) -> None:
    """Five nodes, a minute apart; a run, a child of it, a row of v1, and a note about the execution of a tree."""
    later = [NOON + timedelta(minutes=place) for place in range(9)]
    await add_node(store, "a", created_at=later[0], name="Zoe", priority=2, task_tree_id="a", updated_at=later[3])
    common = {"task_tree_id": "a", "parent_id": "a"}
    await add_node(store, "b", created_at=later[1], name="ada", priority=0, status="failed", **common)
    await add_node(store, "c", created_at=later[2], name="ada", priority=3, user_id="ada", **common)
    made = {"original_task_id": "a", "user_id": "ada"}
    await add_node(store, "d", created_at=later[3], name="bob", origin_type="link", updated_at=later[1], **made)
    await add_node(store, "e", created_at=later[4], name="eve", origin_type="copy", updated_at=later[2], **made)
    await add_task(store, "f", created_at=later[5], name="run", kind="run", epoch=1)
    await add_child(store, "g", "f", created_at=later[6], name="run", status="cancelled")
    await add_task(store, "h", created_at=later[7], name="old", kind=None)
    await add_task(store, "t", created_at=later[8], name="tree", kind="tree", status="in_progress", epoch=1)


FILTERS: list[tuple[dict[str, Any], str]] = [
    ({}, "hgfedcba"),
    ({"kind": None}, "hgfedcba"),
    ({"kind": "node"}, "hedcba"),
    ({"kind": "run"}, "f"),
    ({"kind": "child"}, "g"),
    ({"kind": "tree"}, "t"),
    ({"kind": "tree", "status": "pending"}, ""),
    ({"kind": "unheard of"}, ""),
    ({"status": "pending"}, "edca"),
    ({"status": ["failed", "cancelled"]}, "gb"),
    ({"status": ("failed", "failed")}, "b"),
    ({"status": []}, ""),
    ({"status": ["in_progress"]}, ""),
    ({"origin_type": "link"}, "d"),
    ({"original_task_id": "a"}, "ed"),
    ({"original_task_id": "a", "origin_type": "copy"}, "e"),
    ({"priority": 0}, "b"),
    ({"priority": 2, "kind": "node"}, "a"),
    ({"root_only": True}, "hfeda"),
    ({"root_only": False, "task_tree_id": "a"}, "cba"),
    ({"root_only": True, "task_tree_id": "a"}, "a"),
    ({"root_only": True, "parent_id": "a"}, ""),
    ({"name": "n" * 500}, ""),
    ({"start_time": NOON + timedelta(minutes=6), "end_time": NOON + timedelta(minutes=8)}, "hg"),
]


@pytest.mark.usefixtures("mixed")
@pytest.mark.parametrize(("wanted", "expected"), FILTERS, ids=str)
async def test_what_is_listed_is_what_is_counted(tasks: TaskRepository, wanted: dict[str, Any], expected: str) -> None:
    assert ids(await tasks.list_tasks(**wanted)) == expected
    assert await tasks.count_tasks(**wanted) == len(expected)
    assert sum((await tasks.count_by_status(**wanted)).values()) == len(expected)


@pytest.mark.usefixtures("mixed")
@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("created_at", "abcdefgh"),
        ("-created_at", "hgfedcba"),
        ("updated_at", "deabcfgh"),
        ("-updated_at", "aedhgfcb"),
        ("priority", "bacdefgh"),
        ("-priority", "cabhgfed"),
        ("name", "abcdehfg"),
        ("-name", "gfhedcba"),
    ],
)
async def test_tasks_are_sorted(tasks: TaskRepository, store: Store, order: str, expected: str) -> None:
    # The database has written a time of its own where none was given.
    await store.write(lambda tx: tx.execute("UPDATE apflow_tasks SET updated_at = NULL WHERE id NOT IN ('a','d','e')"))
    assert ids(await tasks.list_tasks(order_by=order)) == expected
    paged = [await tasks.list_tasks(order_by=order, limit=3, offset=place) for place in (0, 3, 6)]
    assert "".join(map(ids, paged)) == expected


def speak_english(tx: Tx) -> None:
    """Have PostgreSQL sort text as people do, if this server has learned how."""
    spoken = tx.row("SELECT collname FROM pg_collation WHERE collname IN ('en-x-icu', 'en_US.utf8') LIMIT 1")
    if spoken is not None:
        changes = (f'ALTER {column} TYPE varchar(255) COLLATE "{spoken[0]}"' for column in ("id", "name"))
        tx.execute(f"ALTER TABLE apflow_tasks {', '.join(changes)}")


@pytest.mark.usefixtures("mixed")
async def test_text_is_sorted_alike_whatever_language_the_server_speaks(tasks: TaskRepository, store: Store) -> None:
    if store.dialect == "postgresql":
        await store.write(speak_english)
    await add_node(store, "A", name="ada")
    assert ids(await tasks.list_tasks(order_by="name", kind="node")) == "aAbcdeh"


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        ({"order_by": "id; DROP TABLE apflow_tasks"}, "order_by"),
        ({"order_by": "--name"}, "order_by"),
        ({"order_by": ""}, "order_by"),
        ({"order_by": None}, "order_by"),
        ({"priority": "0"}, "priority"),
        ({"priority": True}, "priority"),
        ({"status": ["failed", 5]}, "status"),
        ({"status": ["a\0b"]}, "status"),
        ({"kind": "a\0b"}, "kind"),
        ({"origin_type": 5}, "origin_type"),
    ],
    ids=str,
)
async def test_filters_that_make_no_sense_are_refused(
    tasks: TaskRepository, wanted: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        await tasks.list_tasks(**wanted)


async def test_an_unknown_filter_is_no_filter(tasks: TaskRepository) -> None:
    unknown: Any = {"state": "failed"}
    for query in (tasks.list_tasks, tasks.count_tasks, tasks.count_by_status):
        with pytest.raises(TypeError, match="state"):
            await query(**unknown)


@pytest.mark.usefixtures("mixed")
async def test_statuses_are_counted(tasks: TaskRepository) -> None:
    everything = {"pending": 4, "failed": 1, "completed": 2, "cancelled": 1}
    assert await tasks.count_by_status() == everything
    assert await tasks.count_by_status(task_tree_id="a") == {"pending": 2, "failed": 1}
    assert await tasks.count_by_status(user_id="ada") == {"pending": 3}
    assert await tasks.count_by_status(user_id="nobody") == {}
    assert await tasks.count_tasks(user_id="nobody") == 0


# -- many ids ------------------------------------------------------------------------------------------------


async def test_thousands_of_ids_are_found_in_their_order(tasks: TaskRepository, store: Store) -> None:
    def fill(tx: Any) -> None:
        for number in range(0, 2500, 2):
            tx.execute("INSERT INTO apflow_tasks (id, name) VALUES (:id, 'work')", {"id": f"t{number}"})

    await store.write(fill)
    wanted = [f"t{number}" for number in reversed(range(40_000))]
    counting = Counting(store)
    found = await TaskRepository(counting.as_store).get_tasks_by_ids([*wanted, "t0", "t2"])
    assert list(found) == [f"t{number}" for number in reversed(range(0, 2500, 2))]
    assert all(task.id == one for one, task in found.items())
    assert counting.queries <= 40


async def test_odd_ids_are_found(tasks: TaskRepository, store: Store) -> None:
    odd = ['quote"d', "it's", "percent%s", "å ↓ 🦆", "back\\slash", "{a,b}", "NULL", ":id", "[1]", "7"]
    for one in odd:
        await add_task(store, one)
    assert list(await tasks.get_tasks_by_ids(odd)) == odd
    assert await tasks.get_tasks_by_ids([]) == {}
    assert await tasks.get_tasks_by_ids(["nobody"]) == {}
    with pytest.raises(ValueError, match="ids"):
        await tasks.get_tasks_by_ids(["a\0b"])


# -- trees ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def tree(store: Store) -> None:
    """A tree of a, b, B and c, oldest first, with runs below; another tree; and one of v1, which knew no kinds."""
    await add_node(store, "a", task_tree_id="a", created_at=NOON - timedelta(microseconds=1))
    await add_node(store, "b", task_tree_id="a", parent_id="a")
    await add_node(store, "B", task_tree_id="a", parent_id="a")
    await add_node(store, "c", task_tree_id="a", parent_id="b", created_at=NOON + timedelta(microseconds=1))
    await add_child(store, "r", "b", task_tree_id="a")
    await add_task(store, "t", kind="tree", task_tree_id="a", parent_id="a")
    await add_node(store, "x", task_tree_id="x")
    await add_task(store, "v", kind=None)
    await add_task(store, "w", kind=None, parent_id="v", task_tree_id="v")


@pytest.mark.usefixtures("tree")
async def test_a_tree_is_found_from_any_of_its_tasks(tasks: TaskRepository) -> None:
    for one in ("a", "b", "B", "c", "r"):
        assert ids(await tasks.get_tree(one)) == "aBbc"
    assert ids(await tasks.get_tree("x")) == "x"
    assert ids(await tasks.get_tree("v")) == ids(await tasks.get_tree("w")) == "vw"
    assert await tasks.get_tree("nobody") == []


@pytest.mark.usefixtures("tree")
async def test_children_are_tasks_not_runs(tasks: TaskRepository) -> None:
    assert ids(await tasks.get_children("a")) == "Bb"
    assert ids(await tasks.get_children("b")) == "c"
    assert ids(await tasks.get_children("v")) == "w"
    assert await tasks.get_children("c") == []
    assert ids(await tasks.list_tasks(parent_id="b")) == "cr"


async def test_dependents_of_the_same_tree_come_first(tasks: TaskRepository, store: Store) -> None:
    await add_node(store, "a", task_tree_id="a")
    await add_node(store, "other", "a", task_tree_id="other", created_at=NOON - timedelta(days=1))
    await add_node(store, "late", "x", "a", task_tree_id="a", parent_id="a", created_at=NOON + timedelta(minutes=2))
    await add_node(store, "soon", {"id": "a", "required": False}, task_tree_id="a", parent_id="a")
    await add_task(store, "old", kind=None, dependencies='[{"id": "a"}]', created_at=NOON - timedelta(days=2))
    found = await tasks.get_dependents("a")
    assert [task.id for task in found] == ["soon", "late", "old", "other"]
    assert found[0].dependencies == [{"id": "a", "required": False}]


async def test_only_those_that_name_it_depend_on_it(tasks: TaskRepository, store: Store) -> None:
    await add_node(store, "a")
    await add_node(store, "longer", "aa", {"id": "ba"}, {"id": "A"})
    await add_node(store, "elsewhere", {"id": "b", "why": "a"}, {"name": "a"}, ["a"], None, 5)
    await add_node(store, "none")
    await add_node(store, "empty", dependencies="[]")
    await add_node(store, "object", dependencies='{"id": "a"}')
    await add_node(store, "text", dependencies='"a"')
    await add_child(store, "run", "a", dependencies='["a"]')
    assert await tasks.get_dependents("a") == []


@pytest.mark.parametrize("odd", ['quote"d', "100%", "a_b", "å ↓ 🦆", "back\\slash", "new\nline", "it's"])
@pytest.mark.parametrize("ascii_only", [True, False])
async def test_odd_ids_are_depended_on(tasks: TaskRepository, store: Store, odd: str, ascii_only: bool) -> None:
    await add_node(store, odd)
    await add_node(store, "b", dependencies=json.dumps(["x", {"id": odd}], ensure_ascii=ascii_only))
    await add_node(store, "c", dependencies=json.dumps([odd.replace("_", "-").replace("%", "0") + "-"]))
    assert ids(await tasks.get_dependents(odd)) == "b"
