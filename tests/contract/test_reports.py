"""Reports of what was used, compared with sums made by hand, on every store."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from apflow.governance.reporter import UsageReporter, UsageSummary
from apflow.governance.reports import UsageReports, UsageRow, UsageTable
from apflow.storage.repository import TaskRepository
from apflow.storage.store import Store, Tx
from tests.contract.ledger_rows import NOON, Counting, Standing, add_event, add_task

pytestmark = pytest.mark.anyio

DAY = timedelta(days=1)
WEST = timezone(timedelta(hours=-8))
EMPTY = UsageRow(None, 0, 0, 0, 0, 0, 0, 0, 0, Decimal(0), 0)


async def ready() -> None:
    """Nothing: the store of a test is open."""


@pytest.fixture
def usage(store: Store) -> UsageReports:
    return UsageReports(store, ready)


@pytest.fixture
async def week(store: Store) -> None:
    """Six events of three runs, two users and two models, over three days."""

    async def add(key: str, run_id: str, user: str | None, model: str | None, nusd: int | None, **more: Any) -> None:
        await add_event(store, key, run_id, user_id=user, model=model, cost_nusd=nusd, **more)

    one = {"input_tokens": 100, "output_tokens": 20, "total_tokens": 120, "cache_read_tokens": 60}
    await add("1", "r1", "ada", "large", 250_000_001, **one, cache_write_tokens=10, reasoning_tokens=5)
    await add("2", "r1", "ada", "small", 3, input_tokens=7, total_tokens=7, requests=2, created_at=NOON + DAY)
    await add("3", "r2", "ada", "large", 750_000_000, output_tokens=9, total_tokens=9, task="other")
    await add("4", "r3", "bob", "large", 1_000_000_004, input_tokens=50, total_tokens=50, created_at=NOON + DAY)
    await add("5", "r3", "bob", "strange", None, input_tokens=30, total_tokens=30, created_at=NOON + 2 * DAY)
    await add("6", "r3", None, None, None, requests=0, created_at=NOON + 2 * DAY)


ADA = UsageRow("ada", 2, 4, 107, 29, 136, 60, 10, 5, Decimal("1.000000004"), 0)
BOB = UsageRow("bob", 1, 2, 80, 0, 80, 0, 0, 0, Decimal("1.000000004"), 1)
NOBODY = UsageRow(None, 1, 0, 0, 0, 0, 0, 0, 0, Decimal(0), 1)
ALL = UsageRow(None, 3, 6, 187, 29, 216, 60, 10, 5, Decimal("2.000000008"), 2)


# -- the sums ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("week")
async def test_usage_by_user(usage: UsageReports) -> None:
    table = await usage.by("user")
    assert list(table) == [ADA, BOB, NOBODY]
    assert (table.group, table.total) == ("user", ALL)


@pytest.mark.usefixtures("week")
async def test_a_run_in_several_rows_counts_once_in_all(usage: UsageReports) -> None:
    table = await usage.by("model")
    assert [(row.key, row.runs, row.cost_usd, row.unpriced_events) for row in table] == [
        ("large", 3, Decimal("2.000000005"), 0),
        ("small", 1, Decimal("0.000000003"), 0),
        ("strange", 1, Decimal(0), 1),
        (None, 1, Decimal(0), 1),
    ]
    assert table.total == ALL


@pytest.mark.usefixtures("week")
async def test_usage_by_task(usage: UsageReports) -> None:
    table = await usage.by("task")
    assert [(row.key, row.runs, row.total_tokens) for row in table] == [("work", 2, 207), ("other", 1, 9)]
    assert table.total == ALL


@pytest.mark.usefixtures("week")
async def test_days_are_in_their_order(usage: UsageReports) -> None:
    table = await usage.by("day")
    assert [(row.key, row.runs, row.cost_usd) for row in table] == [
        ("2026-03-01", 2, Decimal("1.000000001")),
        ("2026-03-02", 2, Decimal("1.000000007")),
        ("2026-03-03", 1, Decimal(0)),
    ]
    assert table.total == ALL


async def test_a_day_ends_at_midnight_in_utc(usage: UsageReports, store: Store) -> None:
    midnight = datetime(2026, 3, 2, tzinfo=UTC)
    for key, moment in (("1", midnight - timedelta(microseconds=1)), ("2", midnight)):
        await add_event(store, key, key, created_at=moment)
    assert [(row.key, row.runs) for row in await usage.by("day")] == [("2026-03-01", 1), ("2026-03-02", 1)]


class InTokyo:
    """A store whose sessions have their own idea of when a day begins, where sessions have one."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def read(self, fn: Callable[[Tx], Any]) -> Any:
        def there(tx: Tx) -> Any:
            if tx.dialect == "postgresql":
                tx.execute("SET LOCAL TIME ZONE 'Asia/Tokyo'")
            return fn(tx)

        return await self._store.read(there)


async def test_the_servers_time_zone_moves_no_day(store: Store) -> None:
    await add_event(store, "1", "r", created_at=datetime(2026, 3, 1, 23, 30, tzinfo=UTC))
    there: Any = InTokyo(store)
    assert [row.key for row in await UsageReports(there, ready).by("day")] == ["2026-03-01"]


async def test_ties_are_in_the_order_of_keys(usage: UsageReports, store: Store) -> None:
    for place, (user, tokens) in enumerate([("b", 1), (None, 1), ("B", 1), ("a", 1), ("z", 2)]):
        await add_event(store, str(place), "r", user_id=user, total_tokens=tokens)
    assert [row.key for row in await usage.by("user")] == ["z", "B", "a", "b", None]


async def test_sums_larger_than_a_float_are_exact(usage: UsageReports, store: Store) -> None:
    for key in "ab":
        await add_event(store, key, key, input_tokens=2**53, total_tokens=2**53 + 1, cost_nusd=10**18 + 1)
    total = (await usage.by("day")).total
    assert (total.input_tokens, total.total_tokens) == (2**54, 2**54 + 2)
    assert total.cost_usd == Decimal("2000000000.000000002")
    assert {type(getattr(total, name)) for name in ("runs", "requests", "total_tokens", "unpriced_events")} == {int}


async def test_nothing_used_is_an_empty_table(usage: UsageReports) -> None:
    table = await usage.by("model")
    assert (list(table), table.total) == ([], EMPTY)


# -- periods -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("week")
@pytest.mark.parametrize(
    ("since", "until", "tokens"),
    [
        (NOON, None, 216),
        (NOON + timedelta(microseconds=1), None, 87),
        (None, NOON + DAY, 129),
        (None, NOON + DAY + timedelta(microseconds=1), 186),
        (NOON + DAY, NOON + 2 * DAY, 57),
        ((NOON + DAY).astimezone(WEST), (NOON + 2 * DAY).astimezone(WEST), 57),
        (NOON, NOON, 0),
    ],
)
async def test_since_is_inside_and_until_outside(
    usage: UsageReports, since: datetime | None, until: datetime | None, tokens: int
) -> None:
    table = await usage.by("user", since=since, until=until)
    assert table.total.total_tokens == sum(row.total_tokens for row in table) == tokens


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"group": "week"}, "user, task, model, day"),
        ({"since": datetime(2026, 1, 1)}, "since"),  # noqa: DTZ001 - that is the point
        ({"until": datetime(2026, 1, 1)}, "until"),  # noqa: DTZ001 - that is the point
        ({"since": NOON, "until": NOON - DAY}, "until must not be before since"),
    ],
    ids=str,
)
async def test_what_makes_no_sense_is_refused(usage: UsageReports, given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        await usage.by(**({"group": "user"} | given))


# -- how they are made ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("week")
async def test_the_database_adds(store: Store) -> None:
    counting = Counting(store)
    usage = UsageReports(counting.as_store, ready)
    table = await usage.by("user")
    assert (counting.queries, counting.rows) == (1, len(table) + 1)


async def test_the_store_is_opened_first(store: Store) -> None:
    calls = []

    async def opening() -> None:
        calls.append("ready")

    counting = Counting(store)
    await UsageReports(counting.as_store, opening).by("day")
    assert calls == ["ready"]


# -- tables --------------------------------------------------------------------------------------------------


@pytest.fixture
def table() -> UsageTable:
    return UsageTable("user", [ADA, NOBODY], ALL)


def test_a_table_is_a_sequence(table: UsageTable) -> None:
    assert (len(table), table[0], table[-1], table[:1]) == (2, ADA, NOBODY, (ADA,))
    assert list(reversed(table)) == [NOBODY, ADA]
    assert ADA in table
    assert repr(table) == "<apflow.UsageTable by user, 2 rows>"


def test_json_has_rows_and_total(table: UsageTable) -> None:
    data = json.loads(table.to_json())
    assert data["group"] == "user"
    assert data["rows"][0] == asdict(ADA) | {"cost_usd": "1.000000004"}
    assert data["rows"][1]["key"] is None
    assert data["total"] == asdict(ALL) | {"cost_usd": "2.000000008"}


def test_small_money_is_written_out(table: UsageTable) -> None:
    tiny = UsageTable("user", [replace(ADA, cost_usd=Decimal("1E-9"))], EMPTY)
    assert json.loads(tiny.to_json())["rows"][0]["cost_usd"] == "0.000000001"
    assert "0.000000001" in tiny.to_csv()


def cells(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline=""), strict=True))


def test_csv_has_a_line_for_each_row(table: UsageTable) -> None:
    header, *lines = cells(table.to_csv())
    assert header == [
        *("user", "runs", "requests", "input_tokens", "output_tokens", "total_tokens", "cache_read_tokens"),
        *("cache_write_tokens", "reasoning_tokens", "cost_usd", "unpriced_events"),
    ]
    assert lines == [
        ["ada", "2", "4", "107", "29", "136", "60", "10", "5", "1.000000004", "0"],
        ["", "1", "0", "0", "0", "0", "0", "0", "0", "0", "1"],
    ]


@pytest.mark.parametrize("key", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "=a,b", '="x"'], ids=repr)
def test_no_key_becomes_a_formula(key: str) -> None:
    text = UsageTable("user", [replace(ADA, key=key)], ALL).to_csv()
    assert cells(text)[1][0] == f"'{key}"
    assert len(cells(text)) == 2


@pytest.mark.parametrize("key", ["a=1", "ada@example.com", "1-2", "'", "", " =1", "a,b", 'a"b', "a\r\nb"], ids=repr)
def test_other_keys_stay_as_they_are(key: str) -> None:
    assert cells(UsageTable("user", [replace(ADA, key=key)], ALL).to_csv())[1][0] == key


# -- the reporter --------------------------------------------------------------------------------------------


@pytest.fixture
def reporter(store: Store, monkeypatch: pytest.MonkeyPatch) -> UsageReporter:
    monkeypatch.setattr(store, "clock", Standing(NOON + 9 * DAY))
    return UsageReporter(TaskRepository(store))


@pytest.fixture
async def people(store: Store) -> None:
    """Tasks of two users over three days; their usage is what `week` has."""
    for place, (task_id, user) in enumerate([("r1", "ada"), ("r2", "ada"), ("r3", "bob"), ("r4", "ada")]):
        await add_task(store, task_id, user_id=user, created_at=NOON + place * DAY)


@pytest.mark.usefixtures("week", "people")
async def test_usage_of_a_user(reporter: UsageReporter) -> None:
    assert await reporter.get_user_usage("ada") == UsageSummary(
        scope="user",
        scope_id="ada",
        total_input_tokens=107,
        total_output_tokens=29,
        total_tokens=136,
        total_cost_usd=Decimal("1.000000004"),
        task_count=3,
        period_start=None,
        period_end=NOON + 9 * DAY,
        unpriced_events=0,
    )


@pytest.mark.usefixtures("week", "people")
@pytest.mark.parametrize(
    ("start", "end", "tokens", "tasks"),
    [
        (NOON, NOON, 129, 1),
        (NOON + timedelta(microseconds=1), NOON + DAY, 7, 1),
        (NOON + DAY, None, 7, 2),
        (None, NOON + DAY - timedelta(microseconds=1), 129, 1),
        (NOON.astimezone(WEST), (NOON + DAY).astimezone(WEST), 136, 2),
    ],
)
async def test_both_ends_of_a_period_are_inside(
    reporter: UsageReporter, start: datetime | None, end: datetime | None, tokens: int, tasks: int
) -> None:
    found = await reporter.get_user_usage("ada", start, end)
    assert (found.total_tokens, found.task_count) == (tokens, tasks)
    assert (found.period_start, found.period_end) == (start, end or NOON + 9 * DAY)


@pytest.mark.usefixtures("week", "people")
async def test_usage_of_everybody(reporter: UsageReporter) -> None:
    found = await reporter.get_global_usage()
    assert (found.scope, found.scope_id) == ("global", "global")
    assert (found.total_tokens, found.total_cost_usd, found.unpriced_events) == (216, Decimal("2.000000008"), 2)
    assert (found.task_count, found.period_start) == (4, None)
    found = await reporter.get_global_usage(NOON + 2 * DAY, NOON + 2 * DAY)
    assert (found.total_tokens, found.task_count) == (30, 1)


async def test_a_user_without_usage_has_used_nothing(reporter: UsageReporter) -> None:
    found = await reporter.get_user_usage("nobody")
    assert (found.total_tokens, found.total_cost_usd, found.task_count) == (0, Decimal(0), 0)


@pytest.mark.usefixtures("week")
async def test_usage_of_a_task(reporter: UsageReporter, store: Store) -> None:
    usage = json.dumps({"input": 107, "output": 20, "total": 127})
    await add_task(store, "r1", user_id="ada", token_usage=usage, actual_cost_usd="0.250000", completed_at=NOON + DAY)
    await add_task(store, "inside", parent_id="r1")
    assert await reporter.get_task_usage("r1") == UsageSummary(
        scope="task",
        scope_id="r1",
        total_input_tokens=107,
        total_output_tokens=20,
        total_tokens=127,
        total_cost_usd=Decimal("0.250000004"),
        task_count=1,
        period_start=NOON,
        period_end=NOON + DAY,
    )


async def test_a_task_older_than_the_ledger_has_what_its_row_says(reporter: UsageReporter, store: Store) -> None:
    await add_task(store, "a", actual_cost_usd="0.125")
    await add_task(store, "b")
    first, second = await reporter.get_task_usage("a"), await reporter.get_task_usage("b")
    assert (first.total_cost_usd, second.total_cost_usd) == (Decimal("0.125"), Decimal(0))
    assert (first.total_tokens, first.period_end) == (0, None)


@pytest.mark.usefixtures("week")
async def test_usage_without_a_price_is_told(reporter: UsageReporter, store: Store) -> None:
    await add_task(store, "r3", user_id="bob")
    found = await reporter.get_task_usage("r3")
    assert (found.total_cost_usd, found.unpriced_events) == (Decimal("1.000000004"), 2)


async def test_an_unknown_task_is_a_key_error(reporter: UsageReporter) -> None:
    with pytest.raises(KeyError, match="nobody"):
        await reporter.get_task_usage("nobody")


@pytest.mark.usefixtures("week", "people")
async def test_a_summary_is_one_row(store: Store) -> None:
    counting = Counting(store)
    reporter = UsageReporter(TaskRepository(counting.as_store))
    await reporter.get_user_usage("ada", NOON, NOON + DAY)
    await reporter.get_global_usage()
    assert (counting.queries, counting.rows) == (2, 2)
    await reporter.get_task_usage("r1")
    assert (counting.queries, counting.rows) == (4, 4)
