"""The requests under way, and how they end when the server stops."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: How long a cut request gets for its last words.
LAST_SECONDS = 1.0


class Requests:
    """Lets requests through to the app while it is open.

    Args:
        app: What serves them.
        closed: What callers are told while it is not open.
    """

    def __init__(self, app: ASGIApp, *, closed: str) -> None:
        self._app = app
        self._closed: str | None = closed
        self._under_way: dict[asyncio.Task[None], str] = {}
        self._cut: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Serve requests from now on."""
        self._closed = None

    def close(self, reason: str) -> None:
        """Refuse new requests, and end the streams that wait for whatever may come."""
        self._closed = reason
        self._end("GET")

    async def finish(self, seconds: float) -> None:
        """Wait for the requests under way, and end those that take longer."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=seconds)
        self._end("GET", "POST", "DELETE")
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=LAST_SECONDS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if self._closed is not None:
            await _refuse(self._closed, scope, receive, send)
            return
        task = asyncio.current_task()
        assert task is not None
        started = complete = False

        async def watched_send(message: Message) -> None:
            nonlocal started, complete
            started = True
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        self._under_way[task] = scope["method"]
        try:
            await self._app(scope, receive, watched_send)
        except asyncio.CancelledError:
            if task not in self._cut:
                raise
            task.uncancel()
            if not complete:
                await self._last_words(scope, receive, send, started=started)
        finally:
            self._under_way.pop(task, None)
            self._cut.discard(task)

    def _end(self, *methods: str) -> None:
        for task, method in list(self._under_way.items()):
            if method in methods and task not in self._cut:
                self._cut.add(task)
                task.cancel()

    async def _last_words(self, scope: Scope, receive: Receive, send: Send, *, started: bool) -> None:
        try:
            async with asyncio.timeout(LAST_SECONDS):
                if started:
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                else:
                    await _refuse(self._closed or "", scope, receive, send)
        except TimeoutError:
            return


async def _refuse(reason: str, scope: Scope, receive: Receive, send: Send) -> None:
    answer = JSONResponse({"code": "unavailable", "message": reason}, status_code=503)
    await answer(scope, receive, send)
