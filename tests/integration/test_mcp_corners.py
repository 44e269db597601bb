"""Corners of MCP calls that no client reaches reliably."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from apcore import Registry
from mcp import types

import apflow
from apflow import Runtime
from apflow.bridge.door import Door
from apflow.bridge.mcp.calls import ToolCalls
from apflow.bridge.mcp.progress import Reporter
from apflow.bridge.mcp.session import Session
from apflow.state import Progress
from tests.integration.mcp_site import browser, error_of, mcp_client, mcp_site, opened, request, text_of, until

pytestmark = pytest.mark.anyio


@apflow.task(name="mcpc.add")
async def add(a: int) -> int:
    return a + 1


@pytest.fixture
async def runtime(sqlite_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(sqlite_url, shutdown_seconds=1) as made:
        yield made


def message(**content: Any) -> types.JSONRPCMessage:
    return types.JSONRPCMessage.model_validate({"jsonrpc": "2.0", **content})


def stop(request_id: Any) -> types.JSONRPCMessage:
    return message(method="notifications/cancelled", params={"requestId": request_id})


def test_a_session_knows_what_was_cancelled() -> None:
    session = Session()
    for request_id in (1, "1", None, [1]):
        session.note(stop(request_id))
    session.note(message(method="notifications/cancelled"))
    assert [session.has_cancelled(request_id) for request_id in (1, "1", 2)] == [True, True, False]
    session.note(message(id=1, method="ping"))
    assert [session.has_cancelled(request_id) for request_id in (1, "1")] == [False, True]
    for number in range(2, 5000):
        session.note(stop(number))
    assert [session.has_cancelled(request_id) for request_id in ("1", 4000, 4999)] == [False, True, True]
    assert len(session._cancelled) == 1000


async def test_a_call_that_was_cancelled_before_it_began_does_not_begin(runtime: Runtime) -> None:
    session = Session()
    session.note(stop(7))
    params = types.CallToolRequestParams(name="mcpc-add", arguments={"a": 1})
    context: Any = SimpleNamespace(request_id=7, request=None, session=None)
    result = await ToolCalls(Door(runtime)).call("mcpc.add", params, context, session)
    assert error_of(result)["code"] == "cancelled"
    assert await runtime.runs.count() == 0


class Slow:
    """A client that reads nothing until it may."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.sent: list[float] = []

    async def send_notification(self, notification: types.ServerNotification, related_request_id: str) -> None:
        await self.may.wait()
        assert isinstance(notification.root, types.ProgressNotification)
        self.sent.append(notification.root.params.progress)


async def test_progress_does_not_pile_up_for_a_client_that_does_not_read() -> None:
    slow = Slow()
    context: Any = SimpleNamespace(session=slow, request_id=1)
    reporter = Reporter(context, "token", None)
    for done in range(5000):
        reporter.progressed(Progress(done, 5000))
    await asyncio.sleep(0)
    assert len(reporter._waiting) <= 1000
    slow.may.set()
    await reporter.drained()
    assert slow.sent == sorted(set(slow.sent))
    assert (slow.sent[0], slow.sent[-1]) == (0, 4999)
    reporter.close()
    reporter.progressed(Progress(5000, 5000))
    await asyncio.sleep(0)
    assert slow.sent[-1] == 4999


class Waiting:
    """A module that is no task."""

    description = "Waits."
    started = stopped = False

    async def execute(self, inputs: dict[str, Any], context: Any) -> dict[str, Any]:
        self.started = True
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.stopped = True
            raise
        return {}


class Dated:
    """A module whose result JSON does not have."""

    description = "Tells the time."

    async def execute(self, inputs: dict[str, Any], context: Any) -> dict[str, Any]:
        return {"now": datetime.now(UTC)} if inputs else {"half": "\ud800"}


async def test_a_cancelled_request_stops_what_is_no_task(runtime: Runtime) -> None:
    registry, waiting = Registry(), Waiting()
    registry.register("plain.waiting", waiting)
    async with mcp_site(Door(registry)) as url, browser() as http:
        headers = await opened(http, url)
        asked = request("tools/call", 1, name="plain-waiting")
        call = asyncio.create_task(http.post(url, json=asked, headers=headers))
        await until(lambda: waiting.started)
        assert not waiting.stopped
        note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
        assert (await http.post(url, json=note, headers=headers)).status_code == 202
        await until(lambda: waiting.stopped)
        assert "cancelled" in (await call).text


async def test_results_that_cannot_be_sent(runtime: Runtime) -> None:
    registry = Registry()
    registry.register("plain.dated", Dated())
    async with mcp_site(Door(registry)) as url, mcp_client(url) as session:
        assert error_of(await session.call_tool("plain-dated", {"a": 1}))["code"] == "internal"
        assert text_of(await session.call_tool("plain-dated")) == '{"half": "?"}'
