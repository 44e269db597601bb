"""Secrets that a server sends back: they do not stay in the result."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, quote_plus

from apflow.engine.settings import SECRETS, settings_of
from apflow.executors.redaction import MASK

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

# Shorter ones would be found in texts that have nothing to do with them.
_SHORTEST: Final = 8  # characters
_BASIC: Final = "basic"
_HARMLESS: Final = frozenset({"accept", "accept-language", "content-type", "user-agent", "range"})


def secrets_in(headers: Mapping[str, str]) -> list[str]:
    """Return what a server may not leave in a result, longest first: secrets in these headers and of the runtime.

    Args:
        headers: Those of a request that stand for secrets.
    """
    found = {text for name, value in headers.items() for text in _credentials(name.lower(), value)}
    found |= set(_texts(dict(settings_of(SECRETS))))
    found |= {form for text in found for form in _forms(text)}
    return sorted((text for text in found if len(text) >= _SHORTEST), key=len, reverse=True)


def without(value: Any, secrets: Iterable[str]) -> Any:
    """Return a JSON value with `***` in place of these secrets, in names as well."""
    text = json.dumps(value, ensure_ascii=False)
    there = [secret for secret in secrets if json.dumps(secret, ensure_ascii=False)[1:-1] in text]
    return _replaced(value, there) if there else value


def bytes_without(content: bytes, secrets: Iterable[str]) -> bytes:
    """Return bytes with `***` in place of these secrets."""
    for secret in secrets:
        content = content.replace(secret.encode(), MASK.encode())
    return content


def _forms(text: str) -> Iterator[str]:
    """Yield a secret as it stands in URLs and in the text of some JSON."""
    yield from (quote(text, safe=""), quote(text), quote_plus(text))
    yield from (json.dumps(text, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False))


def _credentials(name: str, value: str) -> Iterator[str]:
    """Yield the parts of a header's value that are secret each by itself."""
    if name in _HARMLESS:
        return
    if name == "cookie":
        yield from (piece.partition("=")[2].strip() for piece in value.split(";"))
        return
    scheme, _, rest = value.partition(" ")
    if not name.endswith("authorization") or not rest:
        yield value
        return
    yield rest.strip()
    if scheme.lower() == _BASIC:
        try:
            yield base64.b64decode(rest).decode().partition(":")[2]
        except ValueError:
            return


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value.encode(errors="replace").decode()
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(one)


def _replaced(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, MASK)
        return value
    if isinstance(value, list):
        return [_replaced(one, secrets) for one in value]
    if isinstance(value, dict):
        return {_replaced(name, secrets): _replaced(one, secrets) for name, one in value.items()}
    return value
