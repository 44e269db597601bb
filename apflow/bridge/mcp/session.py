"""One session of an MCP client, and which of its requests the client has cancelled."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from anyio.abc import ObjectReceiveStream
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCNotification, JSONRPCRequest, RequestId

if TYPE_CHECKING:
    from collections.abc import Callable

    from mcp.types import JSONRPCMessage

#: Of so many cancelled requests it is known at a time that they are.
_MOST_CANCELLED = 1000


class Session:
    """What we know of a session beyond what the SDK does.

    The SDK cancels the handler of a request when the client cancels the request, but also when the session ends.
    Only the first one is meant for the run.

    Args:
        owner: Id of the caller who opened it; None when nobody is asked who they are.

    Attributes:
        id: As the client sends it; None until it was told, and over stdio.
        ended: Nothing comes in any more.
        at_end: Called when it has ended.
    """

    def __init__(self, owner: str | None = None) -> None:
        self.owner = owner
        self.id: str | None = None
        self.ended = False
        self.at_end: Callable[[], object] = _nothing
        self._cancelled: dict[RequestId, None] = {}

    def end(self) -> None:
        """Take down that it has ended."""
        self.ended = True
        self.at_end()

    def note(self, message: JSONRPCMessage) -> None:
        """Take down what a message of the client says about cancelled requests, before anything else happens to it."""
        root = message.root
        if isinstance(root, JSONRPCRequest):
            self._cancelled.pop(root.id, None)  # what was said is about an earlier request of that id
        elif isinstance(root, JSONRPCNotification) and root.method == "notifications/cancelled":
            request_id = (root.params or {}).get("requestId")
            if isinstance(request_id, str | int):
                self._cancelled[request_id] = None
                if len(self._cancelled) > _MOST_CANCELLED:
                    del self._cancelled[next(iter(self._cancelled))]

    def has_cancelled(self, request_id: RequestId) -> bool:
        """Whether the client does not want the answer to this request any more, nor the work."""
        return request_id in self._cancelled


def _nothing() -> None:
    """Do nothing."""


#: The session that the running code belongs to.
session: ContextVar[Session | None] = ContextVar("apflow_mcp_session", default=None)


class Watched(ObjectReceiveStream[SessionMessage | Exception]):
    """Passes on what a client sends; the session sees it first.

    Args:
        source: Where it comes from.
        session: Whose it is.
    """

    def __init__(self, source: ObjectReceiveStream[SessionMessage | Exception], session: Session) -> None:
        self._source, self._session = source, session

    async def receive(self) -> SessionMessage | Exception:
        """Return the next message."""
        item = await self._source.receive()
        if isinstance(item, SessionMessage):
            self._session.note(item.message)
        return item

    async def aclose(self) -> None:
        """Close the source."""
        await self._source.aclose()
