"""Rows of tasks as callers see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apflow.bridge.ids import can_be_id
from apflow.bridge.refusals import RefusedError
from apflow.bridge.task_access import owned_by
from apflow.definition import standing_for
from apflow.durability.rows import origin_of
from apflow.errors import RunNotFoundError
from apflow.records import COLUMNS, record
from apflow.storage.statements import Statements, lease_params, moment
from apflow.told import read_told

if TYPE_CHECKING:
    from collections.abc import Mapping

    from apflow.records import RunRecord
    from apflow.storage.store import Row, Store, Tx

_LISTED = "id, name, status, parent_id, created_at, completed_at"
#: A link has the result of what it refers to.
_RESULT = (
    "CASE WHEN origin_type = 'link' THEN "
    "(SELECT o.result FROM apflow_tasks o WHERE o.id = apflow_tasks.original_task_id) ELSE result END"
)


async def listed(store: Store, given: Mapping[str, Any], user: str | None) -> dict[str, Any]:
    """Return the tasks that are what is given, the newest first, and how many there are in all."""
    if not all(can_be_id(given[field]) for field in ("user_id", "name") if field in given):
        return {"tasks": [], "total": 0}
    free = _free(store)
    parts, params = [owned_by(user)], lease_params(store, 0) | ({} if user is None else {"user": user})
    if given.get("status") == "interrupted":
        parts.append(f"{free} = 1")
    for field in ("status", "name", "user_id"):
        if field in given and given[field] != "interrupted":
            parts.append(f"{field} = :wanted_{field}")
            params[f"wanted_{field}"] = given[field]
    where = " AND ".join(parts)
    window = params | {"limit": given.get("limit", 50), "offset": given.get("offset", 0)}

    def read(tx: Tx) -> tuple[list[Row], int]:
        rows = tx.rows(
            f"SELECT {_LISTED}, {free} FROM apflow_tasks WHERE {where} "
            "ORDER BY created_at DESC, id DESC LIMIT :limit OFFSET :offset",
            window,
        )
        count = tx.row(f"SELECT COUNT(*) FROM apflow_tasks WHERE {where}", params)
        return list(rows), 0 if count is None else int(count[0])

    rows, total = await store.read(read)
    return {"tasks": [_listed(row) for row in rows], "total": total}


def _listed(row: Row) -> dict[str, Any]:
    one, name, status, parent, created, done, free = row
    return {
        "id": one,
        "name": name,
        "status": status or "pending",
        "interrupted": bool(free),
        "parent_id": parent,
        "created_at": _iso(created),
        "completed_at": _iso(done),
    }


async def shown(store: Store, task_id: str, user: str | None) -> dict[str, Any]:
    """Return all that a caller may know of a task.

    Raises:
        RunNotFoundError: It does not exist for the user.
    """
    one = await _record(store, task_id, user)
    return {
        "id": one.id,
        "name": one.name,
        "status": one.status or "pending",
        "interrupted": one.interrupted,
        "parent_id": one.parent_id,
        "inputs": _inputs(one),
        "result": one.result if one.status == "completed" else None,
        "error": _error(one),
        "token_usage": one.token_usage,
        "actual_cost_usd": None if one.actual_cost_usd is None else float(one.actual_cost_usd),
        "progress": float(one.progress or 0),
        "created_at": _iso(one.created_at),
        "started_at": _iso(one.started_at),
        "completed_at": _iso(one.completed_at),
    }


async def ended(store: Store, task_id: str, user: str | None) -> dict[str, Any]:
    """Return how a task has ended.

    Raises:
        RunNotFoundError: It does not exist for the user.
    """
    found = await shown(store, task_id, user)
    return {"task_id": task_id} | {name: found[name] for name in ("status", "result", "token_usage", "error")}


async def _record(store: Store, task_id: str, user: str | None) -> RunRecord:
    columns = ", ".join(_RESULT if name == "result" else name for name in COLUMNS)
    sql = f"SELECT {columns}, {_free(store)} FROM apflow_tasks WHERE id = :id AND {owned_by(user)}"
    params = lease_params(store, 0) | {"id": task_id} | ({} if user is None else {"user": user})
    row = await store.read(lambda tx: tx.row(sql, params)) if can_be_id(task_id) else None
    if row is None:
        raise RunNotFoundError(task_id)
    return record(tuple(row))


def _free(store: Store) -> str:
    """Return what is 1 of a task that is in progress and that nobody holds, else 0."""
    return f"CASE WHEN epoch IS NOT NULL AND {Statements.of(store).free} THEN 1 ELSE 0 END"


def _error(one: RunRecord) -> dict[str, Any] | None:
    if one.status not in ("failed", "cancelled"):
        return None
    stored = one.error_info if isinstance(one.error_info, dict) else None
    found = RefusedError(read_told(stored), reference=one.id).as_json()
    return {name: found[name] for name in ("code", "message", "details", "retryable", "reference")}


def _inputs(one: RunRecord) -> dict[str, Any]:
    """Return what a caller has given. A run of an executor class has that as one of its arguments."""
    found = one.inputs if isinstance(one.inputs, dict) else {}
    of_class = any(one.origin == origin_of(definition) for definition in standing_for(one.name))
    inner = found.get("inputs") if of_class and one.kind == "run" else None
    return inner if isinstance(inner, dict) else found


def _iso(time: Any) -> str | None:
    found = moment(time)
    return None if found is None else found.isoformat()
