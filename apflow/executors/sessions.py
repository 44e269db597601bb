"""One MCP session with another apflow, over connections that the guard has let through. Loads mcp and httpx."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import httpx
from mcp import ClientSession, McpError
from mcp.client.streamable_http import streamable_http_client
from mcp.types import (
    CallToolRequest,
    CallToolRequestParams,
    CallToolResult,
    ClientRequest,
    PaginatedRequestParams,
    TextContent,
)

from apflow.errors import ExecutorError, InvalidInputsError
from apflow.executors.answers import usage_in
from apflow.executors.echoes import secrets_in, without
from apflow.executors.transport import checked_url, host_of, too_large, unreachable
from apflow.executors.values import is_deep, parsed, storable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from apflow.executors.transport import GuardedTransport

_POLL_SECONDS: Final = 1.0
_GET: Final = "apflow.task.get"
_ENDED: Final = frozenset({"completed", "failed", "cancelled"})
_RETRYABLE: Final = frozenset({408, 429})
_SERVER_ERROR: Final = 500
_CODE: Final = re.compile(r"[A-Z][A-Z0-9_]{2,39}")
_MOST_PAGES: Final = 1000


def endpoint_of(text: str) -> httpx.URL:
    """Return the URL of an endpoint.

    Raises:
        InvalidInputsError: It is no http or https URL, or has a user name or a query.
        AddressRefusedError: Its host is malformed.
    """
    try:
        url = checked_url(text)
    except ValueError as error:
        raise InvalidInputsError(f"endpoint {error}") from None
    if url.query:
        raise InvalidInputsError("endpoint must have no query: what authorizes a call belongs into the setting headers")
    return url


async def talk(
    url: httpx.URL, transport: GuardedTransport, headers: Mapping[str, str], inputs: Mapping[str, Any]
) -> dict[str, Any]:
    """Do what the inputs of `apflow_api_executor` say, in a session of its own.

    Raises:
        AddressRefusedError: The address is not open; nothing was sent.
        ExecutorError: There was no answer, or it was an error.
    """
    host = _Host(url, transport)
    action = asyncio.ensure_future(_talk(host, headers, inputs))
    failed = asyncio.ensure_future(transport.failed.wait())
    try:
        await asyncio.wait({action, failed}, return_when=asyncio.FIRST_COMPLETED)
        if not action.done() and transport.failure is not None:
            raise host.error(transport.failure)
        return await action
    finally:
        action.cancel()
        failed.cancel()
        await asyncio.gather(action, failed, return_exceptions=True)


async def _talk(host: _Host, headers: Mapping[str, str], inputs: Mapping[str, Any]) -> dict[str, Any]:
    payload = inputs.get("payload", {})
    try:
        async with host.session(headers) as session:
            match inputs.get("action", "call"):
                case "list":
                    modules = await _modules(host, session)
                    return {"response": {"modules": without(modules, secrets_in(headers))}}
                case "wait":
                    response = await _waited(
                        host, session, payload["task_id"], inputs.get("poll_seconds", _POLL_SECONDS)
                    )
                case _:
                    response = await _called(host, session, payload["module"], payload.get("inputs", {}))
    except Exception as error:  # noqa: BLE001 - whatever a remote server can bring about
        raise host.error(error) from None
    result = {"response": without(response, secrets_in(headers))}
    stated = response.get("token_usage") if isinstance(response, dict) else None
    if isinstance(stated, dict) and (usage := usage_in({"token_usage": stated})) is not None:
        result["token_usage"] = usage
    return result


class _Host:
    """The other apflow: its sessions, and how its errors are told without a word of what it said."""

    def __init__(self, url: httpx.URL, transport: GuardedTransport) -> None:
        self._url, self._transport = url, transport
        self.name = host_of(url)

    @asynccontextmanager
    async def session(self, headers: Mapping[str, str]) -> AsyncIterator[ClientSession]:
        """Open a session. What comes in and is no message ends it."""

        async def look_at(message: object) -> None:
            if isinstance(message, Exception):
                self._transport.fail(message)

        async with (
            # Each wait is bounded by the time limit around all of it.
            httpx.AsyncClient(
                transport=self._transport, headers=dict(headers), timeout=httpx.Timeout(None), trust_env=False
            ) as client,
            streamable_http_client(str(self._url), http_client=client) as (read, write, _),
            ClientSession(read, write, message_handler=look_at) as session,
        ):
            await session.initialize()
            yield session

    def check_size(self) -> None:
        """Refuse more answers than may be collected together."""
        if self._transport.received > self._transport.max_bytes:
            raise too_large(self._transport.max_bytes)

    def error(self, error: Exception) -> ExecutorError:
        """Return an error as executors raise it."""
        leaves = list(_leaves(error))
        for leaf in leaves:
            if isinstance(leaf, ExecutorError):
                return leaf
        for leaf in leaves:
            if isinstance(leaf, httpx.HTTPStatusError):
                status = leaf.response.status_code
                retryable = status >= _SERVER_ERROR or status in _RETRYABLE
                return ExecutorError(f"{self.name} answered with status {status}", retryable=retryable)
            if isinstance(leaf, httpx.TransportError):
                return unreachable(self._url, leaf)
            if isinstance(leaf, McpError):
                return ExecutorError(f"{self.name} refused the request (MCP error {leaf.error.code})")
        return ExecutorError(f"{self.name} did not answer as an MCP server does ({type(leaves[0]).__name__})")


async def _called(host: _Host, session: ClientSession, module: str, inputs: Mapping[str, Any]) -> Any:
    """Return what a module returns: what is structured of it, else JSON, else text."""
    call = CallToolRequest(params=CallToolRequestParams(name=module, arguments=dict(inputs)))
    # Not `call_tool`: that lists all modules first, to check the result for us.
    result = await session.send_request(ClientRequest(call), CallToolResult)
    try:
        value = _value(result)
    except RecursionError:
        raise ExecutorError(f"{host.name} answered with what is nested too deeply") from None
    if result.isError:
        code = value.get("code") if isinstance(value, dict) else None
        told = f" with {code}" if isinstance(code, str) and _CODE.fullmatch(code) else ""
        raise ExecutorError(f"module {module} of {host.name} failed{told}")
    return value


async def _waited(host: _Host, session: ClientSession, task_id: str, poll_seconds: float) -> Any:
    """Return a task as it is once it has ended, however it has."""
    while True:
        task = await _called(host, session, _GET, {"task_id": task_id})
        if not isinstance(task, dict) or not isinstance(task.get("status"), str):
            raise ExecutorError(f"{host.name} did not tell the status of the task")
        if task["status"] in _ENDED:
            return task
        await asyncio.sleep(poll_seconds)


async def _modules(host: _Host, session: ClientSession) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    cursors: set[str] = set()
    while True:
        page = await session.list_tools(params=PaginatedRequestParams(cursor=cursor))
        host.check_size()
        if any(is_deep(tool.inputSchema) for tool in page.tools):
            raise ExecutorError(f"{host.name} lists a module with a schema that is nested too deeply")
        found += [
            {"id": tool.name, "description": tool.description or "", "input_schema": tool.inputSchema}
            for tool in page.tools
        ]
        cursor = page.nextCursor
        if cursor is None:
            return found
        if cursor in cursors or len(cursors) == _MOST_PAGES:
            raise ExecutorError(f"{host.name} lists its modules without an end")
        cursors.add(cursor)


def _value(result: CallToolResult) -> Any:
    if result.structuredContent is not None:
        return storable(result.structuredContent)
    if not all(isinstance(part, TextContent) for part in result.content):
        return storable([part.model_dump(mode="json", exclude_none=True) for part in result.content])
    text = "\n".join(part.text for part in result.content if isinstance(part, TextContent))
    try:
        return parsed(text)
    except (ValueError, RecursionError):
        return text


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error
