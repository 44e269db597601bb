"""The error codes of the A2A specification, lists, and which skill a message is for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import pytest
from apcore import ACL, ACLRule, ApprovalHandler, ApprovalRequest, ApprovalResult

import apflow
from apflow import Runtime
from apflow.bridge.door import Door
from tests.integration.a2a_site import Caller, a2a_site, error_of, only, request, sent, sent_new, state_of, value_of

pytestmark = pytest.mark.anyio


@apflow.task
async def greet(name: str, shout: bool = False) -> str:
    return f"HELLO {name}" if shout else f"hello {name}"


@apflow.task
async def pair(a: str, b: str) -> str:
    return a + b


@apflow.task
async def total(value: list[int]) -> int:
    return sum(value)


@apflow.task
async def stuck() -> None:
    await asyncio.Event().wait()


@apflow.task(tags=("requires_approval",))
async def risky(n: int) -> int:
    return n


@pytest.fixture
async def runtime(sqlite_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(sqlite_url, shutdown_seconds=1) as made:
        yield made


@pytest.fixture
async def sites(runtime: Runtime) -> AsyncIterator[Any]:
    """Returns a function that serves tasks and returns who calls them."""
    async with AsyncExitStack() as stack:

        async def serve(*tasks: Any, door: Door | None = None, **options: Any) -> Caller:
            door = door or only(runtime, *tasks)
            return Caller(await stack.enter_async_context(a2a_site(door, **options)))

        yield serve


OLD = ("tasks/get", "tasks/cancel", "tasks/resubscribe")
NEW = ("GetTask", "CancelTask", "SubscribeToTask")
PUSH = (
    *(f"tasks/pushNotificationConfig/{one}" for one in ("set", "get", "list", "delete")),
    *("CreateTaskPushNotificationConfig", "GetTaskPushNotificationConfig"),
    *("ListTaskPushNotificationConfigs", "DeleteTaskPushNotificationConfig"),
)


async def test_each_error_has_the_code_of_the_specification(sites: Any) -> None:
    caller = await sites(greet, stuck)

    for broken in (b"{", b'{"a": NaN}', b"\xff", b"[" * 100_000, b""):
        answer = await caller.post(broken)
        assert (answer["error"]["code"], answer["id"]) == (-32700, None), broken
    for body in (
        [],
        3,
        [request("tasks/get", {"id": "x"})],
        {"id": 1, "method": "tasks/get"},
        {"jsonrpc": "1.0", "id": 1, "method": "tasks/get"},
        {"jsonrpc": "2.0", "id": 1},
        {"jsonrpc": "2.0", "id": 1, "method": 3},
        {"jsonrpc": "2.0", "id": True, "method": "tasks/get"},
        {"jsonrpc": "2.0", "id": [1], "method": "tasks/get"},
    ):
        assert (await caller.post(body))["error"]["code"] == -32600, body
    assert await caller.code("tasks/nothing", {}) == -32601
    for method in (*OLD, *NEW):
        assert await caller.code(method, {"id": "no-such-task"}) == -32001, method
        assert await caller.code(method, {"id": "nul\0"}) == -32001, method
        assert await caller.code(method, {"id": {"no": "id"}}) == -32602, method
        assert (await caller.post(request(method, [1])))["error"]["code"] == -32602, method  # type: ignore[arg-type]
    for method in OLD:
        assert await caller.code(method, {}) == -32602, method
    for method in PUSH:
        assert await caller.code(method, {"id": "x"}) == -32003, method
    assert await caller.code("agent/getAuthenticatedExtendedCard", {}) == -32007
    assert await caller.code("GetExtendedAgentCard", {}) == -32007
    version = {"A2A-Version": "9.0"}
    assert await caller.code("GetTask", {"id": "x"}, **version) == -32009


async def test_messages_that_are_none_are_bad_parameters(sites: Any) -> None:
    caller = await sites(greet)
    deep: Any = 1
    for _ in range(60):
        deep = {"a": deep}

    for method, fine in (("message/send", sent("greet", "x")), ("message/stream", sent("greet", "x"))):
        messages: tuple[Any, ...] = ({}, fine["message"] | {"role": 3}, 3)
        for wrong in ({}, *({"message": one} for one in messages)):
            assert await caller.code(method, wrong) == -32602, wrong
    for method in ("SendMessage", "SendStreamingMessage"):
        for wrong in ({}, {"message": {}}, {"message": {"messageId": 3}}, {"message": 3}):
            assert await caller.code(method, wrong) == -32602, wrong
    assert await caller.code("message/send", sent("greet", {"name": deep})) == -32602
    body = json.dumps(request("message/send", sent("greet", {"name": 1.5}))).replace("1.5", "1e999")
    assert (await caller.post(body.encode()))["error"]["code"] == -32602
    assert await caller.code("message/send", sent("greet", "x", contextId="x" * 300)) == -32602
    assert await caller.code("message/send", sent("greet", "x", taskId="no-such-task")) == -32001
    assert await caller.code("message/send", sent("greet", "x", referenceTaskIds=["no-such-task"])) == -32001
    for method in ("tasks/list", "ListTasks"):
        for wrong in (
            {"pageSize": 0},
            {"pageSize": 101},
            {"pageSize": "x"},
            {"pageToken": "x"},
            {"pageToken": "WzEsIDJd"},
            {"status": "asleep"},
            {"historyLength": -1},
        ):
            assert await caller.code(method, wrong) == -32602, (method, wrong)
    assert await caller.code("tasks/list", {"lastUpdatedAfter": "yesterday"}) == -32602
    assert state_of(await caller.send("greet", "x")) == "completed", "and it still works"


async def test_a_task_that_has_ended_takes_nothing_more(sites: Any) -> None:
    caller = await sites(greet, stuck)
    done = (await caller.send("greet", "x"))["id"]
    busy = (await caller.call("message/send", sent("stuck", {}, blocking=False)))["id"]

    assert await caller.code("tasks/cancel", {"id": done}) == -32002
    assert await caller.code("tasks/resubscribe", {"id": done}) == -32004
    assert await caller.code("SubscribeToTask", {"id": done}) == -32004
    assert await caller.code("message/send", sent("greet", "x", taskId=done)) == -32004
    assert await caller.code("message/send", sent("greet", "x", taskId=busy)) == -32004
    await caller.call("tasks/cancel", {"id": busy})


async def test_what_the_database_says_stays_here(sites: Any, runtime: Runtime) -> None:
    caller = await sites(greet)
    await runtime.ready()
    await runtime.store.write(lambda tx: tx.execute("ALTER TABLE apflow_a2a_tasks RENAME TO gone"))

    for method in ("tasks/get", "GetTask", "tasks/list"):
        answer = await caller.post(request(method, {"id": "x"}))
        assert answer["error"]["code"] == -32603
        assert "apflow_a2a_tasks" not in str(answer)
        assert "reference" in str(answer)
    for method in ("message/send", "message/stream"):
        answer = await caller.post(request(method, sent("greet", "x")))
        assert answer["error"]["code"] == -32603
        assert "apflow_a2a_tasks" not in str(answer)
    assert await runtime.runs.count() == 0, "what cannot be found again is not begun"


async def test_the_extended_card_is_for_callers_who_are_known(sites: Any) -> None:
    caller = await sites(greet, authenticated=True)

    old = await caller.call("agent/getAuthenticatedExtendedCard", {})
    new = await caller.call("GetExtendedAgentCard", {})

    assert old["skills"][0]["id"] == new["skills"][0]["id"] == "greet"
    assert old["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert new["securitySchemes"]["bearer"]["httpAuthSecurityScheme"]["scheme"] == "bearer"
    assert old["supportsAuthenticatedExtendedCard"] is True


# -- which skill, and which inputs -------------------------------------------------------------------------------


async def test_a_text_goes_to_the_only_task(sites: Any) -> None:
    caller = await sites(greet)

    assert value_of(await caller.send(None, "Ada")) == "hello Ada"
    assert value_of(await caller.send(None, '{"name": "Ada", "shout": true}')) == "HELLO Ada"
    assert value_of(await caller.send(None, {"name": "Ada"})) == "hello Ada"
    assert value_of(await caller.send(None, "{not JSON")) == "hello {not JSON"
    new = await caller.call("SendMessage", sent_new(None, "Ada"))
    assert value_of(new["task"]) == "hello Ada"


async def test_a_text_goes_to_the_default_skill(sites: Any) -> None:
    caller = await sites(greet, pair, total, default_skill="greet")

    assert value_of(await caller.send(None, "Ada")) == "hello Ada"
    assert value_of(await caller.send("pair", {"a": "1", "b": "2"})) == "12"
    for skill, text in (("pair", "x"), ("total", "x")):
        assert error_of(await caller.send(skill, text))["code"] == "invalid_input"


async def test_what_is_for_nobody_is_refused(sites: Any) -> None:
    caller = await sites(greet, pair)
    two = sent("greet", "x")
    two["message"]["parts"] *= 2
    file = sent("greet", "x")
    file["message"]["parts"] = [{"kind": "file", "file": {"bytes": "", "mimeType": "text/plain"}}]

    assert "skillId" in error_of(await caller.send(None, "x"))["message"]
    assert error_of(await caller.send("nobody", "x"))["code"] == "not_found"
    assert "one part" in error_of(await caller.call("message/send", two))["message"]
    assert error_of(await caller.call("message/send", file))["code"] == "invalid_input"
    listed = (await caller.call("SendMessage", sent_new("greet", [1])))["task"]
    assert error_of(listed)["code"] == "invalid_input"


async def test_who_may_not_call_is_rejected(runtime: Runtime, sites: Any) -> None:
    acl = ACL(rules=[ACLRule(callers=["*"], targets=["greet"], effect="allow")], default_effect="deny")
    registry = only(runtime, greet, pair).registry
    caller = await sites(door=Door(registry, acl=acl))

    assert state_of(await caller.send("greet", "x")) == "completed"
    task = await caller.send("pair", {"a": "1", "b": "2"})

    assert state_of(task) == "rejected"
    assert error_of(task)["code"] == "forbidden"


class Later(ApprovalHandler):
    """Says that it will decide later, and then that it is fine."""

    def __init__(self) -> None:
        self.asked = 0

    async def request_approval(self, request: ApprovalRequest) -> ApprovalResult:
        self.asked += 1
        return ApprovalResult(status="pending", approval_id="42")

    async def check_approval(self, approval_id: str) -> ApprovalResult:
        assert approval_id == "42"
        return ApprovalResult(status="approved", approval_id=approval_id)


async def test_a_call_that_waits_for_approval_goes_on_with_the_next_message(runtime: Runtime, sites: Any) -> None:
    caller = await sites(door=Door(only(runtime, risky).registry, approval_handler=Later()))

    task = await caller.send("risky", {"n": 3})
    assert state_of(task) == "input-required"
    assert error_of(task)["code"] == "approval_pending"
    assert error_of(task)["details"]["approval_id"] == "42"
    again = await caller.send(None, {"n": 3, "_approval_token": "42"}, taskId=task["id"], contextId=task["contextId"])
    other = await caller.send("risky", {"n": 3})
    cancelled = await caller.call("tasks/cancel", {"id": other["id"]})

    assert again["id"] == task["id"]
    assert value_of(again) == {"result": 3}
    assert state_of(cancelled) == "canceled"


# -- lists -------------------------------------------------------------------------------------------------------


async def test_lists_have_pages_and_filters(sites: Any) -> None:
    caller = await sites(greet, stuck)
    ids = [
        (await caller.send("greet", str(number), contextId="odd" if number % 2 else "even"))["id"]
        for number in range(5)
    ]
    since = datetime.now(UTC)
    busy = (await caller.call("message/send", sent("stuck", {}, blocking=False)))["id"]
    await caller.until(busy, "working")

    seen, token = [], ""
    for _ in range(3):
        page = await caller.call("tasks/list", {"pageSize": 2, "pageToken": token})
        seen += [one["id"] for one in page["tasks"]]
        token = page["nextPageToken"]
        assert page["totalSize"] == 6
    assert (token, seen) == ("", [busy, *reversed(ids)])

    async def listed(method: str, **params: Any) -> list[str]:
        return [one["id"] for one in (await caller.call(method, params))["tasks"]]

    assert await listed("tasks/list", contextId="odd") == [ids[3], ids[1]]
    assert await listed("ListTasks", contextId="odd") == [ids[3], ids[1]]
    assert await listed("tasks/list", status="working") == [busy]
    assert await listed("ListTasks", status="TASK_STATE_WORKING") == [busy]
    assert await listed("tasks/list", lastUpdatedAfter=since.isoformat()) == [busy]
    assert await listed("tasks/list", lastUpdatedAfter=since.timestamp() * 1000) == [busy]
    assert await listed("ListTasks", statusTimestampAfter=since.isoformat()) == [busy]
    [full] = (await caller.call("tasks/list", {"contextId": "odd", "pageSize": 1, "includeArtifacts": True}))["tasks"]
    assert value_of(full) == "hello 3"
    [bare] = (await caller.call("tasks/list", {"contextId": "odd", "pageSize": 1, "historyLength": 0}))["tasks"]
    assert "artifacts" not in bare
    assert "history" not in bare
    await caller.call("tasks/cancel", {"id": busy})


async def test_to_others_a_task_does_not_exist(runtime: Runtime) -> None:
    async with a2a_site(only(runtime, greet, stuck)) as url:
        alice, others = Caller(url, "alice"), [Caller(url, "bob"), Caller(url)]
        done = await alice.send("greet", "x")
        busy = await alice.call("message/send", sent("stuck", {}, blocking=False))

        for other in others:
            for task in (done["id"], busy["id"]):
                missing = (await other.post(request("tasks/get", {"id": "missing"})))["error"]
                for method in (*OLD, *NEW):
                    answer = await other.post(request(method, {"id": task}))
                    assert answer["error"]["code"] == missing["code"]
                    assert answer["error"]["message"] == missing["message"]
                for more in ({"taskId": task}, {"referenceTaskIds": [task]}):
                    assert await other.code("message/send", sent("greet", "x", **more)) == -32001
                    assert await other.code("message/stream", sent("greet", "x", **more)) == -32001
            assert (await other.call("tasks/list", {}))["totalSize"] == 0
            assert (await other.call("tasks/list", {"contextId": done["contextId"]}))["tasks"] == []
        nobody = await others[1].send("greet", "x")
        assert await alice.code("tasks/get", {"id": nobody["id"]}) == -32001
        assert (await alice.call("tasks/list", {}))["totalSize"] == 2
        more = sent("greet", "x", referenceTaskIds=[done["id"]])
        assert state_of(await alice.call("message/send", more)) == "completed"
        assert state_of(await alice.call("tasks/cancel", {"id": busy["id"]})) == "canceled"
