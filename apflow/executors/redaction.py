"""What may stay of inputs and answers in the database: secrets become `***`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_plus, urlsplit, urlunsplit

from apflow.engine.specs import is_reference
from apflow.executors.values import is_deep

if TYPE_CHECKING:
    from collections.abc import Callable

MASK: Final = "***"
LONGEST_URL: Final = 8192  # characters

_WORDS: Final = (
    "password|passwd|passphrase|passcode|secret|apikey|accesskey|privatekey|signingkey|encryptionkey|credential"
    "|authorization|cookie|bearer|signature|sessid|samlresponse"
)
_LAST: Final = (
    "token|pwd|otp|jwt|sig|auth|assertion|verifier|session|session(id|key)"
    "|(auth|access|refresh|id|api|session|device)tokens|(user|db|smtp|ftp|admin|my)pass|(card|user|account)pin"
    "|(pin|auth|access|security|verification|confirmation|device|recovery|backup|otp|sms|mfa|login)code"
)
_WHOLE: Final = "x?access|x?pass|x?pin|x?code|x?tokens|x?sid|x?cvv2?|x?cvc2?"
_FIELD: Final = re.compile(rf"{_WORDS}|({_LAST})$|^({_WHOLE})$")
_PARAMETER: Final = re.compile(rf"{_FIELD.pattern}|^key$")
_HEADER: Final = re.compile(rf"{_FIELD.pattern}|key$|authenticat|^proxy")
_PUBLIC_HEADERS: Final = frozenset({"idempotencykey"})
_OTHER: Final = re.compile(r"[^a-z0-9]")

_FORM: Final = re.compile(
    r"[\w.~*+%\[\]$-]+=[\w.~*+%!'(),:@/?$\[\]-]*(&[\w.~*+%\[\]$-]+(=[\w.~*+%!'(),:@/?$\[\]-]*)?)*"
)
_NO_VALUE: Final = re.compile(r"[^&]*=")
_USER: Final = re.compile(r"//[^/@\s>]*@")
_QUERY: Final = re.compile(r"\?([^#>\s\"']*)|#[^>\s\"']*")


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

    Left as they are: true, false and null, references to secrets (`{"$secret": "name"}`), and of references to
    results all but their default.
    """
    if isinstance(value, list):
        return [masked(one, is_secret) for one in value]
    if not isinstance(value, dict) or _names_secret(value):
        return value
    if is_reference(value):
        return _with_default(value, lambda default: masked(default, is_secret))
    return {name: covered(one) if is_secret(name) else masked(one, is_secret) for name, one in value.items()}


def covered(value: Any) -> Any:
    """Return `***` for a value, unless it is true, false or null or refers to something that is not stored here."""
    if value is None or isinstance(value, bool) or _names_secret(value):
        return value
    return _with_default(value, covered) if is_reference(value) else MASK


def text_masked(value: Any, hide: Callable[[str], str]) -> Any:
    """Return what `hide` makes of a text, also where it is the default of a reference to a result."""
    if isinstance(value, str):
        return hide(value)
    return _with_default(value, lambda default: text_masked(default, hide)) if is_reference(value) else masked(value)


def masked_url(url: str) -> str:
    """Return a URL without user name, password and fragment, and with `***` for parameters that are secrets."""
    return _bare_url(url, is_secret_parameter)


def url_without_values(url: str) -> str:
    """Return a URL without user name, password and fragment, and with `***` for each value in its query."""
    return _bare_url(url, None)


def urls_without_values(text: str) -> str:
    """Return the text of a header with the URLs in it without user names, fragments and values in their queries."""
    shown = _USER.sub("//", text)
    return _QUERY.sub(lambda found: "" if found[1] is None else f"?{_masked_query(found[1], None)}", shown)


def masked_text(text: str) -> str:
    """Return the text of a body, masked where it is JSON or a form; of any other text nothing is left."""
    try:
        value = _document(text)
    except (ValueError, RecursionError):
        if text and (_FORM.fullmatch(text) is None or _NO_VALUE.fullmatch(text)):
            return MASK
        return _masked_query(text, is_secret_field)
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
    pieces = (piece.partition("=") for piece in re.split("[&;]", query))
    names = (unquote_plus(name) for name, _, value in pieces if unquote_plus(value) == MASK)
    return next(filter(is_secret, names), None)


def mask_left_in_text(text: str) -> str | None:
    """Return the name of a field in the text of a body that holds `***` where a secret belongs, or None."""
    if text == MASK:
        return "body"
    try:
        return mask_left_in(_document(text))
    except (ValueError, RecursionError):
        return mask_left_in_query(text, is_secret_field)


def _bare_url(url: str, is_secret: Callable[[str], bool] | None) -> str:
    if len(url) > LONGEST_URL:
        return MASK
    try:
        parts = urlsplit(url)
    except ValueError:
        return MASK
    netloc = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, netloc, parts.path, _masked_query(parts.query, is_secret), ""))


def _masked_query(query: str, is_secret: Callable[[str], bool] | None) -> str:
    """Return a query with `***` for secrets, or for all values if no names are told apart."""
    return "".join(
        piece if not piece or piece in "&;" else _masked_piece(piece, is_secret) for piece in re.split("([&;])", query)
    )


def _masked_piece(piece: str, is_secret: Callable[[str], bool] | None) -> str:
    name, equals, _ = piece.partition("=")
    if is_secret is not None and not is_secret(unquote_plus(name)):
        return piece
    return f"{name}={MASK}" if equals or is_secret is not None else MASK


def _document(text: str) -> Any:
    """Return the object or list that a JSON text is, if nothing in it can be overlooked."""
    value = json.loads(text, object_pairs_hook=_once)
    if not isinstance(value, dict | list) or is_deep(value):
        raise ValueError("no object and no list, or nested too deeply")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("one name has two values")
    return found


def _with_default(reference: dict[str, Any], hide: Callable[[Any], Any]) -> dict[str, Any]:
    return {**reference, "default": hide(reference["default"])} if "default" in reference else reference


def _names_secret(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"$secret"} and isinstance(value["$secret"], str)


def _compact(name: str) -> str:
    return _OTHER.sub("", name.lower())
