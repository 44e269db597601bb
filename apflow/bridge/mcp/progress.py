"""Progress notifications: what a run tells of itself, for the caller who asked, in order and only growing."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import TYPE_CHECKING, Any

import anyio
from mcp import types

from apflow.bridge.module import RunModule
from apflow.state import current_state
from apflow.storage.scalars import decode

if TYPE_CHECKING:
    from mcp.server.session import ServerSession
    from mcp.shared.context import RequestContext

    from apflow.state import Progress

#: When so many wait because the client reads slowly, the latest takes the place of the one before it.
_MOST_WAITING = 1000


class Reporter:
    """Tells one caller of one run, on the stream of the request that asked for it. A `Listener`.

    Of a generator the items are told, each as JSON text, with their number as progress; of other tasks what
    `apflow.progress` says. What does not go beyond what was told already is left out, as after a retry.

    Args:
        context: The request.
        token: The client's, for these notifications.
        module: What was called.

    Attributes:
        run_id: The run, once it is known; it goes with each notification, for clients that lose their connection.
    """

    def __init__(self, context: RequestContext[ServerSession, Any, Any], token: str | int, module: object) -> None:
        self._session, self._request_id, self._token = context.session, str(context.request_id), token
        self._codec = module.executor.definition.codec if isinstance(module, RunModule) and module.streaming else None
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[float, float | None, str]] = deque()
        self._sender: asyncio.Task[None] | None = None
        self._told = -1.0
        self._items, self._attempt = 0, 1
        self._closed = False
        self.run_id: str | None = None

    def progressed(self, progress: Progress) -> None:
        if self._codec is None:
            # A lone surrogate is no text that could be sent.
            message = str(progress.message).encode("utf-8", "replace").decode()
            self._loop.call_soon_threadsafe(self._put, float(progress.done), float(progress.total), message)

    def produced(self, item: Any) -> None:
        if self._codec is not None:
            [value] = decode(self._codec.dump_result([item]))
            state = current_state()
            attempt = 1 if state is None else state.attempt
            self._loop.call_soon_threadsafe(self._put_item, attempt, json.dumps(value, ensure_ascii=False))

    def _put_item(self, attempt: int, text: str) -> None:
        self._items = self._items + 1 if attempt == self._attempt else 1
        self._attempt = attempt
        self._put(float(self._items), None, text)

    def _put(self, done: float, total: float | None, message: str) -> None:
        if self._closed or done <= self._told:
            return
        self._told = done
        if self._codec is None and len(self._waiting) >= _MOST_WAITING:
            self._waiting.pop()
        self._waiting.append((done, total, message))
        if self._sender is None:
            self._sender = self._loop.create_task(self._send())

    async def _send(self) -> None:
        try:
            while self._waiting:
                notification = types.ProgressNotification(params=self._params(*self._waiting.popleft()))
                # A number 0 would count as none.
                await self._session.send_notification(types.ServerNotification(notification), self._request_id)
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            self._closed = True
        finally:
            self._sender = None

    def _params(self, done: float, total: float | None, message: str) -> types.ProgressNotificationParams:
        meta = {} if self.run_id is None else {"_meta": {"apflow/run_id": self.run_id}}
        return types.ProgressNotificationParams.model_validate(
            {"progressToken": self._token, "progress": done, "total": total, "message": message or None, **meta}
        )

    async def drained(self) -> None:
        """Wait until all that was told so far has been sent."""
        while self._sender is not None:
            await asyncio.wait({self._sender})

    def close(self) -> None:
        """Tell no more."""
        self._closed = True
        if self._sender is not None:
            self._sender.cancel()
