"""An A2A server in the loop of a test, and what speaks JSON-RPC with it."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn
from apcore import Identity
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from apflow import Runtime
from apflow.bridge.a2a.app import A2aApp
from apflow.bridge.door import Door

USER = "x-user"
#: Reading the certificates of the machine takes longer than most tests.
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class Named:
    """Takes whoever a request says it is from for granted."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        user = dict(scope["headers"]).get(USER.encode())
        scope["apflow.identity"] = None if user is None else Identity(id=user.decode())
        await self._app(scope, receive, send)


def agent(door: Door, url: str = "http://127.0.0.1/", **options: Any) -> A2aApp:
    """Return an app."""
    given = {"default_skill": None, "authenticated": False} | options
    return A2aApp(door, name="site", description="Tests.", version="1.2.3", url=url, **given)


@asynccontextmanager
async def a2a_site(door: Door, **options: Any) -> AsyncIterator[str]:
    """Serve a door on a free port; yields the URL."""
    with socket.socket(proto=socket.IPPROTO_TCP) as listening:  # named, so that asyncio sends small answers at once
        listening.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        app = agent(door, url, **options)
        site = Named(Starlette(routes=app.routes))
        config = uvicorn.Config(site, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve([listening]))
        try:
            async with app.running():
                yield url
        finally:
            server.should_exit = True
            await serving


def only(runtime: Runtime, *tasks: Any) -> Door:
    """Return a door to these tasks alone, whatever else other tests have made."""
    return Door([one.with_options(runtime=runtime) for one in tasks])


class Caller:
    """Sends JSON-RPC by hand.

    Args:
        url: Of the server.
        user: Who it says it is.
    """

    def __init__(self, url: str, user: str | None = None) -> None:
        self._url = url
        self._headers = {} if user is None else {USER: user}

    async def post(self, body: Any, **headers: str) -> Any:
        """Send a body and return the answer."""
        async with httpx.AsyncClient(timeout=60, headers=self._headers | headers, verify=_NO_TLS) as http:
            sent = {"content": body} if isinstance(body, bytes) else {"json": body}
            answer = await http.post(self._url, **sent)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def call(self, method: str, params: dict[str, Any]) -> Any:
        """Call a method and return its result."""
        answer = await self.post(request(method, params))
        assert "error" not in answer, answer
        assert answer["id"] == 7
        return answer["result"]

    async def code(self, method: str, params: dict[str, Any], **headers: str) -> int:
        """Call a method and return the code of the error."""
        answer = await self.post(request(method, params), **headers)
        code: int = answer["error"]["code"]
        return code

    async def events(self, method: str, params: dict[str, Any]) -> AsyncIterator[Any]:
        """Call a method and yield what it streams."""
        async with (
            httpx.AsyncClient(timeout=60, headers=self._headers, verify=_NO_TLS) as http,
            http.stream("POST", self._url, json=request(method, params)) as answer,
        ):
            async for line in answer.aiter_lines():
                if line.startswith("data:"):
                    yield json.loads(line.removeprefix("data:"))["result"]

    async def send(self, skill: str | None, inputs: Any, **more: Any) -> Any:
        """Send a message of 0.3 and return the task."""
        return await self.call("message/send", sent(skill, inputs, **more))

    async def until(self, task_id: str, state: str) -> Any:
        """Wait until a task is in a state, and return it."""
        found: Any = None

        async def there() -> bool:
            nonlocal found
            found = await self.call("tasks/get", {"id": task_id})
            return bool(found["status"]["state"] == state)

        await until(there)
        return found


def request(method: str, params: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON-RPC request."""
    return {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}


def sent(skill: str | None, inputs: Any, *, blocking: bool = True, **message: Any) -> dict[str, Any]:
    """Return the parameters that send inputs in 0.3: an object as data, a text as text."""
    part = {"kind": "text", "text": inputs} if isinstance(inputs, str) else {"kind": "data", "data": inputs}
    given: dict[str, Any] = {"kind": "message", "messageId": str(uuid.uuid4()), "role": "user", "parts": [part]}
    if skill is not None:
        given["metadata"] = {"skillId": skill}
    return {"message": given | message, "configuration": {"blocking": blocking}}


def sent_new(skill: str | None, inputs: Any, *, at_once: bool = False, **message: Any) -> dict[str, Any]:
    """Return the parameters that send inputs in 1.0."""
    part = {"text": inputs} if isinstance(inputs, str) else {"data": inputs}
    given: dict[str, Any] = {"messageId": str(uuid.uuid4()), "role": "ROLE_USER", "parts": [part]}
    if skill is not None:
        given["metadata"] = {"skillId": skill}
    return {"message": given | message, "configuration": {"returnImmediately": at_once}}


def state_of(task: Any) -> str:
    """Return the state of a task."""
    state: str = task["status"]["state"]
    return state


def value_of(task: Any) -> Any:
    """Return the result of a task: the only part of its only artifact."""
    assert state_of(task) in ("completed", "TASK_STATE_COMPLETED"), task
    [artifact] = task["artifacts"]
    [part] = artifact["parts"]
    return part["data"] if "data" in part else part["text"]


def error_of(task: Any) -> Any:
    """Return what a task says of its failure."""
    text, data = task["status"]["message"]["parts"]
    assert text["text"] == data["data"]["message"]
    return data["data"]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(60):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.01)
