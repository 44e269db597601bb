"""What happens while a call over MCP runs: progress, items, cancelling, and clients that leave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from mcp import ClientSession, McpError, types

import apflow
from apflow import RetryPolicy, Runtime
from apflow.bridge.door import Door
from tests.integration.mcp_site import (
    browser,
    error_of,
    mcp_client,
    mcp_site,
    messages,
    opened,
    request,
    run_id_of,
    text_of,
    until,
)

pytestmark = pytest.mark.anyio


class Stage:
    """What the tasks of this file did, and when they may go on."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.go = threading.Event()


stage = Stage()


@pytest.fixture(autouse=True)
def _fresh_stage() -> Iterator[None]:
    stage.__init__()  # type: ignore[misc]
    yield
    stage.go.set()


@apflow.task(name="mcpr.climb")
async def climb(who: str, steps: int) -> str:
    for step in range(steps):
        await apflow.progress(step + 1, steps, f"{who} {step + 1}")
    return who


@apflow.task(name="mcpr.wobble")
def wobble() -> None:
    for done in (1, 3, 3, 2, 4):
        apflow.progress(done, 5, "\ud800" if done == 4 else "")


@apflow.task(name="mcpr.again", retry=RetryPolicy(max_attempts=2, backoff_base_seconds=0.1, jitter=False))
async def again() -> None:
    await apflow.progress(0, 3)
    await apflow.progress(2, 3)
    if len(stage.started) == 0:
        stage.started.append("once")
        raise ValueError
    await apflow.progress(3, 3)


@apflow.task(name="mcpr.count")
async def count(n: int) -> AsyncIterator[dict[str, int]]:
    for number in range(n):
        yield {"n": number}


@apflow.task(name="mcpr.letters", retry=RetryPolicy(max_attempts=2, backoff_base_seconds=0.1, jitter=False))
def letters(word: str) -> Iterator[str]:
    for number, letter in enumerate(word):
        if number == 2 and not stage.started:
            stage.started.append("failed")
            raise ValueError
        yield letter


@apflow.task(name="mcpr.wait")
async def wait(who: str = "") -> str:
    stage.started.append(who)
    try:
        await until(stage.go.is_set)
    except asyncio.CancelledError:
        stage.stopped.append(who)
        raise
    return f"{who} done"


@pytest.fixture
async def runtime(sqlite_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(sqlite_url, shutdown_seconds=1) as made:
        yield made


@pytest.fixture
async def url(runtime: Runtime) -> AsyncIterator[str]:
    async with mcp_site(Door(runtime, prefix="mcpr.")) as where:
        yield where


class Heard:
    """Progress that a client was told."""

    def __init__(self) -> None:
        self.told: list[tuple[float, float | None, str | None]] = []

    async def __call__(self, progress: float, total: float | None, message: str | None) -> None:
        self.told.append((progress, total, message))


async def status(runtime: Runtime, name: str) -> str | None:
    [run] = await runtime.runs.list(name=name)
    return run.status


async def cancel(session: ClientSession, request_id: int) -> None:
    params = types.CancelledNotificationParams(requestId=request_id, reason="enough")
    await session.send_notification(types.ClientNotification(types.CancelledNotification(params=params)))


async def told_cancelled(call: asyncio.Task[types.CallToolResult]) -> None:
    """Wait for a call that the SDK answers with an error, or we with a result when it had not begun."""
    try:
        told = error_of(await call)["message"]
    except McpError as error:
        told = str(error)
    assert "cancelled" in told


async def test_progress_reaches_only_who_asked(url: str) -> None:
    heard = {f"caller{n}": Heard() for n in range(4)}

    async def call(who: str, session: ClientSession) -> None:
        result = await session.call_tool("mcpr-climb", {"who": who, "steps": 50}, progress_callback=heard[who])
        assert text_of(result) == who

    async with mcp_client(url, "alice") as one, mcp_client(url, "alice") as two:
        places = zip(heard, (one, one, two, two), strict=True)
        await asyncio.gather(*(call(who, session) for who, session in places))
        await one.call_tool("mcpr-climb", {"who": "quiet", "steps": 3})
    for who, told in heard.items():
        assert told.told == [(step, 50, f"{who} {step}") for step in range(1, 51)]


async def test_progress_only_grows(url: str) -> None:
    wobbling, retried = Heard(), Heard()
    async with mcp_client(url) as session:
        await session.call_tool("mcpr-wobble", progress_callback=wobbling)
        await session.call_tool("mcpr-again", progress_callback=retried)
    assert wobbling.told == [(1, 5, None), (3, 5, None), (4, 5, "?")]
    assert retried.told == [(0, 3, None), (2, 3, None), (3, 3, None)]


async def test_items_of_a_generator(url: str) -> None:
    counted, spelled = Heard(), Heard()
    async with mcp_client(url) as session:
        result = await session.call_tool("mcpr-count", {"n": 1500}, progress_callback=counted)
        quiet = await session.call_tool("mcpr-count", {"n": 2})
        word = await session.call_tool("mcpr-letters", {"word": "épée"}, progress_callback=spelled)
    assert result.structuredContent == {"result": [{"n": number} for number in range(1500)]}
    assert counted.told == [(number + 1, None, f'{{"n": {number}}}') for number in range(1500)]
    assert quiet.structuredContent == {"result": [{"n": 0}, {"n": 1}]}
    # The second attempt begins anew: what was told already is not told again.
    assert word.structuredContent == {"result": list("épée")}
    assert spelled.told == [(number + 1, None, f'"{letter}"') for number, letter in enumerate("épée")]


async def test_progress_names_the_run_on_the_stream_of_its_request(url: str) -> None:
    async with browser() as http:
        headers = await opened(http, url)
        meta = {"progressToken": 0}
        asked = request("tools/call", 0, name="mcpr-climb", arguments={"who": "me", "steps": 2}, _meta=meta)
        first, second, result = messages((await http.post(url, json=asked, headers=headers)).text)
    run_id = result["result"]["_meta"]["apflow/run_id"]
    for number, one in enumerate((first, second), 1):
        assert one["method"] == "notifications/progress"
        assert one["params"] == {
            "progressToken": 0,
            "progress": number,
            "total": 2,
            "message": f"me {number}",
            "_meta": {"apflow/run_id": run_id},
        }
    assert result["id"] == 0


async def test_a_cancelled_request_stops_its_run(url: str, runtime: Runtime) -> None:
    async with mcp_client(url) as session:
        call = asyncio.create_task(session.call_tool("mcpr-wait", {"who": "me"}))
        other = asyncio.create_task(session.call_tool("mcpr-wait", {"who": "other"}))
        await until(lambda: set(stage.started) == {"me", "other"})
        await cancel(session, session._request_id - 2)
        await told_cancelled(call)
        await until(lambda: stage.stopped == ["me"])
        [cancelled] = await runtime.runs.list(status="cancelled")
        assert cancelled.inputs == {"who": "me"}
        stage.go.set()
        assert text_of(await other) == "other done"


async def test_a_request_cancelled_at_once_leaves_nothing_running(url: str, runtime: Runtime) -> None:
    async with mcp_client(url) as session:
        for _ in range(10):
            call = asyncio.create_task(session.call_tool("mcpr-wait"))
            await asyncio.sleep(0)
            await cancel(session, session._request_id - 1)
            await told_cancelled(call)

        async def quiet() -> bool:
            return not await runtime.runs.count(status="in_progress")

        await until(quiet)
        assert await runtime.runs.count(status="cancelled") == await runtime.runs.count()


async def test_a_request_that_joined_a_run_cancels_it(url: str, runtime: Runtime) -> None:
    key = {"apflow/key": "k"}
    async with mcp_client(url) as one, mcp_client(url) as two:
        first = asyncio.create_task(one.call_tool("mcpr-wait", meta=key))
        await until(lambda: stage.started)
        second = asyncio.create_task(two.call_tool("mcpr-wait", meta=key))
        await until(lambda: len(runtime.recorder.keeper.held) == 1 and two._request_id > 1)
        await cancel(two, two._request_id - 1)
        assert error_of(await first)["code"] == "cancelled"
        await told_cancelled(second)
    assert await status(runtime, "mcpr.wait") == "cancelled"


async def test_a_run_cancelled_by_somebody_else_is_told(url: str, runtime: Runtime) -> None:
    async with mcp_client(url) as session:
        call = asyncio.create_task(session.call_tool("mcpr-wait"))
        await until(lambda: stage.started)
        [run] = await runtime.runs.list()
        await runtime.runs.cancel(run.id)
        told = error_of(await call)
    assert (told["code"], told["run_id"]) == ("cancelled", run.id)


@pytest.mark.parametrize("how", ["connection lost", "session ended"])
async def test_who_leaves_leaves_the_run_running(url: str, runtime: Runtime, how: str) -> None:
    async with browser("alice") as http, browser("alice") as other:
        headers = await opened(http, url)
        meta = {"apflow/key": "k", "progressToken": 1}
        asked = request("tools/call", 1, name="mcpr-wait", arguments={"who": "me"}, _meta=meta)
        call = asyncio.create_task(http.post(url, json=asked, headers=headers))
        await until(lambda: stage.started)
        if how == "session ended":
            assert (await other.delete(url, headers=headers)).status_code == 200
            await asyncio.wait({call})
            assert (await other.post(url, json=asked, headers=headers)).status_code == 404
        else:
            call.cancel()
            await asyncio.wait({call})
    assert await status(runtime, "mcpr.wait") == "in_progress"
    async with mcp_client(url, "alice") as session:
        again = asyncio.create_task(session.call_tool("mcpr-wait", {"who": "me"}, meta={"apflow/key": "k"}))
        await asyncio.sleep(0.05)
        stage.go.set()
        result = await again
    assert text_of(result) == "me done"
    assert (stage.started, stage.stopped) == (["me"], [])
    run = await runtime.runs.get(run_id_of(result))
    assert run is not None
    assert run.status == "completed"


async def test_a_server_that_stops_leaves_its_runs(runtime: Runtime) -> None:
    async with browser() as http:
        async with mcp_site(Door(runtime, prefix="mcpr.")) as url:
            headers = await opened(http, url)
            asked = request("tools/call", 1, name="mcpr-wait", arguments={"who": "me"})
            call: asyncio.Task[Any] = asyncio.create_task(http.post(url, json=asked, headers=headers))
            await until(lambda: stage.started)
        await asyncio.wait({call})
        assert call.exception() is not None or not messages(call.result().text)
    assert await status(runtime, "mcpr.wait") == "in_progress"
    stage.go.set()

    async def completed() -> bool:
        return await status(runtime, "mcpr.wait") == "completed"

    await until(completed)
    assert stage.stopped == []
