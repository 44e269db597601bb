"""Cancelling what cannot run without a cancelled task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apflow.durability.writing import error_columns
from apflow.engine.loading import needs_of
from apflow.errors import RunCancelledError
from apflow.storage.conditions import NODE

if TYPE_CHECKING:
    from apflow.storage.store import Tx

_CANCEL = """
UPDATE apflow_tasks SET status = 'cancelled', epoch = COALESCE(epoch, 0) + 1, error = :error,
  error_info = :error_info{json}, completed_at = :now, updated_at = :now WHERE id = :id AND status = 'pending'"""


def cancel_dependents(tx: Tx, task_id: str, now: Any) -> int:
    """Cancel the pending tasks of a tree that need one that is cancelled, and what needs those; return how many.

    Args:
        tx: An open transaction.
        task_id: A task of the tree.
        now: The time, as a parameter.
    """
    tree = tx.row("SELECT task_tree_id FROM apflow_tasks WHERE id = :id", {"id": task_id})
    if tree is None:
        return 0
    sql = f"SELECT id, status, dependencies FROM apflow_tasks WHERE task_tree_id = :tree AND {NODE} ORDER BY id"
    rows = tx.rows(sql + (" FOR UPDATE" if tx.dialect == "postgresql" else ""), {"tree": tree[0] or task_id})
    status = {row[0]: row[1] for row in rows}
    dependents: dict[str, list[str]] = {}
    for one, state, dependencies in rows:
        if state == "pending":
            for needed, required in needs_of(dependencies):
                if required:
                    dependents.setdefault(needed, []).append(one)
    causes = [one for one, state in status.items() if state == "cancelled"]
    cast = "::json" if tx.dialect == "postgresql" else ""
    done = 0
    for cause in causes:
        for one in dependents.get(cause, ()):
            if status[one] == "pending":
                status[one] = "cancelled"
                causes.append(one)
                done += tx.execute(
                    _CANCEL.format(json=cast),
                    {"id": one, "now": now, **error_columns(blocked(one, cause, status[cause]))},
                )
    return done


def blocked(one: str, cause: str, status: str) -> RunCancelledError:
    """Return the error of a task that cannot run because one that it needs did not complete."""
    what = {"failed": "failed", "missing": "is not there any more"}.get(status, "was cancelled")
    return RunCancelledError(one, f"cannot run: it needs task {cause}, which {what}")
