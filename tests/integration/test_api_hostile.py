"""`apflow_api_executor` against servers that list without end, answer too deeply, and provoke log lines."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from apflow import ExecutorError, InvalidInputsError, Runtime
from apflow.executors.api import ApFlowApiExecutor
from tests.integration.web_server import Asked, Web, web_server

pytestmark = pytest.mark.anyio

TOKEN = "s3cret-s3cret"  # noqa: S105 - of nobody
USER = "ada:s3cret"
LONG = "a" + "\u0315\u0300" * 10_000
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def web() -> Iterator[Web]:
    with web_server() as server:
        yield server


@pytest.fixture
def settings(web: Web) -> dict[str, Any]:
    return {"allow": web.allow, "headers": {web.url: {"Authorization": f"Bearer {TOKEN}"}}}


@pytest.fixture(autouse=True)
async def runtime(sqlite_url: str, settings: dict[str, Any]) -> AsyncIterator[Runtime]:
    async with Runtime(sqlite_url, settings={"apflow_api_executor": settings}) as made:
        yield made


async def api(web: Web, **inputs: Any) -> dict[str, Any]:
    return await ApFlowApiExecutor().execute({"endpoint": f"{web.url}/mcp", **inputs})


def serve(web: Web, answer: Callable[[dict[str, Any]], Any]) -> None:
    """Speak MCP; what is asked after the greeting is answered by `answer`: a result, or the text of a stream."""
    greeting = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "x", "version": "1"}}

    def reply(asked: Asked) -> tuple[int, dict[str, str], bytes]:
        if asked.method != "POST":
            return 405, {}, b""
        message = json.loads(asked.body)
        if "id" not in message:
            return 202, {}, b""
        result = greeting if message["method"] == "initialize" else answer(message)
        if isinstance(result, str):
            return 200, {"Content-Type": "text/event-stream"}, result.encode()
        return 200, JSON, json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode()

    web.answer = reply


def page(number: int, size: int = 10, cursor: str | None = None) -> dict[str, Any]:
    tool = {"name": f"m{number}", "description": "d" * size, "inputSchema": {}}
    return {"tools": [tool], "nextCursor": cursor}


async def test_a_list_has_the_size_of_one_answer(web: Web, settings: dict[str, Any]) -> None:
    settings["max_bytes"] = 10_000
    pages: list[int] = []

    def more(_: object) -> dict[str, Any]:
        pages.append(1)
        return page(len(pages), 900, str(len(pages)))

    serve(web, more)
    with pytest.raises(ExecutorError, match=r"^the answer is larger than 10000 bytes$"):
        await api(web, action="list")
    assert len(pages) <= 11


async def test_a_list_in_pages_is_complete(web: Web) -> None:
    serve(web, lambda message: page(2) if message.get("params", {}).get("cursor") else page(1, cursor="c"))
    assert [one["id"] for one in (await api(web, action="list"))["response"]["modules"]] == ["m1", "m2"]


async def test_a_list_that_goes_round_is_refused(web: Web) -> None:
    serve(web, lambda _: page(1, cursor="again"))
    with pytest.raises(ExecutorError, match=r"^127\.0\.0\.1 lists its modules without an end$"):
        await api(web, action="list")


async def test_what_is_nested_too_deeply_stays_text(web: Web) -> None:
    deep: Any = 1
    for _ in range(120):
        deep = [deep]
    serve(web, lambda _: {"content": [], "structuredContent": {"deep": deep}})
    response = (await api(web, payload={"module": "m"}))["response"]
    assert json.loads(response) == {"deep": deep}
    listed = page(1)
    listed["tools"][0]["inputSchema"] = {"deep": deep}
    serve(web, lambda _: listed)
    with pytest.raises(ExecutorError, match="a schema that is nested too deeply"):
        await api(web, action="list")


async def test_credentials_do_not_come_back(web: Web) -> None:
    serve(web, lambda _: {"content": [], "structuredContent": {"told": [web.asked[-1].headers["authorization"]]}})
    assert (await api(web, payload={"module": "m"}))["response"] == {"told": ["Bearer ***"]}
    serve(web, lambda _: {"tools": [{"name": "m", "description": TOKEN, "inputSchema": {}}]})
    assert (await api(web, action="list"))["response"]["modules"][0]["description"] == "***"


async def test_the_settings_limit_the_time(web: Web, settings: dict[str, Any]) -> None:
    settings["timeout"] = 0.3
    serve(web, lambda _: {"content": [], "structuredContent": {"status": "in_progress"}})
    with pytest.raises(ExecutorError, match=r"gave no answer within 0\.3 s"):
        await api(web, action="wait", payload={"task_id": "t"}, poll_seconds=0.05, timeout=60)
    settings["timeout"] = "1"
    with pytest.raises(ValueError, match=r"^setting timeout"):
        await api(web, payload={"module": "m"})


async def test_an_endpoint_has_a_longest_length() -> None:
    with pytest.raises(InvalidInputsError, match="8192"):
        await ApFlowApiExecutor().execute({"endpoint": f"http://{LONG}", "action": "list"})


@pytest.mark.parametrize("level", [logging.DEBUG, logging.WARNING])
async def test_nothing_of_a_session_is_logged(web: Web, caplog: pytest.LogCaptureFixture, level: int) -> None:
    def talk(message: dict[str, Any]) -> str:
        told = web.asked[-1].headers["authorization"]
        bogus = {"jsonrpc": "2.0", "method": "notifications/bogus", "params": {"x": told}}
        result = {"jsonrpc": "2.0", "id": message["id"], "result": {"content": [{"type": "text", "text": "1"}]}}
        data = "".join(f"event: message\ndata: {json.dumps(one)}\n\n" for one in (bogus, result))
        return f"event: {told}\ndata: 1\n\n{data}"

    serve(web, talk)
    names = ("httpcore.http11", "httpcore.connection", "httpx", "mcp.client.streamable_http", "client")
    with caplog.at_level(level):
        for name in names:
            logging.getLogger(name).setLevel(level)
        try:
            result = await api(web, payload={"module": "m", "inputs": {"topic": TOKEN}})
        finally:
            for name in names:
                logging.getLogger(name).setLevel(logging.NOTSET)
    assert result == {"response": 1}
    assert TOKEN not in caplog.text
    assert not [record for record in caplog.records if record.name in {*names, "root"}]


async def test_a_reference_as_an_endpoint_is_no_obstacle() -> None:
    for given in ({"$from": "a", "path": "b"}, {"$secret": "mine"}):
        assert ApFlowApiExecutor().redact({"endpoint": given}) == {"endpoint": given}
    kept = ApFlowApiExecutor().redact({"endpoint": {"$from": "a", "default": f"https://{USER}@example.com/"}})
    assert kept == {"endpoint": {"$from": "a", "default": "https://example.com/"}}
