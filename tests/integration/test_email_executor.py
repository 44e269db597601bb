"""Mails to a real server on this machine: plain, encrypted, logged in, refused, interrupted."""

from __future__ import annotations

import asyncio
import base64
import ssl
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

import apflow
from apflow import AddressRefusedError, ExecutorError, InvalidInputsError, MissingExtraError, RetryPolicy, Runtime
from apflow.executors.email import SendEmailExecutor
from tests.integration.mail_server import SECRET, Post, certificate, post_office

pytestmark = [
    pytest.mark.anyio,
    # The server warns of what the tests want: a login without TLS.
    pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS:UserWarning"),
]

NOTE: dict[str, Any] = {"to": "bob@example.com", "from": "ada@example.com", "subject": "Tides", "body": "High."}
LOGIN = {"username": "ada", "password": SECRET}


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """What a server needs so that this process trusts it, as 127.0.0.1 and as localhost."""
    context, public = certificate(tmp_path, x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("localhost"))
    monkeypatch.setenv("SSL_CERT_FILE", str(public))
    return context


@apflow.task
async def send(inputs: dict[str, Any]) -> dict[str, Any]:
    return await SendEmailExecutor().execute(inputs)


Sender = Callable[..., AbstractAsyncContextManager[Runtime]]


@pytest.fixture
def settings(sqlite_url: str) -> Sender:
    """A runtime with settings for the executor: `tls` is none unless given."""

    def make(post: Post | None = None, **given: Any) -> AbstractAsyncContextManager[Runtime]:
        place = {} if post is None else {"host": "127.0.0.1", "port": post.port, "tls": "none"}
        return Runtime(sqlite_url, settings={"send_email_executor": place | given})

    return make


async def test_a_mail_with_everything(settings: Sender) -> None:
    async with post_office() as post, settings(post):
        output = await send(
            {
                "to": ["Bob <bob@example.com>", '"Lovelace, Ada" <ada@example.com>'],
                "cc": "Zoë Müller <zoe@münchen.example.com>",
                "bcc": ["hidden@example.com", "bob@example.com"],
                "reply_to": "reply@example.com",
                "from": "Tide Service <tides@example.com>",
                "subject": "Flut um fünf 🌊",
                "body": "High at five.\n.\nBye ü",
                "html": "<p>High at five</p>",
                "headers": {"X-Kind": "tide", "In-Reply-To": "<1@example.com>"},
                "attachments": [
                    {"filename": "data.bin", "content": base64.encodebytes(b"\x00\xff" * 60).decode()},
                    {"filename": "größe.csv", "text": "a,ü\n"},
                    {"filename": "x", "text": "{}", "content_type": "application/json"},
                ],
            }
        )
    (mail,), (envelope,) = post.mails, post.envelopes
    assert output == {"sent": True, "message_id": mail["Message-ID"], "refused": {}}
    assert envelope.mail_from == "tides@example.com"
    assert envelope.rcpt_tos == [
        "bob@example.com",
        "ada@example.com",
        "zoe@xn--mnchen-3ya.example.com",
        "hidden@example.com",
    ]
    assert b"hidden" not in (envelope.content or b"")
    assert mail["To"] == 'Bob <bob@example.com>, "Lovelace, Ada" <ada@example.com>'
    assert mail["Cc"].addresses[0].display_name == "Zoë Müller"
    assert (mail["From"], mail["Reply-To"]) == ("Tide Service <tides@example.com>", "reply@example.com")
    assert (mail["Subject"], mail["X-Kind"], mail["In-Reply-To"]) == ("Flut um fünf 🌊", "tide", "<1@example.com>")
    assert mail["Message-ID"].endswith("@example.com>")
    assert (plain := mail.get_body(("plain",))) is not None
    assert plain.get_content().rstrip() == "High at five.\r\n.\r\nBye ü"
    assert (html := mail.get_body(("html",))) is not None
    assert html.get_content().strip() == "<p>High at five</p>"
    got = [(one.get_filename(), one.get_content_type(), one.get_content()) for one in mail.iter_attachments()]
    assert got[0] == ("data.bin", "application/octet-stream", b"\x00\xff" * 60)
    assert got[1] == ("größe.csv", "text/csv", "a,ü\n")
    assert got[2] == ("x", "application/json", b"{}")


async def test_a_login_over_starttls_and_over_tls(settings: Sender, trusted: ssl.SSLContext) -> None:
    async with post_office(tls_context=trusted, auth_required=True) as post, settings(post, tls="starttls", **LOGIN):
        await send(NOTE)
    assert post.logins == [(b"ada", SECRET.encode())]
    async with (
        post_office(tls=trusted, auth_required=True, auth_require_tls=False) as post,
        settings(post, tls="tls", **LOGIN),
    ):
        await send(NOTE)
    assert len(post.mails) == len(post.logins) == 1


async def test_a_login_in_the_clear_only_when_asked_for(settings: Sender) -> None:
    async with post_office(auth_required=True, auth_require_tls=False) as post:
        async with settings(post, tls="starttls", **LOGIN):
            with pytest.raises(ExecutorError, match="STARTTLS") as caught:
                await send(NOTE)
        assert not caught.value.retryable
        assert post.logins == []
        async with settings(post, tls="none", **LOGIN):
            await send(NOTE)
        assert post.logins == [(b"ada", SECRET.encode())]


@pytest.mark.parametrize("tls", ["starttls", "tls"])
@pytest.mark.parametrize("name", [None, "other.example.com"])
async def test_a_server_that_is_not_trusted_gets_nothing(
    tls: str, name: str | None, settings: Sender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, public = certificate(tmp_path, x509.DNSName(name or "localhost"))
    if name is not None:
        monkeypatch.setenv("SSL_CERT_FILE", str(public))
    served = post_office(tls=context) if tls == "tls" else post_office(tls_context=context)
    async with served as post, settings(post, tls=tls, **LOGIN):
        with pytest.raises(ExecutorError, match="certificate") as caught:
            await send(NOTE)
    assert not caught.value.retryable
    assert (post.logins, post.envelopes) == ([], [])


async def test_a_server_that_does_not_speak_tls(settings: Sender) -> None:
    async with post_office() as post, settings(post, tls="tls"):
        with pytest.raises(ExecutorError, match="does not speak TLS") as caught:
            await send(NOTE)
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("who", "answer", "retryable", "said"),
    [
        ("data", "451 4.3.0 come back, bob", True, "refused the mail: 451"),
        ("data", "554 5.7.1 no spam, bob", False, "refused the mail: 554"),
        ("ada@example.com", "550 5.1.8 not you, bob", False, "refused the sender: 550"),
        ("bob@example.com", "450 4.2.1 bob is busy", True, "refused all recipients: 450"),
        ("bob@example.com", "550 5.1.1 no bob here", False, "refused all recipients: 550"),
    ],
)
async def test_what_a_server_refuses(who: str, answer: str, retryable: bool, said: str, settings: Sender) -> None:
    async with post_office() as post, settings(post):
        if who == "data":
            post.answers = [answer]
        post.refused = {who: answer}
        with pytest.raises(ExecutorError, match=said) as caught:
            await send(NOTE)
    assert caught.value.retryable is retryable
    assert "bob" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


async def test_a_login_that_is_refused(settings: Sender) -> None:
    async with post_office(auth_require_tls=False) as post, settings(post, username="ada", password="wrong"):  # noqa: S106
        with pytest.raises(ExecutorError, match="refused the login: 535") as caught:
            await send(NOTE)
    assert not caught.value.retryable
    assert "ada" not in str(caught.value)


async def test_recipients_that_are_refused_are_told_when_others_get_the_mail(settings: Sender) -> None:
    async with post_office() as post, settings(post):
        post.refused = {"eve@example.com": "550 5.1.1 never heard of her"}
        output = await send(NOTE | {"bcc": ["eve@example.com"]})
    assert output["refused"] == {"eve@example.com": "550"}
    assert post.envelopes[0].rcpt_tos == ["bob@example.com"]


@pytest.mark.parametrize("place", ["settings", "inputs"])
async def test_a_server_that_is_not_there_may_be_there_later(place: str, settings: Sender) -> None:
    async with post_office() as post:
        pass
    given = {"host": "127.0.0.1", "port": post.port, "tls": "none"}
    inputs = NOTE if place == "settings" else NOTE | {"smtp_config": given}
    async with settings(post) if place == "settings" else settings(allow=["127.0.0.1"]):
        with pytest.raises(ExecutorError, match="did not answer") as caught:
            await send(inputs)
    assert caught.value.retryable


@pytest.mark.parametrize("limit", [{"timeout": 0.3}, {"smtp_config": {"timeout": 0.3}}])
async def test_a_server_that_says_nothing(limit: dict[str, Any], settings: Sender) -> None:
    async with post_office() as post, settings(post):
        post.silent = True
        with pytest.raises(ExecutorError, match="in time") as caught:
            await send(NOTE | limit)
    assert caught.value.retryable


async def test_cancelling_closes_the_connection(settings: Sender) -> None:
    async with post_office() as post, settings(post):
        post.silent = True
        sending = asyncio.ensure_future(send(NOTE))
        await post.reached.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await post.idle.wait()
        assert post.connections == 1


async def test_attempts_of_one_run_have_one_message_id_and_other_mails_another(settings: Sender) -> None:
    @apflow.task(retry=RetryPolicy(max_attempts=2, backoff_base_seconds=0.1, jitter=False))
    async def both() -> list[str]:
        executor = SendEmailExecutor()
        return [(await executor.execute(NOTE | {"subject": one}))["message_id"] for one in ("one", "two")]

    async with post_office() as post, settings(post):
        post.answers = ["250 OK", "451 4.3.0 later"]
        first, second = await both()
        again, _ = await both()
    assert [mail["Message-ID"] for mail in post.mails[:4]] == [first, second, first, second]
    assert len({first, second, again}) == 3


async def test_a_host_in_the_inputs_has_to_be_allowed(settings: Sender) -> None:
    async with post_office() as post:
        inputs = NOTE | {"smtp_config": {"host": "127.0.0.1", "port": post.port, "tls": "none"}}
        async with settings():
            with pytest.raises(AddressRefusedError):
                await send(inputs)
        async with settings(allow=["127.0.0.1:1"]):
            with pytest.raises(AddressRefusedError):
                await send(inputs)
        assert post.connections == 0
        async with settings(allow=[f"127.0.0.1:{post.port}"]):
            await send(inputs)
        assert len(post.mails) == 1


@pytest.mark.parametrize("tls", ["starttls", "tls"])
async def test_a_checked_address_is_connected_to_and_the_name_is_verified(
    tls: str, settings: Sender, trusted: ssl.SSLContext
) -> None:
    served = post_office(tls=trusted) if tls == "tls" else post_office(tls_context=trusted, require_starttls=True)
    async with served as post, settings(allow=["localhost"]):
        await send(NOTE | {"smtp_config": {"host": "LOCALHOST", "port": post.port, "tls": tls}})
    assert len(post.mails) == 1


async def test_the_login_of_the_settings_goes_nowhere_else(settings: Sender) -> None:
    async with (
        post_office(auth_require_tls=False) as other,
        settings(host="mail.example.com", allow=["127.0.0.1"], **LOGIN),
    ):
        await send(NOTE | {"smtp_config": {"host": "127.0.0.1", "port": other.port, "tls": "none"}})
        for weaker in ({"tls": "none"}, {"port": other.port}):
            with pytest.raises(InvalidInputsError, match="host"):
                await send(NOTE | {"smtp_config": weaker})
    assert other.logins == []
    assert len(other.mails) == 1


async def test_inputs_override_settings(settings: Sender) -> None:
    inputs = {name: value for name, value in NOTE.items() if name != "from"}
    async with post_office(auth_require_tls=False) as post, settings(post, **{"from": "set@example.com"}, **LOGIN):
        await send(inputs)
        await send(inputs | {"from": "given@example.com", "smtp_config": LOGIN | {"username": "bob"}})
    assert [mail["From"] for mail in post.mails] == ["set@example.com", "given@example.com"]
    assert [user for user, _ in post.logins] == [b"ada", b"bob"]


@pytest.mark.parametrize(
    ("given", "inputs", "said"),
    [
        ({"allow_smtp_config": False}, {"smtp_config": {"timeout": 1}}, "do not allow"),
        ({}, {}, "no mail server"),
        ({}, {"smtp_config": {"host": "mail.example.com", "username": "a", "password": "***"}}, "not the secret"),
        ({"pasword": "x"}, {}, "settings of send_email_executor"),
        ({"allow": ["https://example.com"]}, {"smtp_config": {"host": "example.com"}}, "settings of send_email_exec"),
        ({}, {"to": []}, "recipient"),
        ({}, {"too": "x"}, "too"),
        ({}, {"smtp_config": {"host": "x", "tls": "no"}}, "tls"),
        ({}, {"subject": "Tides\r\nBcc: eve@example.com"}, "subject"),
    ],
)
async def test_what_is_refused_before_anything_is_sent(
    given: dict[str, Any], inputs: dict[str, Any], said: str, settings: Sender
) -> None:
    async with settings(**given):
        with pytest.raises(InvalidInputsError, match=said):
            await send(NOTE | inputs)


async def test_without_aiosmtplib_the_extra_is_named(settings: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiosmtplib", None)
    async with settings():
        with pytest.raises(MissingExtraError, match=r"apflow\[email\]"):
            await send(NOTE)


def test_the_login_is_masked_and_references_are_not() -> None:
    redact = SendEmailExecutor().redact
    kept = redact(NOTE | {"smtp_config": {"host": "example.com", **LOGIN}})
    assert kept == NOTE | {"smtp_config": {"host": "example.com", "username": "***", "password": "***"}}
    config = {"username": {"$secret": "user"}, "password": {"$secret": "mail"}}
    assert redact({"smtp_config": config}) == {"smtp_config": config}
    assert redact(NOTE) == NOTE
