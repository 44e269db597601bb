"""Telling MCP clients that there are other tools now."""

from __future__ import annotations

import asyncio
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apcore import Registry
    from mcp.server.session import ServerSession

_EVENTS = ("register", "unregister")


class Changes:
    """Announces changes of a registry to the sessions that have listed it. Many at once are one."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listed: weakref.WeakSet[ServerSession] = weakref.WeakSet()
        self._sending: set[asyncio.Task[None]] = set()
        self._due = False

    def listed(self, session: ServerSession) -> None:
        """Remember that a client has a list that may become outdated."""
        self._listed.add(session)

    @contextmanager
    def of(self, registry: Registry) -> Iterator[None]:
        """Announce the changes of a registry inside this block."""
        self._loop, self._due = asyncio.get_running_loop(), False
        for event in _EVENTS:
            registry.on(event, self._changed)
        try:
            yield
        finally:
            for event in _EVENTS:
                registry.off(event, self._changed)
            self._loop = None
            for task in self._sending:
                task.cancel()

    def _changed(self, _module_id: str, _module: Any) -> None:
        """Hear of a change, on any thread."""
        loop = self._loop
        if loop is not None and not self._due:
            self._due = True
            with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
                loop.call_soon_threadsafe(self._announce)

    def _announce(self) -> None:
        self._due = False
        for session in list(self._listed):
            task = asyncio.get_running_loop().create_task(self._send(session))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _send(self, session: ServerSession) -> None:
        try:
            await session.send_tool_list_changed()
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            self._listed.discard(session)
