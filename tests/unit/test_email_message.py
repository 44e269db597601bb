"""Mails out of inputs: no text can add a header, a recipient or a line of its own."""

from __future__ import annotations

import base64
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apflow import InvalidInputsError
from apflow.executors.email_message import Mail, compose

NOTE: dict[str, Any] = {"to": "bob@example.com", "from": "ada@example.com", "subject": "Tides", "body": "High."}
# Where one of these stands in a header, a careless library begins a new line.
DANGERS = ["\r\nBcc: eve@example.com", "\n", "\r", "\0", "\x0b", "\x85", "\u2028", "=?utf-8?q?a=0ABcc:_eve?=", "\ud800"]


def made(max_bytes: int = 1000, run_id: str | None = None, **inputs: Any) -> Mail:
    return compose(NOTE | inputs, sender=None, run_id=run_id, max_bytes=max_bytes)


def read(mail: Mail) -> EmailMessage:
    message = message_from_bytes(mail.content, policy=policy.SMTP)
    assert isinstance(message, EmailMessage)
    return message


@pytest.mark.parametrize("danger", DANGERS)
@pytest.mark.parametrize(
    ("field", "inputs"),
    [
        ("subject", {"subject": "a{}b"}),
        ("to", {"to": "a{}b@example.com"}),
        ("to[1]", {"to": ["bob@example.com", "Bob{} <bob@example.com>"]}),
        ("cc", {"cc": '"Bob{}" <bob@example.com>'}),
        ("bcc", {"bcc": "bob@example.com{}"}),
        ("from", {"from": "{}ada@example.com"}),
        ("reply_to", {"reply_to": "bob@exam{}ple.com"}),
        ("headers.X-Kind", {"headers": {"X-Kind": "a{}"}}),
        ("headers", {"headers": {"X-Kind{}": "a"}}),
        ("attachments[0].filename", {"attachments": [{"filename": "a{}.txt", "text": ""}]}),
        ("attachments[0].content_type", {"attachments": [{"filename": "a", "text": "", "content_type": "a/b{}"}]}),
    ],
)
def test_what_could_begin_a_line_is_refused_and_not_repeated(field: str, inputs: Any, danger: str) -> None:
    with pytest.raises(InvalidInputsError) as caught:
        made(**_filled(inputs, danger))
    assert str(caught.value).startswith(field)
    assert danger not in str(caught.value)
    assert "eve" not in str(caught.value)


def _filled(value: Any, danger: str) -> Any:
    if isinstance(value, dict):
        return {_filled(key, danger): _filled(one, danger) for key, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, danger) for one in value]
    return value.replace("{}", danger)


TEXT = st.text(st.sampled_from("aZ \t\r\n=?_.:;,<>@\"'\\()[]\0\x1c\x85\u2028éü🌊") | st.characters(), max_size=200)


@given(subject=TEXT, name=TEXT, address=TEXT, value=TEXT, filename=TEXT)
def test_whatever_is_accepted_has_exactly_the_headers_that_were_meant(
    subject: str, name: str, address: str, value: str, filename: str
) -> None:
    for inputs in (
        {"subject": subject},
        {"to": f"{name} <bob@example.com>"},
        {"to": ['"{}" <bob@example.com>'.format(name.replace("\\", "\\\\").replace('"', '\\"'))]},
        {"cc": address},
        {"headers": {"X-Kind": value}},
        {"attachments": [{"filename": filename, "text": "x"}]},
    ):
        try:
            mail = made(**inputs)
        except InvalidInputsError:
            continue
        message = read(mail)
        names = ["From", "To", *(["Cc"] if "cc" in inputs else []), "Subject", "Date", "Message-ID"]
        names += ["X-Kind"] if "headers" in inputs else []
        assert [
            one for one in message if one not in ("Content-Type", "Content-Transfer-Encoding", "MIME-Version")
        ] == names
        assert [one.addr_spec for one in message["To"].addresses] == ["bob@example.com"]
        assert mail.recipients[0] == "bob@example.com"
        assert len(mail.recipients) == 1 + ("cc" in inputs and mail.recipients != ("bob@example.com",))
        body = message.get_body(("plain",))
        assert body is not None
        assert body.get_content().rstrip() == "High."


@pytest.mark.parametrize(
    ("text", "name", "address"),
    [
        ("bob@example.com", "", "bob@example.com"),
        ("  <bob@localhost> ", "", "bob@localhost"),
        ("Dr. Bob B. (home) <bob+tag@example.com>", "Dr. Bob B. (home)", "bob+tag@example.com"),
        ('"B, \\"Bob\\"; <x>" <bob@example.com>', 'B, "Bob"; <x>', "bob@example.com"),
        ("Bob <o'neil.bob@exämple.com>", "Bob", "o'neil.bob@xn--exmple-cua.com"),
        ("straße <bob@straße.example>", "straße", "bob@xn--strae-oqa.example"),
    ],
)
def test_addresses(text: str, name: str, address: str) -> None:
    mail = made(to=text)
    (found,) = read(mail)["To"].addresses
    assert (found.display_name, found.addr_spec) == (name, address)
    assert mail.recipients == (address,)


@pytest.mark.parametrize(
    "text",
    [
        *("", "bob", "bob@", "@example.com", "bob@example..com", "bob@-x.com", "b ob@example.com", ".bob@example.com"),
        *("a@example.com, b@example.com", "a@example.com,b@example.com", "A <a@example.com>, B <b@example.com>"),
        *("a@" + "\u00e4" * 20_000, "a@a" + "\u0315\u0300" * 5000),
        *("team: a@example.com;", "a@example.com <b@example.com", "a@example.com> SIZE=1", "zoë@example.com"),
        *('"a b"@example.com', "a@[127.0.0.1]", "A, B <a@example.com>", f"{'a' * 65}@example.com", f"a@{'b' * 64}.com"),
    ],
)
def test_what_is_not_one_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputsError, match=r"^to"):
        made(to=text)


@pytest.mark.parametrize(
    "name", ["Bcc", "bcc", "To", "FROM", "Content-Type", "Resent-To", "Message-ID", "a b", "a:", ""]
)
def test_headers_of_the_executor_and_no_headers_are_refused(name: str) -> None:
    with pytest.raises(InvalidInputsError, match=r"^headers"):
        made(headers={name: "x"})


def test_a_header_that_may_stand_once_is_given_once() -> None:
    assert read(made(headers={"Sender": "eve@example.com"}))["Sender"] == "eve@example.com"
    with pytest.raises(InvalidInputsError, match=r"^headers\.sender"):
        made(headers={"Sender": "eve@example.com", "sender": "bob@example.com"})


def test_hidden_recipients_stand_in_the_envelope_only() -> None:
    mail = made(bcc=["eve@example.com"], cc="cy@example.com")
    assert mail.recipients == ("bob@example.com", "cy@example.com", "eve@example.com")
    assert b"eve" not in mail.content


def test_every_line_is_short_ascii_and_ends_as_smtp_wants() -> None:
    mail = made(
        body="ü" * 5000 + "\n" + "x" * 5000, html="<p>" + "ä" * 5000, to=[f"b{n}@example.com" for n in range(200)]
    )
    lines = mail.content.split(b"\r\n")
    assert max(map(len, lines)) <= 998
    assert mail.content.isascii()
    assert not any(b"\n" in line or b"\r" in line for line in lines)


def test_the_id_of_a_mail_depends_on_the_run_and_on_the_mail() -> None:
    same = made(run_id="r1").message_id
    assert same == made(run_id="r1").message_id
    assert same == made(run_id="r1", smtp_config={"host": "x"}, timeout=3, dependencies={"a": 1}).message_id
    others = [made(run_id="r2"), made(run_id="r1", subject="x"), made(run_id="r1", bcc="x@example.com"), made(), made()]
    assert len({same, *(mail.message_id for mail in others)}) == 6
    assert same.endswith("@example.com>")
    assert read(made(run_id="r1"))["Message-ID"] == same


def test_the_attachments_have_a_limit_together() -> None:
    content = base64.b64encode(bytes(600)).decode()
    one, two = {"filename": "a", "content": content}, {"filename": "b", "text": "x" * 400}
    assert len(list(read(made(attachments=[one, two])).iter_attachments())) == 2
    with pytest.raises(InvalidInputsError, match=r"^attachments\[1\].*more than 999 bytes"):
        made(max_bytes=999, attachments=[one, two])


@pytest.mark.parametrize(
    "attachment",
    [
        {"filename": "a"},
        {"filename": "a", "text": "", "content": ""},
        {"filename": "a", "content": "no base64!"},
        {"filename": "a", "content": "é"},
        {"filename": "a", "text": "", "content_type": "multipart/mixed"},
        {"filename": "a", "text": "", "content_type": "message/rfc822"},
        {"filename": "a", "text": "", "content_type": "text"},
        {"filename": "a", "text": "\ud800"},
    ],
)
def test_attachments_that_are_refused(attachment: dict[str, str]) -> None:
    with pytest.raises(InvalidInputsError, match=r"^attachments\[0\]"):
        made(attachments=[attachment])


def test_a_mail_without_content_sender_or_text_is_refused() -> None:
    with pytest.raises(InvalidInputsError, match="body, html or attachments"):
        made(body="")
    with pytest.raises(InvalidInputsError, match=r"^body and html"):
        made(body="\ud800")
    with pytest.raises(InvalidInputsError, match=r"^from"):
        compose({"to": "bob@example.com", "subject": "", "body": "x"}, sender=None, run_id=None, max_bytes=0)
    assert (
        compose({"to": [], "subject": "", "html": "x"}, sender="a@example.com", run_id=None, max_bytes=0).recipients
        == ()
    )
