"""Many MCP clients at once, and whose is what."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from mcp import ClientSession

import apflow
from apflow import Runtime
from apflow.bridge.door import Door
from apflow.bridge.mcp.app import McpApp
from tests.integration.mcp_site import (
    browser,
    error_of,
    mcp_client,
    mcp_site,
    messages,
    opened,
    request,
    text_of,
    until,
)

pytestmark = pytest.mark.anyio


class Gate:
    """What waits for the test to go on."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.begun: list[str] = []


gate = Gate()


@pytest.fixture(autouse=True)
def _closed_gate() -> None:
    gate.__init__()  # type: ignore[misc]


@apflow.task(name="mcps.whoami")
async def whoami() -> str | None:
    return apflow.current().user


@apflow.task(name="mcps.slow_whoami")
async def slow_whoami() -> str | None:
    me = apflow.current().user or ""
    await apflow.progress(1, 2, me)
    gate.begun.append(me)
    await until(gate.open.is_set)
    await apflow.progress(2, 2, me)
    return me


@apflow.task(name="mcps.square")
async def square(n: int) -> int:
    await apflow.progress(1, 2, str(n))
    return n * n


@pytest.fixture
async def runtime(sqlite_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(sqlite_url, shutdown_seconds=1) as made:
        yield made


@pytest.fixture
async def url(runtime: Runtime) -> AsyncIterator[str]:
    async with mcp_site(Door(runtime, prefix="mcps.")) as where:
        yield where


async def test_who_calls_is_who_sent_the_request(url: str) -> None:
    async with browser("alice") as alice, browser("bob") as bob, browser() as nobody:
        headers = await opened(alice, url)
        asked = request("tools/call", 1, name="mcps-whoami")
        told = {}
        for who, http in (("alice", alice), ("bob", bob), ("nobody", nobody)):
            answer = await http.post(url, json=asked, headers=headers)
            [message] = messages(answer.text)
            told[who] = message["result"]["structuredContent"]["result"]
            assert ("mcp-session-id" in answer.headers) == (who == "alice")
    assert told == {"alice": "alice", "bob": "bob", "nobody": None}


async def test_a_session_tells_others_nothing(url: str) -> None:
    async with browser("alice") as alice, browser("bob") as bob:
        headers = await opened(alice, url)
        asked = request("tools/call", 7, name="mcps-slow_whoami", _meta={"progressToken": "t"})
        first = asyncio.create_task(alice.post(url, json=asked, headers=headers))
        await until(lambda: gate.begun == ["alice"])
        second = asyncio.create_task(bob.post(url, json=asked, headers=headers))
        await until(lambda: gate.begun == ["alice", "bob"])
        # Neither can bob cancel what alice has asked, nor end or overhear her session.
        stop = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}
        assert (await bob.post(url, json=stop, headers=headers)).status_code == 202
        assert (await bob.get(url, headers=headers)).status_code == 404
        assert (await bob.delete(url, headers=headers)).status_code == 404
        gate.open.set()
        for who, call in (("alice", first), ("bob", second)):
            told = messages((await call).text)
            assert [one["params"]["message"] for one in told[:-1]] == [who, who]
            assert told[-1]["result"]["structuredContent"] == {"result": who}


async def test_unknown_and_ended_sessions(url: str) -> None:
    async with browser("alice") as alice, browser("bob") as bob:
        asked = request("tools/call", 1, name="mcps-whoami")
        for http in (alice, bob):
            assert (await http.post(url, json=asked, headers={"mcp-session-id": "made-up"})).status_code == 404
        headers = await opened(alice, url)
        assert (await alice.delete(url, headers=headers)).status_code == 200
        for http in (alice, bob):
            assert (await http.post(url, json=asked, headers=headers)).status_code == 404
        assert (await alice.post(url, json=asked)).status_code == 400


async def test_one_session_ends_and_the_others_go_on(url: str) -> None:
    async with mcp_client(url, "alice") as first, mcp_client(url, "bob") as second:
        calls = [asyncio.create_task(session.call_tool("mcps-slow_whoami")) for session in (first, second)]
        await until(lambda: len(gate.begun) == 2)
        for _ in range(3):
            async with mcp_client(url) as passing:
                assert text_of(await passing.call_tool("mcps-square", {"n": 3})) == "9"
        gate.open.set()
        assert [text_of(await call) for call in calls] == ["alice", "bob"]


async def test_twenty_clients_half_of_which_come_back(url: str, runtime: Runtime) -> None:
    each, at_once = 50, 10
    wrong: list[Any] = []

    async def some(session: ClientSession, numbers: range) -> None:
        async def one(n: int) -> None:
            heard: list[str | None] = []

            async def hears(progress: float, total: float | None, message: str | None) -> None:
                heard.append(message)

            listens = n % 5 == 0
            result = await session.call_tool("mcps-square", {"n": n}, progress_callback=hears if listens else None)
            if result.isError or text_of(result) != str(n * n) or heard != [str(n)] * listens:
                wrong.append((n, result, heard))

        for start in range(0, len(numbers), at_once):
            await asyncio.gather(*(one(n) for n in numbers[start : start + at_once]))

    async def client(number: int) -> None:
        numbers = range(number * each, (number + 1) * each)
        user = f"user{number % 4}"
        if number % 2:
            async with mcp_client(url, user) as session:
                await some(session, numbers)
            return
        half = each // 2
        for part in (numbers[:half], numbers[half:]):
            async with mcp_client(url, user, end=number % 4 == 0) as session:
                await some(session, part)

    await asyncio.gather(*(client(number) for number in range(20)))
    assert wrong == []
    assert await runtime.runs.count(status="completed") == 1000
    assert await runtime.runs.count(user="user1") == 250


async def test_sessions_leave_nothing_behind(runtime: Runtime) -> None:
    app = McpApp(Door(runtime, prefix="mcps."), name="n", version="1")
    with pytest.raises(RuntimeError, match="not running"):
        await app({"type": "http"}, None, None)  # type: ignore[arg-type]
    for _ in range(2):  # it can be entered again, as by an app that is started again
        async with app.running():
            assert (app._manager is not None, app._sessions) == (True, {})
    async with mcp_site(Door(runtime, prefix="mcps.")) as url:
        for _ in range(5):
            async with mcp_client(url) as session:
                await session.list_tools()
                error_of(await session.call_tool("mcps-none"))
        gc.collect()
        [site] = [one for one in gc.get_objects() if isinstance(one, McpApp) and one._manager is not None]
        assert site._manager is not None
        await until(lambda: not site._sessions)
        assert site._server._calls._left == set()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'{"jsonrpc": "2.0", "id": 1}', 400),
        (b"\xff\xfe", 400),
        (json.dumps(request("tools/call", 1)).encode(), 200),
        (json.dumps(request("tools/call", 1, name="mcps-square", arguments=[1])).encode(), 200),
        (json.dumps(request("tools/call", 1, name=3)).encode(), 200),
        (json.dumps(request("tools/nothing", 1)).encode(), 200),
        (json.dumps(request("logging/setLevel", 1, level="debug")).encode(), 200),
    ],
)
async def test_malformed_messages(url: str, body: bytes, status: int, caplog: pytest.LogCaptureFixture) -> None:
    async with browser("alice") as http:
        headers = await opened(http, url) | {"content-type": "application/json"}
        answer = await http.post(url, content=body, headers=headers)
        assert answer.status_code == status
        if status == 200:
            [message] = messages(answer.text)
            assert message["error"]["code"] in (-32602, -32601)
        fine = await http.post(url, json=request("tools/call", 2, name="mcps-whoami"), headers=headers)
        assert messages(fine.text)[-1]["result"]["structuredContent"] == {"result": "alice"}


@pytest.mark.parametrize("words", ["\ud800", "\0", "\u2028", "x" * 100_000])
async def test_strange_words_are_answered(url: str, words: str) -> None:
    async with browser() as http:
        headers = await opened(http, url) | {"content-type": "application/json"}
        for asked in (
            request("tools/call", 1, name="mcps-square", arguments={"n": words}),
            request("tools/call", 2, name="mcps-square", arguments={words: 1}),
            request("tools/call", 3, name=f"mcps-{words}", arguments={}),
            request("tools/call", 4, name="mcps-square", arguments={"n": 1}, _meta={"apflow/key": words}),
            request("tools/call", 5, name="mcps-square", arguments={"n": 1}, _meta={"progressToken": words}),
        ):
            async with asyncio.timeout(30):
                answer = await http.post(url, content=json.dumps(asked), headers=headers)
            if answer.status_code == 200:
                assert messages(answer.text)[-1]["id"] == asked["id"]
            else:
                assert answer.status_code == 400


async def test_saying_good_bye_is_no_error(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    heard: list[Any] = []

    async def hears(message: Any) -> None:
        heard.append(message)

    async with mcp_client(url, hears=hears) as session:
        await session.list_tools()
        for n in range(1000):  # until its stream for announcements is open
            apflow.task(name=f"mcps.good_bye{n}")(whoami.definition.fn)
            await asyncio.sleep(0.005)
            if heard:
                break
    assert heard
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
