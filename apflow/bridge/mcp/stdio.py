"""MCP over standard input and output, for desktop clients that start the server themselves."""

from __future__ import annotations

import os
import select
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from mcp.server.stdio import stdio_server

from apflow.bridge.mcp.quiet import quiet
from apflow.bridge.mcp.server import ToolServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from apflow.bridge.door import Door

_CHUNK_BYTES = 65536


async def run_stdio(door: Door, *, name: str, version: str) -> None:
    """Serve the modules of a door to the client at the other end, until that one closes standard input.

    Meanwhile the process's own standard input is empty, and what anybody prints goes to standard error. Runs that
    have not ended then are not cancelled.

    Args:
        door: Through which every call goes.
        name: What the client shows.
        version: What the client shows.
    """
    server = ToolServer(door, name=name, version=version)
    with _own_streams() as (source, sink), quiet(), server.changes.of(door.registry):
        lines: Any = _Lines(source)
        texts: Any = _Texts(sink)
        async with stdio_server(lines, texts) as (read_stream, write_stream):
            await server.run(read_stream, write_stream, server.create_initialization_options())


@contextmanager
def _own_streams() -> Iterator[tuple[int, int]]:
    """Take standard input and output away from everybody else in this process, and from its children."""
    source, sink = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    try:
        os.dup2(nothing, 0)
        os.dup2(2, 1)
        _flush()  # what was printed before goes to standard error too
        try:
            yield source, sink
        finally:
            _flush()
            os.dup2(source, 0)
            os.dup2(sink, 1)
    finally:
        for one in (source, sink, nothing):
            os.close(one)


def _flush() -> None:
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()


class _Lines:
    """The lines that come from a file descriptor. One that never comes does not hold up the end of the program."""

    def __init__(self, source: int) -> None:
        self._source = source

    async def __aiter__(self) -> AsyncIterator[str]:
        limiter = anyio.CapacityLimiter(1)
        begun = bytearray()
        end, ending = os.pipe()
        try:
            while chunk := await anyio.to_thread.run_sync(
                _read, self._source, end, abandon_on_cancel=True, limiter=limiter
            ):
                *lines, rest = chunk.split(b"\n")
                for line in lines:
                    whole = (bytes(begun) + line).strip()
                    begun.clear()
                    if whole:
                        yield whole.decode("utf-8", "replace")
                begun += rest
        finally:
            os.close(ending)


def _read(source: int, end: int) -> bytes:
    """Return what comes next, or nothing once there is nothing more or the other end of a pipe is closed.

    The interpreter waits for the thread that this is called on, so it may not wait for a client that says nothing.
    """
    poll = select.poll()
    for one in (source, end):
        poll.register(one, select.POLLIN)
    ready = {number for number, _ in poll.poll()}
    chunk = b"" if end in ready else os.read(source, _CHUNK_BYTES)
    if not chunk:
        os.close(end)
    return chunk


class _Texts:
    """Writes to a file descriptor, which may block."""

    def __init__(self, sink: int) -> None:
        self._sink = sink
        self._waiting = ""

    async def write(self, text: str) -> None:
        """Take what goes out with the next flush."""
        self._waiting += text

    async def flush(self) -> None:
        """Write it.

        Raises:
            ClosedResourceError: Nobody reads any more.
        """
        data, self._waiting = self._waiting.encode(), ""
        try:
            await anyio.to_thread.run_sync(_write_all, self._sink, data)
        except BrokenPipeError:
            raise anyio.ClosedResourceError from None


def _write_all(sink: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(sink, left) :]
