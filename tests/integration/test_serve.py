"""`apflow.serve`: what it answers where, whose runtime it uses, and how it starts and stops."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, ClassVar

import apcore
import httpx
import pytest
from mcp import McpError
from mcp.types import CallToolResult

import apflow
from apflow import Runtime
from tests.integration.served import bearer, code_of, mcp_session, served, value_of

pytestmark = pytest.mark.anyio

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}
ACCEPT = {"Accept": "application/json, text/event-stream"}


class Gate:
    """Where `hold` waits, and how a test knows that it does."""

    def __init__(self) -> None:
        self.entered, self.open = asyncio.Event(), asyncio.Event()


gates: list[Gate] = []


@apflow.task(tags=("quick",))
async def double(n: int) -> int:
    """Return twice the number."""
    return 2 * n


@apflow.task
async def hold(n: int) -> int:
    gates[-1].entered.set()
    await gates[-1].open.wait()
    return n


@pytest.fixture
def gate() -> Gate:
    gates.append(Gate())
    return gates[-1]


@pytest.fixture
async def runtime(sqlite_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(sqlite_url, shutdown_seconds=1) as made:
        yield made


async def test_everything_is_where_it_is_said_to_be(runtime: Runtime, capfd: pytest.CaptureFixture[str]) -> None:
    async with served(runtime, explorer=True) as url, httpx.AsyncClient() as client:
        for path in ("/mcp", "/mcp/"):
            answer = await client.post(url + path, json=INITIALIZE, headers=ACCEPT)
            assert (answer.status_code, "mcp-session-id" in answer.headers) == (200, True)
        card = (await client.get(f"{url}/.well-known/agent-card.json")).json()
        assert {one["url"] for one in card["supportedInterfaces"]} == {f"{url}/"}
        assert (await client.post(f"{url}/", json={"jsonrpc": "2.0", "id": 1, "method": "no"})).json()["error"]
        assert (await client.get(f"{url}/healthz")).json() == {"status": "ok"}
        assert (await client.get(f"{url}/explorer")).headers["location"] == "/explorer/"
        assert (await client.get(f"{url}/explorer/")).headers["x-frame-options"] == "DENY"
    out, err = capfd.readouterr()
    assert out == ""
    assert err == f"apflow serves at {url}: MCP at /mcp, A2A at /, the explorer at /explorer\n"


async def test_only_what_was_asked_for_is_served(runtime: Runtime) -> None:
    async with served(runtime, a2a=False) as url, httpx.AsyncClient() as client:
        for path in ("/", "/explorer", "/explorer/", "/.well-known/agent-card.json", "/docs"):
            assert (await client.get(url + path)).status_code == 404, path
        async with mcp_session(url) as session:
            assert value_of(await session.call_tool("double", {"n": 4})) == 8


async def test_the_explorer_lists_tasks_and_calls_them(runtime: Runtime) -> None:
    async with (
        served(runtime, mcp=False, a2a=False, explorer=True, tags=["quick"]) as url,
        httpx.AsyncClient(base_url=f"{url}/explorer") as client,
    ):
        page = (await client.get("/")).text
        assert not re.search(r"""(src|href)=["'](?!data:)|@import|url\(""", page.partition("<footer")[0])
        tools = (await client.get("/tools")).json()
        [tool] = tools
        assert (tool["name"], tool["description"]) == ("double", "Return twice the number.")
        assert tool["annotations"] == {
            **dict.fromkeys(("readOnlyHint", "destructiveHint", "idempotentHint"), False),
            "title": "double",
            "openWorldHint": True,
        }
        assert (await client.get("/tools/double")).json()["inputSchema"]["required"] == ["n"]
        called = (await client.post("/tools/double/call", json={"n": 4})).json()
        assert (called["content"], called["isError"]) == ([{"type": "text", "text": '{\n  "result": 8\n}'}], False)
        run = await runtime.runs.get(called["_meta"]["_trace_id"])
        assert run is not None
        assert run.result == 8
        for inputs in ({"n": "x"}, {}, [1], "x", None):
            refused = (await client.post("/tools/double/call", json=inputs)).json()
            assert refused["isError"]
            assert '"code": "invalid_input"' in refused["content"][0]["text"]
        assert (await client.post("/tools/hold/call", json={"n": 1})).status_code == 404


class Foreign:
    """A module of apcore that says as little of itself as it may."""

    input_schema: ClassVar = {"type": "object", "properties": {"n": {"type": "integer"}}}
    output_schema = description = None

    def execute(self, inputs: dict[str, int], _context: object = None) -> dict[str, int]:
        return inputs


async def test_the_explorer_shows_modules_that_are_no_tasks(sqlite_url: str) -> None:
    registry = apcore.Registry()
    registry.register("not.ours", Foreign())
    async with (
        Runtime(sqlite_url),
        served(registry, mcp=False, explorer=True) as url,
        httpx.AsyncClient(base_url=f"{url}/explorer") as client,
    ):
        assert [tool["name"] for tool in (await client.get("/tools")).json()] == ["not.ours"]
        assert (await client.get("/tools/not.ours")).json()["inputSchema"] == Foreign.input_schema
        called = (await client.post("/tools/not.ours/call", json={"n": 4})).json()
        assert json.loads(called["content"][0]["text"]) == {"n": 4}


@pytest.mark.parametrize("path", ["/mcp", "/mcp/", "/", "/healthz", "/explorer/tools", "/.well-known/agent-card.json"])
async def test_no_page_of_another_site_gets_anything(runtime: Runtime, path: str) -> None:
    async with served(runtime, explorer=True) as url, httpx.AsyncClient() as client:
        for method in ("GET", "POST", "OPTIONS"):
            rebound = await client.request(method, url + path, headers={"Host": "evil.example.com"})
            assert rebound.status_code == 421
            foreign = await client.request(method, url + path, headers={"Origin": "https://example.org"})
            assert foreign.status_code == 403
            assert "access-control-allow-origin" not in foreign.headers


async def test_a_runtime_that_nobody_has_opened_is_opened_and_left(sqlite_url: str) -> None:
    runtime = Runtime(sqlite_url)
    async with served(runtime) as url, mcp_session(url) as session:
        assert runtime.entered
        assert value_of(await session.call_tool("double", {"n": 4})) == 8
    assert runtime.closed


async def test_a_runtime_that_is_open_stays_open(runtime: Runtime) -> None:
    async with served(runtime) as url, mcp_session(url) as session:
        assert value_of(await session.call_tool("double", {"n": 4})) == 8
    assert not runtime.closed
    assert await double(1) == 2


async def test_what_was_interrupted_is_carried_on_at_the_start(sqlite_url: str, gate: Gate) -> None:
    async with Runtime(sqlite_url, shutdown_seconds=0) as before:
        run = await hold.submit(7)
        await gate.entered.wait()
        record = await before.runs.get(run.id)
    assert record is not None
    gate.entered.clear()
    gate.open.set()
    async with Runtime(sqlite_url) as runtime, served(runtime, a2a=False):
        await gate.entered.wait()
        assert await (await hold.with_options(key="another").submit(1)) == 1
        await all_ended(runtime)
        finished = await runtime.runs.get(run.id)
    assert finished is not None
    assert finished.result == 7


async def test_a_server_that_stops_waits_for_answers(sqlite_url: str, gate: Gate) -> None:
    runtime = Runtime(sqlite_url, shutdown_seconds=30)
    async with asyncio.TaskGroup() as group:
        async with served(runtime, a2a=False) as url:
            call = group.create_task(call_hold(url))
            await gate.entered.wait()
            asyncio.get_running_loop().call_later(0.2, gate.open.set)
        assert value_of(answered(await call)) == 3
    assert runtime.closed


async def test_a_server_that_stops_hands_back_what_takes_too_long(sqlite_url: str, gate: Gate) -> None:
    runtime = Runtime(sqlite_url, shutdown_seconds=0)
    async with asyncio.TaskGroup() as group:
        async with served(runtime, a2a=False) as url:
            call = group.create_task(call_hold(url))
            await gate.entered.wait()
        assert code_of(answered(await call)) == "interrupted"
    gate.open.set()
    async with Runtime(sqlite_url) as after:
        await after.recover()  # unless the runtime has taken it over by itself already
        await all_ended(after)
        (row,) = await after.runs.list()
    assert (row.status, row.result) == ("completed", 3)


async def test_a_server_that_stops_leaves_the_runs_of_an_open_runtime_alone(sqlite_url: str, gate: Gate) -> None:
    async with Runtime(sqlite_url, shutdown_seconds=0) as runtime:
        async with asyncio.TaskGroup() as group:
            async with served(runtime, a2a=False) as url:
                call = group.create_task(call_hold(url))
                await gate.entered.wait()
            call.cancel()
        (row,) = await runtime.runs.list()
        assert (row.status, runtime.closed) == ("in_progress", False)
        gate.open.set()
        assert await hold.with_options(key="another")(1) == 1
        await all_ended(runtime)


def answered(result: CallToolResult | None) -> CallToolResult:
    assert result is not None
    return result


async def all_ended(runtime: Runtime) -> None:
    async with asyncio.timeout(60):
        while await runtime.runs.count(status="in_progress"):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)


async def call_hold(url: str) -> CallToolResult | None:
    """Call `hold` and return the answer, or None when there was none. The server goes away meanwhile."""
    answer = None
    with suppress(ExceptionGroup, McpError):  # what the client makes of that afterwards is its own affair
        async with mcp_session(url) as session:
            await session.list_tools()  # which the client would do after the call
            answer = await session.call_tool("hold", {"n": 3})
    return answer


async def test_port_0_is_a_free_one(runtime: Runtime, capfd: pytest.CaptureFixture[str]) -> None:
    serving = asyncio.create_task(apflow.aserve(runtime, port=0, a2a=False))
    line = ""
    async with asyncio.timeout(60):
        while not line:
            await asyncio.sleep(0.01)
            line = capfd.readouterr().err
    url = line.removeprefix("apflow serves at ").partition(": ")[0]
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{url}/healthz")).status_code == 200
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_a_taken_port_is_said(runtime: Runtime) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock, pytest.raises(OSError, match="in use"):
        await apflow.aserve(runtime, port=sock.getsockname()[1])


@pytest.mark.parametrize("host", ["::", "", "192.168.7.7", "agents.example.com"])
async def test_a_host_that_others_reach_needs_auth(runtime: Runtime, host: str) -> None:
    with pytest.raises(ValueError, match="allow_unauthenticated=True"):
        await apflow.aserve(runtime, host=host)


async def test_a_host_that_others_reach_is_served_with_auth_or_on_demand(runtime: Runtime) -> None:
    everybody = "0.0.0.0"  # noqa: S104 - for the time of this test
    outside = {"Host": "example.com"}
    async with httpx.AsyncClient() as client:
        async with served(runtime, host=everybody, auth="0123456789abcdef") as url:
            assert (await client.get(f"{url}/mcp")).status_code == 401
            token = bearer("0123456789abcdef")
            answer = await client.post(f"{url}/mcp", json=INITIALIZE, headers=ACCEPT | token | outside)
            assert answer.status_code == 200
            card = (await client.get(f"{url}/.well-known/agent-card.json", headers=outside)).json()
            assert {one["url"] for one in card["supportedInterfaces"]} == {"http://example.com/"}
        async with served(runtime, host=everybody, allow_unauthenticated=True) as url:
            assert (await client.post(f"{url}/mcp", json=INITIALIZE, headers=ACCEPT | outside)).status_code == 200


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"transport": "carrier pigeon"}, ValueError, "transport must be"),
        ({"port": -1}, ValueError, "port must be"),
        ({"port": 65536}, ValueError, "port must be"),
        ({"port": "8000"}, ValueError, "port must be"),
        ({"mcp": False, "a2a": False}, ValueError, "nothing to serve"),
        ({"tags": "quick"}, TypeError, "tags takes a list"),
        ({"target": 7}, TypeError, "not int"),
        ({"target": [double, 7]}, TypeError, "not int"),
    ],
)
async def test_arguments_are_checked(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        await apflow.aserve(**options)


async def test_two_tasks_of_one_name_cannot_be_served_together(runtime: Runtime) -> None:
    @apflow.task(name="double")
    async def another(n: int) -> int:
        return n

    with pytest.raises(ValueError, match="cannot be served together"):
        apflow.asgi([double, another])


async def test_plain_code_does_not_block_a_loop(runtime: Runtime) -> None:
    with pytest.raises(RuntimeError, match=r"await apflow\.aserve"):
        apflow.serve(runtime)


async def test_a_server_without_tasks_says_so(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with served(runtime, prefix="none.of.these", a2a=False) as url, mcp_session(url) as session:
        assert (await session.list_tools()).tools == []
    assert "nothing to serve yet" in caplog.text


async def test_a_registry_a_task_and_a_list_can_be_served(runtime: Runtime) -> None:
    registry = apcore.Registry()
    for target, tools in ((registry, []), (double, ["double"]), ([hold, double], ["double", "hold"])):
        async with served(target, a2a=False) as url, mcp_session(url) as session:
            assert [tool.name for tool in (await session.list_tools()).tools] == tools


async def test_an_app_that_was_not_started_says_what_to_do(runtime: Runtime) -> None:
    app = apflow.asgi(runtime, url="https://example.com")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://example.com") as client:
        answer = await client.get("/healthz")
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert "lifespan" in answer.json()["message"]
        async with app.lifespan():
            assert (await client.get("/healthz")).status_code == 200
        answer = await client.get("/healthz")
        assert (answer.status_code, answer.json()["message"]) == (503, "this server is shutting down")
    with pytest.raises(RuntimeError, match=r"make a new one with apflow.asgi"):
        async with app.lifespan():
            pass
