"""Calls of a tool through MCP's own client over HTTP, of a server of apflow's or of one made with MCP's SDK.

Usage: `python -m tests.benchmarks.mcp_side PROGRAM ARGUMENTS...`
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from time import perf_counter

from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.types import TextContent

from .serving import server
from .timing import Samples, one_by_one
from .worker import serve, take_standard_output

CLIENTS = 20


class Calls:
    """Scenarios on one server, with sessions that stay open."""

    def __init__(self, sessions: list[ClientSession]) -> None:
        self._sessions = sessions

    async def one(self, count: int) -> Samples:
        """Call one after the other, with one client."""
        return await one_by_one(partial(_call, self._sessions[0]), count)

    async def many(self, count: int) -> Samples:
        """Call with all clients at once; one sample, the total time divided by the calls."""
        each = -(-count // len(self._sessions))
        started = perf_counter()
        await asyncio.gather(*(one_by_one(partial(_call, session), each) for session in self._sessions))
        return [(perf_counter() - started) / (each * len(self._sessions))]


async def _call(session: ClientSession, n: int) -> None:
    answer = await session.call_tool("echo", {"text": f"text {n}"})
    assert answer.structuredContent == {"result": f"text {n}"}
    assert isinstance(answer.content[0], TextContent)


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[ClientSession]:
    async with streamable_http_client(url) as (reader, writer, _), ClientSession(reader, writer) as session:
        await session.initialize()
        yield session


async def main(program: str, arguments: list[str]) -> None:
    answers = take_standard_output()
    async with server(program, *arguments) as url, AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(_connected(f"{url}/mcp")) for _ in range(CLIENTS)]
        calls = Calls(sessions)
        await serve({"call": calls.one, "calls": calls.many}, answers)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
