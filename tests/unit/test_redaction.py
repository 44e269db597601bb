"""What of a request may be stored and told: nothing that looks like a secret."""

from __future__ import annotations

import ssl
from typing import Any

import httpcore
import httpx
import pytest

from apflow.executors.redaction import (
    is_secret_field,
    is_secret_header,
    is_secret_parameter,
    mask_left_in_query,
    urls_without_values,
)
from apflow.executors.rest import RestExecutor
from apflow.executors.transport import unreachable

USER = "ada:s3cret"
LONG = "a" + "\u0315\u0300" * 5000
ENCODED = "xn--a"


def test_what_is_stored_has_no_secrets() -> None:
    inputs = {
        "url": f"https://{USER}@example.com/a?x=1&api_key=s3cret&key=s3cret",
        "headers": {"Authorization": "s3cret", "x-api-key": "s3cret", "Cookie": "s3cret", "Accept": "text/plain"},
        "query": {"q": "tides", "access_token": "s3cret", "password": ["s3cret"], "token": {"$secret": "mine"}},
        "json": {"user": {"name": "ada", "clientSecret": "s3cret"}, "all": [{"passwd": 5}], "max_tokens": 100},
        "auth": {"username": "ada", "password": "s3cret"},
    }
    kept = RestExecutor().redact(inputs)
    assert "s3cret" in str(inputs)
    assert kept == {
        "url": "https://example.com/a?x=1&api_key=***&key=***",
        "headers": {"Authorization": "***", "x-api-key": "***", "Cookie": "***", "Accept": "text/plain"},
        "query": {"q": "tides", "access_token": "***", "password": "***", "token": {"$secret": "mine"}},
        "json": {"user": {"name": "ada", "clientSecret": "***"}, "all": [{"passwd": "***"}], "max_tokens": 100},
        "auth": {"username": "***", "password": "***"},
    }


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ('{"a": 1, "password": "s3cret"}', '{"a": 1, "password": "***"}'),
        ("a=1&password=s3cret&b", "a=1&password=***&b"),
        ('{"a":  1}', '{"a":  1}'),
        ("", ""),
        ('{"password": "s3cret", "password": null}', "***"),
        ("a=b c&password=s3cret", "***"),
        ("password=s3cret\n", "***"),
        ("<password>s3cret</password>", "***"),
        ("c2VjcmV0=", "***"),
        ('"s3cret"', "***"),
        ("[" * 600 + '{"password": "s3cret"}' + "]" * 600, "***"),
        ("[" * 100_000, "***"),
    ],
)
def test_a_body_as_text_is_masked_where_it_can_be_read(body: str, kept: str) -> None:
    assert RestExecutor().redact({"body": body}) == {"body": kept}


@pytest.mark.parametrize("field", ["url", "headers", "query", "json", "body", "form", "auth"])
def test_references_stay_and_their_defaults_are_masked(field: str) -> None:
    for kept in ({"$secret": "mine"}, {"$from": "a", "path": "b.c"}, {"$from": "a", "default": None}):
        assert RestExecutor().redact({field: kept}) == {field: kept}
    hidden = RestExecutor().redact({field: {"$from": "a", "default": {"password": "s3cret"}}})
    assert hidden[field]["$from"] == "a"
    assert "s3cret" not in str(hidden)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"json": {"$from": "ada", "password": "s3cret"}}, {"json": {"$from": "ada", "password": "***"}}),
        ({"json": {"$secret": {"password": "s3cret"}}}, {"json": {"$secret": "***"}}),
        (
            {"auth": {"bearer": {"$from": "a", "default": "s3cret"}}},
            {"auth": {"bearer": {"$from": "a", "default": "***"}}},
        ),
        ({"auth": {"$from": "a", "default": "s3cret"}}, {"auth": {"$from": "a", "default": "***"}}),
        ({"body": {"$from": "a", "default": "s3cret"}}, {"body": {"$from": "a", "default": "***"}}),
        (
            {"url": {"$from": "a", "default": "https://example.com/?key=s3cret"}},
            {"url": {"$from": "a", "default": "https://example.com/?key=***"}},
        ),
        ({"url": 5, "body": [{"pin": 5}]}, {"url": 5, "body": [{"pin": "***"}]}),
    ],
)
def test_what_only_looks_like_a_reference_is_masked(given: dict[str, Any], kept: dict[str, Any]) -> None:
    assert RestExecutor().redact(given) == kept


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://example.com/a#access_token=s3cret", "https://example.com/a"),
        ("https://example.com/?a=1;password=s3cret&b", "https://example.com/?a=1;password=***&b"),
        ("https://example.com/?%70assword=s3cret", "https://example.com/?%70assword=***"),
        ("https://example.com/?a=" + "s3cret" * 2000, "***"),
        (f"http://{LONG}", "***"),
    ],
)
def test_urls(url: str, kept: str) -> None:
    assert RestExecutor().redact({"url": url}) == {"url": kept}


def test_a_mask_in_a_query_is_found_beside_another_value() -> None:
    assert mask_left_in_query("a=1&api_key=***&api_key=2") == "api_key"
    assert mask_left_in_query("a=1;api_key=***") == "api_key"
    assert mask_left_in_query("a=***&api_key=2") is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('<https://example.com/?page=s3cret#x>; rel="next"', '<https://example.com/?page=***>; rel="next"'),
        (f"5; url=https://{USER}@example.com/?s3cret", "5; url=https://example.com/?***"),
        ("0; url=/#token=s3cret", "0; url=/"),
    ],
)
def test_urls_in_headers(text: str, shown: str) -> None:
    assert urls_without_values(text) == shown


@pytest.mark.parametrize("name", ["password", "userPassword", "client-secret", "API_KEY", "access_token", "Passwd"])
def test_fields_that_are_secret(name: str) -> None:
    assert is_secret_field(name)


@pytest.mark.parametrize(
    "name",
    [
        *("session", "session_id", "pass", "passcode", "pin", "code", "client_assertion", "tokens", "auth_tokens"),
        *("private_key_pem", "db_pass", "auth_code", "sid", "cvv"),
    ],
)
def test_more_fields_that_are_secret(name: str) -> None:
    assert is_secret_field(name)
    assert is_secret_parameter(name)
    assert is_secret_header(f"X-{name}")


@pytest.mark.parametrize(
    "name",
    [
        "max_tokens",
        "token_usage",
        "author",
        "primary_key",
        "key",
        "design",
        "user",
        "status_code",
        "zip_code",
        "compass",
        "bypass",
        "shipping",
        "total_tokens",
        "accessible",
    ],
)
def test_fields_that_are_not(name: str) -> None:
    assert not is_secret_field(name)


@pytest.mark.parametrize("name", ["Cookie", "Set-Cookie", "X-Api-Key", "WWW-Authenticate", "Ocp-Subscription-Key"])
def test_headers_that_are_secret(name: str) -> None:
    assert is_secret_header(name)


@pytest.mark.parametrize("name", ["Accept", "ETag", "Idempotency-Key", "Content-Type"])
def test_headers_that_are_not(name: str) -> None:
    assert not is_secret_header(name)


def test_a_wrong_certificate_is_told_and_not_tried_again() -> None:
    error = httpx.ConnectError("")
    error.__cause__ = httpcore.ConnectError()
    error.__cause__.__cause__ = ssl.SSLCertVerificationError()
    told = unreachable(httpx.URL("https://example.com/s3cret"), error)
    assert str(told) == "the certificate of example.com is not valid for it"
    assert told.retryable is False


def test_a_host_is_told_as_it_is_sent() -> None:
    told = unreachable(httpx.URL(f"http://{ENCODED}/"), httpx.ConnectError(""))
    assert str(told) == "the connection to xn--a failed (ConnectError)"
