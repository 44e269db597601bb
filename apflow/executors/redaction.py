"""What may stay of inputs and answers in the database: secrets become `***`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, quote_plus, urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MASK: Final = "***"

_WORDS: Final = (
    "password|passwd|passphrase|secret|apikey|accesskey|privatekey|credential|authorization|cookie|bearer|signature"
)
_FIELD: Final = re.compile(rf"{_WORDS}|(token|pwd|otp|jwt|sig|auth)$")
_PARAMETER: Final = re.compile(rf"{_FIELD.pattern}|^key$")
_HEADER: Final = re.compile(rf"{_FIELD.pattern}|key$|authenticat|^proxy")
_PUBLIC_HEADERS: Final = frozenset({"idempotencykey"})
_OTHER: Final = re.compile(r"[^a-z0-9]")


def is_secret_field(name: str) -> bool:
    """Whether a field of a body looks like a secret by its name, such as `api_key` or `clientSecret`."""
    return _FIELD.search(_compact(name)) is not None


def is_secret_parameter(name: str) -> bool:
    """Whether a query parameter looks like a secret by its name."""
    return _PARAMETER.search(_compact(name)) is not None


def is_secret_header(name: str) -> bool:
    """Whether a header looks like a secret by its name, such as `Cookie` or `X-Api-Key`."""
    compact = _compact(name)
    return compact not in _PUBLIC_HEADERS and _HEADER.search(compact) is not None


def masked(value: Any, is_secret: Callable[[str], bool] = is_secret_field) -> Any:
    """Return a JSON value with `***` for every field that is a secret by its name.

    Left as they are: true, false and null, and references to secrets and results (`{"$secret": "name"}`).
    """
    if isinstance(value, list):
        return [masked(one, is_secret) for one in value]
    if not isinstance(value, dict) or _is_reference(value):
        return value
    return {name: MASK if is_secret(name) and _hides(one) else masked(one, is_secret) for name, one in value.items()}


def masked_url(url: str, is_secret: Callable[[str], bool] = is_secret_parameter) -> str:
    """Return a URL without user name and password, and with `***` for parameters of its query that are secrets."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return MASK
    netloc = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, netloc, parts.path, _masked_query(parts.query, is_secret), parts.fragment))


def masked_text(text: str) -> str:
    """Return the text of a body, masked where it is JSON or a form."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        is_form = "=" in text and not any(char.isspace() for char in text)
        return _masked_query(text, is_secret_field) if is_form else text
    hidden = masked(value)
    return text if hidden == value else json.dumps(hidden, ensure_ascii=False)


def mask_left_in(value: Any, is_secret: Callable[[str], bool] = is_secret_field) -> str | None:
    """Return the name of a field that holds `***` where a secret belongs, or None."""
    for name, one in value.items() if isinstance(value, dict) else ():
        if one == MASK and is_secret(name):
            return str(name)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for one in parts if (found := mask_left_in(one, is_secret))), None)


def mask_left_in_query(query: str, is_secret: Callable[[str], bool] = is_secret_parameter) -> str | None:
    """Return the name of a parameter that holds `***` where a secret belongs, or None."""
    return mask_left_in(dict(parse_qsl(query)), is_secret)


def mask_left_in_text(text: str) -> str | None:
    """Return the name of a field in the text of a body that holds `***` where a secret belongs, or None."""
    try:
        return mask_left_in(json.loads(text))
    except (ValueError, RecursionError):
        return mask_left_in_query(text, is_secret_field)


def _masked_query(query: str, is_secret: Callable[[str], bool]) -> str:
    if not any(is_secret(name) for name, _ in parse_qsl(query, keep_blank_values=True)):
        return query
    pieces = []
    for piece in query.split("&"):
        name = next(iter(parse_qsl(piece, keep_blank_values=True)), ("", ""))[0]
        pieces.append(f"{quote_plus(name)}={MASK}" if is_secret(name) else piece)
    return "&".join(pieces)


def _hides(value: Any) -> bool:
    return not (value is None or isinstance(value, bool) or (isinstance(value, dict) and _is_reference(value)))


def _is_reference(value: Mapping[str, Any]) -> bool:
    return value.keys() == {"$secret"} or "$from" in value


def _compact(name: str) -> str:
    return _OTHER.sub("", name.lower())
