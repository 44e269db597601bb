"""Host and Origin checks: a page that a browser shows must not reach a server of its user's by rebinding a name."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_PORTS = {"http": 80, "https": 443}


class Guarded:
    """Lets requests through to the app that were sent to this server on purpose.

    A request with a wrong `Host` gets status 421, one with a wrong `Origin` 403. There are no websockets here.

    Args:
        app: What is guarded.
        loopback: The server listens on this machine only: `Host` has to name it, and `Origin`, if there is one, too.
            Otherwise any `Host` will do, as its public names are unknown, and `Origin` has to be the same.
    """

    def __init__(self, app: ASGIApp, *, loopback: bool) -> None:
        self._app = app
        self._loopback = loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        hosts, origins = _all(scope, b"host"), _all(scope, b"origin")
        if len(hosts) != 1 or not self._meant(hosts[0]):
            await _WRONG_HOST(scope, receive, send)
        elif len(origins) > 1 or (origins and not self._from_here(origins[0], hosts[0])):
            await _WRONG_ORIGIN(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _meant(self, host: str) -> bool:
        named = split_host(host)
        return named is not None and (is_loopback(named[0]) or not self._loopback)

    def _from_here(self, origin: str, host: str) -> bool:
        scheme, separator, rest = origin.partition("://")
        named, own = split_host(rest), split_host(host)
        if not separator or scheme not in _PORTS or named is None or own is None:
            return False
        if self._loopback:
            return is_loopback(named[0])
        default = _PORTS[scheme]
        return (named[0], named[1] or default) == (own[0], own[1] or default)


def is_loopback(host: str) -> bool:
    """Whether this host is this machine alone: `localhost`, 127.0.0.0/8 or `::1`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def split_host(host: str) -> tuple[str, int | None] | None:
    """Return the name and the port of a `Host` header, or None when it is not one."""
    try:
        parts = urlsplit(f"//{host}")
        name, port = parts.hostname, parts.port
    except ValueError:
        return None
    # Whatever else may stand in a URL does not belong here.
    return (name, port) if name and parts.netloc == host and "@" not in host else None


def _all(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


_WRONG_HOST = JSONResponse(
    {"code": "wrong_host", "message": "this server is not known under the name in the header Host"}, status_code=421
)
_WRONG_ORIGIN = JSONResponse(
    {"code": "wrong_origin", "message": "pages of other sites may not call this server"}, status_code=403
)
