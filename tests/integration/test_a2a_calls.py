"""Tasks called over A2A: by hand in both generations of the protocol, and with the clients of the official SDK."""

from __future__ import annotations

import asyncio
import enum
import uuid
from collections.abc import AsyncIterator
from datetime import datetime
from functools import partial
from typing import Any

import httpx
import pytest
from a2a.client import Client, ClientConfig, ClientFactory
from a2a.client.card_resolver import A2ACardResolver
from a2a.helpers import get_data_parts, new_data_part, new_message
from a2a.types.a2a_pb2 import (
    CancelTaskRequest,
    GetTaskRequest,
    ListTasksRequest,
    Role,
    SendMessageConfiguration,
    SendMessageRequest,
    SubscribeToTaskRequest,
    TaskState,
)
from pydantic import BaseModel

import apflow
from apflow import Runtime
from apflow.bridge.door import Door
from tests.integration.a2a_site import Caller, a2a_site, error_of, only, sent, sent_new, state_of, until, value_of

pytestmark = pytest.mark.anyio

LONG = 2**60 + 1


class Colour(enum.Enum):
    RED = "red"


class Order(BaseModel):
    count: int
    due: datetime
    colours: list[Colour] = []


gates: list[asyncio.Event] = []
stopped: list[str] = []


@pytest.fixture
async def runtime(sqlite_url: str) -> AsyncIterator[Runtime]:
    gates[:] = [asyncio.Event()]
    stopped.clear()
    async with Runtime(sqlite_url, shutdown_seconds=1) as made:
        yield made


@apflow.task
async def add(a: int, b: int = 2) -> int:
    """Adds two numbers."""
    return a + b


@apflow.task
async def ordered(order: Order) -> Order:
    return order


@apflow.task
async def kind(value: Any) -> str:
    return type(value).__name__


@apflow.task
async def latest(moments: list[datetime]) -> datetime:
    return max(moments)


@apflow.task
async def other(colour: Colour) -> Colour:
    return colour


@apflow.task
async def numbers(n: int) -> list[int]:
    return list(range(n))


@apflow.task
async def fraction() -> float:
    return 0.5


@apflow.task
async def nothing() -> None:
    return None


@apflow.task
async def greet(name: str) -> str:
    return f"hello {name}"


@apflow.task
async def count(n: int) -> AsyncIterator[int]:
    for number in range(n):
        yield number


@apflow.task
async def steps() -> str:
    await apflow.progress(1, 2, "half of it")
    await gates[0].wait()
    return "done"


@apflow.task
async def forever() -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        stopped.append("forever")
        raise


@apflow.task
async def loses(secret: str) -> None:
    raise ValueError(f"the password is {secret}")


@apflow.task
async def says(what: str) -> None:
    raise apflow.PublicError(what, code="sold_out", details={"left": 3})


@apflow.task(budget=apflow.Budget(requests=1, per="user"))
async def dear() -> dict[str, Any]:
    apflow.report_usage(requests=1, input=1, output=1)
    return {"token_usage": {"input": 1, "output": 1, "total": 2}}


SERVED = (
    add,
    ordered,
    kind,
    latest,
    other,
    numbers,
    fraction,
    nothing,
    greet,
    count,
    steps,
    forever,
    loses,
    says,
    dear,
)


@pytest.fixture
async def url(runtime: Runtime) -> AsyncIterator[str]:
    async with a2a_site(only(runtime, *SERVED)) as found:
        yield found


CASES: list[tuple[Any, dict[str, Any], Any]] = [
    (add, {"a": 3}, {"result": 5}),
    (add, {"a": LONG}, f'{{"result": {LONG + 2}}}'),
    (latest, {"moments": ["2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"]}, "2026-02-01T00:00:00Z"),
    (other, {"colour": "red"}, "red"),
    (numbers, {"n": 3}, {"result": [0, 1, 2]}),
    (fraction, {}, {"result": 0.5}),
    (nothing, {}, {"result": None}),
    (greet, {"name": "Ada"}, "hello Ada"),
    (kind, {"value": 3}, "int"),
    (kind, {"value": 3.0}, "float"),
    (
        ordered,
        {"order": {"count": 3, "due": "2026-01-01T00:00:00Z", "colours": ["red"]}},
        {"count": 3, "due": "2026-01-01T00:00:00Z", "colours": ["red"]},
    ),
]


@pytest.mark.parametrize(("task", "inputs", "expected"), CASES)
async def test_types_survive_both_generations(url: str, task: Any, inputs: dict[str, Any], expected: Any) -> None:
    caller = Caller(url)

    old = await caller.send(task.name, inputs)
    new = (await caller.call("SendMessage", sent_new(task.name, inputs)))["task"]
    got = await caller.call("tasks/get", {"id": old["id"]})
    got_new = await caller.call("GetTask", {"id": new["id"]})

    for value in (value_of(old), value_of(new), value_of(got), value_of(got_new)):
        assert value == expected
        assert sorted(repr(value)) == sorted(repr(expected)), "3 is not 3.0"


async def test_what_a_restored_task_shows_is_what_was_shown_live(runtime: Runtime, url: str) -> None:
    caller = Caller(url)
    live = [await caller.send(task.name, inputs) for task, inputs, _ in CASES]
    live.append(await caller.send("count", {"n": 3}))
    live.append(await caller.send("count", {"n": 0}))
    live.append(await caller.send("loses", {"secret": "x"}))
    live.append(await caller.send("says", {"what": "sold out"}))
    await runtime.store.write(lambda tx: tx.execute("UPDATE apflow_a2a_tasks SET state = 'working'"))
    for one in live:
        await forget_end(runtime, one["id"])

    restored = [await caller.call("tasks/get", {"id": one["id"]}) for one in live]

    for before, after in zip(live, restored, strict=True):
        assert after["status"]["state"] == before["status"]["state"]
        assert after.get("artifacts") == before.get("artifacts")
        if "message" in before["status"]:
            assert error_of(after) == error_of(before)


async def forget_end(runtime: Runtime, task_id: str) -> None:
    """Make a task what it was before its end, as if the server had been killed then."""
    from a2a.types.a2a_pb2 import Task

    read = "SELECT body FROM apflow_a2a_tasks WHERE id = :id"
    row = await runtime.store.read(lambda tx: tx.row(read, {"id": task_id}))
    assert row is not None
    task = Task.FromString(bytes(row[0]))
    task.ClearField("artifacts")
    task.status.state = TaskState.TASK_STATE_WORKING
    task.status.ClearField("message")
    params = {"id": task_id, "body": task.SerializeToString()}
    await runtime.store.write(lambda tx: tx.execute("UPDATE apflow_a2a_tasks SET body = :body WHERE id = :id", params))


async def test_the_id_of_a_task_is_that_of_its_run(runtime: Runtime, url: str) -> None:
    task = await Caller(url, "alice").send("add", {"a": 1})

    run = await runtime.runs.get(task["id"])

    assert run is not None
    assert (run.name, run.user_id, run.accepted) == ("add", "alice", True)


async def test_failures_tell_what_may_be_told(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caller = Caller(url)

    secret = await caller.send("loses", {"secret": "hunter2"})
    public = await caller.send("says", {"what": "all gone"})
    wrong = await caller.send("add", {"a": "many"})
    missing = await caller.send("no_such_task", {})

    assert [state_of(one) for one in (secret, public, wrong, missing)] == ["failed"] * 4
    assert error_of(secret)["code"] == "internal"
    assert "hunter2" not in str(secret["status"])
    assert error_of(secret)["reference"] == secret["id"]
    assert secret["id"] in caplog.text
    assert "hunter2" not in caplog.text
    assert (error_of(public)["code"], error_of(public)["message"]) == ("sold_out", "all gone")
    assert error_of(public)["details"] == {"left": 3}
    assert error_of(wrong)["code"] == "invalid_input"
    assert "a" in error_of(wrong)["message"]
    assert error_of(missing)["code"] == "not_found"


async def test_a_budget_says_what_is_left_and_is_counted_per_caller(url: str) -> None:
    alice, bob = Caller(url, "alice"), Caller(url, "bob")

    assert state_of(await alice.send("dear", {})) == "completed"
    refused = await alice.send("dear", {})
    assert state_of(refused) == "failed"
    assert error_of(refused)["code"] == "budget_exhausted"
    assert error_of(refused)["details"]["remaining"] == 0
    assert state_of(await bob.send("dear", {})) == "completed"


@pytest.mark.parametrize("generation", ["0.3", "1.0"])
async def test_a_stream_tells_progress_the_artifact_and_the_end(url: str, generation: str) -> None:
    caller, seen = Caller(url), []
    method, params = (
        ("message/stream", sent("steps", {}))
        if generation == "0.3"
        else ("SendStreamingMessage", sent_new("steps", {}))
    )

    async for event in caller.events(method, params):
        seen.append(event if generation == "0.3" else next(iter(event.values())))
        if "half of it" in str(event):
            gates[0].set()

    states = [state_of(one).lower().removeprefix("task_state_") for one in seen if "status" in one]
    assert states == ["submitted", "working", "working", "completed"]
    [told] = [one for one in seen if "half of it" in str(one)]
    assert told["metadata"] == {"done": 1, "total": 2}
    [artifact] = [one for one in seen if "artifact" in one]
    assert artifact["artifact"]["parts"][0]["text"] == "done"
    task = await caller.call("tasks/get", {"id": seen[0]["id"]})
    assert len(task["history"]) == 1, "progress stays out of the history"


async def test_items_of_a_generator_are_chunks_of_the_artifact(url: str) -> None:
    caller = Caller(url)

    events = [one async for one in caller.events("message/stream", sent("count", {"n": 5}))]

    chunks = [one for one in events if one["kind"] == "artifact-update"]
    assert [one["append"] for one in chunks] == [False] + [True] * (len(chunks) - 1)
    parts = [part["data"]["result"] for one in chunks for part in one["artifact"]["parts"]]
    assert parts == [0, 1, 2, 3, 4]
    task = await caller.call("tasks/get", {"id": events[0]["id"]})
    assert [part["data"]["result"] for part in task["artifacts"][0]["parts"]] == parts
    assert value_of(await caller.send("count", {"n": 0})) == {"result": []}


async def test_a_send_may_return_at_once(url: str) -> None:
    caller = Caller(url)

    old = await caller.call("message/send", sent("steps", {}, blocking=False))
    new = (await caller.call("SendMessage", sent_new("steps", {}, at_once=True)))["task"]

    assert state_of(old) in ("submitted", "working")
    assert state_of(new) in ("TASK_STATE_SUBMITTED", "TASK_STATE_WORKING")
    gates[0].set()
    assert value_of(await caller.until(old["id"], "completed")) == "done"
    assert value_of(await caller.until(new["id"], "completed")) == "done"


async def test_a_resubscriber_hears_the_rest(url: str) -> None:
    caller = Caller(url)
    task = await caller.call("message/send", sent("steps", {}, blocking=False))
    heard: list[Any] = []

    async for event in caller.events("tasks/resubscribe", {"id": task["id"]}):
        heard.append(event)
        gates[0].set()

    assert heard[0]["kind"] == "task"
    assert heard[-1]["final"] is True
    assert state_of(heard[-1]) == "completed"


async def test_who_hangs_up_leaves_the_task_running(url: str) -> None:
    caller = Caller(url)
    stream = caller.events("message/stream", sent("steps", {}))
    task = await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]

    gates[0].set()

    assert value_of(await caller.until(task["id"], "completed")) == "done"


@pytest.mark.parametrize("method", ["tasks/cancel", "CancelTask"])
async def test_cancel_stops_the_coroutine(runtime: Runtime, url: str, method: str) -> None:
    caller = Caller(url)
    task = await caller.call("message/send", sent("forever", {}, blocking=False))
    await until(lambda: _runs(runtime, task["id"]))

    cancelled = await caller.call(method, {"id": task["id"]})

    assert state_of(cancelled) in ("canceled", "TASK_STATE_CANCELED")
    assert stopped == ["forever"]
    run = await runtime.runs.get(task["id"])
    assert run is not None
    assert run.status == "cancelled"
    assert await caller.code(method, {"id": task["id"]}) == -32002
    assert state_of(await caller.call("tasks/get", {"id": task["id"]})) == "canceled"


async def _runs(runtime: Runtime, task_id: str) -> bool:
    return await runtime.runs.get(task_id) is not None


async def test_a_run_that_is_cancelled_elsewhere_ends_the_stream(runtime: Runtime, url: str) -> None:
    states = []
    async for event in Caller(url).events("message/stream", sent("forever", {})):
        states.append(state_of(event))
        task_id = event.get("id") or event.get("taskId")
        if states[-1] == "working":
            await until(partial(_runs, runtime, task_id))
            await runtime.runs.cancel(task_id)

    assert states == ["submitted", "working", "canceled"]


async def test_nothing_is_left_of_many_tasks(runtime: Runtime) -> None:
    import gc

    from a2a.server.agent_execution.active_task import ActiveTask

    async with a2a_site(only(runtime, add)) as url:
        caller = Caller(url)
        await asyncio.gather(*(caller.send("add", {"a": number}) for number in range(50)))

        async def gone() -> bool:
            gc.collect()
            return not any(isinstance(one, ActiveTask) for one in gc.get_objects())

        await until(gone)


# -- the official clients ----------------------------------------------------------------------------------------


async def _client(url: str, http: httpx.AsyncClient, version: str, *, streaming: bool) -> Client:
    card = await A2ACardResolver(http, url).get_agent_card()
    kept = [one for one in card.supported_interfaces if one.protocol_version == version]
    del card.supported_interfaces[:]
    card.supported_interfaces.extend(kept)
    return ClientFactory(ClientConfig(httpx_client=http, streaming=streaming)).create(card)


def _message(skill: str, inputs: dict[str, Any], *, at_once: bool = False) -> SendMessageRequest:
    message = new_message([new_data_part(inputs)], role=Role.ROLE_USER)
    message.message_id = str(uuid.uuid4())
    message.metadata["skillId"] = skill
    return SendMessageRequest(message=message, configuration=SendMessageConfiguration(return_immediately=at_once))


@pytest.fixture(params=["0.3", "1.0"])
def version(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


async def test_official_clients_send_get_list_and_cancel(url: str, runtime: Runtime, version: str) -> None:
    async with httpx.AsyncClient(timeout=60, headers={"A2A-Version": version}) as http:
        client = await _client(url, http, version, streaming=False)

        [answer] = [one async for one in client.send_message(_message("add", {"a": 40}))]
        assert answer.task.status.state == TaskState.TASK_STATE_COMPLETED
        assert get_data_parts(answer.task.artifacts[0].parts) == [{"result": 42}]
        got = await client.get_task(GetTaskRequest(id=answer.task.id))
        assert got == answer.task
        [waiting] = [one async for one in client.send_message(_message("forever", {}, at_once=True))]
        await until(lambda: _runs(runtime, waiting.task.id))
        cancelled = await client.cancel_task(CancelTaskRequest(id=waiting.task.id))
        assert cancelled.status.state == TaskState.TASK_STATE_CANCELED
        if version == "1.0":  # The SDK's client of 0.3 has no tasks/list.
            listed = await client.list_tasks(ListTasksRequest(page_size=1))
            assert [one.id for one in listed.tasks] == [waiting.task.id]
            assert listed.total_size == 2


async def test_official_clients_stream_and_subscribe(url: str, version: str) -> None:
    async with httpx.AsyncClient(timeout=60, headers={"A2A-Version": version}) as http:
        client = await _client(url, http, version, streaming=True)
        gates[0].set()

        events = [one async for one in client.send_message(_message("count", {"n": 3}))]
        kinds = [one.WhichOneof("payload") for one in events]
        assert kinds[0] == "task"
        assert kinds[-1] == "status_update"
        parts = [
            part for one in events if one.HasField("artifact_update") for part in one.artifact_update.artifact.parts
        ]
        assert get_data_parts(parts) == [{"result": 0}, {"result": 1}, {"result": 2}]
        gates[0].clear()
        sending = client.send_message(_message("steps", {}))
        first = await anext(sending)
        heard = []
        async for one in client.subscribe(SubscribeToTaskRequest(id=first.task.id)):
            heard.append(one)
            gates[0].set()
        assert heard[-1].status_update.status.state == TaskState.TASK_STATE_COMPLETED
        async for one in sending:
            first = one
        assert first.status_update.status.state == TaskState.TASK_STATE_COMPLETED


@apflow.task
async def early_bird() -> str:
    """Was there before."""
    return "worm"


async def test_both_clients_can_read_the_card(runtime: Runtime) -> None:
    async with a2a_site(Door(runtime)) as url, httpx.AsyncClient() as http:
        card = (await http.get(f"{url}.well-known/agent-card.json")).json()
        same = (await http.get(f"{url}.well-known/agent.json")).json()

        @apflow.task(tags=("late",))
        async def latecomer(n: int) -> int:
            """Came late."""
            return n

        now = (await http.get(f"{url}.well-known/agent-card.json")).json()

    assert card == same
    assert (card["url"], card["preferredTransport"], card["protocolVersion"]) == (url, "JSONRPC", "0.3")
    assert [one["protocolVersion"] for one in card["supportedInterfaces"]] == ["1.0", "0.3"]
    assert card["capabilities"] == {"streaming": True, "pushNotifications": False, "extendedAgentCard": False}
    skills = {one["id"]: one for one in card["skills"]}
    assert skills["early_bird"]["description"] == "Was there before."
    assert all(one["tags"] and one["description"] for one in card["skills"])
    assert "latecomer" not in skills
    assert {one["id"]: one for one in now["skills"]}["latecomer"]["tags"] == ["late"]
    assert latecomer.name == "latecomer"
