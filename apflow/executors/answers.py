"""What an HTTP answer becomes in a task's result."""

from __future__ import annotations

import base64
import json
import math
import re
from typing import TYPE_CHECKING, Any, Final

from apflow.executors.redaction import MASK, is_secret_header

if TYPE_CHECKING:
    import httpx

_JSON: Final = re.compile(r"application/json|[^;]+\+json|text/json")
_BINARY: Final = re.compile(r"(image/(?!svg)|audio/|video/|font/)|application/(octet-stream|zip|gzip|pdf)")
_HALF_PAIR: Final = re.compile(r"\\u[dD][89a-fA-F]")


def body_of(response: httpx.Response, content: bytes) -> tuple[Any, str | None]:
    """Return the body of an answer, and `"base64"` as its encoding if it is no text.

    JSON is parsed if the content type says that it is some, and stays text where no database could hold its values.
    """
    kind = response.headers.get("Content-Type", "").strip().lower()
    if not content:
        return "", None
    text = None if _BINARY.match(kind) else _text(response, content, lenient=kind.startswith("text/"))
    if text is None:
        return base64.b64encode(content).decode("ascii"), "base64"
    if not _JSON.match(kind):
        return text, None
    try:
        return parsed(text), None
    except (ValueError, RecursionError):
        return text, None


def parsed(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: It is no JSON, or has a number or a text that cannot be stored.
        RecursionError: It is nested too deeply.
    """
    value = json.loads(text, parse_float=_finite, parse_constant=_finite)
    if _HALF_PAIR.search(text):
        json.dumps(value, ensure_ascii=False).encode()
    return value


def visible(headers: httpx.Headers) -> dict[str, str]:
    """Return the headers of an answer, with `***` for cookies and keys. Repeated ones are joined with commas."""
    return {name: MASK if is_secret_header(name) else value for name, value in headers.items()}


def usage_in(body: Any) -> dict[str, int] | None:
    """Return the tokens that a JSON body says were used, as `input`, `output` and `total`, or None.

    Read are a `token_usage` in these words and the `usage` of model services.
    """
    from apflow.governance.readers import usage_of

    if not isinstance(body, dict) or not ("usage" in body or "token_usage" in body):
        return None
    try:
        usage = usage_of(body)
    except (TypeError, ValueError):
        return None
    return {"input": usage.input, "output": usage.output, "total": usage.total}


def _text(response: httpx.Response, content: bytes, *, lenient: bool) -> str | None:
    try:
        text = content.decode(response.charset_encoding or "utf-8", "replace" if lenient else "strict")
    except (LookupError, UnicodeError):
        return None
    return None if "\0" in text else text


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("no number that can be stored")
    return number
