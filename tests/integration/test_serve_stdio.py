"""`apflow.serve(transport="stdio")`: a program that an MCP client has started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

PROGRAM = """
import sys
import apflow

@apflow.task
async def double(n: int) -> int:
    print("called")
    return 2 * n

apflow.serve(apflow.Runtime(sys.argv[1]), transport="stdio", name="tools of the test", port=0, host="0.0.0.0")
print("served")
"""
HELLO = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}


class Client:
    """Talks to the program line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self._in: IO[str] = process.stdin
        self._out: IO[str] = process.stdout

    def say(self, **message: Any) -> None:
        self._in.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        self._in.flush()

    def ask(self, number: int, method: str, **params: Any) -> Any:
        self.say(id=number, method=method, params=params)
        answer = json.loads(self._out.readline())
        assert answer["id"] == number
        return answer["result"]

    def begin(self) -> Any:
        hello = self.ask(1, "initialize", **HELLO)
        self.say(method="notifications/initialized")
        return hello


@contextmanager
def started(folder: Path, url: str) -> Iterator[Client]:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, str(program), url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    with process:
        try:
            yield Client(process)
        finally:
            process.kill()


def test_a_client_calls_a_tool_and_leaves(tmp_path: Path, sqlite_url: str) -> None:
    with started(tmp_path, sqlite_url) as client:
        assert client.begin()["serverInfo"]["name"] == "tools of the test"
        assert [tool["name"] for tool in client.ask(2, "tools/list")["tools"]] == ["double"]
        called = client.ask(3, "tools/call", name="double", arguments={"n": 4})
        assert called["structuredContent"] == {"result": 8}
        out, err = client.process.communicate(timeout=60)
    # What the program prints while it serves goes nowhere near the protocol, and nothing is said about addresses.
    assert (client.process.returncode, out, err) == (0, "served\n", "called\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_an_orderly_way(tmp_path: Path, sqlite_url: str, number: int) -> None:
    with started(tmp_path, sqlite_url) as client:
        client.begin()
        client.process.send_signal(number)
        assert client.process.wait(60) == 0
        assert client.process.stdout is not None
        assert client.process.stdout.read() == "served\n"
