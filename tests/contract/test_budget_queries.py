"""What the ledger says of budgets, limits that are set at run time, and decisions, on every store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from apflow.errors import ApflowError, BudgetNotFoundError, StorageError
from apflow.governance.budget import BudgetScope
from apflow.governance.budgets import Budgets
from apflow.governance.statuses import BudgetStatus, Decision, HoldStatus
from apflow.storage.store import Store, Tx
from tests.contract.ledger_rows import (
    NOON,
    Counting,
    Standing,
    add_account,
    add_decision,
    add_hold,
    add_task,
    one,
)

pytestmark = pytest.mark.anyio

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
TODAY = NOON.replace(hour=0)


async def ready() -> None:
    """Nothing: the store of a test is open."""


@pytest.fixture
def changes() -> list[dict[str, int]]:
    """What the budgets told of changed limits."""
    return []


@pytest.fixture
def clock(store: Store, monkeypatch: pytest.MonkeyPatch) -> Standing:
    standing = Standing(NOON)
    monkeypatch.setattr(store, "clock", standing)
    return standing


@pytest.fixture
def budgets(store: Store, clock: Standing, changes: list[dict[str, int]]) -> Budgets:
    return Budgets(store, ready, changes.append)


async def add_day(store: Store, account_id: str, start: datetime, **values: Any) -> None:
    """Add an account of user ada with a window of a day."""
    window = {"period": "1d", "window_start": start, "window_end": start + DAY}
    await add_account(store, account_id, **({"per": "user", "scope_id": "ada"} | window | values))


# -- explaining ----------------------------------------------------------------------------------------------


async def test_an_account_is_explained(budgets: Budgets, store: Store) -> None:
    await add_account(store, "a", settled=300, reserved=150)
    await add_task(store, "r1", name="root", status="in_progress", epoch=2, lease_expires_at=NOON + HOUR)
    await add_task(store, "c1", name="child", status="in_progress", parent_id="r1")
    await add_hold(store, "h2", "a", "c1", 50, owned_id="r1", epoch=2, created_at=NOON + timedelta(seconds=5))
    await add_hold(store, "h1", "a", "r1", 100, epoch=2)
    assert await budgets.explain("run", "r1") == [
        BudgetStatus(
            name="work",
            per="run",
            scope_id="r1",
            unit="tokens",
            window=None,
            tz="UTC",
            window_start=None,
            window_end=None,
            limit=1000,
            settled=300,
            reserved=150,
            overrun=0,
            left=550,
            utilization=0.45,
            holds=(
                HoldStatus("r1", "root", 100, NOON, NOON + HOUR),
                HoldStatus("c1", "child", 50, NOON + timedelta(seconds=5), NOON + HOUR),
            ),
        )
    ]


async def test_dollars_are_exact_decimals(budgets: Budgets, store: Store) -> None:
    await add_account(store, "a", unit="usd", hard_limit=500_000_000, settled=1, reserved=200_000_000)
    await add_hold(store, "h1", "a", "r1", 200_000_000)
    (found,) = await budgets.explain("run", "r1")
    assert (found.limit, found.settled, found.reserved, found.overrun, found.left) == (
        *(Decimal("0.5"), Decimal("0.000000001"), Decimal("0.2")),
        *(Decimal(0), Decimal("0.299999999")),
    )
    assert found.holds[0].amount == Decimal("0.2")
    amounts = (found.limit, found.settled, found.reserved, found.overrun, found.left, found.holds[0].amount)
    assert {type(amount) for amount in amounts} == {Decimal}


async def test_nothing_is_left_after_an_overrun(budgets: Budgets, store: Store) -> None:
    await add_account(store, "a", settled=400, overrun=50)
    (found,) = await budgets.explain("run", "r1")
    assert (found.left, found.overrun, found.utilization) == (0, 50, 0.45)


async def test_nothing_is_left_of_a_lowered_limit(budgets: Budgets, store: Store) -> None:
    await add_account(store, "a", hard_limit=100, settled=90, reserved=60)
    (found,) = await budgets.explain("run", "r1")
    assert (found.left, found.utilization) == (0, 1.5)


@pytest.mark.parametrize(
    "keeper",
    [
        None,
        {"status": "in_progress", "epoch": 2},
        {"status": "failed", "epoch": 1},
        {"status": "in_progress", "epoch": None},
    ],
    ids=["no row", "another epoch", "ended", "no epoch"],
)
async def test_a_hold_that_nobody_keeps_has_no_end(
    budgets: Budgets, store: Store, keeper: dict[str, Any] | None
) -> None:
    await add_account(store, "a", reserved=10)
    await add_hold(store, "h1", "a", "r1", 10)
    if keeper is not None:
        await add_task(store, "r1", lease_expires_at=NOON + HOUR, **keeper)
    (found,) = await budgets.explain("run", "r1")
    assert found.holds == (HoldStatus("r1", "work" if keeper else None, 10, NOON, None),)


async def test_a_hold_that_is_used_up_holds_nothing(budgets: Budgets, store: Store) -> None:
    await add_account(store, "a", settled=10)
    await add_hold(store, "h1", "a", "r1", 0)
    (found,) = await budgets.explain("run", "r1")
    assert found.holds == ()


async def test_scopes_do_not_see_each_other(budgets: Budgets, store: Store) -> None:
    await add_account(store, "a", scope_id="x", settled=1)
    await add_account(store, "b", scope_id="y", settled=2)
    await add_account(store, "c", per="user", scope_id="x", settled=3)
    await add_account(store, "d", per="global", scope_id="", settled=4)

    async def settled(*scope: Any) -> list[int | Decimal]:
        return [found.settled for found in await budgets.explain(*scope)]

    assert await settled("run", "x") == await settled("task", "x") == await settled(BudgetScope.TASK, "x") == [1]
    assert await settled("user", "x") == await settled(BudgetScope.USER, "x") == [3]
    assert await settled("global") == await settled(BudgetScope.GLOBAL) == [4]
    assert await settled("user", "y") == []


async def test_only_current_windows_are_explained(budgets: Budgets, store: Store, clock: Standing) -> None:
    await add_day(store, "a", TODAY - DAY, settled=1)
    await add_day(store, "b", TODAY, settled=2)

    async def days(**options: Any) -> list[tuple[Any, Any]]:
        found = await budgets.explain("user", "ada", **options)
        assert all(one.window == "1d" for one in found)
        return [(one.settled, one.window_start) for one in found]

    assert await days() == [(2, TODAY)]
    assert await days(history=True) == [(1, TODAY - DAY), (2, TODAY)]
    clock.time = TODAY + DAY - timedelta(microseconds=1)
    assert await days() == [(2, TODAY)]
    clock.time = TODAY + DAY
    assert await days() == []


async def test_windows_are_in_utc(budgets: Budgets, store: Store) -> None:
    start = datetime(2026, 3, 1, tzinfo=timezone(-HOUR))
    await add_day(store, "a", start.astimezone(UTC), tz="Atlantic/Azores")
    (found,) = await budgets.explain("user", "ada")
    assert found.window_start == start
    assert found.window_start is not None
    assert found.window_end is not None
    assert (found.window_start.tzinfo, found.window_end.tzinfo, found.tz) == (UTC, UTC, "Atlantic/Azores")


async def test_budgets_are_in_the_order_of_name_unit_and_window(budgets: Budgets, store: Store) -> None:
    await add_account(store, "1", per="user", scope_id="ada", name="b")
    await add_account(store, "2", per="user", scope_id="ada", name="a", unit="usd")
    await add_day(store, "3", TODAY, name="a")
    await add_account(store, "4", per="user", scope_id="ada", name="a")
    found = await budgets.explain("user", "ada")
    assert [(one.name, one.unit, one.window) for one in found] == [
        ("a", "tokens", None),
        ("a", "tokens", "1d"),
        ("a", "usd", None),
        ("b", "tokens", None),
    ]


@pytest.mark.parametrize(
    "scope", [("run", None), ("user", ""), ("user", " "), ("user", "a\0b"), ("team", "x"), (5, "x"), ("USER", "x")]
)
async def test_a_scope_has_to_be_one(budgets: Budgets, scope: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="scope"):
        await budgets.explain(*scope)
    with pytest.raises(ValueError, match=r"scope_id|per"):
        await budgets.set_limit("work", per=scope[0], scope_id=scope[1], tokens=1)


@pytest.mark.usefixtures("clock")
async def test_explaining_takes_no_query_for_each_account(store: Store) -> None:
    for account in "ab":
        await add_account(store, account, name=account, reserved=30)
        for place in range(3):
            await add_hold(store, f"{account}{place}", account, "r1", 10)
    counting = Counting(store)
    found = await Budgets(counting.as_store, ready, lambda _: None).explain("run", "r1")
    assert [len(one.holds) for one in found] == [3, 3]
    # One for the accounts with their holds, and one for a run's budget that has no row yet.
    assert (counting.queries, counting.rows) == (2, 6)


# -- setting limits ------------------------------------------------------------------------------------------


async def account(store: Store, account_id: str) -> tuple[Any, ...]:
    """Return limit, settled, reserved, overrun and whether the limit was overridden."""
    sql = "SELECT hard_limit, settled, reserved, overrun, overridden FROM apflow_budget_accounts WHERE id = :id"
    *numbers, overridden = await one(store, sql, id=account_id)
    return *numbers, bool(overridden)


async def test_a_limit_is_raised(budgets: Budgets, store: Store, changes: list[dict[str, int]]) -> None:
    await add_account(store, "a", settled=900, reserved=100)
    found = await budgets.set_limit("work", scope_id="r1", tokens=2000)
    assert await account(store, "a") == (2000, 900, 100, 0, True)
    assert found == await budgets.explain("run", "r1")
    assert (found[0].limit, found[0].left) == (2000, 1000)
    assert changes == [{"a": 2000}]


@pytest.mark.parametrize(
    ("limit", "settled", "overrun"),
    [(1000, 950, 250), (1050, 1000, 200), (1250, 1200, 0), (5000, 1200, 0), (500, 950, 250), (1, 950, 250)],
)
async def test_what_fits_now_is_no_overrun(
    budgets: Budgets, store: Store, limit: int, settled: int, overrun: int
) -> None:
    await add_account(store, "a", settled=950, reserved=50, overrun=250)
    await budgets.set_limit("work", scope_id="r1", tokens=limit)
    assert await account(store, "a") == (limit, settled, 50, overrun, True)
    await budgets.set_limit("work", scope_id="r1", tokens=limit)
    assert await account(store, "a") == (limit, settled, 50, overrun, True)


async def test_several_units_change_together(budgets: Budgets, store: Store, changes: list[dict[str, int]]) -> None:
    await add_account(store, "b", per="user", scope_id="ada")
    await add_account(store, "a", per="user", scope_id="ada", unit="usd", hard_limit=1, overrun=5)
    await add_account(store, "c", per="user", scope_id="ada", unit="requests")
    found = await budgets.set_limit("work", per=BudgetScope.USER, scope_id="ada", tokens=7, usd="0.000000004")
    assert [(one.unit, one.limit, one.overrun) for one in found] == [
        ("tokens", 7, 0),
        ("usd", Decimal("0.000000004"), Decimal("0.000000001")),
    ]
    assert await account(store, "c") == (1000, 0, 0, 0, False)
    assert changes == [{"a": 4, "b": 7}]


async def test_other_accounts_keep_their_limit(budgets: Budgets, store: Store, changes: list[dict[str, int]]) -> None:
    await add_day(store, "now", TODAY)
    await add_day(store, "yesterday", TODAY - DAY)
    await add_day(store, "other name", TODAY, name="other")
    await add_day(store, "other user", TODAY, scope_id="bob")
    await add_day(store, "other scope", TODAY, per="run")
    await add_day(store, "other unit", TODAY, unit="requests")
    await budgets.set_limit("work", per="user", scope_id="ada", tokens=5)
    assert changes == [{"now": 5}]
    for other in ("yesterday", "other name", "other user", "other scope", "other unit"):
        assert await account(store, other) == (1000, 0, 0, 0, False)


async def test_all_windows_of_now_change(budgets: Budgets, store: Store) -> None:
    await add_day(store, "a", TODAY)
    await add_account(store, "b", per="user", scope_id="ada")
    found = await budgets.set_limit("work", per="user", scope_id="ada", tokens=5)
    assert [(one.window, one.limit) for one in found] == [(None, 5), ("1d", 5)]


async def test_everybodys_budget_has_no_id(budgets: Budgets, store: Store) -> None:
    await add_account(store, "a", per="global", scope_id="", unit="requests")
    await budgets.set_limit("work", per="global", requests=3)
    assert (await account(store, "a"))[0] == 3


async def test_an_account_has_to_be_there(budgets: Budgets, store: Store, changes: list[dict[str, int]]) -> None:
    await add_account(store, "a")
    with pytest.raises(LookupError, match="an account exists from the first call") as caught:
        await budgets.set_limit("work", scope_id="r1", tokens=5, usd=1, requests=2)
    assert isinstance(caught.value, BudgetNotFoundError)
    assert isinstance(caught.value, ApflowError)
    assert (caught.value.budget, caught.value.per, caught.value.units) == ("work", "run", ("requests", "usd"))
    assert await account(store, "a") == (1000, 0, 0, 0, False)
    assert changes == []


async def test_nobody_is_named_in_an_error(budgets: Budgets) -> None:
    with pytest.raises(LookupError) as caught:
        await budgets.set_limit("work", per="user", scope_id="secret", tokens=5)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        ({}, "tokens=, usd= or requests="),
        ({"tokens": 0}, "tokens"),
        ({"tokens": 1.5}, "tokens"),
        ({"tokens": True}, "tokens"),
        ({"requests": -1}, "requests"),
        ({"usd": 0}, "usd"),
        ({"usd": 0.5}, "usd"),
        ({"usd": "0.0000000001"}, "usd"),
        ({"usd": "much"}, "usd"),
        ({"tokens": 5, "usd": "-1"}, "usd"),
    ],
    ids=str,
)
async def test_a_limit_has_to_be_one(budgets: Budgets, store: Store, limits: dict[str, Any], named: str) -> None:
    await add_account(store, "a")
    with pytest.raises(ValueError, match=named):
        await budgets.set_limit("work", scope_id="r1", **limits)
    assert await account(store, "a") == (1000, 0, 0, 0, False)


async def test_a_budget_has_a_name(budgets: Budgets) -> None:
    with pytest.raises(ValueError, match="name"):
        await budgets.set_limit("", scope_id="r1", tokens=5)


async def test_nothing_settled_is_lost_while_limits_change(budgets: Budgets, store: Store) -> None:
    await add_account(store, "a", hard_limit=10)

    def settle(tx: Tx) -> None:
        tx.execute("UPDATE apflow_budget_accounts SET settled = settled + 1, overrun = overrun + 1 WHERE id = 'a'")

    def raised(limit: int) -> Callable[[], Any]:
        return lambda: budgets.set_limit("work", scope_id="r1", tokens=limit)

    steps = [step for limit in range(11, 51) for step in (raised(limit), lambda: store.write(settle))]
    await asyncio.gather(*(step() for step in steps))
    _, settled, _, overrun, _ = await account(store, "a")
    assert settled + overrun == 80


class Gone:
    """A store whose commits fail."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def write(self, fn: Callable[[Tx], Any]) -> Any:
        def failing(tx: Tx) -> None:
            fn(tx)
            raise StorageError("gone")

        return await self._store.write(failing)


async def test_only_committed_limits_are_told(store: Store, changes: list[dict[str, int]]) -> None:
    await add_account(store, "a")
    gone: Any = Gone(store)
    with pytest.raises(StorageError):
        await Budgets(gone, ready, changes.append).set_limit("work", scope_id="r1", tokens=5)
    assert changes == []
    assert await account(store, "a") == (1000, 0, 0, 0, False)


# -- decisions -----------------------------------------------------------------------------------------------


async def test_a_decision_has_all_columns(budgets: Budgets, store: Store) -> None:
    numbers = {"hard_limit": 500_000_000, "settled": 400_000_000, "reserved": 1, "overrun": 0, "requested": 250_000_000}
    texts: dict[str, Any] = {
        "action": "downgrade",
        "run_id": "r1",
        "root_run_id": "r0",
        "task": "work",
        "user_id": "ada",
    }
    texts |= {"policy": "saving", "account_id": "a", "budget": "work", "per": "user", "unit": "usd"}
    texts |= {"model_from": "large", "model_to": "small", "reason": "80 % are used"}
    await add_decision(store, "d1", attempt=2, **numbers, **texts)
    amounts: dict[str, Any] = {
        "hard_limit": Decimal("0.5"),
        "settled": Decimal("0.4"),
        "reserved": Decimal("0.000000001"),
        "overrun": Decimal(0),
        "requested": Decimal("0.25"),
    }
    assert await budgets.decisions() == [Decision(id="d1", created_at=NOON, attempt=2, **texts, **amounts)]
    (found,) = await budgets.decisions()
    assert found.created_at.tzinfo is UTC
    assert type(found.requested) is Decimal


async def test_a_decision_without_an_account_has_no_amounts(budgets: Budgets, store: Store) -> None:
    await add_decision(store, "d1", unit="tokens", hard_limit=1000, requested=0)
    await add_decision(store, "d2", action="notify", created_at=NOON + HOUR)
    second, first = await budgets.decisions()
    assert (first.hard_limit, first.requested, first.settled) == (1000, 0, None)
    assert (second.unit, second.hard_limit, second.requested, second.user_id) == (None, None, None, None)


@pytest.fixture
async def four(store: Store) -> None:
    """Decisions a to d, an hour apart; d is the newest."""
    actions = ("block", "downgrade", "notify", "expire")
    for place, (decision, action) in enumerate(zip("abcd", actions, strict=True)):
        run, user = ("r1", "ada") if place % 2 else ("r2", "bob")
        await add_decision(store, decision, action=action, run_id=run, user_id=user, created_at=NOON + place * HOUR)


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, "dcba"),
        ({"run_id": "r1"}, "db"),
        ({"user": "bob"}, "ca"),
        ({"action": "block"}, "a"),
        ({"action": "block", "user": "ada"}, ""),
        ({"since": NOON + 2 * HOUR}, "dc"),
        ({"since": (NOON + 2 * HOUR + timedelta(microseconds=1)).astimezone(timezone(HOUR))}, "d"),
        ({"limit": 2}, "dc"),
        ({"run_id": "r2", "user": "bob", "action": "notify", "since": NOON, "limit": 1}, "c"),
    ],
    ids=str,
)
async def test_decisions_are_listed_the_newest_first(budgets: Budgets, wanted: dict[str, Any], expected: str) -> None:
    assert "".join(found.id for found in await budgets.decisions(**wanted)) == expected


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        ({"action": "blocked"}, "block, downgrade, notify, expire"),
        ({"limit": 0}, "limit"),
        ({"run_id": ""}, "run_id"),
        ({"user": " "}, "user"),
        ({"since": datetime(2026, 1, 1)}, "since"),  # noqa: DTZ001 - that is the point
    ],
    ids=str,
)
async def test_decisions_that_cannot_be_are_refused(budgets: Budgets, wanted: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        await budgets.decisions(**wanted)


# -- opening -------------------------------------------------------------------------------------------------


async def test_the_store_is_opened_first(store: Store) -> None:
    calls = []

    async def opening() -> None:
        calls.append("ready")

    budgets = Budgets(store, opening, lambda _: None)
    await budgets.explain("global")
    await budgets.decisions()
    with pytest.raises(LookupError):
        await budgets.set_limit("work", per="global", tokens=5)
    assert calls == ["ready"] * 3
