"""Whose tasks a caller can see and touch: alice's are not there for bob, whichever way he tries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from apcore import ACL, ACLRule, Identity

import apflow
from apflow import Runtime
from apflow.bridge.door import Door
from apflow.bridge.refusals import RefusedError
from apflow.engine.creator import TaskCreator
from apflow.storage.repository import TaskRepository
from tests.integration.tree_helpers import until

pytestmark = pytest.mark.anyio

ALICE, BOB, NOBODY = Identity(id="alice"), Identity(id="bob"), Identity(id="")

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
async def local(sqlite_url: str) -> AsyncIterator[Runtime]:
    """For what does not depend on the database."""
    async with Runtime(sqlite_url, shutdown_seconds=0.1, settings={"secrets": {"k": "v"}}) as made:
        made.include_engine()
        yield made


@apflow.task(name="sc_echo")
async def echo(value: Any = None) -> Any:
    begun.append(str(value))
    return value


@apflow.task(name="sc_wait")
async def wait(name: str) -> str:
    begun.append(name)
    await gates.setdefault(name, asyncio.Event()).wait()
    return name


@apflow.task(name="sc_used")
async def used() -> None:
    apflow.report_usage(model="m", input=10, output=5)


@apflow.task(name="sc_approved", tags=("requires_approval",))
async def approved() -> None:
    begun.append("approved")


async def call(door: Door, who: Identity | None, word: str, **given: Any) -> dict[str, Any]:
    return (await door.call(f"apflow.{word}", given, identity=who)).output


async def told(door: Door, who: Identity | None, word: str, **given: Any) -> tuple[str, str]:
    with pytest.raises(RefusedError) as caught:
        await call(door, who, word, **given)
    return caught.value.told.code, caught.value.told.message


async def created(door: Door, who: Identity | None, **given: Any) -> str:
    made = await call(door, who, "task.create", **({"name": "sc_echo"} | given))
    return str(made["id"])


def absent(task_id: str) -> tuple[str, str]:
    return "not_found", f"there is no task with the id {task_id!r}"


async def test_a_task_belongs_to_who_created_it(runtime: Runtime) -> None:
    door = Door(runtime)
    one = await created(door, ALICE, inputs={"value": "hers"})
    for word in ("get", "execute", "cancel", "delete"):
        assert await told(door, BOB, f"task.{word}", task_id=one) == absent(one)
    assert await told(door, BOB, "task.delete", task_id=one, cascade=True) == absent(one)
    assert begun == []
    task = await TaskRepository(runtime.store).get_task_by_id(one)
    assert task is not None
    assert (task.user_id, task.status) == ("alice", "pending")
    assert (await call(door, ALICE, "task.execute", task_id=one))["result"] == "hers"
    assert (await call(door, None, "task.get", task_id=one))["result"] == "hers"


async def test_nobody_creates_tasks_for_somebody_else(local: Runtime) -> None:
    door = Door(local)
    refused = ("forbidden", "you may not create tasks of another user")
    assert await told(door, BOB, "task.create", name="sc_echo", user_id="alice") == refused
    tasks = [{"name": "sc_echo", "user_id": "bob"}, {"name": "sc_echo", "user_id": "alice"}]
    assert await told(door, BOB, "task.create", tasks=tasks) == refused
    assert await local.runs.count() == 0
    await created(door, BOB, user_id="bob")
    await created(door, None, user_id="alice")
    assert (await local.runs.count(user="bob"), await local.runs.count(user="alice")) == (1, 1)


async def test_a_caller_without_an_id_is_not_everybody(local: Runtime) -> None:
    door = Door(local)
    one = await created(door, None)
    assert (await told(door, NOBODY, "task.list"))[0] == "forbidden"
    assert (await told(door, NOBODY, "task.get", task_id=one))[0] == "forbidden"
    assert (await told(door, Identity(id="a\0b"), "task.list"))[0] == "forbidden"
    assert (await told(door, BOB, "task.get", task_id=one)) == absent(one)


async def test_no_result_is_handed_over_by_a_dependency_or_a_parent(runtime: Runtime) -> None:
    door = Door(runtime)
    hers = await created(door, ALICE, inputs={"value": "secret"})
    await call(door, ALICE, "task.execute", task_id=hers)
    run = (await door.call("sc_echo", {"value": "run"}, identity=ALICE)).run_id
    assert run is not None
    his = await created(door, BOB)
    reading = {"inputs": {"value": {"$from": hers}}, "dependencies": [{"id": hers}]}
    for given in (
        reading,
        {"dependencies": [{"id": hers, "required": False}]},
        {"parent_id": hers},
        {"parent_id": hers, "dependencies": [{"id": his}]},
    ):
        assert await told(door, BOB, "task.create", **({"name": "sc_echo"} | given)) == absent(hers)
    tasks = [{"id": "a", "name": "sc_echo"}, {"name": "sc_echo", "parent_id": "a"} | reading]
    assert await told(door, BOB, "task.create", tasks=tasks) == absent(hers)
    missing = await told(door, BOB, "task.create", name="sc_echo", parent_id="nowhere")
    assert missing == absent("nowhere")
    aggregate = {"source_task_ids": [hers]}
    code, _ = await told(door, BOB, "aggregate_results_executor", **aggregate)
    assert code == "invalid_input"
    assert await told(door, BOB, "task.create", name="sc_echo", parent_id=run) == absent(run)
    assert (await call(door, BOB, "task.list"))["total"] == 2  # his task, and the run that failed


async def test_lists_and_reports_show_ones_own(runtime: Runtime) -> None:
    door = Door(runtime)
    hers = await created(door, ALICE, name="sc_used")
    await call(door, ALICE, "task.execute", task_id=hers)
    his = (await door.call("sc_used", {}, identity=BOB)).run_id
    both = await call(door, None, "task.list")
    assert ({one["id"] for one in both["tasks"]}, both["total"]) == ({hers, his}, 2)
    for who, own, other in ((ALICE, hers, "bob"), (BOB, his, "alice")):
        found = await call(door, who, "task.list")
        assert ([one["id"] for one in found["tasks"]], found["total"]) == ([own], 1)
        assert await call(door, who, "task.list", user_id=other) == {"tasks": [], "total": 0}
        assert (await call(door, who, "task.list", user_id=who.id))["total"] == 1
        report = await call(door, who, "usage.report", by="user")
        assert [row["key"] for row in report["rows"]] == [who.id]
        assert report["total"]["total_tokens"] == 15
    assert (await call(door, None, "usage.report"))["total"]["total_tokens"] == 30


async def test_a_run_is_cancelled_and_deleted_by_its_owner_only(local: Runtime) -> None:
    door = Door(local)
    waiting = asyncio.create_task(door.call("sc_wait", {"name": "x"}, identity=ALICE, run_id="hers"))
    await until(lambda: begun == ["x"])
    for word in ("get", "cancel", "delete", "execute"):
        assert await told(door, BOB, f"task.{word}", task_id="hers") == absent("hers")
    assert not waiting.done()
    assert (await call(door, ALICE, "task.cancel", task_id="hers"))["status"] == "cancelled"
    with pytest.raises(RefusedError):
        await waiting
    assert await told(door, BOB, "task.delete", task_id="hers") == absent("hers")
    assert (await call(door, ALICE, "task.delete", task_id="hers"))["deleted"]


async def test_nobody_touches_what_is_of_others_in_a_tree_of_their_own(runtime: Runtime) -> None:
    door = Door(runtime)
    await TaskCreator(runtime.store).create_task_tree_from_array(
        [
            {"id": "top", "name": "sc_echo", "user_id": "bob"},
            {"id": "middle", "name": "sc_echo", "parent_id": "top"},
            {"id": "hers", "name": "sc_echo", "user_id": "alice", "parent_id": "middle"},
            {"id": "needs", "name": "sc_echo", "user_id": "bob", "dependencies": ["hers"], "parent_id": "top"},
        ]
    )
    tries: list[tuple[str, dict[str, Any]]] = [
        *[("execute", {"task_id": one}) for one in ("top", "middle", "needs")],
        *[("cancel", {"task_id": one}) for one in ("top", "middle")],
        ("delete", {"task_id": "top", "cascade": True}),
    ]
    for word, given in tries:
        code, message = await told(door, BOB, f"task.{word}", **given)
        assert (code, "belongs to somebody else" in message) == ("forbidden", True)
        assert "hers" not in message
    assert begun == []
    assert {one.status for one in await TaskRepository(runtime.store).list_tasks()} == {"pending"}
    assert (await call(door, ALICE, "task.execute", task_id="hers"))["status"] == "completed"
    assert (await call(door, None, "task.execute", task_id="top"))["status"] == "completed"


async def test_what_others_need_is_not_deleted(local: Runtime) -> None:
    door = Door(local)
    his = await created(door, BOB)
    await TaskCreator(local.store).create_task_tree_from_array(
        [{"name": "sc_echo", "user_id": "alice", "dependencies": [his]}]
    )
    for cascade in (False, True):
        refused = await told(door, BOB, "task.delete", task_id=his, cascade=cascade)
        assert refused == ("conflict", "other tasks need this one")


async def test_nobody_takes_the_id_of_somebody_elses_task(local: Runtime) -> None:
    door = Door(local)
    hers = await created(door, ALICE, id="mine", inputs={"value": 1})
    tasks = [{"id": hers, "name": "sc_echo"}, {"name": "sc_echo", "dependencies": [{"id": hers}]}]
    assert (await told(door, BOB, "task.create", tasks=tasks))[0] == "invalid_input"
    assert (await call(door, ALICE, "task.get", task_id=hers))["inputs"] == {"value": 1}
    assert (await call(door, BOB, "task.list"))["total"] == 0


# -- ways round rules ----------------------------------------------------------------------------------------------


def rules(*allowed: str, denied: tuple[str, ...] = ()) -> ACL:
    return ACL(
        rules=[
            *(ACLRule(callers=["*"], targets=[one], effect="deny") for one in denied),
            *(ACLRule(callers=["*"], targets=[one], effect="allow") for one in allowed),
        ],
        default_effect="deny",
    )


@pytest.mark.parametrize("who", [ALICE, None])
async def test_a_tree_is_no_way_round_an_acl(local: Runtime, who: Identity | None) -> None:
    acl = rules("apflow.*", "sc_echo", denied=("apflow.rest_executor",))
    door = Door(local, acl=acl)
    rest = {"url": "http://127.0.0.1:1/"}
    with pytest.raises(RefusedError):
        await door.call("apflow.rest_executor", rest, identity=who)
    for given in (
        {"name": "rest_executor", "inputs": rest},
        {"name": "sc_echo", "schemas": {"method": "rest_executor"}, "inputs": rest},
        {"tasks": [{"id": "a", "name": "sc_echo"}, {"name": "rest_executor", "inputs": rest, "parent_id": "a"}]},
    ):
        refused = await told(door, who, "task.create", **given)
        assert refused == ("forbidden", "you may not call 'rest_executor'")
    assert await told(door, who, "task.create", name="sc_used") == ("forbidden", "you may not call 'sc_used'")
    assert await local.runs.count() == 0
    one = await created(door, who, name="aggregate_results_executor")
    assert (await call(door, who, "task.execute", task_id=one))["status"] == "completed"
    await created(door, who)


async def test_a_tree_of_earlier_is_executed_by_the_rules_of_now(local: Runtime) -> None:
    one = await created(Door(local), ALICE, name="sc_used")
    refused = await told(Door(local, acl=rules("apflow.*")), ALICE, "task.execute", task_id=one)
    assert refused == ("forbidden", "you may not call 'sc_used'")
    assert (await call(Door(local), ALICE, "task.execute", task_id=one))["status"] == "completed"


async def test_a_tree_is_no_way_round_an_approval(local: Runtime) -> None:
    door = Door(local)
    code, message = await told(door, ALICE, "task.create", name="sc_approved")
    assert (code, message) == ("forbidden", "each call of 'sc_approved' has to be approved; call it by itself")
    await TaskCreator(local.store).create_task_tree_from_array(
        [{"id": "sly", "name": "sc_approved", "user_id": "alice"}]
    )
    assert (await told(door, ALICE, "task.execute", task_id="sly"))[0] == "forbidden"
    asked = ACL(rules=[ACLRule(callers=["*"], targets=["sc_echo"], effect="allow", approval="required")])
    asked.add_rule(ACLRule(callers=["*"], targets=["apflow.*"], effect="allow"))
    assert (await told(Door(local, acl=asked), ALICE, "task.create", name="sc_echo"))[0] == "forbidden"
    assert begun == []


async def test_no_secret_of_the_server_is_named_in_a_tree(local: Runtime) -> None:
    door = Door(local)
    secret = {"$secret": "k"}
    for inputs in (
        {"url": "https://example.com", "headers": {"x": secret}},
        {"url": "https://example.com", "json": {"deep": [[secret]]}},
        {"url": {"$from": "a", "default": secret}},
    ):
        tasks = [{"id": "a", "name": "sc_echo"}, {"name": "rest_executor", "inputs": inputs, "parent_id": "a"}]
        assert (await told(door, ALICE, "task.create", tasks=tasks))[0] == "forbidden"
    assert await local.runs.count() == 0
