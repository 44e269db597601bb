"""Who may call: tokens, JWT and authenticators of the user's, and what a caller may do."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import jwt
import pytest
from apcore import Identity
from apcore_mcp import JWTAuthenticator

import apflow
from apflow import Runtime
from apflow.bridge.auth import BearerTokens, authenticator
from tests.integration.served import bearer, served

pytestmark = pytest.mark.anyio

KEY = "the key of the tests, long enough for HS256"
ALICE, BOB = "alice-0123456789", "bob-0123456789-b"
TOKENS = {ALICE: "alice", BOB: "bob"}


@apflow.task
async def whoami() -> str | None:
    return apflow.current().user


async def ask(client: httpx.AsyncClient, headers: Mapping[str, str] | list[tuple[str, str]]) -> httpx.Response:
    """Call `whoami` by the explorer's way in."""
    return await client.post("/explorer/tools/whoami/call", json={}, headers=headers)


async def user_of(client: httpx.AsyncClient, headers: dict[str, str]) -> Any:
    response = await ask(client, headers)
    assert response.status_code == 200, response.text
    return json.loads(response.json()["content"][0]["text"])["result"]


@pytest.fixture
async def runtime(sqlite_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(sqlite_url, shutdown_seconds=1) as made:
        yield made


@asynccontextmanager
async def only_explorer(runtime: Runtime, auth: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        served(runtime, auth=auth, mcp=False, a2a=False, explorer=True) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        yield client


def signed(key: str = KEY, algorithm: str = "HS256", **claims: Any) -> dict[str, str]:
    return bearer(jwt.encode(claims, key, algorithm=algorithm))


async def test_a_token_says_whose_runs_these_are(runtime: Runtime) -> None:
    async with only_explorer(runtime, TOKENS) as client:
        assert await user_of(client, bearer(ALICE)) == "alice"
        assert await user_of(client, bearer(BOB)) == "bob"
        assert await user_of(client, {"authorization": f"bearer  {BOB}"}) == "bob"
    assert sorted([str(row.user_id) for row in await runtime.runs.list()]) == ["alice", "bob", "bob"]


async def test_the_bearer_of_the_only_token_is_called_bearer(runtime: Runtime) -> None:
    async with only_explorer(runtime, ALICE) as client:
        assert await user_of(client, bearer(ALICE)) == "bearer"
        assert (await ask(client, bearer(BOB))).status_code == 401


async def test_who_is_not_asked_has_no_name(runtime: Runtime) -> None:
    async with only_explorer(runtime, None) as client:
        assert await user_of(client, bearer(ALICE)) is None


async def test_strangers_get_no_further(runtime: Runtime) -> None:
    strangers: list[dict[str, str] | list[tuple[str, str]]] = [
        {},
        {"Authorization": "Bearer"},
        bearer("alice"),
        bearer(ALICE[:-1]),
        bearer(f"{ALICE}x"),
        bearer(ALICE.upper()),
        {"Authorization": ALICE},
        {"Authorization": f"Basic {base64.b64encode(ALICE.encode()).decode()}"},
        {"Authorization": "Bearer,"},
        [("Authorization", f"Bearer {ALICE}"), ("Authorization", f"Bearer {BOB}")],
        {"Cookie": f"Authorization=Bearer {ALICE}"},
    ]
    async with only_explorer(runtime, TOKENS) as client:
        for headers in strangers:
            response = await ask(client, headers)
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer"), headers
            assert response.json()["code"] == "unauthenticated"
    assert await runtime.runs.count() == 0


async def test_only_the_health_check_and_pages_without_data_are_public(runtime: Runtime) -> None:
    async with served(runtime, auth=TOKENS, explorer=True) as url, httpx.AsyncClient() as client:
        for path in ("/healthz", "/.well-known/agent-card.json", "/explorer/"):
            assert (await client.get(url + path)).status_code == 200, path
        for path in (
            "/",
            "/mcp",
            "/mcp/",
            "/explorer/tools",
            "/healthz/",
            "//healthz",
            "/x/%2e%2e/healthz",
            "/v1/card",
        ):
            assert (await client.get(url + path)).status_code == 401, path
            assert (await client.post(url + path)).status_code == 401, path
        assert (await client.post(f"{url}/healthz")).status_code == 401
        assert (await client.get(f"{url}/healthz")).json() == {"status": "ok"}


async def test_a_jwt_says_whose_runs_these_are(runtime: Runtime) -> None:
    now = int(time.time())
    async with only_explorer(runtime, JWTAuthenticator(key=KEY)) as client:
        assert await user_of(client, signed(sub="alice")) == "alice"
        assert await user_of(client, signed(sub="bob", exp=now + 600)) == "bob"


async def test_a_jwt_has_to_be_right(runtime: Runtime) -> None:
    now = int(time.time())
    unsigned = jwt.encode({"sub": "alice"}, None, algorithm="none")  # type: ignore[arg-type]
    head, _, tail = signed(sub="alice")["Authorization"].partition(".")
    forged = base64.urlsafe_b64encode(b'{"sub":"bob"}').decode().rstrip("=")
    wrong = {
        "of another key": signed("another key of the tests, as long as it", sub="alice"),
        "expired": signed(sub="alice", exp=now - 600),
        "not yet": signed(sub="alice", nbf=now + 600),
        "of another algorithm": signed(KEY * 2, "HS512", sub="alice"),
        "unsigned": bearer(unsigned),
        "forged": {"Authorization": f"{head}.{forged}.{tail.partition('.')[2]}"},
        "of nobody": signed(name="alice"),
        "without a name": signed(sub=""),
        "with a long name": signed(sub="a" * 256),
        "with a zero": signed(sub="a\0"),
        "with half a character": signed(sub="a\ud800"),
        "with a number": signed(sub=7),
        "rubbish": bearer("a.b.c"),
        "nothing": bearer(".."),
    }
    async with only_explorer(runtime, JWTAuthenticator(key=KEY)) as client:
        for what, headers in wrong.items():
            assert (await ask(client, headers)).status_code == 401, what
        assert await user_of(client, signed(sub="a" * 255)) == "a" * 255
    assert await runtime.runs.count() == 1


class Home:
    """An authenticator as users write them."""

    async def authenticate(self, headers: dict[str, str]) -> Identity | None:
        match headers.get("x-home"):
            case "broken":
                raise LookupError("the secret of the house")
            case "odd":
                return "alice"  # type: ignore[return-value]
            case str(name):
                return Identity(id=name)
        return None


class PlainHome:
    def authenticate(self, headers: dict[str, str]) -> Identity | None:
        return Identity(id="plain") if "x-home" in headers else None


async def test_users_bring_their_own(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    async with only_explorer(runtime, Home()) as client:
        assert await user_of(client, {"X-Home": "ada"}) == "ada"
        assert (await ask(client, {})).status_code == 401
        assert (await ask(client, {"X-Home": "odd"})).status_code == 401
        broken = await ask(client, {"X-Home": "broken"})
    assert (broken.status_code, broken.json()["code"]) == (503, "unavailable")
    assert "LookupError" in caplog.text
    assert "secret" not in caplog.text + broken.text
    async with only_explorer(runtime, PlainHome()) as client:
        assert await user_of(client, {"X-Home": "ada"}) == "plain"


@pytest.mark.parametrize(
    "auth",
    [
        *("", "short", "fifteen letters", "sixteen letters!", "a token of the\ntests", "größer als sechzehn"),
        *({}, {"short": "alice"}, {ALICE: ""}, {ALICE: "a" * 256}, {ALICE: "a\0"}, {ALICE: None}, {3: "alice"}),
    ],
)
async def test_tokens_and_users_have_to_be_usable(auth: Any) -> None:
    with pytest.raises(ValueError, match=r"token|user") as error:
        authenticator(auth)
    assert ALICE not in str(error.value)
    with pytest.raises(ValueError, match=r"token|user"):
        apflow.asgi([whoami], auth=auth)


@pytest.mark.parametrize("auth", [7, object(), [ALICE], b"0123456789abcdef", True])
def test_nothing_else_can_say_who_calls(auth: Any) -> None:
    with pytest.raises(TypeError, match="auth takes a token"):
        authenticator(auth)


def test_tokens_are_not_shown() -> None:
    tokens = BearerTokens(TOKENS)
    assert repr(tokens) == "<apflow bearer tokens: 2>"
    assert ALICE not in repr(vars(tokens))
    assert ALICE not in repr(apflow.asgi([whoami], mcp=False, a2a=False, explorer=True, auth=TOKENS))
