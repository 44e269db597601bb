"""The modules that make, run, show, cancel and delete tasks, through a door."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from datetime import date, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import pytest
from apcore import Context

import apflow
from apflow import Runtime
from apflow.bridge.door import Door
from apflow.bridge.refusals import RefusedError
from apflow.bridge.task_modules import TaskCreateModule, TaskGetModule
from apflow.engine.creator import TaskCreator
from apflow.storage.repository import TaskRepository
from tests.integration.tree_helpers import change, rows, until

pytestmark = pytest.mark.anyio

gates: dict[str, asyncio.Event] = {}
begun: list[str] = []


@pytest.fixture(autouse=True)
def _empty() -> None:
    gates.clear()
    begun.clear()


@pytest.fixture
async def runtime(database_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(database_url, shutdown_seconds=0.1) as made:
        made.include_engine()
        yield made


@pytest.fixture
def door(runtime: Runtime) -> Door:
    return Door(runtime)


@apflow.task(name="mo_echo")
async def echo(value: Any = None) -> Any:
    return value


@apflow.task(name="mo_trouble")
async def trouble() -> None:
    raise ValueError("password=hunter2 in /etc/secret")


@apflow.task(name="mo_public")
async def public() -> None:
    raise apflow.PublicError("there is no such ship", code="no_ship", details={"tried": 2})


@apflow.task(name="mo_wait")
async def wait(name: str) -> str:
    begun.append(name)
    await gates.setdefault(name, asyncio.Event()).wait()
    return name


@apflow.task(name="mo_paid")
async def paid() -> str:
    apflow.report_usage(model="unheard-of", input=10, output=5)
    return "done"


class Colour(StrEnum):
    RED = "red"


@apflow.task(name="mo_native")
async def native(day: date, moment: datetime, number: UUID, colour: Colour, count: int) -> list[str]:
    return [type(one).__name__ for one in (day, moment, number, colour, count)]


async def created(door: Door, name: str, inputs: dict[str, Any] | None = None, **more: Any) -> str:
    given = {"name": name, "inputs": inputs or {}, "max_attempts": 1} | more
    made = await door.call("apflow.task.create", given)
    return str(made.output["id"])


async def executed(door: Door, task_id: str) -> dict[str, Any]:
    return (await door.call("apflow.task.execute", {"task_id": task_id})).output


async def got(door: Door, task_id: str) -> dict[str, Any]:
    return (await door.call("apflow.task.get", {"task_id": task_id})).output


async def told(door: Door, module_id: str, inputs: Any) -> tuple[str, str]:
    with pytest.raises(RefusedError) as caught:
        await door.call(module_id, inputs)
    return caught.value.told.code, caught.value.told.message


# -- create and execute --------------------------------------------------------------------------------------------


async def test_a_task_is_created_executed_and_shown(door: Door) -> None:
    made = (
        await door.call("apflow.task.create", {"name": "mo_echo", "inputs": {"value": [1]}, "priority": 1.0})
    ).output
    assert (made["name"], made["status"]) == ("mo_echo", "pending")
    assert datetime.fromisoformat(made["created_at"]).tzinfo is not None
    before = await got(door, made["id"])
    assert (before["status"], before["result"], before["progress"], before["started_at"]) == ("pending", None, 0, None)
    done = await executed(door, made["id"])
    assert done == {
        "task_id": made["id"], "status": "completed", "result": [1], "token_usage": None, "error": None,
    }  # fmt: skip
    after = await got(door, made["id"])
    assert (after["status"], after["result"], after["progress"], after["error"]) == ("completed", [1], 1.0, None)
    assert after["inputs"] == {"value": [1]}
    assert after["created_at"] <= after["started_at"] <= after["completed_at"]
    assert json.loads(json.dumps(after)) == after


async def test_a_task_that_says_nothing_is_tried_as_its_own_retry_says(door: Door, runtime: Runtime) -> None:
    made = await door.call("apflow.task.create", {"name": "mo_echo"})
    task = await TaskRepository(runtime.store).get_task_by_id(made.output["id"])
    assert task is not None
    assert (task.priority, task.max_attempts, task.backoff_strategy) == (2, None, None)


async def test_several_tasks_make_a_tree(door: Door) -> None:
    tasks = [
        {"id": "top", "name": "mo_echo", "inputs": {"value": {"$from": "in"}}, "dependencies": [{"id": "in"}]},
        {"id": "in", "name": "mo_echo", "inputs": {"value": 7}, "parent_id": "top"},
    ]
    made = (await door.call("apflow.task.create", {"tasks": tasks})).output
    assert [(one["id"], one["parent_id"]) for one in made["tasks"]] == [("top", None), ("in", "top")]
    assert (made["id"], made["name"]) == ("top", "mo_echo")
    assert (await executed(door, "top"))["result"] == 7
    later = await created(door, "mo_echo", {"value": {"$from": "in"}}, parent_id="top", dependencies=[{"id": "in"}])
    assert (await executed(door, later))["result"] == 7


async def test_a_result_may_be_any_json_value(door: Door) -> None:
    results: list[Any] = [None, True, 3, 2.5, "text", [1, {"a": None}], {"a": {"b": []}}]
    for result in results:
        one = await created(door, "mo_echo", {"value": result})
        assert (await executed(door, one))["result"] == result
        assert (await got(door, one))["result"] == result


async def test_native_types_are_texts_in_json(door: Door) -> None:
    inputs = {
        "day": "2026-01-31",
        "moment": "2026-01-31T18:30:00Z",
        "number": "12345678-1234-5678-1234-567812345678",
        "colour": "red",
        "count": 4.0,
    }
    done = await executed(door, await created(door, "mo_native", inputs))
    assert done["result"] == ["date", "datetime", "UUID", "Colour", "int"]
    for wrong in ({"moment": 1769884200}, {"count": 4.5}, {"count": "4"}, {"colour": "blue"}):
        code, message = await told(door, "apflow.task.create", {"name": "mo_native", "inputs": inputs | wrong})
        assert code == "invalid_input"
        assert repr(next(iter(wrong))) in message


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({}, "invalid_input", "give either the name"),
    ({"name": "mo_echo", "tasks": [{"name": "mo_echo"}]}, "invalid_input", "give either the name"),
    ({"tasks": [{"name": "mo_echo"}], "priority": 1}, "invalid_input", "give either the name"),
    ({"tasks": []}, "invalid_input", "'tasks' should have at least 1"),
    ({"name": ""}, "invalid_input", "'name' should have at least 1 characters"),
    ({"name": " "}, "invalid_input", "'name' should match"),
    ({"name": "mo_echo", "max_attempts": 0}, "invalid_input", "'max_attempts' should be at least 1"),
    ({"name": "mo_echo", "max_attempts": 101}, "invalid_input", "'max_attempts' should be at most 100"),
    ({"name": "mo_echo", "priority": 1.5}, "invalid_input", "'priority' should be an integer"),
    ({"name": "mo_echo", "task_tree_id": "x"}, "invalid_input", "'task_tree_id' is unknown"),
    ({"name": "mo_echo", "original_task_id": "x"}, "invalid_input", "'original_task_id' is unknown"),
    ({"tasks": [{"name": "mo_echo", "status": "completed"}]}, "invalid_input", "'tasks[0].status' is unknown"),
    ({"name": "mo_echo", "inputs": {"other": 1}}, "invalid_input", "'other' is unknown"),
    ({"name": "mo_echo", "inputs": math.nan}, "invalid_input", "'inputs' is no JSON value"),
    ({"name": "mo_echo\0"}, "not_found", "no executor here has the name 'mo_echo\\x00'"),
    ({"name": "mo_nothing"}, "not_found", "no executor here has the name 'mo_nothing'"),
    ({"name": "_task_tree"}, "not_found", "no executor here"),
    ({"name": "x", "schemas": {"method": "mo_nothing"}}, "not_found", "the name 'mo_nothing'"),
    ({"name": "mo_echo", "parent_id": "nobody"}, "not_found", "there is no task with the id 'nobody'"),
    ({"name": "mo_echo", "dependencies": [{"id": "no\0"}]}, "not_found", "there is no task"),
    ({"name": "mo_echo", "dependencies": ["nobody"]}, "invalid_input", "should be an object"),
    ({"name": "mo_echo", "inputs": {"value": {"$from": "x"}}}, "invalid_input", "not among its dependencies"),
    ({"name": "mo_echo", "inputs": {"value": {"$secret": "x"}}}, "forbidden", "may not name this secret"),
    ({"name": "mo_echo", "params": {"value": [{"$secret": "x"}]}}, "forbidden", "may not name this secret"),
]


async def test_what_cannot_be_created_is_told(door: Door, runtime: Runtime) -> None:
    for given, code, says in REFUSED:
        found, message = await told(door, "apflow.task.create", given)
        assert (found, says in message) == (code, True), message
    assert await runtime.runs.count() == 0


async def test_a_name_of_several_tasks_is_refused_without_telling_where_they_stand(door: Door) -> None:
    for place in ("a", "b"):
        space: dict[str, Any] = {"__name__": f"mo_place_{place}"}
        exec("import apflow\n@apflow.task(name='mo_twice')\nasync def one() -> None: ...", space)  # noqa: S102
    code, message = await told(door, "apflow.task.create", {"name": "mo_twice"})
    assert (code, message) == ("conflict", "the name 'mo_twice' stands for several executors here")


async def test_who_stops_waiting_leaves_the_task_running(door: Door) -> None:
    one = await created(door, "mo_wait", {"name": "slow"})
    waiting = asyncio.create_task(executed(door, one))
    await until(lambda: begun == ["slow"])
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await got(door, one))["status"] == "in_progress"
    gates["slow"].set()
    assert (await executed(door, one))["result"] == "slow"
    assert begun == ["slow"]


async def test_failures_are_told_as_far_as_callers_may_know(door: Door) -> None:
    secret = await executed(door, await created(door, "mo_trouble"))
    assert secret["status"] == "failed"
    assert secret["error"]["code"] == "internal"
    assert secret["error"]["reference"] == secret["task_id"]
    shown = await got(door, secret["task_id"])
    assert shown["error"] == secret["error"]
    assert "hunter2" not in json.dumps([secret, shown])
    known = await executed(door, await created(door, "mo_public"))
    assert known["error"] == {
        "code": "no_ship",
        "message": "there is no such ship",
        "details": {"tried": 2},
        "retryable": False,
        "reference": known["task_id"],
    }


async def test_what_was_used_is_shown(door: Door) -> None:
    one = await executed(door, await created(door, "mo_paid"))
    assert one["token_usage"] == {"input": 10, "output": 5, "total": 15}
    assert (await got(door, one["task_id"]))["token_usage"] == one["token_usage"]
    report = (await door.call("apflow.usage.report", {"by": "model"})).output
    assert [(row["key"], row["total_tokens"]) for row in report["rows"]] == [("unheard-of", 15)]
    assert report["total"]["total_tokens"] == 15
    assert report["total"]["cost_usd"] == "0"
    later = {"by": "task", "since": "2199-01-01T00:00:00+01:00"}
    assert (await door.call("apflow.usage.report", later)).output["rows"] == []


async def test_a_report_over_no_time_is_refused(door: Door) -> None:
    for given in (
        {"since": 1769884200},
        {"since": "2026-01-31"},
        {"since": "yesterday"},
        {"since": "0001-01-01T00:00:00+14:00"},
        {"since": "2026-02-01T00:00:00Z", "until": "2026-01-01T00:00:00Z"},
        {"by": "planet"},
    ):
        assert (await told(door, "apflow.usage.report", given))[0] == "invalid_input"


# -- list and get --------------------------------------------------------------------------------------------------


async def test_a_list_shows_runs_and_tasks_of_trees_only(door: Door, runtime: Runtime) -> None:
    @apflow.task(name="mo_outer")
    async def outer() -> int:
        return int(await echo(3))

    run = await door.call("mo_outer", {})
    tree = await created(door, "mo_outer")
    await executed(door, tree)
    kinds = await rows(runtime.store, "SELECT kind, COUNT(*) FROM apflow_tasks GROUP BY kind ORDER BY kind")
    assert kinds == [("child", 2), ("node", 1), ("run", 1), ("tree", 1)]
    listed = (await door.call("apflow.task.list", {})).output
    assert [one["id"] for one in listed["tasks"]] == [tree, run.run_id]
    assert listed["total"] == 2
    hidden = await rows(runtime.store, "SELECT id FROM apflow_tasks WHERE kind IN ('child', 'tree')")
    for (one,) in hidden:
        for word in ("get", "cancel", "delete", "execute"):
            assert (await told(door, f"apflow.task.{word}", {"task_id": one}))[0] == "not_found"


async def test_a_served_run_is_found_by_its_id(door: Door) -> None:
    answer = await door.call("mo_echo", {"value": {"a": 1}})
    assert answer.run_id is not None
    found = await got(door, answer.run_id)
    assert (found["name"], found["status"], found["result"]) == ("mo_echo", "completed", {"a": 1})
    assert found["inputs"] == {"value": {"a": 1}}
    assert (await told(door, "apflow.task.execute", {"task_id": answer.run_id}))[0] == "conflict"


async def test_a_list_is_filtered_and_has_pages(door: Door) -> None:
    ids = [await created(door, "mo_echo", user_id=user) for user in ("ann", "ben", "ann")]
    await executed(door, ids[0])

    async def listed(**given: Any) -> tuple[list[int], int]:
        found = (await door.call("apflow.task.list", given)).output
        return [ids.index(one["id"]) for one in found["tasks"]], found["total"]

    assert await listed() == ([2, 1, 0], 3)
    assert await listed(limit=1.0, offset=1) == ([1], 3)
    assert await listed(limit=1, offset=9) == ([], 3)
    assert await listed(status="completed") == ([0], 1)
    assert await listed(status="pending", user_id="ann") == ([2], 1)
    assert await listed(name="mo_echo", user_id="nobody") == ([], 0)
    assert await listed(name="other\0") == ([], 0)
    assert await listed(status="interrupted") == ([], 0)


async def test_what_nobody_runs_any_more_is_interrupted(door: Door, runtime: Runtime) -> None:
    one = await created(door, "mo_echo")
    sql = "UPDATE apflow_tasks SET status = 'in_progress', epoch = 1, lease_expires_at = NULL WHERE id = :id"
    await change(runtime.store, sql, id=one)
    found = (await door.call("apflow.task.list", {"status": "interrupted"})).output
    assert [(task["id"], task["status"], task["interrupted"]) for task in found["tasks"]] == [
        (one, "in_progress", True)
    ]
    assert (await got(door, one))["interrupted"] is True


async def test_a_list_of_nothing_sensible_is_refused(door: Door) -> None:
    for given in ({"limit": 0}, {"limit": 1001}, {"offset": -1}, {"status": "done"}, {"limit": "5"}):
        assert (await told(door, "apflow.task.list", given))[0] == "invalid_input"


async def test_what_is_not_there_is_not_found(door: Door) -> None:
    for word in ("get", "execute", "cancel", "delete"):
        await _not_found(door, word)


async def _not_found(door: Door, word: str) -> None:
    for task_id in ("nobody", "no\0body"):
        code, message = await told(door, f"apflow.task.{word}", {"task_id": task_id})
        assert (code, message) == ("not_found", f"there is no task with the id {task_id!r}")
    for given in ({}, {"task_id": ""}, {"task_id": " "}, {"task_id": 3}, {"task_id": "x", "more": 1}):
        assert (await told(door, f"apflow.task.{word}", given))[0] == "invalid_input"


# -- cancel and delete ---------------------------------------------------------------------------------------------


async def test_a_run_is_cancelled(door: Door) -> None:
    call = asyncio.create_task(door.call("mo_wait", {"name": "run"}, run_id="the-run"))
    await until(lambda: begun == ["run"])
    done = (await door.call("apflow.task.cancel", {"task_id": "the-run"})).output
    assert done == {"task_id": "the-run", "status": "cancelled"}
    with pytest.raises(RefusedError) as caught:
        await call
    assert caught.value.told.code == "cancelled"
    assert (await got(door, "the-run"))["error"]["code"] == "cancelled"


async def test_a_task_of_a_tree_is_cancelled(door: Door) -> None:
    one = await created(door, "mo_wait", {"name": "node"})
    execution = asyncio.create_task(executed(door, one))
    await until(lambda: begun == ["node"])
    done = (await door.call("apflow.task.cancel", {"task_id": one})).output
    assert done == {"task_id": one, "status": "cancelled"}
    assert (await execution)["status"] == "cancelled"
    again = (await door.call("apflow.task.cancel", {"task_id": one})).output
    assert again["status"] == "cancelled"


async def test_runs_and_tasks_are_deleted(door: Door, runtime: Runtime) -> None:
    run = (await door.call("mo_echo", {})).run_id
    await door.call("apflow.task.create", {"tasks": [
        {"id": "top", "name": "mo_echo"}, {"id": "in", "name": "mo_echo", "parent_id": "top"},
    ]})  # fmt: skip
    assert (await door.call("apflow.task.delete", {"task_id": run})).output == {"task_id": run, "deleted": True}
    assert await told(door, "apflow.task.delete", {"task_id": "top"}) == ("conflict", "other tasks need this one")
    await door.call("apflow.task.delete", {"task_id": "top", "cascade": True})
    assert await runtime.runs.count() == 0


async def test_what_runs_or_is_needed_is_not_deleted(door: Door) -> None:
    call = asyncio.create_task(door.call("mo_wait", {"name": "busy"}, run_id="busy-run"))
    await until(lambda: begun == ["busy"])
    for cascade in (False, True):
        given = {"task_id": "busy-run", "cascade": cascade}
        assert (await told(door, "apflow.task.delete", given))[0] == "conflict"
    gates["busy"].set()
    await call
    first = await created(door, "mo_echo")
    await created(door, "mo_echo", dependencies=[{"id": first}])
    for cascade in (False, True):
        assert (await told(door, "apflow.task.delete", {"task_id": first, "cascade": cascade}))[0] == "conflict"


# -- as objects ----------------------------------------------------------------------------------------------------


async def test_modules_work_without_a_door_and_without_a_context(runtime: Runtime) -> None:
    repository = TaskRepository(runtime.store)
    create, get = TaskCreateModule(TaskCreator(runtime.store), repository), TaskGetModule(repository)
    made = await create.execute({"name": "mo_echo"})
    context: Context[Any] = Context.create()
    assert (await get.execute({"task_id": made["id"]}, context))["status"] == "pending"
    assert create.runtime is get.runtime is runtime
    with pytest.raises(RefusedError) as caught:
        await get.execute([])  # type: ignore[arg-type]
    assert caught.value.told.code == "invalid_input"
