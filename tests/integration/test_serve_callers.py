"""What one caller may do and use does not depend on what another one does."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import jwt
import pytest
from apcore import ACL, ACLRule
from apcore_mcp import JWTAuthenticator
from mcp import ClientSession

import apflow
from apflow import Budget, Runtime
from tests.integration.served import code_of, mcp_session, served, value_of

pytestmark = pytest.mark.anyio

ALICE, BOB = "alice-0123456789", "bob-0123456789-b"
TOKENS = {ALICE: "alice", BOB: "bob"}
KEY = "the key of the tests, long enough for HS256"
CALLS, COST, LIMIT = 50, 100, 1_000


@apflow.task(budget=Budget(tokens=LIMIT, per="user", reserve=COST, name="per caller"))
async def think(n: int) -> int:
    await asyncio.sleep(0)
    apflow.report_usage(input=COST - 40, output=40)
    return n


@apflow.task
async def secret() -> str:
    return "for some"


@apflow.task
async def public() -> str:
    return "for all"


@pytest.fixture
async def runtime(database_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(database_url, shutdown_seconds=1) as made:
        yield made


async def test_a_budget_per_user_counts_for_each_caller(runtime: Runtime) -> None:
    async with (
        served(runtime, auth=TOKENS, a2a=False) as url,
        mcp_session(url, ALICE) as alice,
        mcp_session(url, BOB) as bob,
    ):
        results = await asyncio.gather(*(alice.call_tool("think", {"n": n}) for n in range(CALLS)))
        outcomes = Counter("done" if not one.isError else code_of(one) for one in results)
        assert outcomes == {"done": LIMIT // COST, "budget_exhausted": CALLS - LIMIT // COST}
        refused = next(one for one in results if one.isError)
        assert refused.meta is not None
        details = refused.meta["apflow/error"]["details"]
        assert (details["limit"], details["remaining"], details["unit"]) == (LIMIT, 0, "tokens")
        for n in range(LIMIT // COST):
            assert value_of(await bob.call_tool("think", {"n": n})) == n
        assert code_of(await bob.call_tool("think", {"n": 0})) == "budget_exhausted"
    used = Counter({"alice": 0, "bob": 0})
    for row in await runtime.runs.list(name="think", limit=1000):
        used[str(row.user_id)] += (row.token_usage or {}).get("total", 0)
    assert used == {"alice": LIMIT, "bob": LIMIT}


async def test_rules_of_apcore_say_who_may_call_what(sqlite_url: str) -> None:
    acl = ACL(
        rules=[
            ACLRule(callers=["*"], targets=["secret"], effect="allow", conditions={"roles": ["keeper"]}),
            ACLRule(callers=["*"], targets=["secret"], effect="deny"),
            ACLRule(callers=["*"], targets=["*"], effect="allow"),
        ]
    )

    def token(user: str, *roles: str) -> str:
        return jwt.encode({"sub": user, "roles": roles}, KEY, algorithm="HS256")

    async def both(session: ClientSession) -> tuple[str, str]:
        results = [await session.call_tool(name, {}) for name in ("public", "secret")]
        first, second = ("allowed" if not one.isError else code_of(one) for one in results)
        return first, second

    async with (
        Runtime(sqlite_url) as runtime,
        served(runtime, auth=JWTAuthenticator(key=KEY), acl=acl, a2a=False) as url,
    ):
        async with mcp_session(url, token("alice", "keeper")) as alice:
            assert await both(alice) == ("allowed", "allowed")
        async with mcp_session(url, token("bob", "reader")) as bob:
            assert await both(bob) == ("allowed", "forbidden")
        assert {row.user_id for row in await runtime.runs.list(name="secret")} == {"alice"}
