"""MCP over stdio: a server that a client has started, as desktop clients do."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
from mcp import ClientSession, StdioServerParameters, stdio_client

from apflow import Runtime
from tests.integration.mcp_site import error_of, request, run_id_of, text_of, until

pytestmark = pytest.mark.anyio

SERVER = """
import asyncio, os, subprocess, sys
import apflow
from apflow.bridge.door import Door
from apflow.bridge.mcp.stdio import run_stdio

print("printed before")

@apflow.task
async def noisy(word: str) -> str:
    print("printed", word)
    print("flushed", word, flush=True)
    os.write(1, b"raw\\n")
    subprocess.run([sys.executable, "-c", "print('child', input() if 0 else 1)"], check=True)
    return word

@apflow.task
async def reads() -> str:
    return sys.stdin.read()

@apflow.task
async def waits() -> int:
    open("started", "w").close()
    while not os.path.exists("go"):
        await asyncio.sleep(0.01)
    return 1

async def main() -> None:
    async with apflow.Runtime("sqlite:///stdio.db", shutdown_seconds=0.2) as runtime:
        await run_stdio(Door([noisy.with_options(runtime=runtime), reads.with_options(runtime=runtime),
                              waits.with_options(runtime=runtime)]), name="desk", version="1")
    open("ended", "w").close()

asyncio.run(main())
"""


INFO = {"name": "c", "version": "1"}
HELLO = [
    request("initialize", 0, protocolVersion="2025-06-18", capabilities={}, clientInfo=INFO),
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
]
DATABASE = "sqlite:///stdio.db"


@pytest.fixture
def server() -> list[str]:
    Path("desk.py").write_text(SERVER, encoding="utf-8")
    return [sys.executable, "desk.py"]


@pytest.fixture
def errors() -> Iterator[TextIO]:
    with Path("errors").open("w+", encoding="utf-8") as file:
        yield file


class Desk:
    """A client that writes lines and reads lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    def write(self, *lines: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("".join(line + "\n" for line in lines).encode())

    async def read(self) -> Any:
        assert self._process.stdout is not None
        async with asyncio.timeout(60):
            return json.loads(await self._process.stdout.readline())

    async def end(self) -> tuple[int | None, bytes, bytes]:
        """Close its standard input and wait for its end; returns the code and what it wrote since."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        async with asyncio.timeout(60):
            out, errors = await self._process.communicate()
        return self._process.returncode, out, errors


@pytest.fixture
async def desk(server: list[str]) -> AsyncIterator[Desk]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*server, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
    try:
        yield Desk(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_a_session_with_tasks_that_print(server: list[str], errors: TextIO) -> None:
    params = StdioServerParameters(command=server[0], args=server[1:])
    async with stdio_client(params, errlog=errors) as (reads, writes), ClientSession(reads, writes) as session:
        said = await session.initialize()
        assert (said.serverInfo.name, said.serverInfo.version) == ("desk", "1")
        names = [tool.name for tool in (await session.list_tools()).tools]
        words = await asyncio.gather(*(session.call_tool("noisy", {"word": f"é{n}"}) for n in range(3)))
        nothing = await session.call_tool("reads")
        missing = await session.call_tool("missing")
    assert names == ["noisy", "reads", "waits"]
    assert [text_of(word) for word in words] == [f"é{n}" for n in range(3)]
    assert text_of(nothing) == ""
    assert error_of(missing)["code"] == "not_found"
    assert run_id_of(nothing)
    errors.seek(0)
    printed = errors.read()
    for shown in ("printed before", "printed é2", "flushed é2", "raw", "child 1"):
        assert shown in printed


async def test_the_end_of_standard_input_leaves_runs_to_be_recovered(desk: Desk) -> None:
    desk.write("no json", *map(json.dumps, [*HELLO, request("tools/call", 1, name="waits")]))
    assert (await desk.read())["id"] == 0
    await until(Path("started").exists)
    code, out, errors = await desk.end()
    assert (code, out) == (0, b""), errors
    await until(Path("ended").exists)
    async with Runtime(DATABASE, shutdown_seconds=1) as runtime:
        [run] = await runtime.runs.list()
        assert (run.name, run.status) == ("waits", "in_progress")
        assert await runtime.runs.count(status="interrupted") == 1


async def test_a_request_cancelled_in_the_same_breath_leaves_nothing(desk: Desk) -> None:
    stop = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
    other = request("tools/call", 2, name="noisy", arguments={"word": "x"})
    desk.write(*map(json.dumps, [*HELLO, request("tools/call", 1, name="waits"), stop, other]))
    answers: dict[int, Any] = {}
    while not {1, 2} <= answers.keys():
        answer = await desk.read()
        answers[answer["id"]] = answer
    assert "cancelled" in json.dumps(answers[1])
    assert answers[2]["result"]["structuredContent"] == {"result": "x"}
    code, _, errors = await desk.end()
    assert code == 0, errors
    async with Runtime(DATABASE, shutdown_seconds=1) as runtime:
        assert {run.status for run in await runtime.runs.list(name="waits")} <= {"cancelled"}


async def test_a_client_that_stops_reading_ends_the_server_with_its_input(desk: Desk) -> None:
    desk.write(*map(json.dumps, HELLO))
    await desk.read()
    assert desk._process.stdout is not None
    desk._process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
    desk.write(json.dumps(request("ping", 1)), json.dumps(request("tools/call", 2, name="reads")))
    code, _, errors = await desk.end()
    assert code == 0, errors
