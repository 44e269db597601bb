"""What a task may be inside and depend on: tasks that exist, and never, however indirectly, itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apflow.cycles import drawn
from apflow.errors import TaskTreeError
from apflow.storage.conditions import among, by_code_points, chunks
from apflow.storage.dependents import AS_TEXT, entries, named

if TYPE_CHECKING:
    from collections.abc import Mapping

    from apflow.storage.store import Dialect, Tx

#: Whoever changes how tasks hang together holds it: of two changes that close a circle together, one sees the other.
_LOCK = int.from_bytes(b"circles", "big")
_NAMED = 10
_WORDS = {"parent_id": "would be inside each other", "dependencies": "would depend on each other"}


def refuse_unknown(tx: Tx, task_id: str, values: Mapping[str, Any]) -> None:
    """Refuse to put a task inside or after tasks that are not there, and on PostgreSQL lock those that are.

    Args:
        tx: The transaction that will store the values. What `refuse_circles` needs is locked first.
        task_id: The task; it may be new.
        values: Columns as the driver takes them. Only `parent_id` and `dependencies` count.

    Raises:
        TaskTreeError: Some are not there; the text names the column.
    """
    wanted = {column: _named_by(column, values[column]) for column in given(values)}
    if not wanted:
        return
    if tx.dialect == "postgresql":
        tx.row("SELECT pg_advisory_xact_lock(:key)", {"key": _LOCK})
    # No database takes a NUL, so there is no such task.
    several = sorted(one for one in {task_id}.union(*wanted.values()) if "\0" not in one)
    order = f"ORDER BY id{by_code_points(tx.dialect)}"
    lock = " FOR NO KEY UPDATE" if tx.dialect == "postgresql" else ""
    sql = f"SELECT id FROM apflow_tasks WHERE {among(tx.dialect, 'id')} {order}{lock}"
    found = {row[0] for chunk in chunks(tx.dialect, several) for row in tx.rows(sql, {"chunk": chunk})}
    for column, ids in wanted.items():
        missing = sorted(ids - found - {task_id})
        if missing:
            shown = ", ".join(repr(one) for one in missing[:_NAMED])
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            raise TaskTreeError(f"{column}: there is no task {shown}{more}; nothing was stored", missing)


def refuse_circles(tx: Tx, task_id: str, values: Mapping[str, Any]) -> None:
    """Refuse values that the transaction has just stored when the task is now inside itself, or depends on itself.

    Raises:
        TaskTreeError: It does; the text names the column and the tasks, and `ids` has them.
    """
    for column in given(values):
        circle = _circle(tx, task_id, column)
        if circle:
            raise TaskTreeError(f"{column}: these tasks {_WORDS[column]}: {drawn(circle)}; nothing was stored", circle)


def given(values: Mapping[str, Any]) -> list[str]:
    """Return which of the columns that can close a circle have a value here."""
    return [column for column in _WORDS if values.get(column) is not None]


def _named_by(column: str, value: str) -> set[str]:
    return named(value) if column == "dependencies" else {value}


def _circle(tx: Tx, task_id: str, column: str) -> list[str]:
    """Return the ids from this task back to it, each pointing at the next one; none when there is no way back."""
    rows = tx.rows(_reached(tx.dialect, column), {"id": task_id})
    edges = {one: _named_by(column, value) for one, value in rows}
    came_from: dict[str, str] = {}
    waiting = [task_id]
    for one in waiting:  # which grows while it is walked
        for target in sorted(edges.get(one, ())):
            if target == task_id:
                way = [one]
                while way[-1] != task_id:
                    way.append(came_from[way[-1]])
                return way[::-1]
            if target not in came_from:
                came_from[target] = one
                waiting.append(target)
    return []


def _reached(dialect: Dialect, column: str) -> str:
    """Return the query for what a task points at, however indirectly: the ids, itself among them, and their values."""
    value, (join, target) = "t.parent_id", ("", "t.parent_id")
    if column == "dependencies":
        value, (join, target) = AS_TEXT.format("t"), entries(dialect, "t")
    return f"""
WITH RECURSIVE reached (id) AS (
  SELECT CAST(:id AS TEXT)
  UNION
  SELECT CAST({target} AS TEXT) FROM reached JOIN apflow_tasks t ON t.id = reached.id {join}
)
SELECT t.id, {value} FROM reached JOIN apflow_tasks t ON t.id = reached.id WHERE t.{column} IS NOT NULL"""
