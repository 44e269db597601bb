"""Cancelling what has just ended, or is being cancelled already: everybody who listens gets one end, and no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from a2a.server.events.event_queue_v2 import EventQueueSource
from a2a.types.a2a_pb2 import TaskState
from mcp import McpError, types

import apflow
from apflow import Runtime
from apflow.bridge.a2a.executor import Caller as CallingModules
from apflow.bridge.a2a.store import A2aTasks
from apflow.bridge.door import Door
from apflow.bridge.mcp.calls import ToolCalls
from apflow.bridge.mcp.session import Session
from tests.integration.a2a_site import Caller, a2a_site, only, sent, state_of, until
from tests.integration.mcp_site import mcp_client, mcp_site, text_of

pytestmark = pytest.mark.anyio


@apflow.task(name="races.forever")
async def forever() -> None:
    await asyncio.Event().wait()


@apflow.task(name="races.add")
async def add(a: int) -> int:
    return a + 1


@pytest.fixture
async def runtime(sqlite_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(sqlite_url, shutdown_seconds=1) as made:
        yield made


class Told(EventQueueSource):
    """Remembers what it was told, and passes nothing on."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    async def enqueue_event(self, event: Any) -> None:
        self.events.append(event)


async def _stored(runtime: Runtime, task_id: str) -> bool:
    return await runtime.runs.get(task_id) is not None


async def test_a_stream_ends_when_its_task_is_cancelled_several_times_at_once(runtime: Runtime) -> None:
    async with a2a_site(only(runtime, forever)) as url:
        caller, begun = Caller(url), asyncio.Queue[str]()

        async def stream() -> list[str]:
            states = []
            async for event in caller.events("message/stream", sent("races.forever", {})):
                states.append(state_of(event))
                if states[-1] == "working":
                    begun.put_nowait(event["taskId"])
            return states

        for _ in range(5):
            streaming = asyncio.create_task(stream())
            task_id = await begun.get()
            await until(partial(_stored, runtime, task_id))
            answers = await asyncio.gather(*(caller.call("tasks/cancel", {"id": task_id}) for _ in range(3)))
            assert [state_of(answer) for answer in answers] == ["canceled"] * 3
            async with asyncio.timeout(30):
                assert await streaming == ["submitted", "working", "canceled"]


async def test_who_cancels_what_has_just_ended_adds_no_second_end(runtime: Runtime) -> None:
    door = only(runtime, add)
    caller, told = CallingModules(door, A2aTasks(door), None), Told()
    message = {"parts": [{"data": {"a": 1}}], "metadata": {"skillId": "races.none"}}
    state = {"identity": None, "message": message}
    context: Any = SimpleNamespace(
        task_id="t", context_id="c", current_task=None, message=None, call_context=SimpleNamespace(state=state)
    )
    await caller.execute(context, told)
    await caller.cancel(context, told)
    assert [TaskState.Name(one.status.state) for one in told.events] == ["TASK_STATE_SUBMITTED", "TASK_STATE_FAILED"]

    state["message"] = message | {"metadata": {"skillId": "races.add"}}
    other: Any = Told()
    await caller.cancel(context, other)
    assert [TaskState.Name(one.status.state) for one in other.events] == ["TASK_STATE_CANCELED"]


async def test_a_session_outlives_a_call_that_ends_while_it_is_cancelled(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, begun = ToolCalls.call, asyncio.Event()

    async def ending(self: ToolCalls, module_id: str, params: Any, context: Any, session: Session) -> Any:
        with anyio.CancelScope(shield=params.arguments == {"a": 1}):
            result = await call(self, module_id, params, context, session)
            if params.arguments == {"a": 1}:
                begun.set()
                await until(lambda: _cancelled(context))
        return result

    async def _cancelled(context: Any) -> bool:
        return context.request_id not in context.session._in_flight or bool(
            context.session._in_flight[context.request_id].cancelled
        )

    monkeypatch.setattr(ToolCalls, "call", ending)
    door = Door([add.with_options(runtime=runtime)])
    async with mcp_site(door) as url, mcp_client(url) as session:
        calling = asyncio.create_task(session.call_tool("races-add", {"a": 1}))
        await begun.wait()
        params = types.CancelledNotificationParams(requestId=session._request_id - 1)
        await session.send_notification(types.ClientNotification(types.CancelledNotification(params=params)))
        with pytest.raises(McpError, match="Request cancelled"):
            await calling
        assert text_of(await session.call_tool("races-add", {"a": 2})) == "3"
