"""What of a request may be stored and told: nothing that looks like a secret."""

from __future__ import annotations

import ssl

import httpcore
import httpx
import pytest

from apflow.executors.redaction import is_secret_field, is_secret_header
from apflow.executors.rest import RestExecutor
from apflow.executors.transport import unreachable

USER = "ada:s3cret"


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
        ("a text with password = x", "a text with password = x"),
    ],
)
def test_a_body_as_text_is_masked_where_it_can_be_read(body: str, kept: str) -> None:
    assert RestExecutor().redact({"body": body}) == {"body": kept}


@pytest.mark.parametrize("name", ["password", "userPassword", "client-secret", "API_KEY", "access_token", "Passwd"])
def test_fields_that_are_secret(name: str) -> None:
    assert is_secret_field(name)


@pytest.mark.parametrize("name", ["max_tokens", "token_usage", "author", "primary_key", "key", "design", "user"])
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
