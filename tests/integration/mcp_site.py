"""An MCP server in the loop of a test, and clients of it from the official SDK."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn
from apcore import Identity
from mcp import ClientSession, types
from mcp.client.session import MessageHandlerFnT
from mcp.client.streamable_http import streamable_http_client
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from apflow.bridge.door import Door
from apflow.bridge.mcp.app import McpApp

USER = "x-user"
BOTH = {"accept": "application/json, text/event-stream"}


class Named:
    """Takes whoever a request says it is from for granted."""

    def __init__(self, app: McpApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        user = dict(scope["headers"]).get(USER.encode())
        scope["apflow.identity"] = None if user is None else Identity(id=user.decode())
        await self._app(scope, receive, send)


@asynccontextmanager
async def mcp_site(door: Door) -> AsyncIterator[str]:
    """Serve a door on a free port; yields the URL."""
    app = McpApp(door, name="site", version="1.2.3")
    site = Starlette(routes=[Route("/mcp", Named(app))])
    # asyncio sends small packets at once only where the socket says that it is TCP.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(site, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        async with app.running():
            serving = asyncio.create_task(server.serve([listening]))
            try:
                yield f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"
            finally:
                server.should_exit = True
                await serving


@asynccontextmanager
async def browser(user: str | None = None, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    """Yield an HTTP client for MCP."""
    sent = BOTH | headers | ({} if user is None else {USER: user})
    async with httpx.AsyncClient(headers=sent, timeout=60) as http:
        yield http


@asynccontextmanager
async def mcp_client(
    url: str, user: str | None = None, *, hears: MessageHandlerFnT | None = None, end: bool = True
) -> AsyncIterator[ClientSession]:
    """Yield a session of the official client.

    Args:
        url: Of the server.
        user: Who it says it is.
        hears: Gets each notification.
        end: Whether it says good-bye.
    """
    async with (
        browser(user) as http,
        streamable_http_client(url, http_client=http, terminate_on_close=end) as (reads, writes, _),
        ClientSession(reads, writes, message_handler=hears) as session,
    ):
        await session.initialize()
        yield session


def text_of(result: types.CallToolResult) -> str:
    """Return the only text of a result."""
    [content] = result.content
    assert isinstance(content, types.TextContent)
    return content.text


def error_of(result: types.CallToolResult) -> dict[str, Any]:
    """Return what went wrong."""
    assert result.isError, result
    assert result.structuredContent is None
    assert result.meta is not None
    found: dict[str, Any] = result.meta["apflow/error"]
    assert found["message"] == text_of(result)
    return found


def run_id_of(result: types.CallToolResult) -> str:
    """Return the id of the run."""
    assert result.meta is not None
    found: str = result.meta["apflow/run_id"]
    return found


async def until(condition: Callable[[], Any]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(30):
        while True:
            found = condition()
            if await found if isinstance(found, Awaitable) else found:
                return
            await asyncio.sleep(0.005)


async def opened(http: httpx.AsyncClient, url: str) -> dict[str, str]:
    """Open a session by hand; returns its headers."""
    asked = request(
        "initialize", 0, protocolVersion="2025-06-18", capabilities={}, clientInfo={"name": "c", "version": "1"}
    )
    answer = await http.post(url, json=asked)
    assert answer.status_code == 200, answer.text
    headers = {"mcp-session-id": answer.headers["mcp-session-id"]}
    await http.post(url, json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=headers)
    return headers


def request(method: str, request_id: int | str, **params: Any) -> dict[str, Any]:
    """Return a JSON-RPC request."""
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}


def messages(body: str) -> list[Any]:
    """Return the messages in a body of server-sent events."""
    return [
        json.loads(line.removeprefix("data: "))
        for line in body.replace("\r\n", "\n").split("\n")
        if line.startswith("data: {")
    ]
