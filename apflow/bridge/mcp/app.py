"""MCP over streamable HTTP, as an ASGI app: many clients at once, each with sessions of its own."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from mcp.server.streamable_http import MCP_SESSION_ID_HEADER
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from apflow.bridge.bodies import LARGEST_BODY
from apflow.bridge.mcp.quiet import quiet
from apflow.bridge.mcp.server import ToolServer
from apflow.bridge.mcp.session import Session, session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Message, Receive, Scope, Send

    from apflow.bridge.door import Door

#: A session without any request for so long is forgotten.
IDLE_SECONDS = 30 * 60
#: So many sessions a caller who is known has at most, so that there is room for others.
MOST_SESSIONS = 1000
_ERROR = 400
# Host and Origin are checked in front of all doors, not of this one only.
_UNGUARDED = TransportSecuritySettings(enable_dns_rebinding_protection=False)


class McpApp:
    """Serves the modules of a door to MCP clients.

    A session belongs to the caller who opened it. A call that somebody else sends with its id is that caller's own: it
    gets its answer on its own request, and nothing of the session. Who opens more than `MOST_SESSIONS` loses the one of
    theirs that was used least recently.

    Args:
        door: Through which every call goes.
        name: What clients show.
        version: What clients show.
    """

    def __init__(self, door: Door, *, name: str, version: str) -> None:
        self._door = door
        self._server = ToolServer(door, name=name, version=version)
        self._sessions: dict[str, Session] = {}
        self._manager: StreamableHTTPSessionManager | None = None
        self._single: StreamableHTTPSessionManager | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Accept clients inside this block. Leaving it ends their sessions; what they had called goes on."""
        self._manager = StreamableHTTPSessionManager(
            self._server,
            security_settings=_UNGUARDED,
            session_idle_timeout=IDLE_SECONDS,
            max_request_body_size=LARGEST_BODY,
        )
        self._single = StreamableHTTPSessionManager(
            self._server, security_settings=_UNGUARDED, stateless=True, max_request_body_size=LARGEST_BODY
        )
        try:
            with quiet(), self._server.changes.of(self._door.registry):
                async with self._single.run(), self._manager.run():
                    yield
        finally:
            self._manager = self._single = None
            self._sessions.clear()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            RuntimeError: `running` was not entered, or was left.
        """
        if self._manager is None or self._single is None:
            raise RuntimeError("the MCP app is not running; enter `running()` in the lifespan of the app around it")
        identity = scope.get("apflow.identity")
        caller = None if identity is None else identity.id
        session_id = Headers(scope=scope).get(MCP_SESSION_ID_HEADER)
        if session_id is None:
            await self._open(self._manager, Session(caller), scope, receive, send)
            return
        known = self._sessions.get(session_id)
        if known is None or known.owner == caller:
            if known is not None:
                self._sessions[session_id] = self._sessions.pop(session_id)  # now it is the last one
            await self._manager.handle_request(scope, receive, send)
        elif scope["method"] == "POST":
            await self._single.handle_request(scope, receive, send)
        else:
            error = {"code": -32600, "message": "Session not found"}
            await JSONResponse({"jsonrpc": "2.0", "id": None, "error": error}, 404)(scope, receive, send)

    async def _open(
        self, manager: StreamableHTTPSessionManager, mine: Session, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer a request that may begin a session, and take down whose it is before the client learns its id."""

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < _ERROR and not mine.ended:
                mine.id = Headers(raw=message["headers"]).get(MCP_SESSION_ID_HEADER)
                if mine.id is not None:
                    self._sessions[mine.id] = mine
                    mine.at_end = lambda: self._sessions.pop(str(mine.id), None)
            await send(message)

        token = session.set(mine)
        try:
            await manager.handle_request(scope, receive, noting)
        finally:
            session.reset(token)
        if mine.id is not None and mine.owner is not None:
            await self._make_room(manager, mine.owner, scope)

    async def _make_room(self, manager: StreamableHTTPSessionManager, owner: str, scope: Scope) -> None:
        """End the sessions that this caller has too many, as they would do it themselves."""
        theirs = [one for one, known in self._sessions.items() if known.owner == owner]
        for session_id in theirs[: max(0, len(theirs) - MOST_SESSIONS)]:
            self._sessions.pop(session_id, None)
            headers = [(MCP_SESSION_ID_HEADER.encode(), session_id.encode())]
            await manager.handle_request({**scope, "method": "DELETE", "headers": headers}, _empty, _unheard)


async def _empty() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _unheard(_message: Message) -> None:
    """Tell nobody."""
