"""Libraries that log what they send and get: they are silent about exchanges of ours, and about no others."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_ours: ContextVar[bool] = ContextVar("apflow_exchange", default=False)
# A filter holds for what is logged under the very name, so each is here; parts of mcp log under no name at all.
_TALKATIVE: Final = (
    None,
    "client",
    "mcp.client.streamable_http",
    "mcp.shared.session",
    "httpx",
    *(f"httpcore.{part}" for part in ("connection", "http11", "http2", "proxy", "socks")),
)


class _Silence(logging.Filter):
    """Lets a record pass unless it was made inside an exchange of ours."""

    def filter(self, _: logging.LogRecord) -> bool:
        return not _ours.get()


_SILENCE: Final = _Silence()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what is sent and received in this block, and in tasks that it starts, out of all logs."""
    for name in _TALKATIVE:
        logging.getLogger(name).addFilter(_SILENCE)
    token = _ours.set(True)
    try:
        yield
    finally:
        _ours.reset(token)
