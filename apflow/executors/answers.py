"""What an HTTP answer becomes in a task's result."""

from __future__ import annotations

import base64
import codecs
import re
from typing import TYPE_CHECKING, Any, Final

from apflow.executors.redaction import MASK, is_secret_header, url_without_values, urls_without_values
from apflow.executors.values import parsed

if TYPE_CHECKING:
    import httpx

_JSON: Final = re.compile(r"application/json|[^;]+\+json|text/json")
_BINARY: Final = re.compile(r"(image/(?!svg)|audio/|video/|font/)|application/(octet-stream|zip|gzip|pdf)")
_NAMED: Final = re.compile(r';\s*charset\s*=\s*"?([^\s;"]*)')
_NAME: Final = re.compile(r"[a-z0-9_.:-]{1,40}")
# What is named here takes a time that grows as the text does; Python has codecs of which that is not true.
_CHARSETS: Final = re.compile(
    r"utf-8(-sig)?|utf-(16|32)(-[bl]e)?|ascii|iso8859-\d+|cp125\d|gb18030|gbk|gb2312|big5|shift_jis|cp932"
    r"|euc_(jp|kr)|koi8-[rtu]"
)


def body_of(response: httpx.Response, content: bytes) -> tuple[Any, str | None]:
    """Return the body of an answer, and `"base64"` as its encoding if it is no text.

    JSON is parsed if the content type says that it is some, and stays text where it could not be stored.
    """
    kind = response.headers.get("Content-Type", "").strip().lower()
    if not content:
        return "", None
    text = None if _BINARY.match(kind) else _text(kind, content)
    if text is None:
        return base64.b64encode(content).decode("ascii"), "base64"
    if not _JSON.match(kind):
        return text, None
    try:
        return parsed(text), None
    except (ValueError, RecursionError):
        return text, None


def visible(headers: httpx.Headers) -> dict[str, str]:
    """Return the headers of an answer, with `***` for cookies, keys and what is in the queries of URLs.

    Repeated ones are joined with commas.
    """
    return {name: _visible(name, value) for name, value in headers.items()}


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


def _visible(name: str, value: str) -> str:
    if is_secret_header(name):
        return MASK
    if name.lower() in {"location", "content-location"}:
        return url_without_values(value)
    return urls_without_values(value) if name.lower() in {"refresh", "link"} else value


def _text(kind: str, content: bytes) -> str | None:
    """Return the text that some bytes are in the charset that is named, if that is a usual one, and else in UTF-8."""
    named = _NAMED.search(kind)
    charset = None if named is None else _charset(named[1])
    lenient = kind.startswith("text/") and (named is None or charset is not None)
    try:
        text = content.decode(charset or "utf-8", "replace" if lenient else "strict")
        text.encode()
    except UnicodeError:
        return None
    return None if "\0" in text else text


def _charset(name: str) -> str | None:
    try:
        found = codecs.lookup(name).name if _NAME.fullmatch(name) else ""
    except LookupError:
        return None
    return found if _CHARSETS.fullmatch(found) else None
