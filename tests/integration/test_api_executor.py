"""`apflow_api_executor` against a real MCP server on this machine."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import uvicorn
from mcp.server.fastmcp import Context, FastMCP, Image
from starlette.requests import Request

from apflow import AddressRefusedError, ExecutorError, InvalidInputsError, Runtime
from apflow.executors.api import ApFlowApiExecutor
from tests.integration.web_server import Asked, Web, web_server

pytestmark = pytest.mark.anyio

USER = "ada:s3cret"

statuses: list[Any] = []
entered = threading.Event()


def other_apflow() -> FastMCP:
    """Another apflow, as far as this executor sees one."""
    server = FastMCP("other", log_level="CRITICAL")

    @server.tool(name="math.add")
    def add(a: int, b: int) -> dict[str, Any]:
        """Add two numbers."""
        return {"sum": a + b, "token_usage": {"input": a, "output": b, "total": a + b}}

    @server.tool(name="plain.text", structured_output=False)
    def text(value: str) -> str:
        """Return a text."""
        return value

    @server.tool(name="plain.image", structured_output=False)
    def image() -> Image:
        """Return an image."""
        return Image(data=b"x", format="png")

    @server.tool(name="bad.failing")
    def failing() -> str:
        """Fail."""
        raise ValueError("s3cret words of the server")

    @server.tool(name="bad.coded", structured_output=False)
    def coded(code: str) -> Any:
        """Fail with a code."""
        from mcp.types import CallToolResult, TextContent

        return CallToolResult(content=[TextContent(type="text", text=json.dumps({"code": code}))], isError=True)

    @server.tool(name="slow.sleep")
    async def sleep() -> str:
        """Take long."""
        entered.set()
        await asyncio.sleep(60)
        return "done"

    @server.tool(name="who.calls")
    def who(ctx: Context[Any, Any, Request]) -> dict[str, str]:
        """Return the headers of the call."""
        request = ctx.request_context.request
        assert request is not None
        return dict(request.headers)

    @server.tool(name="apflow.task.get")
    def get(task_id: str) -> dict[str, Any]:
        """Return a task."""
        usage = {"input": 1, "output": 2, "total": 3}
        return {"id": task_id, "status": statuses.pop(0), "error": "s3cret", "token_usage": usage}

    return server


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    config = uvicorn.Config(
        other_apflow().streamable_http_app(),
        host="127.0.0.1",
        port=0,
        log_level="critical",
        ws="none",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


@pytest.fixture
def web() -> Iterator[Web]:
    with web_server() as server:
        yield server


@pytest.fixture
def settings(port: int) -> dict[str, Any]:
    return {"allow": [f"127.0.0.1:{port}"]}


@pytest.fixture(autouse=True)
async def runtime(sqlite_url: str, settings: dict[str, Any]) -> AsyncIterator[Runtime]:
    statuses.clear()
    async with Runtime(sqlite_url, settings={"apflow_api_executor": settings}) as made:
        yield made


@pytest.fixture
def endpoint(port: int) -> str:
    return f"http://127.0.0.1:{port}/mcp"


async def api(endpoint: str, payload: dict[str, Any] | None = None, **inputs: Any) -> dict[str, Any]:
    given = inputs if payload is None else {**inputs, "payload": payload}
    return await ApFlowApiExecutor().execute({"endpoint": endpoint, **given})


async def test_a_call_returns_what_the_module_returned(endpoint: str) -> None:
    result = await api(endpoint, {"module": "math.add", "inputs": {"a": 1, "b": 2}})
    usage = {"input": 1, "output": 2, "total": 3}
    assert result == {"response": {"sum": 3, "token_usage": usage}, "token_usage": usage}


@pytest.mark.parametrize(("text", "value"), [('{"a": [1]}', {"a": [1]}), ("no json", "no json"), ("NaN", "NaN")])
async def test_text_is_parsed_if_it_is_json(endpoint: str, text: str, value: Any) -> None:
    result = await api(endpoint, {"module": "plain.text", "inputs": {"value": text}})
    assert result == {"response": value}


async def test_other_content_is_returned_as_it_is(endpoint: str) -> None:
    result = await api(endpoint, {"module": "plain.image"})
    assert result["response"][0]["mimeType"] == "image/png"


async def test_usage_that_is_none_is_not_counted(endpoint: str) -> None:
    value = json.dumps({"token_usage": {"input": -1}})
    result = await api(endpoint, {"module": "plain.text", "inputs": {"value": value}})
    assert result == {"response": {"token_usage": {"input": -1}}}


@pytest.mark.parametrize("module", ["bad.failing", "no.such_module"])
async def test_a_module_that_fails_says_nothing_of_its_own(endpoint: str, module: str) -> None:
    with pytest.raises(ExecutorError, match=rf"^module {module} of 127\.0\.0\.1 failed$") as caught:
        await api(endpoint, {"module": module})
    assert caught.value.retryable is False
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(("code", "told"), [("BUDGET_EXHAUSTED", " with BUDGET_EXHAUSTED"), ("my s3cret", "")])
async def test_a_short_code_is_told(endpoint: str, code: str, told: str) -> None:
    with pytest.raises(ExecutorError, match=rf"^module bad\.coded of 127\.0\.0\.1 failed{told}$"):
        await api(endpoint, {"module": "bad.coded", "inputs": {"code": code}})


async def test_modules_are_listed(endpoint: str) -> None:
    modules = (await api(endpoint, action="list"))["response"]["modules"]
    found = {module["id"]: module for module in modules}
    assert found["math.add"]["description"] == "Add two numbers."
    assert set(found["math.add"]["input_schema"]["properties"]) == {"a", "b"}


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
async def test_waiting_ends_with_the_task(endpoint: str, end: str) -> None:
    statuses[:] = ["pending", "in_progress", end, "never asked for"]
    result = await api(endpoint, {"task_id": "t1"}, action="wait", poll_seconds=0.05)
    assert (result["response"]["id"], result["response"]["status"]) == ("t1", end)
    assert result["token_usage"] == {"input": 1, "output": 2, "total": 3}
    assert statuses == ["never asked for"]


async def test_a_task_without_a_status_is_not_waited_for(endpoint: str) -> None:
    statuses[:] = [None]
    with pytest.raises(ExecutorError, match="did not tell the status"):
        await api(endpoint, {"task_id": "t1"}, action="wait")


async def test_waiting_has_a_time_limit(endpoint: str) -> None:
    statuses[:] = ["in_progress"] * 1000
    with pytest.raises(ExecutorError, match=r"gave no answer within 0\.5 s") as caught:
        await api(endpoint, {"task_id": "t1"}, action="wait", poll_seconds=0.05, timeout=0.5)
    assert caught.value.retryable is True


async def test_a_call_can_be_cancelled(endpoint: str) -> None:
    entered.clear()
    calling = asyncio.create_task(api(endpoint, {"module": "slow.sleep"}))
    await asyncio.to_thread(entered.wait)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling


async def test_headers_of_the_settings_authorize(endpoint: str, port: int, settings: dict[str, Any]) -> None:
    settings["headers"] = {
        f"http://127.0.0.1:{port}": {"Authorization": "Bearer t0ken"},
        "http://127.0.0.1:1": {"X-Other": "1"},
    }
    headers = (await api(endpoint, {"module": "who.calls"}))["response"]
    assert headers["authorization"] == "Bearer t0ken"
    assert headers["host"] == f"127.0.0.1:{port}"
    assert "x-other" not in headers


@pytest.mark.parametrize(
    "wrong",
    [
        {"endpoint": "ftp://example.com"},
        {"endpoint": f"http://{USER}@example.com/mcp"},
        {"endpoint": "https://example.com/mcp?key=s3cret"},
        {"payload": None},
        {"payload": {}},
        {"payload": {"task_id": "t1"}},
        {"action": "wait"},
        {"action": "delete"},
        {"timeout": 0},
        {"payload": {"module": "m", "inputs": {"deep": {"password": "***"}}}},
    ],
)
async def test_wrong_inputs_are_refused(endpoint: str, wrong: dict[str, Any]) -> None:
    given = {"endpoint": endpoint, "payload": {"module": "math.add"}, **wrong}
    with pytest.raises(InvalidInputsError) as caught:
        await ApFlowApiExecutor().execute({name: value for name, value in given.items() if value is not None})
    assert "s3cret" not in str(caught.value)


async def test_without_the_setting_nothing_here_is_open(web: Web, settings: dict[str, Any]) -> None:
    settings["allow"] = ["127.0.0.1:1"]
    for host in ("127.0.0.1", "2130706433", "[::ffff:127.0.0.1]", "localhost"):
        with pytest.raises(AddressRefusedError, match=r"refused: its address is loopback"):
            await api(f"http://{host}:{web.port}/s3cret", {"module": "math.add"})
    assert web.connections == 0


@pytest.mark.parametrize("status", [307, 308])
async def test_redirects_to_somewhere_else_are_not_followed(
    web: Web, port: int, settings: dict[str, Any], status: int
) -> None:
    settings["allow"] = ["127.0.0.1"]
    web.answer = lambda _: (status, {"Location": f"http://127.0.0.1:{port}/mcp"}, b"")
    with pytest.raises(ExecutorError, match=rf"^127\.0\.0\.1 answered with status {status}$"):
        await api(f"{web.url}/mcp", {"module": "math.add"})


@pytest.mark.parametrize(("status", "retryable"), [(401, False), (429, True), (503, True)])
async def test_a_status_is_told(web: Web, settings: dict[str, Any], status: int, *, retryable: bool) -> None:
    settings["allow"] = web.allow
    web.answer = lambda _: (status, {}, b"s3cret")
    with pytest.raises(ExecutorError, match=rf"^127\.0\.0\.1 answered with status {status}$") as caught:
        await api(f"{web.url}/mcp", {"module": "math.add"})
    assert caught.value.retryable is retryable


async def test_a_server_that_is_not_there(settings: dict[str, Any]) -> None:
    settings["allow"] = ["127.0.0.1"]
    with pytest.raises(ExecutorError, match=r"^the connection to 127\.0\.0\.1 failed \(ConnectError\)$") as caught:
        await api("http://127.0.0.1:1/s3cret", {"module": "math.add"})
    assert caught.value.retryable is True


@pytest.mark.parametrize(
    ("headers", "content", "told"),
    [
        ({"Content-Type": "text/html"}, b"s3cret", "did not answer as an MCP server does"),
        ({"Content-Type": "application/json"}, b'{"s3cret": 1}', "did not answer as an MCP server does"),
        ({"Content-Type": "application/json"}, b"x" * 2000, "the answer is larger than 1000 bytes"),
        (
            {"Content-Type": "application/json", "Content-Encoding": "gzip"},
            gzip.compress(b" " * 1_000_000),
            "the answer is larger than 1000 bytes",
        ),
        ({"Content-Type": "text/event-stream"}, b"data: " + b"x" * 2000, "the answer is larger than 1000 bytes"),
    ],
)
async def test_an_answer_that_is_none_ends_the_call(
    *,
    web: Web,
    settings: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    headers: dict[str, str],
    content: bytes,
    told: str,
) -> None:
    settings |= {"allow": web.allow, "max_bytes": 1000}
    web.answer = lambda _: (200, headers, content)
    with caplog.at_level(logging.INFO), pytest.raises(ExecutorError, match=told) as caught:
        await api(f"{web.url}/mcp", {"module": "math.add"})
    assert "s3cret" not in str(caught.value)
    assert not [record for record in caplog.records if record.name.startswith("apflow")]


async def test_a_refusal_of_the_protocol_is_told_by_its_number(web: Web, settings: dict[str, Any]) -> None:
    settings["allow"] = web.allow

    def refuse(asked: Asked) -> tuple[int, dict[str, str], bytes]:
        error = {"code": -32602, "message": "s3cret"}
        answer = {"jsonrpc": "2.0", "id": json.loads(asked.body)["id"], "error": error}
        return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()

    web.answer = refuse
    with pytest.raises(ExecutorError, match=r"^127\.0\.0\.1 refused the request \(MCP error -32602\)$"):
        await api(f"{web.url}/mcp", {"module": "math.add"})


async def test_what_is_stored_has_no_secrets(endpoint: str) -> None:
    payload = {"module": "m", "inputs": {"api_key": "s3cret", "topic": "tides"}}
    kept = ApFlowApiExecutor().redact({"endpoint": f"https://{USER}@example.com/mcp", "payload": payload})
    assert kept["endpoint"] == "https://example.com/mcp"
    assert kept["payload"] == {"module": "m", "inputs": {"api_key": "***", "topic": "tides"}}
