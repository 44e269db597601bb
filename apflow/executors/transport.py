"""HTTP to addresses that the guard has let through, and to no others. Loads httpx: imported where a request is made.

The check is part of making a connection: the transport resolves the host, checks every address, and connects to
one of those. TLS still asks for the certificate of the name, and the Host header has the name.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import zlib
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import httpcore
import httpx

from apflow.errors import AddressRefusedError, ExecutorError
from apflow.executors.network import Allowed, normal_host, resolve
from apflow.executors.streams import Stream, headers_only

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping

MAX_BYTES: Final = 10 * 1024 * 1024
# What one address gets to accept a connection while others are left.
_NEXT_ADDRESS_SECONDS: Final = 5.0
_GZIP: Final = 31  # zlib's word for "with the header of gzip".
_MOST_MEMBERS: Final = 100  # pieces that are packed each by itself; each costs time, even an empty one

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")
_URL: Final = re.compile(r"(https?)://(\[[^\]/?#@\\]*\]|[^:/?#@\\]+)(:[0-9]*)?([/?#].*)?", re.IGNORECASE)
_NO_URL: Final = "must be an absolute http or https URL"
_HAS_USER: Final = re.compile(r"https?://[^/?#]*@", re.IGNORECASE)
# What makes up the message itself; another value could smuggle a second one in.
_OURS: Final = frozenset(
    {
        *("accept-encoding", "connection", "content-length", "expect", "host", "keep-alive", "te", "trailer"),
        *("transfer-encoding", "upgrade"),
    }
)


class GuardedTransport(httpx.AsyncBaseTransport):
    """Sends requests to allowed addresses and reads answers up to a size, unpacked.

    Args:
        allow: What is open beyond the public addresses.
        max_bytes: What the body of one answer may have, before and after unpacking.

    Attributes:
        failure: Why an answer to a POST could not be read, for who talks through a client that swallows errors.
        failed: Set once there is such a failure.
        max_bytes: As given.
        received: What all bodies so far had, in bytes and unpacked.
    """

    def __init__(self, allow: Allowed, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.received = 0
        self._pool = httpcore.AsyncConnectionPool(ssl_context=_tls(), network_backend=_Backend(allow))
        self.failure: Exception | None = None
        self.failed = asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; the body of the answer is read from its `stream`.

        Raises:
            AddressRefusedError: The host has an address that is not allowed; nothing was sent.
            ExecutorError: The host cannot be resolved, or the answer is too large or packed in an unknown way.
            httpx.TransportError: The connection failed.
        """
        request.headers["Accept-Encoding"] = "gzip"
        url = request.url
        assert isinstance(request.stream, httpx.AsyncByteStream)
        sent = httpcore.Request(
            request.method,
            httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _as_httpx(), headers_only():
            answer = await self._pool.handle_async_request(sent)
        headers = httpx.Headers(answer.headers)
        try:
            packed = request.method != "HEAD" and _packed(headers, self.max_bytes)
        except ExecutorError:
            await answer.aclose()
            raise
        for name in ("Content-Encoding", "Content-Length") if packed else ():
            headers.pop(name, None)
        body = _Body(answer, packed, self, reports=request.method == "POST")
        return httpx.Response(answer.status, headers=headers, stream=body)

    def fail(self, error: Exception) -> None:
        """Note why an answer could not be read."""
        self.failure = self.failure or error
        self.failed.set()

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Backend(httpcore.AsyncNetworkBackend):
    """Resolves, checks and connects in one step."""

    def __init__(self, allow: Allowed) -> None:
        self._allow = allow
        self._tcp = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        *others, last = await resolve(host, port, self._allow)
        for address in others:
            patience = _NEXT_ADDRESS_SECONDS if timeout is None else min(timeout, _NEXT_ADDRESS_SECONDS)
            try:
                return await self._connect(address, port, patience, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._connect(last, port, timeout, local_address, socket_options)

    async def _connect(self, *where: Any) -> httpcore.AsyncNetworkStream:
        return Stream(await self._tcp.connect_tcp(*where))

    async def sleep(self, seconds: float) -> None:
        await self._tcp.sleep(seconds)


class _Body(httpx.AsyncByteStream):
    """The body of an answer, unpacked and not larger than allowed."""

    def __init__(
        self,
        answer: httpcore.Response,
        packed: bool,  # noqa: FBT001 - one caller
        transport: GuardedTransport,
        *,
        reports: bool,
    ) -> None:
        self._answer, self._transport, self._reports = answer, transport, reports
        self._limit = transport.max_bytes
        self._unpack = _Unpacker(self._limit) if packed else None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        try:
            with _as_httpx():
                async for chunk in self._answer.aiter_stream():
                    read += len(chunk)
                    if read > self._limit:
                        raise too_large(self._limit)
                    plain = chunk if self._unpack is None else self._unpack.feed(chunk)
                    self._transport.received += len(plain)
                    yield plain
            if self._unpack is not None:
                self._unpack.finish()
        except (ExecutorError, httpx.TransportError) as error:
            if self._reports:
                self._transport.fail(error)
            raise

    async def aclose(self) -> None:
        await self._answer.aclose()


class _Unpacker:
    """Unpacks gzip piece by piece and never makes more than the limit."""

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit
        self._member = zlib.decompressobj(_GZIP)
        self._begun = False
        self._members = 1

    def feed(self, data: bytes) -> bytes:
        parts = []
        while data:
            if self._member.eof:
                self._members += 1
                if self._members > _MOST_MEMBERS:
                    raise ExecutorError(f"the answer is packed in more than {_MOST_MEMBERS} pieces")
                self._member = zlib.decompressobj(_GZIP)
            try:
                parts.append(self._member.decompress(data, self._left + 1))
            except zlib.error:
                raise ExecutorError("the answer's compression is broken", retryable=True) from None
            self._begun = True
            self._left -= len(parts[-1])
            if self._left < 0:
                raise too_large(self._limit)
            data = self._member.unused_data
        return b"".join(parts)

    def finish(self) -> None:
        if self._begun and not self._member.eof:
            raise ExecutorError("the answer's compressed body ends too early", retryable=True)


def too_large(limit: int) -> ExecutorError:
    """Return the error for an answer that is larger than allowed."""
    return ExecutorError(f"the answer is larger than {limit} bytes")


def checked_url(url: object) -> httpx.URL:
    """Return a URL with its host as the guard checks it, and without a fragment.

    Raises:
        ValueError: It is no http or https URL, or has a user name or a password. The text has nothing of it.
        AddressRefusedError: Its host is malformed.
    """
    if isinstance(url, str) and _HAS_USER.match(url):
        raise ValueError("must not have a user name or a password in it: use auth")
    parts = _URL.fullmatch(url) if isinstance(url, str) else None
    if parts is None:
        raise ValueError(_NO_URL)
    scheme, host, port, rest = parts.groups(default="")
    host = normal_host(host)
    try:
        parsed = httpx.URL(f"{scheme}://{f'[{host}]' if ':' in host else host}{port}{rest}")
        _ = parsed.host  # httpx wants to read what begins with xn-- whenever it makes a request
    except httpx.InvalidURL:
        raise ValueError(_NO_URL) from None
    except UnicodeError:
        raise AddressRefusedError("the host is no host name and no IP address (malformed)") from None
    return parsed.copy_with(fragment=None)


def host_of(url: httpx.URL) -> str:
    """Return the host of a URL in ASCII, as it is resolved and as texts call it."""
    return url.raw_host.decode("ascii")


def origin_of(url: httpx.URL) -> str:
    """Return scheme, host and port of a URL, such as `https://api.example.com`; without a port that is the default."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


def checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers that may be sent, their values without blanks around them.

    Raises:
        ValueError: A name or a value is illegal, or the header is not for callers to set. The text names it.
    """
    for position, (name, value) in enumerate(headers.items()):
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise ValueError(f"the name of header {position} is not legal")
        if name.lower() in _OURS or name.lower().startswith("proxy-"):
            raise ValueError(f"header {name} cannot be set")
        if not isinstance(value, str) or _VALUE.fullmatch(value) is None:
            raise ValueError(f"the value of header {name} must be printable ASCII in one line")
    return {name: value.strip() for name, value in headers.items()}


def headers_for(settings: Mapping[str, Any], url: httpx.URL) -> dict[str, str]:
    """Return the headers that an executor's setting `headers` has for the origin of a URL.

    Raises:
        ValueError: The setting is not `{origin: {name: value}}`.
    """
    found: dict[str, str] = {}
    for position, (place, headers) in enumerate(dict(settings.get("headers", {})).items()):
        try:
            origin, checked = checked_url(place), checked_headers(headers)
        except (AddressRefusedError, AttributeError, ValueError) as error:
            raise ValueError(f"setting headers, entry {position}: {error}") from None
        if origin.raw_path != b"/":
            raise ValueError(f"setting headers, entry {position}: an origin has no path, as https://api.example.com")
        if origin_of(origin) == origin_of(url):
            found |= checked
    return found


def limit_of(settings: Mapping[str, Any], name: str, default: float) -> float:
    """Return a number of an executor's settings.

    Raises:
        ValueError: It is no number above 0.
    """
    value = settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"setting {name} must be a number above 0")
    return value


def unreachable(url: httpx.URL, error: httpx.TransportError) -> ExecutorError:
    """Return the error for a connection that failed: it names the host, and nothing that was sent."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ExecutorError(f"the certificate of {host_of(url)} is not valid for it")
        cause = cause.__cause__ or cause.__context__
    return ExecutorError(f"the connection to {host_of(url)} failed ({type(error).__name__})", retryable=True)


@cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _packed(headers: httpx.Headers, limit: int) -> bool:
    """Whether an answer is packed with gzip."""
    encoding: str = headers.get("Content-Encoding", "").strip().lower()
    if encoding not in {"", "identity", "gzip", "x-gzip"}:
        raise ExecutorError("the answer is packed in a way that was not asked for")
    length = headers.get("Content-Length", "0")
    if length.isdecimal() and int(length) > limit:
        raise too_large(limit)
    return encoding.endswith("gzip")


@contextmanager
def _as_httpx() -> Iterator[None]:
    """Raise errors of the connection as httpx names them."""
    try:
        yield
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError) as error:
        kind: type[httpx.TransportError] = getattr(httpx, type(error).__name__, httpx.TransportError)
        raise kind(type(error).__name__) from error
