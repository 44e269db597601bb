"""A mail server on this machine that remembers what it was given, and a certificate for it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

SECRET = "correct horse battery staple"  # noqa: S105 - what the server takes for a password


class Post:
    """A mail server: what it was given, and what it answers to whom."""

    def __init__(self) -> None:
        self.port = self.connections = 0
        self.open: set[object] = set()
        self.idle = asyncio.Event()
        self.logins: list[tuple[bytes, bytes]] = []
        self.envelopes: list[Envelope] = []
        self.answers: list[str] = []
        self.refused: dict[str, str] = {}
        self.reached = asyncio.Event()
        self.silent = False

    @property
    def mails(self) -> list[EmailMessage]:
        return [read(envelope.content) for envelope in self.envelopes if isinstance(envelope.content, bytes)]

    async def handle_RCPT(  # noqa: N802 - the server's name for it
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.refused:
            return self.refused[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_MAIL(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        envelope.mail_from = address
        return self.refused.get(address, "250 OK")

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        self.envelopes.append(envelope)
        self.reached.set()
        if self.silent:
            await asyncio.sleep(60)
        return self.answers.pop(0) if self.answers else "250 OK"

    def authenticate(self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.logins.append((data.login, data.password))
        known = data.password == SECRET.encode()
        return AuthResult(success=known, handled=False, message=None if known else "535 5.7.8 who are you, ada?")


def read(content: bytes) -> EmailMessage:
    message = message_from_bytes(content, policy=policy.SMTP)
    assert isinstance(message, EmailMessage)
    return message


@asynccontextmanager
async def post_office(*, tls: ssl.SSLContext | None = None, **options: Any) -> AsyncIterator[Post]:
    """Serve mail on 127.0.0.1. `tls` encrypts from the first byte; `tls_context=` offers STARTTLS."""
    post, loop = Post(), asyncio.get_running_loop()

    class Connection(SMTP):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:  # Again after STARTTLS.
            post.connections += self not in post.open
            post.open.add(self)
            post.idle.clear()
            super().connection_made(transport)

        def connection_lost(self, error: Exception | None) -> None:
            post.open.discard(self)
            if not post.open:
                post.idle.set()
            super().connection_lost(error)

    def make() -> SMTP:
        return Connection(post, hostname="mail", loop=loop, authenticator=post.authenticate, **options)

    server = await loop.create_server(make, "127.0.0.1", 0, ssl=tls)
    post.port = server.sockets[0].getsockname()[1]
    try:
        yield post
    finally:
        server.close()
        if post.open:
            await post.idle.wait()


def certificate(folder: Path, *names: x509.GeneralName) -> tuple[ssl.SSLContext, Path]:
    """Return what a server needs, and the file that makes a client trust it."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mail")])
    built = x509.CertificateBuilder(who, who, key.public_key(), x509.random_serial_number())
    built = built.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
    form, style = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    public = built.sign(key, hashes.SHA256()).public_bytes(form)
    (folder / "public.pem").write_bytes(public)
    (folder / "all.pem").write_bytes(public + key.private_bytes(form, style, serialization.NoEncryption()))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "all.pem")
    return context, folder / "public.pem"
