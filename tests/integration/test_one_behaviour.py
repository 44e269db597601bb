"""The same task behaves the same through each door: Python, the door itself, MCP, A2A and the command line."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from a2a.client import ClientConfig, ClientFactory
from a2a.client.card_resolver import A2ACardResolver
from a2a.helpers import new_message
from a2a.types.a2a_pb2 import Part, Role, SendMessageConfiguration, SendMessageRequest, TaskState
from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]

from apflow import Runtime
from apflow.bridge.door import Door
from apflow.bridge.refusals import RefusedError
from apflow.engine.inputs import inputs_of
from apflow.storage.scalars import decode
from tests.integration import behaviours
from tests.integration.a2a_site import Caller, sent
from tests.integration.cli_app import call as command
from tests.integration.cli_app import runtimes
from tests.integration.served import mcp_session, served

APP = "tests.integration.behaviours"


@dataclass(frozen=True)
class Case:
    """One call: its inputs and its result as JSON."""

    task: str
    inputs: dict[str, Any]
    result: Any
    plain: bool = False  # the result is an object, so it does not stand under `result`
    items: bool = False


ONE = "00000000-0000-0000-0000-000000000001"
CASES = {
    "integer": Case("one_int", {"x": 3}, 3),
    "negative": Case("one_int", {"x": -(2**31)}, -(2**31)),
    "big integer": Case("one_int", {"x": 2**63 + 1}, 2**63 + 1),
    "3.0 for an integer": Case("one_int", {"x": 3.0}, 3),
    "float": Case("one_float", {"x": 1.5}, 1.5),
    "integer for a float": Case("one_float", {"x": 2}, 2.0),
    "bool": Case("one_bool", {"x": True}, False),
    "text": Case("one_str", {"x": 'a "b"\n\t\\ {x: 1}'}, 'a "b"\n\t\\ {x: 1}'),
    "emoji": Case("one_str", {"x": "ä 🎉 \u2028"}, "ä 🎉 \u2028"),
    "empty text": Case("one_str", {"x": ""}, ""),
    "text like a number": Case("one_str", {"x": "3"}, "3"),
    "text like JSON": Case("one_str", {"x": '{"result": 1}'}, '{"result": 1}'),
    "datetime": Case("one_datetime", {"x": "2026-01-31T18:30:00Z"}, "2026-01-31T18:30:00.000005Z"),
    "date": Case("one_date", {"x": "2026-01-31"}, "2026-01-02"),
    "enum": Case("one_enum", {"x": "warm"}, "warm"),
    "uuid": Case("one_uuid", {"x": ONE}, ONE[:-1] + "2"),
    "decimal": Case("one_decimal", {"x": "0.20"}, "0.30"),
    "model": Case(
        "one_model",
        {"x": {"title": "t", "pages": [{"url": "a", "words": 3}]}},
        {"title": "t", "pages": [{"url": "a", "words": 3}, {"url": "last", "words": 0}]},
        plain=True,
    ),
    "models": Case(
        "one_models", {"x": [{"url": "a"}, {"url": "b"}]}, [{"url": "b", "words": 0}, {"url": "a", "words": 0}]
    ),
    "list": Case("one_list", {"x": [1, 2, 3]}, [3, 2, 1]),
    "empty list": Case("one_list", {"x": []}, []),
    "dict": Case("one_dict", {"x": {"a b": [1], "ü": []}}, {"a b": [1], "ü": []}, plain=True),
    "null": Case("one_optional", {"x": None}, None),
    "optional": Case("one_optional", {"x": 5}, 5),
    "defaults": Case("one_default", {}, [7, True, "dry"]),
    "no default": Case("one_default", {"x": 1, "page": {"url": "u"}, "tone": "warm"}, [1, False, "warm"]),
    "keywords": Case("one_kwargs", {"a": 1, "b": 2.0}, {"a": 1, "b": 2}, plain=True),
    "generator": Case("one_stream", {"n": 2}, [{"url": "0", "words": 0}, {"url": "1", "words": 1}], items=True),
    "no items": Case("one_stream", {"n": 0}, []),
    "nothing": Case("one_nothing", {}, None),
}

#: What goes wrong, and under which code; calls of one task stand in the order in which they are made.
FAILURES: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "validation": ("one_int", {"x": "private"}, "invalid_input"),
    "missing": ("one_int", {}, "invalid_input"),
    "unknown input": ("one_int", {"x": 1, "y": "private"}, "invalid_input"),
    "no task": ("one_of_none", {}, "not_found"),
    "spent": ("one_spends", {}, None),
    "budget": ("one_spends", {}, "budget_exhausted"),
    "breaks": ("one_breaks", {}, "internal"),
    "breaker": ("one_breaks", {}, "circuit_open"),
    "approval": ("one_guarded", {}, "approval_denied"),
    "cancelled": ("one_cancelled", {}, "cancelled"),
    "timeout": ("one_slow", {}, "timeout"),
    "public": ("one_public", {}, "moon"),
    "internal": ("one_raises", {}, "internal"),
}


@dataclass(frozen=True)
class Got:
    """What a client got: the result, or the error; and all of the answer as text."""

    value: Any
    error: dict[str, Any] | None
    text: str


Caught = Callable[[Case], Awaitable[Got]]


@pytest.fixture
async def runtime(sqlite_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(sqlite_url, shutdown_seconds=1) as made:
        yield made


# -- the doors -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def python(runtime: Runtime) -> AsyncIterator[Caught]:
    async def call(case: Case) -> Got:
        task = getattr(behaviours, case.task).with_options(runtime=runtime)
        definition = task.definition
        args, kwargs = definition.codec.call_with(inputs_of(definition).convert(case.inputs))
        run = (
            task.submit(*args, **kwargs)
            if definition.colour != "sync"
            else asyncio.to_thread(task.submit, *args, **kwargs)
        )
        return Got(decode(definition.codec.dump_result(await (await run))), None, "")

    yield call


@asynccontextmanager
async def door(runtime: Runtime) -> AsyncIterator[Caught]:
    way_in = Door(runtime, prefix="one_")

    async def call(case: Case) -> Got:
        try:
            answer = await way_in.call(case.task, case.inputs)
        except RefusedError as error:
            return Got(None, error.as_json(), str(error) + json.dumps(error.as_json()))
        return Got(answer.value, None, "")

    yield call


@asynccontextmanager
async def mcp(runtime: Runtime) -> AsyncIterator[Caught]:
    async with served(runtime, prefix="one_") as url, mcp_session(url) as session:

        async def call(case: Case) -> Got:
            result = await session.call_tool(case.task, case.inputs)
            if result.isError:
                return Got(None, (result.meta or {}).get("apflow/error"), result.model_dump_json())
            content = result.structuredContent or {}
            return Got(content if case.plain else content["result"], None, "")

        yield call


def of_parts(case: Case, parts: list[dict[str, Any]]) -> Any:
    """Return the result that parts of an artifact hold."""
    values = []
    for part in parts:
        value = part["data"] if "data" in part else part["text"]
        if (part.get("metadata") or {}).get("mediaType") == "application/json":
            value = json.loads(value)
        whole = case.plain or (case.items and "result" not in value) or not isinstance(value, dict)
        values.append(value if whole else value["result"])
    return values if case.items else values[0]


@asynccontextmanager
async def a2a(runtime: Runtime) -> AsyncIterator[Caught]:
    """The first generation, with data."""
    async with served(runtime, prefix="one_") as url:
        caller = Caller(f"{url}/")

        async def call(case: Case) -> Got:
            answer = await caller.post({"jsonrpc": "2.0", "id": 7, "method": "message/send",
                                        "params": sent(case.task, case.inputs)})  # fmt: skip
            return of_task(case, answer.get("result"), answer)

        yield call


def of_task(case: Case, task: dict[str, Any] | None, answer: Any) -> Got:
    if task is not None and task["status"]["state"] in ("completed", "TASK_STATE_COMPLETED"):
        return Got(of_parts(case, task["artifacts"][0]["parts"]), None, "")
    if task is not None:
        return Got(None, task["status"]["message"]["parts"][1]["data"], json.dumps(answer))
    return Got(None, answer["error"], json.dumps(answer))


@asynccontextmanager
async def a2a_sdk(runtime: Runtime) -> AsyncIterator[Caught]:
    """The second generation through the official client, with JSON as text."""
    async with served(runtime, prefix="one_") as url, httpx.AsyncClient(timeout=60) as http:
        card = await A2ACardResolver(http, url).get_agent_card()
        client = ClientFactory(ClientConfig(httpx_client=http, streaming=False)).create(card)

        async def call(case: Case) -> Got:
            message = new_message([Part(text=json.dumps(case.inputs))], role=Role.ROLE_USER)
            message.message_id = str(uuid.uuid4())
            message.metadata["skillId"] = case.task
            request = SendMessageRequest(message=message, configuration=SendMessageConfiguration())
            try:
                [answer] = [one async for one in client.send_message(request)]
            except Exception as error:  # noqa: BLE001 - the client has a class for each kind
                return Got(None, {"code": type(error).__name__}, f"{error!r} {vars(error)}")
            assert answer.task.status.state != TaskState.TASK_STATE_WORKING
            found = MessageToDict(answer.task)
            return of_task(case, found, found)

        yield call


DOORS = {"python": python, "door": door, "mcp": mcp, "a2a": a2a, "a2a sdk": a2a_sdk}


# -- results -------------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("name", DOORS)
async def test_values_survive_each_door(runtime: Runtime, name: str) -> None:
    async with DOORS[name](runtime) as call:
        found = {title: await call(case) for title, case in CASES.items()}
    assert {title: got.error for title, got in found.items() if got.error is not None} == {}
    assert {title: got.value for title, got in found.items()} == {title: case.result for title, case in CASES.items()}
    kinds = {title: type(got.value) for title, got in found.items() if name in ("python", "door", "mcp")}
    assert kinds == {title: type(case.result) for title, case in CASES.items() if title in kinds}


def test_values_survive_the_command_line(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "_default", [])
    monkeypatch.setenv("APFLOW_DATABASE_URL", sqlite_url)
    found = {}
    for title, case in CASES.items():
        done = command("run", f"{APP}:{case.task}", "--json", json.dumps(case.inputs), "--output", "json")
        assert done.exit_code == 0, (title, done.output)
        found[title] = json.loads(done.stdout)["result"]
    runtimes._default.clear()
    assert found == {title: case.result for title, case in CASES.items()}


# -- failures ------------------------------------------------------------------------------------------------

#: A2A has errors of its own for what is wrong with a message; they hold no code of ours.
PROTOCOL_ERRORS = {"invalid_input", "not_found"}


def leaked(text: str) -> list[str]:
    return [secret for secret in (*behaviours.SECRETS, "RuntimeError", "Traceback", ".py") if secret in text]


@pytest.mark.anyio
@pytest.mark.parametrize("name", [name for name in DOORS if name != "python"])
async def test_failures_are_told_alike_through_each_door(
    runtime: Runtime, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    found: dict[str, Got] = {}
    async with DOORS[name](runtime) as call:
        for title, (task, inputs, _) in FAILURES.items():
            found[title] = await call(Case(task, inputs, None))
    codes = {title: None if got.error is None else got.error.get("code") for title, got in found.items()}
    for title, (_, _, code) in FAILURES.items():
        own = name.startswith("a2a") and code in PROTOCOL_ERRORS and codes[title] != code
        assert own or codes[title] == code, (title, found[title])
        assert found[title].error is not None or code is None
        assert leaked(found[title].text) == [], (title, found[title].text)
    await told_with_figures(runtime, found, caplog.text)


async def told_with_figures(runtime: Runtime, found: dict[str, Got], log: str) -> None:
    budget, breaker, public, internal = (
        found[title].error or {} for title in ("budget", "breaker", "public", "internal")
    )
    assert (budget["details"]["remaining"], budget["details"]["limit"]) == (0, 10)
    assert budget["details"]["resets_at"] in budget["message"]
    assert 0 < breaker["details"]["retry_in_seconds"] <= 600
    assert (public["message"], public["details"], public["retryable"]) == ("the moon is full", {"phase": 1}, True)
    # Who may know more finds it by the reference, in the log and on the row.
    assert internal["reference"] in log
    assert internal["reference"] in internal["message"]
    row = await runtime.runs.get(internal["reference"])
    assert row is not None
    assert (row.name, row.status) == ("one_raises", "failed")
    assert all(secret in str(row.error) for secret in behaviours.SECRETS)


def test_failures_are_told_alike_by_the_command_line(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "_default", [])
    monkeypatch.setenv("APFLOW_DATABASE_URL", sqlite_url)
    for title, (task, inputs, code) in FAILURES.items():
        if title == "breaker":  # each command is a process of its own, and begins with closed breakers
            continue
        done = command("run", f"{APP}:{task}", "--json", json.dumps(inputs), "--output", "json")
        assert (done.exit_code == 0) == (code is None), (title, done.output)
        assert [secret for secret in behaviours.SECRETS if secret in done.output] == [], title
        if code is None:
            continue
        answer = json.loads(done.stdout or done.stderr.splitlines()[-1])
        assert answer.get("error", answer)["code"] == code, (title, answer)
    runtimes._default.clear()
