"""`apflow.asgi` inside an app of the user's: the official clients of both protocols reach it there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from a2a.client import ClientConfig, create_client
from a2a.helpers import get_data_parts, new_data_message
from a2a.types import Role, SendMessageRequest
from fastapi import FastAPI

import apflow
from apflow import Runtime
from tests.integration.served import bearer, free_port, mcp_session, until_served, value_of

pytestmark = pytest.mark.anyio

ALICE = "alice-0123456789"


@apflow.task
async def double(n: int) -> int:
    return 2 * n


@asynccontextmanager
async def run(app: Any, place: str) -> AsyncIterator[str]:
    """Serve an app with uvicorn, as users do, and yield the URL where apflow is mounted."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, ws="none"))
    serving = asyncio.create_task(server._serve())  # `serve` would take the signals of the test run
    url = f"http://127.0.0.1:{port}{place}"
    try:
        await until_served(url, serving)
        yield url
    finally:
        server.should_exit = True
        await serving


async def a2a_answer(url: str, token: str) -> list[Any]:
    """Call the task with the official client, which reads the card first."""
    async with httpx.AsyncClient(headers=bearer(token)) as http:
        client = await create_client(f"{url}/", client_config=ClientConfig(httpx_client=http, streaming=False))
        message = new_data_message({"n": 4}, role=Role.ROLE_USER)
        message.metadata.update({"skillId": "double"})
        return [
            data
            async for event in client.send_message(SendMessageRequest(message=message))
            for artifact in event.task.artifacts
            for data in get_data_parts(artifact.parts)
        ]


@pytest.mark.parametrize("place", ["", "/agents", "/deep/in/it"])
async def test_clients_of_both_protocols_reach_it_where_it_is_mounted(sqlite_url: str, place: str) -> None:
    runtime = Runtime(sqlite_url)
    agents = apflow.asgi(runtime, auth={ALICE: "alice"}, explorer=True)
    app = FastAPI(lifespan=agents.lifespan)

    @app.get("/hello")
    def hello() -> str:
        return "hello"

    app.mount(place or "/", agents)
    async with run(app, place) as url, httpx.AsyncClient() as http:
        assert (await http.get(url.removesuffix(place) + "/hello")).json() == "hello"
        card = (await http.get(f"{url}/.well-known/agent-card.json")).json()
        assert {one["url"] for one in card["supportedInterfaces"]} == {f"{url}/"}
        assert (await http.get(f"{url}/explorer")).headers["location"] == f"{place}/explorer/"
        assert (await http.get(f"{url}/explorer/")).status_code == 200
        assert (await http.get(f"{url}/explorer/tools")).status_code == 401
        async with mcp_session(url, ALICE) as session:
            assert value_of(await session.call_tool("double", {"n": 4})) == 8
        assert await a2a_answer(url, ALICE) == [{"result": 8}]
        users = {row.user_id for row in await runtime.runs.list(name="double")}
    assert users == {"alice"}
    assert runtime.closed


async def test_the_app_around_it_may_have_a_lifespan_of_its_own(sqlite_url: str) -> None:
    agents = apflow.asgi(Runtime(sqlite_url), url="https://example.com/x")
    events = []

    def lifespan(app: FastAPI) -> AbstractAsyncContextManager[None]:
        @asynccontextmanager
        async def around() -> AsyncIterator[None]:
            async with agents.lifespan(app):
                events.append("begin")
                yield
            events.append("end")

        return around()

    app = FastAPI(lifespan=lifespan)
    app.mount("/agents", agents)
    async with run(app, "/agents") as url, mcp_session(url) as session, httpx.AsyncClient() as http:
        assert value_of(await session.call_tool("double", {"n": 4})) == 8
        card = (await http.get(f"{url}/.well-known/agent-card.json")).json()
        assert {one["url"] for one in card["supportedInterfaces"]} == {"https://example.com/x/"}
    assert events == ["begin", "end"]


async def test_an_app_that_forgets_the_lifespan_is_told(sqlite_url: str) -> None:
    async with Runtime(sqlite_url) as runtime:
        app = FastAPI()
        app.mount("/agents", apflow.asgi(runtime))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://example.com") as http:
            answer = await http.post("/agents/mcp", json={})
    assert answer.status_code == 503
    assert "FastAPI(lifespan=app.lifespan)" in answer.json()["message"]


async def test_it_runs_alone_under_any_server(sqlite_url: str) -> None:
    async with run(apflow.asgi(Runtime(sqlite_url)), "") as url, mcp_session(url) as session:
        assert value_of(await session.call_tool("double", {"n": 4})) == 8
