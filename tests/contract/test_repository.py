"""Tasks as objects, the same from every store."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from apflow.errors import StorageError
from apflow.storage.repository import TaskRepository
from apflow.storage.store import Store
from apflow.storage.tables import TaskModel
from tests.contract.ledger_rows import NOON, Counting, Standing, add_task, insert, one

pytestmark = pytest.mark.anyio

EAST = timezone(timedelta(hours=5))


@pytest.fixture
def tasks(store: Store) -> TaskRepository:
    return TaskRepository(store)


async def loaded(tasks: TaskRepository, task_id: str = "a") -> TaskModel:
    task = await tasks.get_task_by_id(task_id)
    assert task is not None
    return task


# -- reading -------------------------------------------------------------------------------------------------


async def test_a_row_becomes_an_object_of_python_values(tasks: TaskRepository, store: Store) -> None:
    await insert(
        store,
        "apflow_tasks",
        id="a",
        name="work",
        inputs='{"pages": [1, 2.5, null]}',
        dependencies='["b"]',
        result="1.0",
        token_usage=json.dumps({"input": 10, "output": 5, "total": 15}),
        progress="0.5",
        actual_cost_usd="0.000001",
        created_at=NOON,
        checkpoint_at=NOON + timedelta(microseconds=1),
        accepted=True,
        checkpoint=False,
        epoch=3,
        model="m",
    )
    task = await loaded(tasks)
    assert isinstance(task, TaskModel)
    assert task.inputs == {"pages": [1, 2.5, None]}
    assert task.dependencies == ["b"]
    assert (task.result, type(task.result)) == (1.0, float)
    assert task.token_usage == {"input": 10, "output": 5, "total": 15}
    assert (str(task.progress), str(task.actual_cost_usd)) == ("0.50", "0.000001")
    assert (task.created_at, task.checkpoint_at) == (NOON, NOON + timedelta(microseconds=1))
    assert task.created_at is not None
    assert task.created_at.tzinfo is UTC
    assert (task.accepted, task.checkpoint) == (True, False)
    assert (type(task.accepted), task.epoch, task.model) == (bool, 3, "m")
    assert (task.error, task.schemas, task.parent_id, task.completed_at, task.estimated_cost_usd) == (None,) * 5


async def test_what_was_read_can_be_used_as_if_it_had_been_made(tasks: TaskRepository, store: Store) -> None:
    await add_task(store, "a", inputs='{"pages": []}')
    task = await loaded(tasks)
    made = TaskModel(**task.model_dump())
    assert task == made
    assert task.model_dump(exclude_unset=True) == made.model_dump(exclude_unset=True)
    task.name = "other"
    assert (task.name, task.model_copy().name, task == made) == ("other", "other", False)


async def test_what_the_database_filled_in_is_read(tasks: TaskRepository, store: Store) -> None:
    await insert(store, "apflow_tasks", id="a", name="work")
    task = await loaded(tasks)
    assert isinstance(task.created_at, datetime)
    assert task.created_at.tzinfo is UTC
    assert (task.attempt_count, task.max_attempts, task.backoff_strategy) == (0, 3, "exponential")
    assert (task.backoff_base_seconds, str(task.backoff_base_seconds)) == (Decimal(1), "1.00")


async def test_an_unknown_task_is_none(tasks: TaskRepository) -> None:
    assert await tasks.get_task_by_id("nobody") is None


async def test_no_database_takes_nul(tasks: TaskRepository) -> None:
    with pytest.raises(ValueError, match="task_id"):
        await tasks.get_task_by_id("a\0b")
    with pytest.raises(ValueError, match="user_id"):
        await tasks.list_tasks(user_id="a\0b")


async def test_the_store_can_be_asked_for(tasks: TaskRepository, store: Store) -> None:
    assert tasks.store is store


# -- updating ------------------------------------------------------------------------------------------------


UPDATES: dict[str, Any] = {
    "token_usage": {"input": 1, "output": 2, "total": 3},
    "inputs": {"text": "Ebbe ↓ \0", "deep": [{"": None}]},
    "dependencies": ["b", 1, True],
    "result": 12345678901234567890,
    "actual_cost_usd": Decimal("123456.123456"),
    "progress": Decimal("0.25"),
    "completed_at": NOON.astimezone(EAST),
    "checkpoint_at": NOON,
    "has_children": True,
    "schedule_enabled": False,
    "token_budget": 2**31 - 1,
    "status": "failed",
    "name": "n" * 100,
    "error": "e" * 10_000,
}


async def test_what_was_set_is_read_back(tasks: TaskRepository, store: Store) -> None:
    await add_task(store, "a")
    await add_task(store, "b")
    assert await tasks.update_task("a", **UPDATES) is True
    task = await loaded(tasks)
    assert {name: getattr(task, name) for name in UPDATES} == UPDATES
    other = await loaded(tasks, "b")
    assert (other.name, other.status, other.token_usage) == ("work", "completed", None)


@pytest.mark.parametrize("value", [1.0, -0.5, "1.0", True, [1], {"a": [None]}, ""], ids=repr)
async def test_a_result_keeps_its_type(tasks: TaskRepository, store: Store, value: Any) -> None:
    await add_task(store, "a")
    await tasks.update_task("a", result=value)
    back = (await loaded(tasks)).result
    assert (back, type(back)) == (value, type(value))


async def test_none_removes_a_value(tasks: TaskRepository, store: Store) -> None:
    await add_task(store, "a", inputs="{}", result="1", accepted=True, completed_at=NOON, actual_cost_usd="1")
    gone = ("inputs", "result", "accepted", "completed_at", "actual_cost_usd")
    await tasks.update_task("a", **dict.fromkeys(gone))
    task = await loaded(tasks)
    assert [getattr(task, name) for name in gone] == [None] * 5
    missing = " AND ".join(f"{name} IS NULL" for name in gone)
    assert await one(store, f"SELECT COUNT(*) FROM apflow_tasks WHERE {missing}") == (1,)


async def test_a_change_is_dated(tasks: TaskRepository, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Standing(NOON)
    monkeypatch.setattr(store, "clock", clock)
    await add_task(store, "a")
    assert await tasks.update_task("a", status="failed")
    assert (await loaded(tasks)).updated_at == NOON
    clock.time += timedelta(hours=1)
    assert await tasks.update_task("a")
    assert (await loaded(tasks)).updated_at == NOON + timedelta(hours=1)
    assert await tasks.update_task("a", updated_at=NOON)
    assert (await loaded(tasks)).updated_at == NOON


async def test_nobody_is_not_updated(tasks: TaskRepository, store: Store) -> None:
    await add_task(store, "a")
    assert await tasks.update_task("nobody", status="failed") is False
    assert (await loaded(tasks)).status == "completed"


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("0.0000005", "0.000001"),
        (Decimal("0.1234564"), "0.123456"),
        (1, "1.000000"),
        (0.1, "0.100000"),
        ("-1", "-1.000000"),
    ],
)
async def test_money_is_rounded_as_the_column_has_it(
    tasks: TaskRepository, store: Store, given: Any, stored: str
) -> None:
    await add_task(store, "a")
    await tasks.update_task("a", actual_cost_usd=given)
    assert str((await loaded(tasks)).actual_cost_usd) == stored


REFUSED: list[tuple[str, Any]] = [
    ("nothing", 1),
    ("id", "b"),
    ("name", None),
    ("name", "n" * 101),
    ("name", 5),
    ("error", "a\0b"),
    ("epoch", "1"),
    ("epoch", True),
    ("epoch", 2**31),
    ("accepted", 1),
    ("inputs", 5),
    ("inputs", {"a": {1, 2}}),
    ("inputs", {"a": (1, 2)}),
    ("inputs", {1: "a"}),
    ("token_usage", "{}"),
    ("result", float("nan")),
    ("result", object()),
    ("completed_at", datetime(2026, 1, 1)),  # noqa: DTZ001 - that is the point
    ("completed_at", "2026-01-01"),
    ("progress", 10),
    ("progress", "9.999"),
    ("progress", "half"),
    ("progress", Decimal("NaN")),
    ("progress", Decimal("-Infinity")),
    ("progress", True),
    ("actual_cost_usd", "1e50"),
]


@pytest.mark.parametrize(("column", "value"), REFUSED, ids=lambda value: repr(value)[:20])
async def test_what_a_column_cannot_hold_is_refused_by_name(
    tasks: TaskRepository, store: Store, column: str, value: Any
) -> None:
    await add_task(store, "a")
    before = await loaded(tasks)
    with pytest.raises(ValueError, match=rf"\b{column}\b"):
        await tasks.update_task("a", **{"status": "failed", column: value})
    assert await loaded(tasks) == before


async def test_a_value_stays_out_of_the_error(tasks: TaskRepository, store: Store) -> None:
    await add_task(store, "a")
    for column in ("name", "inputs", "progress", "completed_at", "accepted", "epoch"):
        with pytest.raises(ValueError, match=column) as caught:
            await tasks.update_task("a", **{column: "secret" * 20})
        assert "secret" not in str(caught.value)


async def test_a_failing_database_says_so(tasks: TaskRepository, store: Store) -> None:
    await add_task(store, "a", run_key="k")
    await add_task(store, "b")
    with pytest.raises(StorageError):
        await tasks.update_task("b", run_key="k")


async def test_people_can_read_json_in_the_database(tasks: TaskRepository, store: Store) -> None:
    await add_task(store, "a")
    await tasks.update_task("a", inputs={"tide": "Ebbe über 5 m ↓"})
    assert await one(store, "SELECT inputs FROM apflow_tasks") == (
        json.dumps({"tide": "Ebbe über 5 m ↓"}, ensure_ascii=False),
    )


# -- listing -------------------------------------------------------------------------------------------------


@pytest.fixture
async def five(store: Store) -> None:
    """Tasks a to e, a minute apart; e is the newest."""
    for place, task_id in enumerate("abcde"):
        await add_task(
            store,
            task_id,
            created_at=NOON + timedelta(minutes=place),
            user_id="ada" if place % 2 else "bob",
            name="even" if place % 2 else "odd",
            status="completed" if place < 3 else "failed",
            parent_id="a" if place else None,
            task_tree_id="a" if place < 4 else "e",
        )


def ids(found: list[TaskModel]) -> str:
    return "".join(task.id for task in found)


@pytest.mark.usefixtures("five")
@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, "edcba"),
        ({"user_id": "ada"}, "db"),
        ({"name": "odd"}, "eca"),
        ({"status": "failed"}, "ed"),
        ({"parent_id": "a"}, "edcb"),
        ({"task_tree_id": "a"}, "dcba"),
        ({"user_id": "bob", "status": "completed", "task_tree_id": "a"}, "ca"),
        ({"user_id": "nobody"}, ""),
        ({"limit": 2}, "ed"),
        ({"limit": 2, "offset": 1}, "dc"),
        ({"offset": 3}, "ba"),
        ({"offset": 9}, ""),
        ({"start_time": NOON + timedelta(minutes=3)}, "ed"),
        ({"end_time": NOON + timedelta(minutes=1)}, "ba"),
        ({"start_time": NOON + timedelta(minutes=1), "end_time": NOON + timedelta(minutes=1)}, "b"),
        ({"start_time": (NOON + timedelta(minutes=1, microseconds=1)).astimezone(EAST)}, "edc"),
        ({"end_time": (NOON + timedelta(minutes=1, microseconds=-1)).astimezone(EAST)}, "a"),
    ],
    ids=str,
)
async def test_tasks_are_listed_the_newest_first(tasks: TaskRepository, wanted: dict[str, Any], expected: str) -> None:
    assert ids(await tasks.list_tasks(**wanted)) == expected


async def test_times_without_a_fraction_are_inside_their_bounds(tasks: TaskRepository, store: Store) -> None:
    text = "2026-03-01 12:00:00" + ("+00" if store.dialect == "postgresql" else "")
    await insert(store, "apflow_tasks", id="a", name="work", created_at=text)
    assert ids(await tasks.list_tasks(start_time=NOON, end_time=NOON)) == "a"
    assert ids(await tasks.list_tasks(start_time=NOON + timedelta(microseconds=1))) == ""
    assert ids(await tasks.list_tasks(end_time=NOON - timedelta(microseconds=1))) == ""


async def test_a_task_without_a_time_is_the_oldest(tasks: TaskRepository, store: Store) -> None:
    await add_task(store, "a", created_at=None)
    await add_task(store, "b")
    assert ids(await tasks.list_tasks()) == "ba"


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        ({"limit": 0}, "limit"),
        ({"offset": -1}, "offset"),
        ({"start_time": datetime(2026, 1, 1)}, "start_time"),  # noqa: DTZ001 - that is the point
        ({"end_time": datetime(2026, 1, 1)}, "end_time"),  # noqa: DTZ001 - that is the point
        ({"start_time": NOON, "end_time": NOON - timedelta(seconds=1)}, "end_time must not be before start_time"),
    ],
    ids=str,
)
async def test_bounds_that_make_no_sense_are_refused(tasks: TaskRepository, wanted: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        await tasks.list_tasks(**wanted)


@pytest.mark.usefixtures("five")
async def test_only_what_was_asked_for_is_fetched(store: Store) -> None:
    counting = Counting(store)
    tasks = TaskRepository(counting.as_store)
    await tasks.list_tasks(user_id="ada", limit=1)
    await tasks.get_task_by_id("a")
    assert (counting.queries, counting.rows) == (2, 2)
