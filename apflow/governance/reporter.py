"""What a task, a user or everybody has used in a period, as one summary."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from apflow.governance.amounts import usd_of
from apflow.governance.reports import csv_text, safe_cell
from apflow.storage.conditions import checked_id, created_between, where

if TYPE_CHECKING:
    from datetime import datetime

    from apflow.storage.repository import TaskRepository

GLOBAL: Final = "global"


@dataclass(frozen=True, slots=True)
class UsageSummary:
    """Usage added up.

    Attributes:
        scope: `"task"`, `"user"` or `"global"`.
        scope_id: The id of the task or the user, or `"global"`.
        total_cost_usd: The sum of what has a price, exact to the nano-dollar.
        task_count: How many tasks there are in this scope and period, those inside others too.
        period_start: The first moment that counts; None is the beginning. Of a task, when it was created.
        period_end: The last moment that counts. Of a task, when it ended; None is not yet.
        unpriced_events: How many reports of usage have no price. While there are any, the true cost is higher.
    """

    scope: str
    scope_id: str
    total_input_tokens: int
    total_output_tokens: int
    total_tokens: int
    total_cost_usd: Decimal
    task_count: int
    period_start: datetime | None
    period_end: datetime | None
    unpriced_events: int = 0


class UsageReporter:
    """Summaries of the usage in one database. The database adds; no rows are fetched for it.

    Args:
        task_repository: Where the tasks are.
    """

    def __init__(self, task_repository: TaskRepository) -> None:
        self._repository = task_repository
        self._store = task_repository.store

    async def get_task_usage(self, task_id: str) -> UsageSummary:
        """Return what one task itself has used, without the tasks inside it.

        Raises:
            ValueError: `task_id` is empty.
            KeyError: There is no such task.
            StorageError: The database failed.
        """
        checked_id("task_id", task_id)
        task = await self._repository.get_task_by_id(task_id)
        if task is None:
            raise KeyError(f"Task not found: {task_id}")
        sql = "SELECT SUM(cost_nusd), COUNT(*) - COUNT(cost_nusd) FROM apflow_usage_events WHERE run_id = :task_id"
        row = await self._store.read(lambda tx: tx.row(sql, {"task_id": task_id}))
        assert row is not None
        # The row has whole micro-dollars; it alone knows what tasks had used before there were events.
        cost = task.actual_cost_usd or Decimal(0) if row[0] is None else usd_of(int(row[0]))
        usage = task.token_usage or {}
        return UsageSummary(
            scope="task",
            scope_id=task_id,
            total_input_tokens=usage.get("input", 0),
            total_output_tokens=usage.get("output", 0),
            total_tokens=usage.get("total", 0),
            total_cost_usd=cost,
            task_count=1,
            period_start=task.created_at,
            period_end=task.completed_at,
            unpriced_events=row[1],
        )

    async def get_user_usage(
        self, user_id: str, start_time: datetime | None = None, end_time: datetime | None = None
    ) -> UsageSummary:
        """Return what one user has used in a period, and how many tasks of theirs were created in it.

        Args:
            user_id: The user.
            start_time: The first moment that counts; aware. None is the beginning.
            end_time: The last moment that counts; aware. None is now.

        Raises:
            ValueError: `user_id` is empty, a time has no zone, or `end_time` is before `start_time`.
            StorageError: The database failed.
        """
        checked_id("user_id", user_id)
        return await self._summed("user", user_id, start_time, end_time)

    async def get_global_usage(
        self, start_time: datetime | None = None, end_time: datetime | None = None
    ) -> UsageSummary:
        """Return what everybody has used in a period, and how many tasks were created in it.

        Args:
            start_time: The first moment that counts; aware. None is the beginning.
            end_time: The last moment that counts; aware. None is now.

        Raises:
            ValueError: A time has no zone, or `end_time` is before `start_time`.
            StorageError: The database failed.
        """
        return await self._summed(GLOBAL, GLOBAL, start_time, end_time)

    async def _summed(self, scope: str, scope_id: str, start: datetime | None, end: datetime | None) -> UsageSummary:
        conditions, params = created_between(self._store, start, end)
        if scope == "user":
            conditions.append("user_id = :user_id")
            params["user_id"] = scope_id
        those = where(conditions)
        tasks = where([*conditions, "(kind IS NULL OR kind <> 'tree')"])
        sql = (
            "SELECT COALESCE(SUM(input_tokens), 0), COALESCE(SUM(output_tokens), 0), COALESCE(SUM(total_tokens), 0), "
            f"COALESCE(SUM(cost_nusd), 0), (SELECT COUNT(*) FROM apflow_tasks {tasks}), COUNT(*) - COUNT(cost_nusd) "
            f"FROM apflow_usage_events {those}"
        )
        row = await self._store.read(lambda tx: tx.row(sql, params))
        assert row is not None
        used_in, used_out, total, nusd, count, unpriced = map(int, row)
        return UsageSummary(
            scope=scope,
            scope_id=scope_id,
            total_input_tokens=used_in,
            total_output_tokens=used_out,
            total_tokens=total,
            total_cost_usd=usd_of(nusd),
            task_count=count,
            period_start=start,
            period_end=end or self._store.clock.now(),
            unpriced_events=unpriced,
        )

    def export_json(self, summary: UsageSummary) -> str:
        """Return the summary as a JSON object. Money is decimal text, such as `"0.25"`; times are ISO 8601."""
        return json.dumps(_plain(summary), ensure_ascii=False, indent=2)

    def export_csv(self, summary: UsageSummary) -> str:
        """Return a line of names and a line of values, as `export_json` writes them.

        An id that a spreadsheet would take for a formula has a single quote before it.
        """
        data = _plain(summary) | {"scope_id": safe_cell(summary.scope_id)}
        return csv_text(list(data), [list(data.values())])


def _plain(summary: UsageSummary) -> dict[str, Any]:
    start, end = summary.period_start, summary.period_end
    return asdict(summary) | {
        "total_cost_usd": f"{summary.total_cost_usd:f}",
        "period_start": start and start.isoformat(),
        "period_end": end and end.isoformat(),
    }
