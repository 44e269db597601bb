"""Connections that are read in small pieces, so that no server keeps the event loop busy. Loads httpcore."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import httpcore

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

_PIECE: Final = 16 * 1024
# Of these bytes, up to 100 KiB may be headers; a server can send any number of interim answers before them.
_MOST_BEFORE_BODY: Final = 160 * 1024

_head: ContextVar[list[int] | None] = ContextVar("apflow_head", default=None)


@contextmanager
def headers_only() -> Iterator[None]:
    """Limit what may be read in this block, which ends when the headers of the answer are there."""
    token = _head.set([0])
    try:
        yield
    finally:
        _head.reset(token)


class Stream(httpcore.AsyncNetworkStream):
    """A connection."""

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read some bytes.

        Raises:
            httpcore.RemoteProtocolError: There are too many of them before the body of an answer.
        """
        data = await self._inner.read(min(max_bytes, _PIECE), timeout)
        if (read := _head.get()) is not None:
            read[0] += len(data)
            if read[0] > _MOST_BEFORE_BODY:
                raise httpcore.RemoteProtocolError
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return Stream(await self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
