"""Summaries of usage, as far as no database is needed."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from apflow.governance.reporter import UsageReporter, UsageSummary

pytestmark = pytest.mark.anyio

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
SUMMARY = UsageSummary(
    scope="user",
    scope_id="ada",
    total_input_tokens=100,
    total_output_tokens=20,
    total_tokens=120,
    total_cost_usd=Decimal("0.000000001"),
    task_count=3,
    period_start=START,
    period_end=None,
    unpriced_events=1,
)


class Unasked:
    """A repository that fails when anything is asked of it."""

    store: Any = SimpleNamespace(dialect="postgresql", timestamp=lambda moment: moment)

    async def get_task_by_id(self, task_id: str) -> None:
        raise AssertionError


@pytest.fixture
def reporter() -> UsageReporter:
    return UsageReporter(cast("Any", Unasked()))


@pytest.mark.parametrize("empty", ["", "  ", None, 5, "a\0b"], ids=repr)
async def test_an_id_is_never_empty(reporter: UsageReporter, empty: Any) -> None:
    with pytest.raises(ValueError, match="task_id must be a non-empty string"):
        await reporter.get_task_usage(empty)
    with pytest.raises(ValueError, match="user_id must be a non-empty string"):
        await reporter.get_user_usage(empty)


async def test_a_period_does_not_end_before_it_starts(reporter: UsageReporter) -> None:
    with pytest.raises(ValueError, match="end_time must not be before start_time"):
        await reporter.get_user_usage("ada", START, START - timedelta(microseconds=1))
    with pytest.raises(ValueError, match="end_time must not be before start_time"):
        await reporter.get_global_usage(START, START - timedelta(days=1))


async def test_times_have_a_zone(reporter: UsageReporter) -> None:
    naive = START.replace(tzinfo=None)
    with pytest.raises(ValueError, match="start_time must be a time with a zone"):
        await reporter.get_user_usage("ada", naive)
    with pytest.raises(ValueError, match="end_time must be a time with a zone"):
        await reporter.get_global_usage(end_time=naive)


def test_json_has_every_field(reporter: UsageReporter) -> None:
    assert json.loads(reporter.export_json(SUMMARY)) == {
        "scope": "user",
        "scope_id": "ada",
        "total_input_tokens": 100,
        "total_output_tokens": 20,
        "total_tokens": 120,
        "total_cost_usd": "0.000000001",
        "task_count": 3,
        "period_start": "2026-03-01T12:00:00+00:00",
        "period_end": None,
        "unpriced_events": 1,
    }


def lines(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def test_csv_has_the_same(reporter: UsageReporter) -> None:
    data = json.loads(reporter.export_json(SUMMARY))
    text = {name: "" if value is None else str(value) for name, value in data.items()}
    assert lines(reporter.export_csv(SUMMARY)) == [text]


@pytest.mark.parametrize("user", ["=1+1", "@x", "+1", "-1", "\t=1", "\r=1"], ids=repr)
def test_no_id_becomes_a_formula(reporter: UsageReporter, user: str) -> None:
    summary = UsageSummary("user", user, 0, 0, 0, Decimal(0), 0, None, None)
    assert lines(reporter.export_csv(summary))[0]["scope_id"] == f"'{user}"
    assert json.loads(reporter.export_json(summary))["scope_id"] == user
