"""Calls of tools: from the request of an MCP client through the door to a tool result."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import anyio
from mcp import types

from apflow.bridge.mcp.progress import Reporter
from apflow.bridge.module import RunModule
from apflow.bridge.refusals import RefusedError, refusal, refused

if TYPE_CHECKING:
    from apcore import Identity
    from mcp.server.session import ServerSession
    from mcp.shared.context import RequestContext

    from apflow.bridge.door import Answer, Door
    from apflow.bridge.mcp.session import Session

    Context = RequestContext[ServerSession, Any, Any]

KEY, RUN_ID, ERROR = "apflow/key", "apflow/run_id", "apflow/error"
_LONGEST_KEY = 255


class ToolCalls:
    """Calls modules for MCP clients.

    A client that leaves leaves its runs running; a client that cancels a request cancels the run, also one that the
    request has joined by its key.

    Args:
        door: Through which every call goes.
    """

    def __init__(self, door: Door) -> None:
        self._door = door
        self._left: set[asyncio.Task[Answer]] = set()

    async def call(
        self, module_id: str, params: types.CallToolRequestParams, context: Context, session: Session | None
    ) -> types.CallToolResult:
        """Return the result of one call; whatever goes wrong is a result too, with `isError`.

        Args:
            module_id: The module.
            params: What the client has sent.
            context: The request.
            session: Knows whether the client has cancelled it.
        """
        try:
            if session is not None and session.has_cancelled(context.request_id):
                raise refusal("cancelled", "the task was cancelled")  # noqa: TRY301 - it is told as all others are
            return _succeeded(await self._answer(module_id, params, context, session))
        except RefusedError as error:
            return _failed(error)
        except Exception as error:  # noqa: BLE001 - callers see none of it
            return _failed(refused(error, module_id))

    async def _answer(
        self, module_id: str, params: types.CallToolRequestParams, context: Context, session: Session | None
    ) -> Answer:
        key, module = _key_of(params), self._door.module(module_id)
        token = None if params.meta is None else params.meta.progressToken
        reporter = None if token is None or not _can_be_sent(str(token)) else Reporter(context, token, module)
        begun: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def begin(run_id: str) -> None:
            begun.set_result(run_id)
            if reporter is not None:
                reporter.run_id = run_id

        # In a task of its own, so that what ends this session cannot stop it half-way into the database.
        call = self._door.call(
            module_id, params.arguments or {}, identity=_caller(context), key=key, listener=reporter, begun=begin
        )
        work = asyncio.create_task(call)
        try:
            await asyncio.wait({work})
            if reporter is not None:
                await reporter.drained()
        except asyncio.CancelledError:
            self._leave(work)
            if session is not None and session.has_cancelled(context.request_id):
                with anyio.CancelScope(shield=True):
                    await self._cancel(work, begun if isinstance(module, RunModule) else None, module_id)
            raise
        finally:
            if reporter is not None:
                reporter.close()
        return work.result()

    def _leave(self, work: asyncio.Task[Answer]) -> None:
        """Let a call go on that nobody waits for."""
        self._left.add(work)
        work.add_done_callback(self._ended)

    def _ended(self, work: asyncio.Task[Answer]) -> None:
        self._left.discard(work)
        if not work.cancelled():
            work.exception()  # Nobody asks, and it was logged.

    async def _cancel(self, work: asyncio.Task[Answer], begun: asyncio.Future[str] | None, module_id: str) -> None:
        """Stop what a call does: its run as soon as that is stored, or the call itself when it is no run."""
        if begun is None:
            work.cancel()
            return
        either: set[asyncio.Future[Any]] = {work, begun}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if begun.done():
            try:
                await self._door.runtime.runs.cancel(begun.result())
            except Exception as error:  # noqa: BLE001 - nobody waits for it
                refused(error, module_id, begun.result())


def _caller(context: Context) -> Identity | None:
    """Return who has sent this very request; over stdio there is nobody to ask."""
    identity: Identity | None = None if context.request is None else context.request.scope.get("apflow.identity")
    return identity


def _key_of(params: types.CallToolRequestParams) -> str | None:
    """Return the idempotency key of a call.

    Raises:
        RefusedError: It is no text of 1 to 255 characters.
    """
    given = ((None if params.meta is None else params.meta.model_extra) or {}).get(KEY)
    if given is None:
        return None
    if isinstance(given, str) and 1 <= len(given) <= _LONGEST_KEY:
        return given
    raise refusal("invalid_input", f"_meta {KEY} must be a text of 1 to {_LONGEST_KEY} characters")


def _succeeded(answer: Answer) -> types.CallToolResult:
    value, output = answer.value, answer.output
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not _can_be_sent(text):
        text, output = _sendable(text), _sendable(output)
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=text)],
        structuredContent=output,
        _meta=None if answer.run_id is None else {RUN_ID: answer.run_id},
    )


def _failed(error: RefusedError) -> types.CallToolResult:
    # Not structured content: some clients hold that against the output schema even when it is an error.
    meta: dict[str, Any] = {ERROR: _sendable(error.as_json())}
    if error.run_id is not None:
        meta[RUN_ID] = error.run_id
    text = types.TextContent(type="text", text=_sendable(error.message))
    return types.CallToolResult(content=[text], isError=True, _meta=meta)


def _can_be_sent(text: str) -> bool:
    """Whether the SDK can send a text: it would lose the whole answer for half of a surrogate pair in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _sendable(value: Any) -> Any:
    """Return a value as JSON has it, with question marks for what cannot be sent."""
    return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
