"""`send_email_executor`: one mail over SMTP."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from apflow.engine.executable import ExecutableTask
from apflow.engine.registry import executor_register
from apflow.engine.schema_check import check_by_schema
from apflow.engine.settings import settings_of
from apflow.errors import ExecutorError, InvalidInputsError, MissingExtraError
from apflow.executors.email_message import compose
from apflow.executors.network import Allowed, resolve
from apflow.executors.redaction import MASK, masked
from apflow.state import current_state

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aiosmtplib import SMTP

    from apflow.executors.email_message import Mail

ID = "send_email_executor"
MAX_BYTES = 25 * 1024 * 1024
SECONDS = 300.0
ANSWER_SECONDS = 60.0
_QUIT_SECONDS = 5.0
_PORTS = {"starttls": 587, "tls": 465, "none": 25}
_LOGIN = ("username", "password")

_ADDRESSES = {
    "type": ["string", "array"],
    "items": {"type": "string"},
    "description": "An address, name@example.com or Name <name@example.com>, or a list of them",
}
# A secret of the runtime may stand where a text is wanted; the engine puts it in place before the executor runs.
_SECRET = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {"$secret": {"type": "string"}},
            "required": ["$secret"],
            "additionalProperties": False,
        },
    ]
}
_SECONDS = {"type": "number", "exclusiveMinimum": 0, "maximum": 3600}
_SMTP = {
    "host": {"type": "string", "minLength": 1, "description": "The mail server"},
    "port": {
        "type": "integer",
        "minimum": 1,
        "maximum": 65_535,
        "description": "587 with starttls, 465 with tls and 25 without, unless given",
    },
    "tls": {
        "enum": ["starttls", "tls", "none"],
        "default": "starttls",
        "description": "tls from the first byte, or after starttls; with none everything is sent in the clear",
    },
    "username": _SECRET | {"description": "Who logs in; nobody does without one"},
    "password": _SECRET | {"description": "Sent over TLS, unless tls is none"},
    "timeout": _SECONDS | {"default": ANSWER_SECONDS, "description": "Seconds for each answer of the server"},
}
_INPUTS = {
    "type": "object",
    "properties": {
        "to": _ADDRESSES,
        "cc": _ADDRESSES,
        "bcc": _ADDRESSES,
        "reply_to": _ADDRESSES,
        "from": {"type": "string", "description": "The sender, unless the settings have one"},
        "subject": {"type": "string"},
        "body": {"type": "string", "description": "Plain text"},
        "html": {"type": "string", "description": "The same as HTML"},
        "attachments": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "filename": {"type": "string", "minLength": 1},
                    "content": {"type": "string", "description": "In base64"},
                    "text": {"type": "string", "description": "Instead of content"},
                    "content_type": {"type": "string", "description": "Such as application/pdf"},
                },
                "required": ["filename"],
                "additionalProperties": False,
            },
        },
        "headers": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "More headers, by name",
        },
        "smtp_config": {
            "type": "object",
            "properties": _SMTP,
            "additionalProperties": False,
            "description": "Another mail server than that of the settings, or another login there",
        },
        "timeout": _SECONDS | {"default": SECONDS, "description": "Seconds for all of it"},
    },
    "required": ["to", "subject"],
    "additionalProperties": False,
}
_OUTPUTS = {
    "type": "object",
    "properties": {
        "sent": {"const": True},
        "message_id": {"type": "string"},
        "refused": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "Recipients that the server refused, each with its code",
        },
    },
    "required": ["sent", "message_id", "refused"],
}
_SETTINGS = {
    "type": "object",
    "properties": {
        **_SMTP,
        "from": {"type": "string"},
        "allow_smtp_config": {"type": "boolean"},
        "allow": {"type": "array", "items": {"type": "string"}},
        "max_bytes": {"type": "integer", "minimum": 0},
    },
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class _Server:
    """Where a mail is handed over.

    Attributes:
        trusted: Its host comes from the settings, so it is connected to wherever it is.
        timeout: Seconds for each answer.
    """

    host: str
    port: int
    tls: str
    timeout: float
    trusted: bool
    username: str | None = None
    password: str | None = field(default=None, repr=False)


@executor_register
class SendEmailExecutor(ExecutableTask):
    """Sends a mail, as plain text, HTML or both, with attachments.

    Its settings, `Runtime(settings={"send_email_executor": {...}})`, are those of `smtp_config` and `from`, which
    inputs override; `allow_smtp_config` (True): whether they may; `allow`: hosts, addresses and networks that inputs
    may name although they are not public; `max_bytes` (25 MiB): of all attachments of a mail. The password of the
    settings goes to the host of the settings only.

    A mail may arrive twice when the server's last answer is lost. Both have the same Message-ID, by which many
    servers keep only one.
    """

    id = "send_email_executor"
    name = "Send Email"
    description = "Sends a mail over SMTP: plain text, HTML or both, with attachments, over TLS and with a login."
    tags: ClassVar[tuple[str, ...]] = ("email", "notification")
    dependencies: ClassVar[tuple[str, ...]] = ("aiosmtplib",)

    async def execute(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Send the mail and return its id, and the recipients that the server refused.

        Raises:
            InvalidInputsError: A field cannot be part of a mail; nothing was sent.
            AddressRefusedError: The inputs name a server that the settings do not allow; nothing was sent.
            ExecutorError: The server did not take the mail. The message has its code, and nothing of its words.
            MissingExtraError: aiosmtplib is not installed.
        """
        _aiosmtplib()
        settings = settings_of(ID)
        check_by_schema(f"the settings of {ID}", _SETTINGS, settings)
        check_by_schema(ID, _INPUTS, {name: value for name, value in inputs.items() if name != "dependencies"})
        state = current_state()
        mail = compose(
            inputs,
            sender=settings.get("from"),
            run_id=None if state is None else state.id,
            max_bytes=settings.get("max_bytes", MAX_BYTES),
        )
        if not mail.recipients:
            raise InvalidInputsError("to: a mail needs at least one recipient")
        server = _server(inputs.get("smtp_config", {}), settings)
        refused = await _deliver(mail, server, _allowed(settings), inputs.get("timeout", SECONDS))
        return {"sent": True, "message_id": mail.message_id, "refused": refused}

    def get_input_schema(self) -> dict[str, Any]:
        return _INPUTS

    def get_output_schema(self) -> dict[str, Any]:
        return _OUTPUTS

    def redact(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return inputs with `***` for the login."""
        if "smtp_config" not in inputs:
            return inputs
        return {**inputs, "smtp_config": masked(inputs["smtp_config"], lambda name: name in _LOGIN)}


def _aiosmtplib() -> Any:
    try:
        import aiosmtplib
    except ImportError as error:
        raise MissingExtraError("aiosmtplib", "email") from error
    return aiosmtplib


def _server(given: Mapping[str, Any], settings: Mapping[str, Any]) -> _Server:
    """Return the server that inputs and settings name together.

    A host in the inputs brings its port, TLS and login along: the password of the settings is not for it.
    """
    if given and not settings.get("allow_smtp_config", True):
        raise InvalidInputsError("smtp_config: the settings of this runtime do not allow another mail server")
    own = "host" in given
    if not own and not given.keys().isdisjoint(("port", "tls")):
        raise InvalidInputsError("smtp_config: port and tls need their host beside them")
    place = given if own else settings
    if "host" not in place:
        raise InvalidInputsError("smtp_config.host: there is no mail server, here or in the settings of the executor")
    login = given if own or not given.keys().isdisjoint(_LOGIN) else settings
    for name in _LOGIN:
        if not isinstance(login.get(name), str | None) or login.get(name) == MASK:
            raise InvalidInputsError(f"smtp_config.{name}: what stands here for a secret is not the secret")
    tls = place.get("tls", "starttls")
    return _Server(
        host=place["host"],
        port=place.get("port", _PORTS[tls]),
        tls=tls,
        timeout=given.get("timeout", settings.get("timeout", ANSWER_SECONDS)),
        trusted=not own,
        username=login.get("username"),
        password=login.get("password"),
    )


def _allowed(settings: Mapping[str, Any]) -> Allowed:
    try:
        return Allowed.parse(settings.get("allow", ()))
    except ValueError as error:
        raise InvalidInputsError(f"the settings of {ID}: {error}") from None


async def _deliver(mail: Mail, server: _Server, allow: Allowed, seconds: float) -> dict[str, str]:
    """Hand the mail over, and return the code for each recipient that the server refused."""
    client: SMTP | None = None
    try:
        with _in_our_words():
            async with asyncio.timeout(seconds):
                client = await _connect(server, allow)
                refused, _ = await client.sendmail(mail.sender, mail.recipients, mail.content)
        # From here on the server has the mail, whatever happens.
        with contextlib.suppress(Exception):
            await client.quit(timeout=_QUIT_SECONDS)
    finally:
        if client is not None:
            client.close()
    return {address: str(answer.code) for address, answer in refused.items()}


async def _connect(server: _Server, allow: Allowed) -> SMTP:
    """Return a connection that is encrypted and logged in, as far as is wanted."""
    # Both are slow and made beforehand: nothing may come between a new socket and the client that closes it.
    own_name = await asyncio.to_thread(socket.getfqdn)
    trust = None if server.tls == "none" else await asyncio.to_thread(ssl.create_default_context)
    sock = None if server.trusted else await _socket(server, allow)
    client: SMTP = _aiosmtplib().SMTP(
        hostname=server.host,
        port=server.port if sock is None else None,
        sock=sock,
        local_hostname=own_name,
        timeout=server.timeout,
        use_tls=server.tls == "tls",
        start_tls=server.tls == "starttls",
        tls_context=trust,
        username=server.username,
        password=None if server.username is None else server.password,
    )
    await client.connect()
    return client


async def _socket(server: _Server, allow: Allowed) -> socket.socket:
    """Return a connection to the first address of a host that accepts one; all of them are allowed."""
    failure: Exception | None = None
    for address in await resolve(server.host, server.port, allow):
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.settimeout(0)
            async with asyncio.timeout(server.timeout):
                await asyncio.get_running_loop().sock_connect(sock, (address, server.port))
        except OSError as error:  # A timeout is one.
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    assert failure is not None
    raise failure


@contextlib.contextmanager
def _in_our_words() -> Iterator[None]:
    """Turn what goes wrong with a server into an error without its words."""
    smtp = _aiosmtplib()
    try:
        yield
    except smtp.SMTPRecipientsRefused as error:
        codes = sorted({one.code for one in error.recipients})
        text = f"the mail server refused all recipients: {', '.join(map(str, codes))}"
        raise ExecutorError(text, retryable=any(map(_passes, codes))) from None
    except smtp.SMTPResponseException as error:
        raise ExecutorError(
            f"the mail server refused {_what(error)}: {error.code}", retryable=_passes(error.code)
        ) from None
    except ssl.SSLError as error:
        raise _tls_failed(error) from None
    except OSError as error:
        if isinstance(error.__cause__, ssl.SSLError):
            raise _tls_failed(error.__cause__) from None
        how = "in time" if isinstance(error, TimeoutError) else f"({type(error).__name__})"
        raise ExecutorError(f"the mail server did not answer {how}", retryable=True) from None
    except (smtp.SMTPException, ValueError):
        raise ExecutorError("the mail server does not offer what is wanted: STARTTLS, or a way to log in") from None


def _passes(code: int) -> bool:
    """Whether a server that answers this says that another attempt may succeed."""
    return 400 <= code < 500  # noqa: PLR2004 - the range of RFC 5321


def _what(error: Exception) -> str:
    smtp = _aiosmtplib()
    if isinstance(error, smtp.SMTPAuthenticationError):
        return "the login"
    if isinstance(error, smtp.SMTPSenderRefused):
        return "the sender"
    return "the mail" if isinstance(error, smtp.SMTPDataError) else "the connection"


def _tls_failed(error: ssl.SSLError) -> ExecutorError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return ExecutorError("the certificate of the mail server is not trusted, or is for another name")
    return ExecutorError("the mail server does not speak TLS here", retryable=True)
