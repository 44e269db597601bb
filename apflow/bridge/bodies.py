"""Bodies of requests, read before any door hears of them: none is larger than this server wants to hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Bytes that a request may send at most, on every door.
LARGEST_BODY = 10_000_000
_WITHOUT = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})


class Limited:
    """Lets requests through to the app whose bodies are not too large; each is read whole first.

    One that is too large gets status 413, as soon as that is known.

    Args:
        app: What serves them.
        largest: In bytes.
    """

    def __init__(self, app: ASGIApp, *, largest: int = LARGEST_BODY) -> None:
        self._app = app
        self._largest = largest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["method"] in _WITHOUT:
            await self._app(scope, receive, send)
            return
        if _announced(scope) > self._largest:
            await _TOO_LARGE(scope, receive, send)
            return
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":  # the caller has left
                return
            body += message.get("body", b"")
            if len(body) > self._largest:
                await _TOO_LARGE(scope, receive, send)
                return
            more = message.get("more_body", False)
        await self._app(scope, _again(bytes(body), receive), send)


def _again(body: bytes, receive: Receive) -> Receive:
    """Return what tells the body once, and then whatever comes after it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


def _announced(scope: Scope) -> int:
    """Return how long a request says that its body is; 0 when it does not say."""
    found = [value for name, value in scope["headers"] if name.lower() == b"content-length"]
    return int(found[0]) if found and found[0].isdigit() else 0


_TOO_LARGE = JSONResponse(
    {"code": "too_large", "message": f"a request has at most {LARGEST_BODY} bytes here"}, status_code=413
)
