"""`runtime.usage`: what was used, by user, task, model or day. The database adds; Python only shows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from apflow.governance.amounts import usd_of
from apflow.storage.conditions import created_between, where

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from datetime import datetime
    from decimal import Decimal

    from apflow.storage.store import Dialect, Row, Store

Group = Literal["user", "task", "model", "day"]

_KEYS: dict[str, str] = {"user": "user_id", "task": "task", "model": "model"}
_DAYS: dict[Dialect, str] = {
    "sqlite": "substr(created_at, 1, 10)",
    "postgresql": "to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
}
GROUPS: Final = (*_KEYS, "day")

#: With these a spreadsheet takes the text of a cell for a formula.
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What one user, task, model or day has used.

    Attributes:
        key: The user id, the task's name, the model or the day in UTC as `YYYY-MM-DD`; None is usage without one,
            and the total.
        runs: How many runs reported usage.
        requests: Calls of a model.
        input_tokens: With those that were read from a cache or written to one.
        output_tokens: With those of reasoning.
        cost_usd: The sum of what has a price, exact to the nano-dollar.
        unpriced_events: How many reports of usage have no price. While there are any, the true cost is higher.
    """

    key: str | None
    runs: int
    requests: int
    input_tokens: int
    output_tokens: int
    total_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost_usd: Decimal
    unpriced_events: int


_SUMMED = tuple(one.name for one in fields(UsageRow) if one.name == "requests" or one.name.endswith("_tokens"))
_SUMS: Final = ", ".join(
    [
        "COUNT(DISTINCT run_id)",
        *(f"COALESCE(SUM({name}), 0)" for name in _SUMMED),
        "COALESCE(SUM(cost_nusd), 0)",
        "COUNT(*) - COUNT(cost_nusd)",
    ]
)


class UsageTable(Sequence[UsageRow]):
    """The rows of a report.

    Attributes:
        group: What each row is of.
        total: All rows together; a run that is in several rows counts once.
    """

    def __init__(self, group: Group, rows: Iterable[UsageRow], total: UsageRow) -> None:
        self.group: Group = group
        self.total = total
        self._rows = tuple(rows)

    @overload
    def __getitem__(self, index: int) -> UsageRow: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[UsageRow, ...]: ...
    def __getitem__(self, index: int | slice) -> UsageRow | tuple[UsageRow, ...]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<apflow.UsageTable by {self.group}, {len(self)} rows>"

    def to_json(self) -> str:
        """Return an object with `group`, `rows` and `total`. Money is decimal text, such as `"0.25"`."""
        data = {"group": self.group, "rows": [_plain(row) for row in self], "total": _plain(self.total)}
        return json.dumps(data, ensure_ascii=False, indent=2)

    def to_csv(self) -> str:
        """Return a line of names, in which the key is called as the group, and a line for each row.

        The total is left out, so that a spreadsheet that adds the lines is right. Money is decimal text. A key that
        a spreadsheet would take for a formula has a single quote before it.
        """
        names = [one.name for one in fields(UsageRow)]
        rows = [_plain(row) | {"key": safe_cell(row.key)} for row in self]
        return csv_text([self.group, *names[1:]], [list(row.values()) for row in rows])


class UsageReports:
    """Reports over the usage events of one database. Plain code calls these through `runtime.wait(...)`.

    Args:
        store: Where the events are.
        ready: Opens it.
    """

    def __init__(self, store: Store, ready: Callable[[], Awaitable[None]]) -> None:
        self._store = store
        self._ready = ready

    async def by(
        self,
        group: Group,
        since: datetime | None = None,
        until: datetime | None = None,
        *,
        user: str | None = None,
    ) -> UsageTable:
        """Return what was used, the most expensive first; days in their order.

        Args:
            group: `"user"`, `"task"`, `"model"` or `"day"` (in UTC).
            since: The first moment that counts; aware.
            until: The first moment that counts no more; aware.
            user: Only what this user has used.

        Raises:
            ValueError: The group is unknown, a time has no zone, or `until` is before `since`.
            StorageError: The database failed.
        """
        if group not in GROUPS:
            raise ValueError(f"group must be one of {', '.join(GROUPS)}, got {group!r}")
        conditions, params = created_between(self._store, since, until, end_inside=False)
        if user is not None:
            conditions.append("user_id = :user")
            params["user"] = user
        events = f"FROM apflow_usage_events {where(conditions)}"
        key = _KEYS.get(group) or _DAYS[self._store.dialect]
        # One statement, because two would not see the same events.
        sql = f"SELECT 0, {key}, {_SUMS} {events} GROUP BY {key} UNION ALL SELECT 1, NULL, {_SUMS} {events}"
        await self._ready()
        found = await self._store.read(lambda tx: tx.rows(sql, params))
        rows = [_usage_row(row[1:]) for row in found if not row[0]]
        total = next(_usage_row(row[1:]) for row in found if row[0])
        return UsageTable(group, sorted(rows, key=_day if group == "day" else _expensive_first), total)


def _usage_row(row: Row) -> UsageRow:
    """Make a row of a key and the sums. PostgreSQL's sums are Decimals."""
    key, runs, *summed, nusd, unpriced = row
    sums = dict(zip(_SUMMED, map(int, summed), strict=True))
    return UsageRow(key=key, runs=runs, **sums, cost_usd=usd_of(int(nusd)), unpriced_events=unpriced)


def _expensive_first(row: UsageRow) -> Any:
    return -row.cost_usd, -row.total_tokens, row.key is None, row.key or ""


def _day(row: UsageRow) -> Any:
    return row.key


def _plain(row: UsageRow) -> dict[str, Any]:
    return asdict(row) | {"cost_usd": f"{row.cost_usd:f}"}


# -- CSV -----------------------------------------------------------------------------------------------------


def csv_text(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a line of names and the rows, as RFC 4180 has it: CRLF ends a line, None is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(names)
    writer.writerows(rows)
    return text.getvalue()


def safe_cell(text: str | None) -> str | None:
    """Return the text so that no spreadsheet takes it for a formula."""
    return f"'{text}" if text is not None and text.startswith(_FORMULAS) else text
