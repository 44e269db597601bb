"""Requests that mean no good: bodies that are too large or no JSON, and what of them gets into answers and the log."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from apcore import ApprovalHandler, ApprovalRequest, ApprovalResult, Identity

import apflow
from apflow import Runtime
from apflow.bridge.bodies import LARGEST_BODY
from apflow.bridge.door import Door
from apflow.bridge.mcp import app as mcp_app
from apflow.bridge.refusals import RefusedError
from tests.integration.mcp_site import messages, opened, request
from tests.integration.served import bearer, served

pytestmark = pytest.mark.anyio

ALICE, BOB = "alice-0123456789", "bob-0123456789-b"
CALL = "/explorer/tools/hostile.count/call"
JSON = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
HIDDEN = "hunter2-hunter2"
MANY = 100_000

begun: list[str | None] = []


@apflow.task(name="hostile.count")
async def count(word: str | None = None) -> int:
    begun.append(word)
    return len(begun)


@pytest.fixture
async def client(sqlite_url: str) -> AsyncIterator[httpx.AsyncClient]:
    begun.clear()
    async with (
        Runtime(sqlite_url, shutdown_seconds=1) as runtime,
        served(runtime, prefix="hostile.", auth={ALICE: "alice", BOB: "bob"}, explorer=True) as url,
        httpx.AsyncClient(base_url=url, headers=JSON | bearer(ALICE)) as made,
    ):
        yield made


async def pieces(number: int) -> AsyncIterator[bytes]:
    for _ in range(number):
        yield b" " * (LARGEST_BODY // 10)


@pytest.mark.parametrize("path", ["/", "/mcp", CALL])
@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_that_is_too_large_is_refused_on_every_door(
    client: httpx.AsyncClient, path: str, announced: bool
) -> None:
    content: Any = b" " * (LARGEST_BODY + 1) if announced else pieces(11)
    answer = await client.post(path, content=content)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert begun == []


async def test_who_is_not_known_hears_nothing_of_limits(client: httpx.AsyncClient) -> None:
    answer = await client.post("/", content=b" " * (LARGEST_BODY + 1), headers={"authorization": "Bearer nobody"})
    assert answer.status_code == 401


async def test_a_large_body_is_read_whole(client: httpx.AsyncClient) -> None:
    word = "w" * (LARGEST_BODY // 2)
    answer = await client.post(CALL, json={"word": word})
    assert answer.status_code == 200, answer.text[:200]
    assert begun == [word]


@pytest.mark.parametrize(
    "body",
    [b"{no json", b'{"word": ' + b"[" * MANY + b"]" * MANY + b"}", b'{"word": ' + b"9" * 5000 + b"}", b"\xff"],
    ids=["broken", "deep", "a long number", "no text"],
)
async def test_the_explorer_does_not_call_for_a_body_that_is_no_json(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post(CALL, content=body)
    assert json.loads(answer.json()["content"][0]["text"])["code"] == "invalid_input"
    assert begun == []
    assert (await client.post(CALL)).status_code == 200  # no body at all is no inputs
    assert begun == [None]


def token(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


@pytest.mark.parametrize(
    "forged",
    [
        token(["0001-01-01T00:00:00+14:00", "x"]),
        token(["9999-12-31T23:59:59-14:00", "x"]),
        token(["2026-01-01T00:00:00+00:00", "\ud800"]),
        token(["2026-01-01T00:00:00+00:00", "\0"]),
        base64.urlsafe_b64encode(b"[" * MANY).decode(),
    ],
    ids=["before all times", "after all times", "half a pair", "NUL", "deep"],
)
async def test_a_forged_page_token_is_a_bad_parameter(
    client: httpx.AsyncClient, forged: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await client.post("/", json=request("ListTasks", 1, pageToken=forged))
    assert answer.json()["error"]["code"] == -32602
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


async def test_an_id_that_cannot_be_sent_back_is_none(client: httpx.AsyncClient) -> None:
    body = b'{"jsonrpc": "2.0", "id": "\\ud800", "method": "GetTask", "params": {"id": "x"}}'
    answer = await client.post("/", content=body)
    assert (answer.status_code, answer.json()["id"], answer.json()["error"]["code"]) == (200, None, -32600)


async def test_neither_inputs_nor_ids_of_sessions_get_into_the_log(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    headers = await opened(client, "/mcp")
    wrong: list[dict[str, Any]] = [
        request("tools/call", 1, name="hostile-count", arguments=HIDDEN),
        request(HIDDEN, 2),
        {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": {"a": HIDDEN}}},
        {"jsonrpc": "2.0", "id": HIDDEN, "result": {"a": HIDDEN}},
    ]
    for one in wrong:
        assert (await client.post("/mcp", json=one, headers=headers)).status_code in (200, 202)
    fine = await client.post("/mcp", json=request("tools/call", 3, name="hostile-count"), headers=headers)
    assert messages(fine.text)[-1]["result"]["structuredContent"] == {"result": 1}
    assert (await client.delete("/mcp", headers=headers)).status_code == 200
    texts = "\n".join(one.getMessage() for one in caplog.records if not one.name.startswith("http"))
    assert texts.count("none of MCP") == len(wrong)
    for word in (HIDDEN, ALICE, headers["mcp-session-id"]):
        assert word not in texts


async def test_nobody_takes_the_room_for_sessions_of_others(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_app, "MOST_SESSIONS", 2)
    async with httpx.AsyncClient(base_url=client.base_url, headers=JSON | bearer(BOB)) as other:
        of_bob = await opened(other, "/mcp")
        first, second = await opened(client, "/mcp"), await opened(client, "/mcp")
        asked = request("tools/list", 1)
        assert (await client.post("/mcp", json=asked, headers=first)).status_code == 200
        third = await opened(client, "/mcp")
        answers = [(await client.post("/mcp", json=asked, headers=one)).status_code for one in (first, second, third)]
        assert answers == [200, 404, 200]
        assert (await other.post("/mcp", json=asked, headers=of_bob)).status_code == 200


class Later(ApprovalHandler):
    """Decides later, and then for everything that it was asked about."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def request_approval(self, request: ApprovalRequest) -> ApprovalResult:
        self.asked.append(dict(request.arguments))
        return ApprovalResult(status="pending", approval_id=f"approval-{len(self.asked)}")

    async def check_approval(self, approval_id: str) -> ApprovalResult:
        return ApprovalResult(status="approved", approval_id=approval_id)


@apflow.task(name="hostile.wipe", tags=("requires_approval",))
async def wipe(what: str) -> str:
    return what


async def test_an_approval_is_for_one_call_of_one_caller(sqlite_url: str) -> None:
    alice, bob = Identity(id="alice"), Identity(id="bob")
    handler = Later()
    async with Runtime(sqlite_url) as runtime:
        door = Door([wipe.with_options(runtime=runtime)], approval_handler=handler)

        async def code_of(who: Identity, what: str, token: str | None = None) -> str:
            inputs = {"what": what} | ({} if token is None else {"_approval_token": token})
            try:
                answer = await door.call("hostile.wipe", inputs, identity=who)
            except RefusedError as error:
                return error.told.code
            assert answer.value == what
            return "done"

        assert await code_of(alice, "crumbs") == "approval_pending"
        assert await code_of(alice, "everything", "approval-1") == "approval_pending"
        assert await code_of(bob, "crumbs", "approval-1") == "approval_pending"
        assert await code_of(alice, "crumbs", "approval-9") == "approval_pending"
        assert handler.asked == [{"what": one} for one in ("crumbs", "everything", "crumbs", "crumbs")]
        assert await code_of(alice, "crumbs", "approval-1") == "done"
        assert await code_of(alice, "crumbs", "approval-1") == "approval_pending"
        assert await code_of(alice, "everything", "approval-2") == "done"
