"""Keeps what clients send out of the log: the SDK writes messages that are wrong into it, with all that is in them."""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import anyio
from mcp.shared import session

if TYPE_CHECKING:
    from collections.abc import Iterator

_TRANSPORTS = ("mcp.server.streamable_http", "mcp.server.streamable_http_manager")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep inputs, ids of sessions and alarms about nothing out of the log inside this block."""
    with ExitStack() as stack:
        stack.enter_context(_filtered(logging.getLogger(), _Wordless()))
        for name in _TRANSPORTS:
            stack.enter_context(_filtered(logging.getLogger(name), _Unalarmed()))
        yield


@contextmanager
def _filtered(source: logging.Logger, one: logging.Filter) -> Iterator[None]:
    source.addFilter(one)
    try:
        yield
    finally:
        source.removeFilter(one)


class _Wordless(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Take the words out of what sessions of the SDK say about a message; they write to the root logger."""
        if record.pathname == session.__file__ and record.levelno >= logging.WARNING:
            kind = "" if record.exc_info is None else f" ({type(record.exc_info[1]).__qualname__})"
            record.msg, record.args = f"a client has sent a message that is none of MCP{kind}", ()
            record.exc_info = record.exc_text = None
        return True


class _Unalarmed(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Drop ids of sessions, and what says that a stream of a session was closed, which is how each one ends."""
        closed = record.exc_info is not None and isinstance(record.exc_info[1], anyio.ClosedResourceError)
        return record.levelno > logging.INFO and not closed
