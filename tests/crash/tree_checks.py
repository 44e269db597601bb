"""What has to be true of the task trees of a database when nothing runs any more."""

from __future__ import annotations

import json
from typing import Any

from tests.crash.processes import Crew

ROWS = """
SELECT id, parent_id, kind, status, CAST(result AS TEXT), error, CAST(error_info AS TEXT), lease_expires_at, run_key,
  progress, started_at, completed_at, epoch, CAST(dependencies AS TEXT) FROM apflow_tasks"""


def check_trees_sound(crew: Crew) -> None:
    """Everything has ended, and each row says one thing; nothing ran before what it depends on."""
    names = (
        *("id", "parent_id", "kind", "status", "result", "error", "error_info", "lease", "run_key", "progress"),
        *("started_at", "completed_at", "epoch", "dependencies"),
    )
    rows = {values[0]: dict(zip(names, values, strict=True)) for values in crew.rows(ROWS)}
    for row in rows.values():
        _check_row(row)
        if row["kind"] == "node":
            _check_order(row, rows)
    assert crew.rows("SELECT * FROM apflow_budget_holds") == []
    assert crew.rows("SELECT id FROM apflow_budget_accounts WHERE reserved <> 0") == []
    ended = "SELECT task_id FROM task_checkpoints c JOIN apflow_tasks t ON t.id = c.task_id WHERE status = 'completed'"
    assert crew.rows(ended) == []
    crew.check_sound()


def _check_row(row: dict[str, Any]) -> None:
    assert row["status"] in ("completed", "failed", "cancelled"), row
    assert row["completed_at"] is not None, row
    assert row["lease"] is None, row
    assert (row["status"] == "completed") == (row["error"] is None), row
    assert row["error_info"] is None or row["status"] != "completed", row
    assert row["status"] == "completed" or row["result"] is None, row
    assert row["kind"] != "tree" or row["run_key"] is None, row


def _check_order(row: dict[str, Any], rows: dict[str, dict[str, Any]]) -> None:
    needs = [(rows[one["id"]], one["required"]) for one in json.loads(row["dependencies"] or "[]")]
    ran = row["started_at"] is not None
    assert ran or row["status"] == "cancelled", row
    if ran:
        assert all(need["completed_at"] <= row["started_at"] for need, _ in needs), row
        assert all(need["status"] == "completed" for need, required in needs if required), row
