"""The MCP server behind every transport: the SDK's, with handlers that go through a door."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anyio.lowlevel
from mcp import types
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.shared.session import RequestResponder

from apflow.bridge.mcp.calls import ToolCalls
from apflow.bridge.mcp.changes import Changes
from apflow.bridge.mcp.session import Session, Watched, session
from apflow.bridge.mcp.tools import Toolbox

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
    from mcp.server.models import InitializationOptions
    from mcp.server.session import ServerSession
    from mcp.shared.message import SessionMessage

    from apflow.bridge.door import Door

    Incoming = RequestResponder[types.ClientRequest, types.ServerResult] | types.ClientNotification | Exception

logger = logging.getLogger(__name__)

_INSTRUCTIONS = (
    "Each tool runs a recorded task. A call that fails says why in its text, and in _meta under apflow/error. "
    "Work goes on when the connection is lost, and stops when the request is cancelled."
)


class ToolServer(Server[Any, Any]):
    """Serves the modules of a door as tools.

    The handlers stand in place of the SDK's decorators, which would validate everything a second time.

    Args:
        door: Through which every call goes.
        name: What clients show.
        version: What clients show.

    Attributes:
        changes: Tells clients that tools have come or gone.
    """

    def __init__(self, door: Door, *, name: str, version: str) -> None:
        super().__init__(name, version=version, instructions=_INSTRUCTIONS)
        self._toolbox, self._calls, self.changes = Toolbox(door), ToolCalls(door), Changes()
        self.request_handlers[types.ListToolsRequest] = self._list
        self.request_handlers[types.CallToolRequest] = self._call

    def create_initialization_options(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, dict[str, Any]] | None = None,
    ) -> InitializationOptions:
        """Say that changes of the list of tools are announced."""
        options = notification_options or NotificationOptions(tools_changed=True)
        return super().create_initialization_options(options, experimental_capabilities)

    async def run(
        self,
        read_stream: MemoryObjectReceiveStream[SessionMessage | Exception],
        write_stream: MemoryObjectSendStream[SessionMessage],
        initialization_options: InitializationOptions,
        raise_exceptions: bool = False,  # noqa: FBT001, FBT002 - the SDK's signature
        stateless: bool = False,  # noqa: FBT001, FBT002 - the SDK's signature
    ) -> None:
        """Serve one session until its client leaves."""
        mine = session.get() or Session()
        token = session.set(mine)
        watched: Any = Watched(read_stream, mine)
        try:
            await super().run(watched, write_stream, initialization_options, raise_exceptions, stateless)
        finally:
            mine.end()
            session.reset(token)

    async def _handle_message(
        self,
        message: Incoming,
        session: ServerSession,
        lifespan_context: Any,
        raise_exceptions: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        """Do what the SDK does, but for its `catch_warnings`.

        Warnings are the whole process's: two requests that overlap would leave all of them switched off.
        """
        match message:
            case RequestResponder(request=types.ClientRequest(root=request)) as responder:
                with responder:
                    await self._handle_request(responder, request, session, lifespan_context, raise_exceptions)
            case types.ClientNotification(root=notification):
                await self._handle_notification(notification)
            case _:
                logger.info("a client has sent something that is no message of MCP")

    async def _list(self, _request: types.ListToolsRequest) -> types.ServerResult:
        self.changes.listed(self.request_context.session)
        return types.ServerResult(types.ListToolsResult(tools=self._toolbox.tools()))

    async def _call(self, request: types.CallToolRequest) -> types.ServerResult:
        module_id = self._toolbox.module_id(request.params.name)
        result = await self._calls.call(module_id, request.params, self.request_context, session.get())
        # What was cancelled at this very moment has its answer; the SDK ends the whole session at a second one.
        await anyio.lowlevel.checkpoint_if_cancelled()
        return types.ServerResult(result)
