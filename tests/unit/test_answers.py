"""What of an answer becomes a result, and how long that may take at most."""

from __future__ import annotations

import base64
import codecs
import json
from typing import Any

import httpx
import pytest

from apflow.executors.answers import _charset, body_of, visible
from apflow.executors.values import is_deep, parsed, storable

USER = "ada:s3cret"


def body(kind: str, content: bytes) -> tuple[Any, str | None]:
    return body_of(httpx.Response(200, headers=[("Content-Type", kind)]), content)


@pytest.mark.parametrize(
    "name",
    [
        *("utf-8", "UTF8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "ascii", "us-ascii", "latin-1", "iso-8859-15"),
        *("windows-1252", "cp1251", "gb18030", "gbk", "gb2312", "big5", "shift_jis", "euc-jp", "euc-kr", "koi8-r"),
    ],
)
def test_usual_charsets_are_read(name: str) -> None:
    assert body(f"text/plain; charset={name}", "a+b".encode(name)) == ("a+b", None)
    assert body(f'text/plain;charset="{name}"; x=y', "a+b".encode(name)) == ("a+b", None)
    assert _charset(name.lower()) == codecs.lookup(name).name


@pytest.mark.parametrize(
    "name",
    [
        *("punycode", "idna", "utf-7", "unicode_escape", "raw_unicode_escape", "undefined", "zlib", "rot13", "hex"),
        *("mbcs", "no-such", "../x", "x" * 1000),
    ],
)
def test_other_charsets_are_not(name: str) -> None:
    assert _charset(name) is None
    kind = f"text/plain; charset={name}"
    for content in (b"-a9z", b"+2AA-", rb"\ud800", "gr\u00fcn".encode()):
        assert body(kind, content) == (content.decode(), None)
    assert body(kind, b"\xff") == (base64.b64encode(b"\xff").decode(), "base64")


def test_the_long_form_of_a_parameter_names_no_charset() -> None:
    assert body("text/plain; charset*=punycode''x", b"-a9z") == ("-a9z", None)


@pytest.mark.parametrize("depth", [100, 101, 900])
def test_deep_json_stays_text(depth: int) -> None:
    content = "[" * depth + "]" * depth
    value, _ = body("application/json", content.encode())
    assert isinstance(value, str) is (depth > 100)
    assert isinstance(storable(json.loads(content)), str) is (depth > 100)
    assert is_deep(json.loads(content)) is (depth > 100)


def test_what_cannot_be_stored_becomes_its_text() -> None:
    assert storable({"a": float("nan")}) == '{"a": NaN}'
    assert storable(["\ud800"]) == r'["\ud800"]'
    assert storable({"a": [1, "\u00fc"]}) == {"a": [1, "\u00fc"]}
    with pytest.raises(ValueError, match="deep"):
        parsed('{"a":' * 101 + "1" + "}" * 101)


def test_headers_that_lead_somewhere_have_no_values() -> None:
    headers = httpx.Headers(
        {
            "Location": "/cb?code=s3cret#id_token=s3cret",
            "Content-Location": f"https://{USER}@example.com/?s3cret",
            "Refresh": "5;url=https://example.com/?t=s3cret",
            "Link": "<https://example.com/?t=s3cret>; rel=next",
            "X-Session-Id": "s3cret",
            "X-Other": "/?a=b",
        }
    )
    shown = visible(headers)
    assert "s3cret" not in str(shown)
    assert shown["location"] == "/cb?code=***"
    assert shown["content-location"] == "https://example.com/?***"
    assert shown["x-other"] == "/?a=b"
