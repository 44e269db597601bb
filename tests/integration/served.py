"""A server in this process, on a free port."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.types import CallToolResult

import apflow

PATIENCE_SECONDS = 60


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def bearer(token: str) -> dict[str, str]:
    """Return the header of whoever has this token."""
    return {"Authorization": f"Bearer {token}"}


async def until_served(url: str, serving: asyncio.Task[Any] | None = None) -> None:
    """Wait until a server answers."""
    async with asyncio.timeout(PATIENCE_SECONDS), httpx.AsyncClient() as client:
        while True:
            if serving is not None and serving.done():
                serving.result()
            with suppress(httpx.TransportError):
                if (await client.get(f"{url}/healthz")).status_code == 200:
                    return
            await asyncio.sleep(0.01)


@asynccontextmanager
async def mcp_session(url: str, token: str | None = None, **options: Any) -> AsyncIterator[ClientSession]:
    """Open a session of the official MCP client.

    Args:
        url: Of the server, without `/mcp`.
        token: Of the caller.
    """
    async with (
        create_mcp_http_client(headers=None if token is None else bearer(token)) as http,
        streamable_http_client(f"{url}/mcp", http_client=http) as (reader, writer, _),
        ClientSession(reader, writer, **options) as session,
    ):
        await session.initialize()
        yield session


def value_of(result: CallToolResult) -> Any:
    """Return what a task has returned that returns no object."""
    assert not result.isError, result
    assert result.structuredContent is not None
    return result.structuredContent["result"]


def code_of(result: CallToolResult) -> str:
    """Return the code of a refusal."""
    assert result.isError, result
    assert result.meta is not None
    code: str = result.meta["apflow/error"]["code"]
    return code


@asynccontextmanager
async def served(target: Any = None, **options: Any) -> AsyncIterator[str]:
    """Serve with `apflow.aserve` until the block is left, and yield the URL."""
    port = free_port()
    serving = asyncio.create_task(apflow.aserve(target, port=port, **options))
    try:
        await until_served(f"http://127.0.0.1:{port}", serving)
        yield f"http://127.0.0.1:{port}"
    finally:
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving
