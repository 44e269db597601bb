"""A request as the inputs of `rest_executor` describe it, and where redirects take it. Loads httpx."""

from __future__ import annotations

import base64
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode, urljoin

import httpx

from apflow.context import current
from apflow.errors import ExecutorError, InvalidInputsError
from apflow.executors.redaction import LONGEST_URL, is_secret_header
from apflow.executors.transport import checked_headers, checked_url, headers_for, host_of, origin_of, unreachable
from apflow.state import current_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from apflow.executors.transport import GuardedTransport

_MOST_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_SEE_OTHER: Final = 303
_NOT_REPEATED: Final = frozenset({301, 302})  # POST becomes GET: what every browser made of these.
_KEYED: Final = frozenset({"POST", "PATCH"})
# Any other header may be one that another origin must not see: its name does not tell.
_PUBLIC: Final = frozenset({"accept", "accept-language", "content-type", "user-agent", "range"})


@dataclass(frozen=True, slots=True)
class Asked:
    """One request.

    Attributes:
        method: `GET`, ...
        url: Checked.
        headers: Of these, only the public ones are sent once a redirect has left the origin that was asked first.
        secrets: Headers that are no longer sent then, and are secret by their name or as settings.
        content: The body, or None.
    """

    method: str
    url: httpx.URL
    headers: dict[str, str]
    secrets: dict[str, str]
    content: bytes | None

    async def send(self, transport: GuardedTransport) -> httpx.Response:
        """Send it. The time limit around all of it bounds each wait."""
        headers = httpx.Headers({"Accept": "*/*", "User-Agent": "apflow"})
        headers.update(self.headers)
        headers.update(self.secrets)
        waits = httpx.Timeout(None).as_dict()
        request = httpx.Request(
            self.method, self.url, headers=headers, content=self.content, extensions={"timeout": waits}
        )
        return await transport.handle_async_request(request)


def asked_by(inputs: Mapping[str, Any], settings: Mapping[str, Any]) -> Asked:
    """Return the request that inputs describe, with the headers that the settings add for its origin.

    Raises:
        InvalidInputsError: The URL or a header cannot be sent, or there are two authorizations.
        AddressRefusedError: The host is malformed.
        ValueError: The setting `headers` is wrong.
    """
    try:
        url = checked_url(inputs["url"])
    except ValueError as error:
        raise InvalidInputsError(f"url {error}") from None
    try:
        given = checked_headers(inputs.get("headers", {}))
    except ValueError as error:
        raise InvalidInputsError(f"headers: {error}") from None
    if pairs := _pairs(inputs.get("query", {})):
        query = url.query + b"&" * bool(url.query) + urlencode(pairs).encode("ascii")
        try:
            url = url.copy_with(query=query)
        except httpx.InvalidURL:
            raise InvalidInputsError("query: the URL with it is too long") from None
    method = inputs.get("method", "GET")
    content, kind = _content(inputs)
    headers = httpx.Headers({} if kind is None else {"Content-Type": kind})
    if method in _KEYED and inputs.get("idempotency", True) and current_state() is not None:
        headers["Idempotency-Key"] = current().idempotency_key
    secrets = httpx.Headers()
    for name, value in given.items():
        (secrets if is_secret_header(name) else headers)[name] = value
    if "auth" in inputs:
        if "Authorization" in secrets:
            raise InvalidInputsError("auth and the header Authorization cannot be given together")
        secrets["Authorization"] = _authorization(inputs["auth"])
    secrets.update(headers_for(settings, url))
    return Asked(method, url, dict(headers), dict(secrets), content)


@asynccontextmanager
async def answered(
    transport: GuardedTransport, asked: Asked, *, follow: bool
) -> AsyncIterator[tuple[Asked, httpx.Response]]:
    """Send a request, go where redirects lead, at most five times, and yield the last request and its answer.

    Raises:
        AddressRefusedError: An address on the way is not open; nothing was sent to it.
        ExecutorError: A connection failed, or a redirect leads to somewhere that is not followed.
    """
    try:
        for _ in range(_MOST_REDIRECTS + 1):
            response = await asked.send(transport)
            try:
                if not (follow and response.status_code in _REDIRECTS and "Location" in response.headers):
                    yield asked, response
                    return
                asked = _redirected(asked, response)
            finally:
                await response.aclose()
    except httpx.TransportError as error:
        raise unreachable(asked.url, error) from None
    raise ExecutorError(f"more than {_MOST_REDIRECTS} redirects; the last one leads to {host_of(asked.url)}")


def _redirected(asked: Asked, response: httpx.Response) -> Asked:
    """Return the request that an answer leads to."""
    host = host_of(asked.url)
    location = response.headers["Location"]
    if len(location) > LONGEST_URL:
        raise ExecutorError(
            f"{host} redirects to a URL that is not followed: it has more than {LONGEST_URL} characters"
        )
    try:
        target = urljoin(str(asked.url), location)
    except ValueError:
        target = ""
    try:
        url = checked_url(target)
    except ValueError as error:
        raise ExecutorError(f"{host} redirects to a URL that is not followed: it {error}") from None
    if asked.url.scheme == "https" and url.scheme == "http":
        raise ExecutorError(f"{host} redirects from https to http, which is not followed")
    status, method = response.status_code, asked.method
    if (status == _SEE_OTHER and method != "HEAD") or (status in _NOT_REPEATED and method == "POST"):
        dropped = ("content-", "idempotency-key")
        kept = {name: value for name, value in asked.headers.items() if not name.lower().startswith(dropped)}
        asked = replace(asked, method="GET", headers=kept, content=None)
    upgraded = host_of(url) == host and url.port is None and asked.url.port is None
    if origin_of(asked.url) == origin_of(url) or upgraded:
        return replace(asked, url=url)
    if asked.content is not None:
        raise ExecutorError(f"{host} redirects a request with a body to {host_of(url)}, which is not followed")
    public = {name: value for name, value in asked.headers.items() if _is_public(name.lower())}
    return replace(asked, url=url, headers=public, secrets={})


def _is_public(name: str) -> bool:
    return name in _PUBLIC or name.startswith("if-")


def _content(inputs: Mapping[str, Any]) -> tuple[bytes | None, str | None]:
    """Return the body and its content type."""
    if "json" in inputs:
        text = json.dumps(inputs["json"], ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode(), "application/json"
    if "body" in inputs:
        return inputs["body"].encode(), "text/plain; charset=utf-8"
    if "form" in inputs:
        return urlencode(_pairs(inputs["form"])).encode("ascii"), "application/x-www-form-urlencoded"
    return None, None


def _pairs(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    values = {name: value if isinstance(value, list) else [value] for name, value in fields.items()}
    return [(name, _word(one)) for name, several in values.items() for one in several]


def _word(value: str | float | bool) -> str:  # noqa: FBT001 - what a form can have
    return str(value).lower() if isinstance(value, bool) else str(value)


def _authorization(auth: Mapping[str, str]) -> str:
    if "bearer" in auth:
        try:
            return checked_headers({"Authorization": f"Bearer {auth['bearer']}"})["Authorization"]
        except ValueError as error:
            raise InvalidInputsError(f"auth: {error}") from None
    if ":" in auth["username"]:
        raise InvalidInputsError("auth: a username has no colon")
    pair = f"{auth['username']}:{auth['password']}".encode()
    return f"Basic {base64.b64encode(pair).decode('ascii')}"
