"""Tools over MCP: what is listed, what calls return, and what callers are told of errors."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import warnings
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import pytest
from apcore import Registry
from mcp import ClientSession
from pydantic import BaseModel

import apflow
from apflow import Budget, CircuitBreakerConfig, PublicError, Runtime
from apflow.bridge.door import Door
from apflow.bridge.mcp.tools import tool_name
from tests.integration.mcp_site import error_of, mcp_client, mcp_site, run_id_of, text_of, until

pytestmark = pytest.mark.anyio

WORD = "hunter2"


class Colour(Enum):
    RED = "red"


class Paper(BaseModel):
    title: str
    pages: int = 1


class Parcel(BaseModel):
    moment: datetime
    colour: Colour
    paper: Paper
    words: list[str]
    note: str | None


@apflow.task(name="mcpt.add", tags=("readonly", "idempotent"))
async def add(a: int, b: int = 2) -> int:
    """Add two numbers."""
    return a + b


@apflow.task(name="mcpt.paper")
def paper(title: str, authors: list[str]) -> Paper:
    return Paper(title=f"{title} by {', '.join(authors)}")


@apflow.task(name="mcpt.echo")
async def echo(moment: datetime, colour: Colour, paper: Paper, words: list[str], note: str | None = None) -> Parcel:
    return Parcel(moment=moment, colour=colour, paper=paper, words=words, note=note)


@apflow.task(name="mcpt.text")
async def text(size: int) -> str:
    return "é" * size


@apflow.task(name="mcpt.nothing")
async def nothing() -> None:
    return None


@apflow.task(name="mcpt.red")
async def red() -> Colour:
    return Colour.RED


@apflow.task(name="mcpt.day")
async def day() -> datetime:
    return datetime(2026, 1, 2, tzinfo=UTC)


@apflow.task(name="mcpt.numbers")
async def numbers() -> list[int]:
    return [1, 2**70]


@apflow.task(name="mcpt.mapping")
async def mapping() -> dict[str, int]:
    return {"a": 1}


@apflow.task(name="mcpt.broken")
async def broken(word: str) -> str:
    raise ValueError(f"the password is {word}")


@apflow.task(name="mcpt.public")
async def public(word: str) -> str:
    raise PublicError(f"no {word} today", code="sold_out", details={"left": 0}, retryable=True)


@apflow.task(name="mcpt.late", timeout=0.05)
async def late() -> None:
    await asyncio.sleep(60)


@apflow.task(name="mcpt.fragile", breaker=CircuitBreakerConfig(failure_threshold=1, reset_timeout_seconds=60))
async def fragile() -> None:
    raise ValueError(WORD)


@apflow.task(name="mcpt.dear", budget=Budget(tokens=100, name="calls", per="user"))
async def dear(tokens: int) -> int:
    apflow.report_usage(input=tokens, cost_usd=0)
    return tokens


@pytest.fixture
async def runtime(sqlite_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(sqlite_url, shutdown_seconds=1) as made:
        yield made


@pytest.fixture
async def url(runtime: Runtime) -> AsyncIterator[str]:
    async with mcp_site(Door(runtime, prefix="mcpt.")) as where:
        yield where


async def test_tools_are_listed_with_schemas_and_hints(url: str) -> None:
    async with mcp_client(url) as session:
        tools = {tool.name: tool for tool in (await session.list_tools()).tools}
    assert set(tools) >= {"mcpt-add", "mcpt-echo"}
    assert all(re.fullmatch("[a-zA-Z0-9_-]{1,64}", name) for name in tools)
    one = tools["mcpt-add"]
    assert one.description == "Add two numbers."
    assert one.inputSchema["properties"]["b"].items() >= {"default": 2, "type": "integer"}.items()
    assert one.inputSchema["required"] == ["a"]
    assert one.outputSchema is not None
    assert one.outputSchema["properties"]["result"]["type"] == "integer"
    assert one.annotations is not None
    hints = one.annotations.model_dump()
    assert hints == {
        "title": "mcpt.add",
        "readOnlyHint": True,
        "destructiveHint": False,
        "idempotentHint": True,
        "openWorldHint": True,
    }


async def test_what_the_server_says_of_itself(url: str) -> None:
    async with mcp_client(url) as session:
        said = session.get_server_capabilities()
        assert said is not None
        assert said.tools is not None
        assert said.tools.listChanged is True
        assert (said.prompts, said.resources, said.logging) == (None, None, None)
        await session.send_ping()


@pytest.mark.parametrize(
    ("name", "arguments", "shown", "structured"),
    [
        ("mcpt-add", {"a": 1}, "3", {"result": 3}),
        ("mcpt.add", {"a": 1, "b": 5.0}, "6", {"result": 6}),
        ("mcpt-text", {"size": 3}, "ééé", {"result": "ééé"}),
        ("mcpt-nothing", {}, "null", {"result": None}),
        ("mcpt-red", {}, "red", {"result": "red"}),
        ("mcpt-day", {}, "2026-01-02T00:00:00Z", {"result": "2026-01-02T00:00:00Z"}),
        ("mcpt-numbers", {}, "[1, 1180591620717411303424]", {"result": [1, 2**70]}),
    ],
)
async def test_results(url: str, name: str, arguments: dict[str, Any], shown: str, structured: dict[str, Any]) -> None:
    async with mcp_client(url) as session:
        result = await session.call_tool(name, arguments)
    assert (result.isError, text_of(result), result.structuredContent) == (False, shown, structured)


async def test_objects_as_arguments_and_results(url: str, runtime: Runtime) -> None:
    async with mcp_client(url) as session:
        result = await session.call_tool("mcpt-paper", {"title": "Tides", "authors": ["é", "b"]})
        given = {
            "moment": "2026-01-01T00:00:00Z",
            "colour": "red",
            "paper": {"title": "t", "pages": 2},
            "words": ["a"],
            "note": None,
        }
        echoed = await session.call_tool("mcpt-echo", given)
        made = await session.call_tool("mcpt-mapping")
    assert json.loads(text_of(result)) == {"title": "Tides by é, b", "pages": 1}
    assert json.loads(text_of(echoed)) == given
    assert made.structuredContent == json.loads(text_of(made)) == {"a": 1}
    run = await runtime.runs.get(run_id_of(result))
    assert run is not None
    assert (run.status, run.result) == ("completed", {"title": "Tides by é, b", "pages": 1})


async def test_errors_of_tasks(url: str, runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "apflow")
    async with mcp_client(url) as session:
        broken = await session.call_tool("mcpt-broken", {"word": WORD})
        public = await session.call_tool("mcpt-public", {"word": "fish"})
        late = await session.call_tool("mcpt-late")
        await session.call_tool("mcpt-fragile")
        opened = await session.call_tool("mcpt-fragile")
    told = error_of(broken)
    assert told["code"] == "internal"
    assert told["reference"] == run_id_of(broken) in text_of(broken)
    assert WORD not in broken.model_dump_json()
    assert told["reference"] in caplog.text
    run = await runtime.runs.get(run_id_of(broken))
    assert run is not None
    assert run.status == "failed"
    assert error_of(public) == {
        "code": "sold_out",
        "message": "no fish today",
        "details": {"left": 0},
        "retryable": True,
        "reference": run_id_of(public),
        "run_id": run_id_of(public),
    }
    assert error_of(late)["code"] == "timeout"
    assert error_of(late)["details"] == {"seconds": 0.05}
    assert error_of(opened)["code"] == "circuit_open"
    assert WORD not in caplog.text


async def test_budget_of_one_caller(url: str) -> None:
    async with mcp_client(url, "alice") as alice, mcp_client(url, "bob") as bob:
        assert text_of(await alice.call_tool("mcpt-dear", {"tokens": 100})) == "100"
        spent = error_of(await alice.call_tool("mcpt-dear", {"tokens": 1}))
        assert text_of(await bob.call_tool("mcpt-dear", {"tokens": 1})) == "1"
    assert (spent["code"], spent["details"]["remaining"], spent["details"]["limit"]) == ("budget_exhausted", 0, 100)


async def test_a_budget_per_user_refuses_callers_without_a_name(url: str) -> None:
    async with mcp_client(url) as session:
        assert error_of(await session.call_tool("mcpt-dear", {"tokens": 1}))["code"] == "user_required"


@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [
        ("mcpt-add", {"a": "1"}, "invalid_input"),
        ("mcpt-add", {}, "invalid_input"),
        ("mcpt-add", {"a": 1, "z": 1}, "invalid_input"),
        ("mcpt-missing", {}, "not_found"),
        ("", {}, "not_found"),
        ("../etc", {}, "not_found"),
        ("a--" + "0" * 16, {}, "not_found"),
        ("x" * 10_000, {}, "not_found"),
    ],
)
async def test_calls_that_cannot_begin(
    url: str, name: str, arguments: dict[str, Any], code: str, runtime: Runtime
) -> None:
    async with mcp_client(url) as session:
        assert error_of(await session.call_tool(name, arguments))["code"] == code
    assert await runtime.runs.count() == 0


async def test_what_the_door_hides_is_missing(runtime: Runtime) -> None:
    async with mcp_site(Door(runtime, prefix="mcpt.", tags=["readonly"])) as url, mcp_client(url) as session:
        assert [tool.name for tool in (await session.list_tools()).tools] == ["mcpt-add"]
        assert error_of(await session.call_tool("mcpt-text", {"size": 1}))["code"] == "not_found"


async def test_calls_with_one_key_are_one_run(url: str, runtime: Runtime) -> None:
    async with mcp_client(url, "alice") as alice, mcp_client(url, "bob") as bob:
        key = {"apflow/key": "k"}
        results = await asyncio.gather(*(alice.call_tool("mcpt-add", {"a": 1}, meta=key) for _ in range(5)))
        other = await bob.call_tool("mcpt-add", {"a": 1}, meta=key)
        conflict = await alice.call_tool("mcpt-add", {"a": 2}, meta=key)
    assert len({run_id_of(result) for result in results}) == 1
    assert run_id_of(other) != run_id_of(results[0])
    assert {text_of(result) for result in [*results, other]} == {"3"}
    assert error_of(conflict)["code"] == "conflict"
    assert await runtime.runs.count() == 2


@pytest.mark.parametrize("key", ["", "k" * 256, 1, ["k"]])
async def test_what_is_no_key(url: str, key: Any) -> None:
    async with mcp_client(url) as session:
        told = error_of(await session.call_tool("mcpt-add", {"a": 1}, meta={"apflow/key": key}))
    assert (told["code"], "apflow/key" in told["message"]) == ("invalid_input", True)


async def test_a_task_decorated_later_is_listed_and_announced(url: str) -> None:
    heard: list[str] = []

    async def hears(message: Any) -> None:
        heard.append(type(message.root).__name__)

    async with mcp_client(url, hears=hears) as session, mcp_client(url) as other:
        before = {tool.name for tool in (await session.list_tools()).tools}

        async def listening() -> bool:
            @apflow.task(name="mcpt.later")
            async def later() -> int:
                return 1

            await asyncio.sleep(0.01)
            return bool(heard)

        # The client opens the stream for announcements after it has said that it is ready.
        await until(listening)
        assert set(heard) == {"ToolListChangedNotification"}
        after = {tool.name for tool in (await session.list_tools()).tools}
        assert after - before == {"mcpt-later"}
        assert text_of(await other.call_tool("mcpt-later")) == "1"


async def test_long_names(runtime: Runtime) -> None:
    first, second = "mcpt." + "long" * 20 + "_a", "mcpt." + "long" * 20 + "_b"
    for name in (first, second):

        @apflow.task(name=name)
        async def named(told: str = name) -> str:
            return told[-1]

    assert tool_name(first) != tool_name(second)
    assert tool_name(first) == tool_name(first)
    async with mcp_site(Door(runtime, prefix="mcpt.long")) as url, mcp_client(url) as session:
        names = [tool.name for tool in (await session.list_tools()).tools]
        assert names == [tool_name(first), tool_name(second)]
        assert all(re.fullmatch("[a-zA-Z0-9_-]{64}", name) for name in names)
        called = [text_of(await session.call_tool(name)) for name in [*names, first, second.replace(".", "-")]]
    assert called == ["a", "b", "a", "b"]


async def test_modules_that_are_no_tasks(runtime: Runtime) -> None:
    class Plain:
        description = "Plain."

        def __init__(self) -> None:
            self.input_schema = {"properties": {"n": {"type": "integer"}}, "required": ["n"]}
            self.output_schema = {"type": "object"}
            self.annotations = {"destructive": True}

        async def execute(self, inputs: dict[str, Any], context: Any) -> dict[str, Any]:
            if inputs["n"] < 0:
                raise ValueError(WORD)
            return {"user": context.identity.id}

    registry = Registry()
    registry.register("plain.one", Plain())
    async with mcp_site(Door(registry)) as url, mcp_client(url, "alice") as session:
        [tool] = (await session.list_tools()).tools
        assert (tool.name, tool.inputSchema["type"]) == ("plain-one", "object")
        assert tool.annotations is not None
        assert tool.annotations.destructiveHint
        fine = await session.call_tool("plain-one", {"n": 1})
        wrong = await session.call_tool("plain-one", {"n": "x"})
        broken = await session.call_tool("plain-one", {"n": -1})
    assert (fine.structuredContent, fine.meta) == ({"user": "alice"}, None)
    assert error_of(wrong)["code"] == "invalid_input"
    assert error_of(broken)["code"] == "internal"
    assert WORD not in broken.model_dump_json()


async def test_overlapping_calls_leave_warnings_alone(url: str) -> None:
    before = warnings.filters, warnings.showwarning

    async def calls(session: ClientSession) -> None:
        await asyncio.gather(*(session.call_tool("mcpt-add", {"a": n}) for n in range(10)))

    async with mcp_client(url) as one, mcp_client(url) as two:
        await asyncio.gather(calls(one), calls(two))
    assert warnings.filters is before[0]
    assert warnings.showwarning is before[1]
