"""The example of a server does what it says, for the official clients of both protocols."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import httpx
import pytest
from a2a.client import ClientConfig, create_client
from a2a.helpers import get_artifact_text, new_data_message
from a2a.types import Role, SendMessageRequest, TaskState
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.types import CallToolResult

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.anyio

EXAMPLE = Path(__file__).parents[2] / "examples" / "serve.py"
PAGES = ["Tides rise. And fall.", "Winds turn. At noon."]


class Example:
    """The example as a process."""

    def __init__(self, url: str, tokens: dict[str, str]) -> None:
        self.url = url
        self._tokens = tokens

    def headers(self, user: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._tokens[user]}"}

    @asynccontextmanager
    async def session(self, user: str) -> AsyncIterator[ClientSession]:
        async with (
            create_mcp_http_client(headers=self.headers(user)) as http,
            streamable_http_client(f"{self.url}/mcp", http_client=http) as (reader, writer, _),
            ClientSession(reader, writer) as session,
        ):
            await session.initialize()
            yield session


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Example]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("example")
    command = [sys.executable, str(EXAMPLE), str(port)]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(2)]
            tokens = dict(re.findall(r"^(\w+) .* Bearer (\S+)$", "".join(said), flags=re.MULTILINE))
            yield Example(f"http://127.0.0.1:{port}", tokens)
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(autouse=True)
async def _answering(example: Example) -> None:
    with anyio.fail_after(60):
        async with httpx.AsyncClient(trust_env=False) as client:
            while True:
                try:
                    (await client.get(f"{example.url}/healthz")).raise_for_status()
                except httpx.TransportError:
                    await anyio.sleep(0.05)
                else:
                    return


def text_of(answer: CallToolResult) -> str:
    return "".join(block.text for block in answer.content if block.type == "text")


async def test_an_agent_reads_reports_and_words(example: Example) -> None:
    told: list[tuple[float, float | None, str | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, total, message))

    async with example.session("ada") as session:
        assert {tool.name for tool in (await session.list_tools()).tools} == {"report", "words"}
        answer = await session.call_tool("report", {"pages": PAGES}, progress_callback=hear)
        assert answer.structuredContent == {"result": "Tides rise\nWinds turn"}
        words = await session.call_tool("words", {"text": "tides rise"})
        assert words.structuredContent == {"result": ["tides", "rise"]}
    assert told == [(1, 2, "page 1"), (2, 2, "page 2")]


async def test_each_caller_has_a_budget(example: Example) -> None:
    long = [f"{'tides ' * 20}. Rise."]
    async with example.session("bob") as session:
        ends = [await session.call_tool("report", {"pages": long}) for _ in range(3)]
    assert ends[0].isError is False
    assert ends[-1].isError is True
    assert "the budget 'daily' allows no more" in text_of(ends[-1])
    async with example.session("ada") as session:
        assert (await session.call_tool("report", {"pages": ["Tides. Rise."]})).isError is False


async def test_another_agent_sends_a_message(example: Example) -> None:
    async with httpx.AsyncClient(headers=example.headers("ada"), trust_env=False, timeout=60) as http:
        client = await create_client(example.url, ClientConfig(httpx_client=http, streaming=False))
        message = new_data_message({"pages": PAGES}, role=Role.ROLE_USER)
        message.metadata.update({"skillId": "report"})
        [answer] = [answer async for answer in client.send_message(SendMessageRequest(message=message))]
    assert answer.task.status.state == TaskState.TASK_STATE_COMPLETED
    assert "Tides rise" in get_artifact_text(answer.task.artifacts[0])


async def test_nobody_calls_without_a_token(example: Example) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.post(f"{example.url}/mcp", json={})
    assert answer.status_code == 401
