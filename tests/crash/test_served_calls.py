"""A server dies or is stopped in the middle of a call; the next one ends what it had begun."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import ClientSession, McpError
from mcp.types import CallToolResult

from tests.crash import effects
from tests.crash.served_flows import TOKENS
from tests.integration.served import PATIENCE_SECONDS, code_of, free_port, mcp_session, until_served

pytestmark = pytest.mark.anyio

ALICE, BOB = TOKENS
LEGS = 4
ALL_LEGS = [f"leg {n}" for n in range(LEGS)]


class Server:
    """One server process, with the journal and the gate of the test's folder."""

    def __init__(self, database_url: str, folder: Path, shutdown_seconds: int) -> None:
        self.journal = folder / "journal"
        self._gate = folder / "gate"
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.served_flows", database_url, str(port), str(shutdown_seconds)],
            env={**os.environ, effects.JOURNAL: str(self.journal), effects.GATE: self._gate.name},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def open_gate(self) -> None:
        self._gate.touch()

    def done(self) -> list[str]:
        return [one.what for one in effects.effects(self.journal)]

    def end(self, number: int) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)


@contextmanager
def server(database_url: str, folder: Path, shutdown_seconds: int = 0) -> Iterator[Server]:
    """Start a server, and kill it if the block leaves it alive."""
    made = Server(database_url, folder, shutdown_seconds)
    try:
        yield made
    finally:
        made.process.kill()
        out, _ = made.process.communicate(timeout=PATIENCE_SECONDS)
    assert out == b""


async def until_served_by(one: Server) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        await until_served(one.url)


async def until_done(one: Server, *what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not set(what) <= set(one.done()):
        assert time.monotonic() < deadline, one.done()
        await asyncio.sleep(0.01)


async def call_journey(url: str) -> CallToolResult | None:
    """Call the task as alice and return the answer, or None when the server was gone before there was one."""
    answer = None
    with suppress(ExceptionGroup, McpError):
        async with mcp_session(url, ALICE) as session:
            await session.list_tools()  # which the client would do after the call
            answer = await session.call_tool("journey", {"legs": LEGS})
    return answer


async def use(session: ClientSession, module_id: str, **inputs: Any) -> dict[str, Any]:
    result = await session.call_tool(module_id, inputs)
    assert not result.isError, result
    assert result.structuredContent is not None
    return result.structuredContent


async def the_run(url: str) -> str:
    """Return the id of alice's only run of the task, as a new client finds it."""
    async with mcp_session(url, ALICE) as session:
        tasks = (await use(session, "apflow.task.list"))["tasks"]
    (run_id,) = [one["id"] for one in tasks if one["name"] == "journey"]
    return str(run_id)


async def result_of(url: str, run_id: str) -> Any:
    """Wait for the end of a run, asking as alice with a new client, and return its result."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    async with mcp_session(url, ALICE) as session:
        while (found := await use(session, "apflow.task.get", task_id=run_id))["status"] != "completed":
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.01)
    return found["result"]


@asynccontextmanager
async def in_a_call(
    database_url: str, folder: Path, shutdown_seconds: int = 0
) -> AsyncIterator[tuple[Server, asyncio.Task[CallToolResult | None]]]:
    """Start a server and call it as alice; yield both when it is in the middle of the call."""
    with server(database_url, folder, shutdown_seconds) as first:
        await until_served_by(first)
        call = asyncio.create_task(call_journey(first.url))
        await until_done(first, "waits")
        yield first, call
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call


async def test_a_killed_call_is_ended_by_the_next_server(database_url: str, tmp_path: Path) -> None:
    async with in_a_call(database_url, tmp_path) as (first, _):
        run_id = await the_run(first.url)
        first.end(signal.SIGKILL)
    with server(database_url, tmp_path) as second:
        second.open_gate()
        await until_served_by(second)
        assert await result_of(second.url, run_id) == ALL_LEGS
        # What was finished before the kill was not done again.
        assert sorted(leg for leg in second.done() if leg != "waits") == ALL_LEGS
        assert second.end(signal.SIGINT) == 0


async def test_a_stopped_server_hands_its_calls_to_the_next_one(database_url: str, tmp_path: Path) -> None:
    async with in_a_call(database_url, tmp_path) as (first, call):
        assert await asyncio.to_thread(first.end, signal.SIGTERM) == 0
        answer = await call
        assert answer is not None
        assert code_of(answer) == "interrupted"
        assert answer.meta is not None
        run_id = answer.meta["apflow/run_id"]
    with server(database_url, tmp_path) as second:
        second.open_gate()
        await until_served_by(second)
        assert await result_of(second.url, run_id) == ALL_LEGS
        assert sorted(leg for leg in second.done() if leg != "waits") == ALL_LEGS


async def test_a_second_signal_ends_a_server_at_once(sqlite_url: str, tmp_path: Path) -> None:
    async with in_a_call(sqlite_url, tmp_path, shutdown_seconds=3600) as (first, _):
        first.process.send_signal(signal.SIGTERM)
        await until_refused(first)
        assert first.process.poll() is None
        assert await asyncio.to_thread(first.end, signal.SIGTERM) == -signal.SIGTERM


async def test_bob_neither_sees_nor_cancels_what_alice_runs(sqlite_url: str, tmp_path: Path) -> None:
    async with in_a_call(sqlite_url, tmp_path) as (first, call):
        run_id = await the_run(first.url)
        async with mcp_session(first.url, BOB) as session:
            assert (await use(session, "apflow.task.list"))["tasks"] == []
            for module_id in ("apflow.task.get", "apflow.task.cancel", "apflow.task.delete", "apflow.task.execute"):
                hers = await session.call_tool(module_id, {"task_id": run_id})
                missing = await session.call_tool(module_id, {"task_id": "x" * len(run_id)})
                assert code_of(hers) == code_of(missing) == "not_found", module_id
        first.open_gate()
        answer = await call
    assert answer is not None
    assert answer.structuredContent == {"result": ALL_LEGS}


async def until_refused(one: Server) -> None:
    """Wait until a server accepts no connection."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    async with httpx.AsyncClient() as client:
        with suppress(httpx.ConnectError):
            while True:
                assert time.monotonic() < deadline
                await client.get(f"{one.url}/healthz", headers={"Connection": "close"})
