"""Who calls: bearer tokens and authenticators, and the layer that asks them before anything else hears of a request."""

from __future__ import annotations

import hashlib
import hmac
import inspect
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from apcore import Identity
from starlette.responses import JSONResponse

from apflow.bridge.ids import LONGEST_ID

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from starlette.types import ASGIApp, Receive, Scope, Send

logger = logging.getLogger(__name__)

#: The user of whoever calls with the token of a server that has only one.
BEARER = "bearer"
SHORTEST_TOKEN = 16


@runtime_checkable
class Authenticator(Protocol):
    """Whoever can tell from the headers of a request who sent it, as apcore's authenticators do."""

    def authenticate(self, headers: dict[str, str]) -> Identity | Awaitable[Identity | None] | None:
        """Return the caller, or None for somebody unknown. May be a coroutine.

        Args:
            headers: By their names in lower case.
        """


#: A token, tokens with the user of each, or an authenticator.
Auth = str | Mapping[str, str] | Authenticator


class BearerTokens:
    """Knows callers by the token in their header `Authorization: Bearer`.

    Args:
        users: The user id of each token. Tokens have at least 16 visible ASCII characters.

    Raises:
        ValueError: A token is too short or cannot stand in a header, or a user id has not 1 to 255 printable
            characters, or there is no token.
    """

    def __init__(self, users: Mapping[str, str]) -> None:
        if not users:
            raise ValueError("auth has no tokens in it, so nobody could call; give at least one")
        for token, user in users.items():
            _check_token(token)
            if not is_user_id(user):
                raise ValueError(f"a user id has 1 to {LONGEST_ID} printable characters; the one of a token has not")
        # Digests are of one length, so that comparing tells nothing about a token.
        self._users = [(_digest(token), user) for token, user in users.items()]

    def __repr__(self) -> str:
        return f"<apflow bearer tokens: {len(self._users)}>"

    async def authenticate(self, headers: dict[str, str]) -> Identity | None:
        """Return whose token this is. It is compared with all of them, whatever is found."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given, found = _digest(token.strip()), None
        for known, user in self._users:
            if hmac.compare_digest(known, given):
                found = user
        return Identity(id=found) if found is not None and scheme.lower() == "bearer" else None


def authenticator(auth: Auth) -> Authenticator:
    """Return who can say who calls.

    Args:
        auth: A token, whose bearer is the user `bearer`; or the user of each token; or something with a method
            `authenticate(headers)`.

    Raises:
        TypeError: It is something else.
        ValueError: A token is too short, or a user id too long.
    """
    if isinstance(auth, str):
        return BearerTokens({auth: BEARER})
    if isinstance(auth, Mapping):
        return BearerTokens(auth)
    if isinstance(auth, Authenticator):
        return auth
    raise TypeError(
        f"auth takes a token, a mapping of tokens to user ids, or an object with authenticate(headers), "
        f"not {type(auth).__qualname__}"
    )


def is_user_id(value: object) -> bool:
    """Whether this can be the user of runs: 1 to 255 printable characters."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST_ID and value.isprintable()


class Authenticated:
    """Lets requests through to the app whose sender is known, and tells the app who it is.

    It stands in `scope["apflow.identity"]`: None when nobody is asked, and on paths that everybody may read.

    Args:
        app: What is protected.
        auth: None asks nobody.
        public: Paths that everybody may read, as seen from this app's own root.
    """

    def __init__(self, app: ASGIApp, auth: Auth | None, *, public: frozenset[str]) -> None:
        self._app = app
        self._authenticator = None if auth is None else authenticator(auth)
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        scope = {**scope, "apflow.identity": None}
        if self._authenticator is not None and not self._is_public(scope):
            try:
                identity = await self._identify(scope)
            except Exception as error:  # noqa: BLE001 - it is the user's, and its text may hold the token
                logger.error("%s could not say who calls: %s", type(self._authenticator).__qualname__, type(error))  # noqa: TRY400 - so may its traceback
                await _UNAVAILABLE(scope, receive, send)
                return
            if identity is None:
                await _UNKNOWN(scope, receive, send)
                return
            scope["apflow.identity"] = identity
        await self._app(scope, receive, send)

    def _is_public(self, scope: Scope) -> bool:
        return scope["method"] in ("GET", "HEAD") and own_path(scope) in self._public

    async def _identify(self, scope: Scope) -> Identity | None:
        assert self._authenticator is not None
        headers = _headers(scope)
        if headers is None:
            return None
        found: Any = self._authenticator.authenticate(headers)
        identity = await found if inspect.isawaitable(found) else found
        return identity if isinstance(identity, Identity) and is_user_id(identity.id) else None


def own_path(scope: Scope) -> str:
    """Return the path of a request as seen from an app that may be mounted somewhere."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and f"{path}/".startswith(f"{root}/") else path


def _headers(scope: Scope) -> dict[str, str] | None:
    """Return the headers by name, or None when two of them say who calls: which one counts would be a guess."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        if name in headers and name == "authorization":
            return None
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _check_token(token: object) -> None:
    visible = isinstance(token, str) and token.isascii() and token.isprintable() and " " not in token
    if not visible:
        raise ValueError("a token consists of visible ASCII characters; make one with secrets.token_urlsafe()")
    if len(str(token)) < SHORTEST_TOKEN:
        raise ValueError(
            f"a token has at least {SHORTEST_TOKEN} characters, or it is guessed; make one with secrets.token_urlsafe()"
        )


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


_UNKNOWN = JSONResponse(
    {
        "code": "unauthenticated",
        "message": "nobody known sent this; send a valid token in the header Authorization: Bearer TOKEN",
    },
    status_code=401,
    headers={"www-authenticate": "Bearer"},
)
_UNAVAILABLE = JSONResponse(
    {"code": "unavailable", "message": "who sent this cannot be found out at the moment"}, status_code=503
)
