"""Mails out of inputs, made so that no text can add a header, a recipient or a command of its own."""

from __future__ import annotations

import base64
import hashlib
import json
import mimetypes
import re
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from typing import TYPE_CHECKING, Any

from apflow.errors import InvalidInputsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Text in seven bits is what every server takes.
_POLICY = SMTP.clone(cte_type="7bit")

# An encoded word can hold a line end, which the standard library would write out as one.
_UNSAFE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]|=\?")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_UNQUOTED = re.compile(r'[^"<>,;]*')
_LOCAL = re.compile(r"(?=.{1,64}$)[\w!#$%&'*+/=?^`{|}~-]+(\.[\w!#$%&'*+/=?^`{|}~-]+)*", re.ASCII)
_DOMAIN = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
_LONGEST_DOMAIN = 1012  # characters, before it is written in ASCII
_HEADER = re.compile(r"[!-9;-~]{1,70}")
_CONTENT_TYPE = re.compile(r"([a-z0-9][a-z0-9!#$&^_.+-]*)/([a-z0-9][a-z0-9!#$&^_.+-]*)")
_OURS = re.compile(
    r"from|to|cc|bcc|reply-to|subject|date|message-id|mime-version|return-path|content-.*|resent-.*", re.IGNORECASE
)
# What says how a mail is sent, and nothing of the mail.
_NOT_CONTENT = frozenset({"smtp_config", "timeout", "dependencies"})


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail and its envelope.

    Attributes:
        sender: The address that it comes from.
        recipients: All addresses that get it, each once.
        content: Headers and body, with line ends as SMTP has them.
        message_id: With angle brackets.
    """

    sender: str
    recipients: tuple[str, ...]
    content: bytes
    message_id: str


def compose(inputs: Mapping[str, Any], *, sender: str | None, run_id: str | None, max_bytes: int) -> Mail:
    """Make a mail.

    Args:
        inputs: Fit the schema of `send_email_executor`.
        sender: Who it comes from when `inputs` does not say.
        run_id: The run that sends it; the same mail of the same run has the same Message-ID. None makes a new one.
        max_bytes: What its attachments may have together.

    Raises:
        InvalidInputsError: A field cannot be part of a mail. The message names it, and not what is in it.
    """
    if not any(inputs.get(field) for field in ("body", "html", "attachments")):
        raise InvalidInputsError("a mail needs a body, html or attachments")
    given = inputs.get("from", sender)
    if given is None:
        raise InvalidInputsError("from: the mail has no sender; give one here or in the settings of the executor")
    author = _address(given, "from")
    to, cc, bcc = (_addresses(inputs.get(field, ()), field) for field in ("to", "cc", "bcc"))
    message = EmailMessage(policy=_POLICY)
    message["From"] = author
    for name, addresses in (("To", to), ("Cc", cc), ("Reply-To", _addresses(inputs.get("reply_to", ()), "reply_to"))):
        if addresses:
            message[name] = addresses
    message["Subject"] = _line(inputs["subject"], "subject")
    message["Date"] = datetime.now(UTC)
    message["Message-ID"] = message_id = f"<{_identity(inputs, run_id)}@{author.domain}>"
    _add_headers(message, inputs.get("headers", {}))
    _add_body(message, inputs)
    _add_attachments(message, inputs.get("attachments", ()), max_bytes)
    recipients = tuple(dict.fromkeys(address.addr_spec for address in (*to, *cc, *bcc)))
    return Mail(author.addr_spec, recipients, message.as_bytes(), message_id)


def _identity(inputs: Mapping[str, Any], run_id: str | None) -> str:
    if run_id is None:
        return uuid.uuid4().hex
    content = {name: value for name, value in inputs.items() if name not in _NOT_CONTENT}
    return hashlib.sha256(json.dumps([run_id, content], sort_keys=True).encode()).hexdigest()[:32]


def _line(value: str, field: str) -> str:
    """Return a text that stands in a header.

    Raises:
        InvalidInputsError: It has a control character, a line end or an encoded word.
    """
    if _UNSAFE.search(value):
        raise InvalidInputsError(f"{field}: line ends, control characters and encoded words (=?) cannot be in a header")
    return value


def _addresses(value: str | Iterable[str], field: str) -> tuple[Address, ...]:
    if isinstance(value, str):
        return (_address(value, field),)
    return tuple(_address(one, f"{field}[{position}]") for position, one in enumerate(value))


def _address(value: str, field: str) -> Address:
    """Return the one address in a text: `ada@example.com`, or `Ada Lovelace <ada@example.com>`."""
    text = _line(value, field).strip()
    name = ""
    if text.endswith(">"):
        name, _, text = text[:-1].rpartition("<")
        name = _display_name(name.strip(), field)
    local, _, domain = text.rpartition("@")
    domain = _ascii(domain)
    if not (_LOCAL.fullmatch(local) and _DOMAIN.fullmatch(domain)):
        raise InvalidInputsError(
            f"{field} is no mail address. Each text has one: name@example.com, or Name <name@example.com>"
        )
    return Address(display_name=name, username=local, domain=domain)


def _display_name(name: str, field: str) -> str:
    if (quoted := _QUOTED.fullmatch(name)) is not None:
        return re.sub(r"\\(.)", r"\1", quoted[1])
    if _UNQUOTED.fullmatch(name) is None:
        raise InvalidInputsError(f"{field}: a name with one of ,;<> has to stand in quotes before its address")
    return name


def _ascii(domain: str) -> str:
    if domain.isascii():
        return domain
    if len(domain) > _LONGEST_DOMAIN:
        return ""
    import idna

    try:
        return idna.encode(domain, uts46=True).decode("ascii")
    except UnicodeError:
        return ""


def _add_headers(message: EmailMessage, headers: Mapping[str, str]) -> None:
    for position, (name, value) in enumerate(headers.items()):
        if not _HEADER.fullmatch(name):
            raise InvalidInputsError(f"headers: name number {position + 1} cannot be that of a header")
        if _OURS.fullmatch(name):
            raise InvalidInputsError(f"headers: {name} is written by the executor; use the field of this name, if any")
        text = _line(value, f"headers.{name}")
        try:
            message[name] = text
        except (ValueError, LookupError, AttributeError, TypeError):  # What the parsers of special headers raise.
            raise InvalidInputsError(f"headers.{name} cannot have this value") from None


def _add_body(message: EmailMessage, inputs: Mapping[str, Any]) -> None:
    body, html = inputs.get("body"), inputs.get("html")
    try:
        if body is not None or html is None:
            message.set_content(body or "")
        if html is not None and body is None:
            message.set_content(html, subtype="html")
        elif html is not None:
            message.add_alternative(html, subtype="html")
    except UnicodeError:
        raise InvalidInputsError("body and html have to be text that UTF-8 can carry") from None


def _add_attachments(message: EmailMessage, attachments: Iterable[Mapping[str, str]], max_bytes: int) -> None:
    left = max_bytes
    for position, attachment in enumerate(attachments):
        field = f"attachments[{position}]"
        filename = _line(attachment["filename"], f"{field}.filename")
        content = _content(attachment, field)
        left -= len(content)
        if left < 0:
            raise InvalidInputsError(f"{field}: the attachments have more than {max_bytes} bytes together")
        maintype, subtype, params = _content_type(attachment, filename, field)
        message.add_attachment(content, maintype=maintype, subtype=subtype, filename=filename, params=params)


def _content(attachment: Mapping[str, str], field: str) -> bytes:
    if ("content" in attachment) == ("text" in attachment):
        raise InvalidInputsError(f"{field} needs either content, in base64, or text")
    kind = "text" if "text" in attachment else "content"
    try:
        if kind == "text":
            return attachment["text"].encode()
        return base64.b64decode("".join(attachment["content"].split()), validate=True)
    except ValueError:
        raise InvalidInputsError(f"{field}.{kind} is not in base64, or no text that UTF-8 can carry") from None


def _content_type(attachment: Mapping[str, str], filename: str, field: str) -> tuple[str, str, dict[str, str]]:
    is_text = "text" in attachment
    guessed = mimetypes.guess_type(filename)[0] or ("text/plain" if is_text else "application/octet-stream")
    found = _CONTENT_TYPE.fullmatch(attachment.get("content_type", guessed).lower())
    if found is None or found[1] in ("multipart", "message"):
        raise InvalidInputsError(f"{field}.content_type has to be like application/pdf, and no multipart or message")
    return found[1], found[2], {"charset": "utf-8"} if is_text and found[1] == "text" else {}
