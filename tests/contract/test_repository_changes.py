"""Tasks that are made, frozen, and shown to others; the same in every store."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, TypeVar

import pytest

from apflow.errors import StorageError, TaskFrozenError, TaskTreeError
from apflow.storage.repository import TaskRepository
from apflow.storage.store import Store, Tx
from apflow.storage.tables import TaskModel
from tests.contract.ledger_rows import NOON, Counting, Standing, add_task, one
from tests.contract.task_nodes import add_node

pytestmark = pytest.mark.anyio

T = TypeVar("T")
EAST = timezone(timedelta(hours=5))


@pytest.fixture
def tasks(store: Store) -> TaskRepository:
    return TaskRepository(store)


class Twice(Counting):
    """A store that never hears of its first commit, so that it does everything again."""

    async def write(self, fn: Callable[[Tx], T], *, single: bool = False) -> T:
        await super().write(fn, single=single)
        return await super().write(fn, single=single)


# -- making --------------------------------------------------------------------------------------------------


async def test_a_new_task_waits_to_be_begun(
    tasks: TaskRepository, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "clock", Standing(NOON))
    task = await tasks.create_task(name="work")
    assert isinstance(task, TaskModel)
    assert (task.name, task.kind, task.epoch, task.status, task.priority) == ("work", "node", 0, "pending", 2)
    assert (task.created_at, task.updated_at, task.started_at) == (NOON, NOON, None)
    assert (task.progress, task.has_children, task.attempt_count) == (Decimal(0), False, 0)
    assert (task.max_attempts, task.backoff_strategy, task.backoff_base_seconds) == (None, None, None)
    assert len(task.id) == 36
    assert task.task_tree_id == task.id
    assert await tasks.get_task_by_id(task.id) == task
    assert (await tasks.create_task(name="work")).id != task.id


async def test_what_was_given_is_stored(tasks: TaskRepository) -> None:
    for needed in ("x", "y"):
        await tasks.create_task(id=needed, name="work")
    given: dict[str, Any] = {
        "id": "a",
        "name": "work",
        "kind": "run",
        "epoch": 4,
        "status": "completed",
        "priority": None,
        "inputs": {"text": "Ebbe ↓ \0"},
        "dependencies": ["x", {"id": "y", "required": False}],
        "result": 12345678901234567890,
        "created_at": NOON.astimezone(EAST),
        "actual_cost_usd": Decimal("0.5"),
        "max_attempts": 5,
        "task_tree_id": "elsewhere",
    }
    task = await tasks.create_task(**given)
    assert {name: getattr(task, name) for name in given} == given
    assert await tasks.get_task_by_id("a") == task


async def test_a_task_is_in_the_tree_of_its_parent(tasks: TaskRepository) -> None:
    await tasks.create_task(id="a", name="work")
    await tasks.create_task(id="b", name="work", parent_id="a")
    assert (await tasks.create_task(id="c", name="work", parent_id="b")).task_tree_id == "a"
    assert [task.id for task in await tasks.get_tree("c")] == ["a", "b", "c"]


async def test_an_id_is_used_once(tasks: TaskRepository) -> None:
    first = await tasks.create_task(id="a", name="work")
    with pytest.raises(TaskTreeError, match=r"\ba\b") as caught:
        await tasks.create_task(id="a", name="other", priority=0)
    assert caught.value.ids == ("a",)
    assert await tasks.get_task_by_id("a") == first


async def test_a_row_that_clashes_elsewhere_is_another_error(tasks: TaskRepository) -> None:
    await tasks.create_task(id="a", name="work", run_key="k")
    with pytest.raises(StorageError):
        await tasks.create_task(id="b", name="work", run_key="k")
    assert await tasks.get_task_by_id("b") is None


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("nothing", 1),
        ("id", None),
        ("id", ""),
        ("id", 5),
        ("id", "a" * 256),
        ("id", "a\0b"),
        ("name", None),
        ("name", "n" * 101),
        ("priority", "0"),
        ("inputs", {"a": {1, 2}}),
        ("created_at", datetime(2026, 1, 1)),  # noqa: DTZ001 - that is the point
        ("progress", 10),
        ("epoch", 2**31),
    ],
    ids=lambda value: repr(value)[:20],
)
async def test_what_a_column_cannot_hold_is_not_made(
    tasks: TaskRepository, store: Store, column: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=rf"\b{column}\b"):
        await tasks.create_task(**({"name": "work"} | {column: value}))
    assert await one(store, "SELECT COUNT(*) FROM apflow_tasks") == (0,)


async def test_a_name_is_needed(tasks: TaskRepository) -> None:
    with pytest.raises(ValueError, match="name must have a value"):
        await tasks.create_task()


async def test_a_lost_answer_makes_no_second_task(store: Store) -> None:
    tasks = TaskRepository(Twice(store).as_store)
    assert (await tasks.create_task(id="a", name="work")).id == "a"
    assert await tasks.count_tasks() == 1
    with pytest.raises(TaskTreeError):
        await tasks.create_task(id="a", name="work")


# -- freezing ------------------------------------------------------------------------------------------------


async def test_an_archived_task_refuses_changes(tasks: TaskRepository, store: Store) -> None:
    await add_node(store, "a", origin_type="archive", status="completed")
    await add_node(store, "b", origin_type="copy")
    before = await tasks.get_task_by_id("a")
    for change in ({"status": "failed"}, {}, {"origin_type": "copy"}):
        with pytest.raises(TaskFrozenError, match=r"\ba\b"):
            await tasks.update_task("a", **change)
    assert await tasks.get_task_by_id("a") == before
    assert await tasks.update_task("b", status="failed")
    assert await tasks.update_task("nobody", status="failed") is False


async def test_a_task_is_archived_once(tasks: TaskRepository, store: Store) -> None:
    await add_node(store, "a")
    assert await tasks.update_task("a", origin_type="archive")
    with pytest.raises(TaskFrozenError):
        await tasks.update_task("a", origin_type="archive")


async def test_a_lost_answer_does_not_turn_archiving_into_a_refusal(store: Store) -> None:
    tasks = TaskRepository(Twice(store).as_store)
    await add_node(store, "a")
    assert await tasks.update_task("a", origin_type="archive") is True
    with pytest.raises(TaskFrozenError):
        await tasks.update_task("a", status="failed")


# -- showing -------------------------------------------------------------------------------------------------

SHOWN = [
    "id",
    "name",
    "status",
    "inputs",
    "params",
    "schemas",
    "dependencies",
    "parent_id",
    "task_tree_id",
    "priority",
    "result",
    "error",
    "progress",
    "token_usage",
    "token_budget",
    "actual_cost_usd",
    "estimated_cost_usd",
    "cost_policy",
    "attempt_count",
    "max_attempts",
    "created_at",
    "started_at",
    "updated_at",
    "completed_at",
    "has_children",
    "origin_type",
    "original_task_id",
    "user_id",
    "model",
]


async def test_a_task_is_shown_as_json(tasks: TaskRepository) -> None:
    for needed in ("b", "c"):
        await tasks.create_task(id=needed, name="work")
    task = await tasks.create_task(
        id="a",
        name="work",
        inputs={"pages": [1, None]},
        dependencies=["b", {"id": "c", "required": True}],
        result=[1.5],
        progress=Decimal("0.25"),
        actual_cost_usd=Decimal("0.000001"),
        token_usage={"input": 1, "output": 2, "total": 3},
        created_at=NOON.astimezone(EAST),
        completed_at=NOON + timedelta(microseconds=1),
        owner="host:1",
        error="went wrong",
        error_info={"traceback": "secret path"},
        user_id="ada",
    )
    shown = task.to_dict()
    assert list(shown) == SHOWN
    assert json.loads(json.dumps(shown)) == shown
    expected = {
        "id": "a",
        "inputs": {"pages": [1, None]},
        "dependencies": ["b", {"id": "c", "required": True}],
        "result": [1.5],
        "progress": 0.25,
        "actual_cost_usd": 0.000001,
        "estimated_cost_usd": None,
        "created_at": "2026-03-01T12:00:00+00:00",
        "completed_at": "2026-03-01T12:00:00.000001+00:00",
        "started_at": None,
        "has_children": False,
        "error": "went wrong",
        "user_id": "ada",
    }
    assert {name: shown[name] for name in expected} == expected
    assert "secret" not in json.dumps(shown)


async def test_a_bare_row_is_shown_too(tasks: TaskRepository, store: Store) -> None:
    await add_task(store, "a", updated_at=None, created_at=None)
    task = await tasks.get_task_by_id("a")
    assert task is not None
    assert list(task.to_dict()) == SHOWN
    assert task.to_dict()["created_at"] is None
