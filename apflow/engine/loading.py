"""Rows of graph nodes as the engine reads them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apflow.durability.nodes import chunks
from apflow.engine.plan import NORMAL, Node
from apflow.engine.specs import executor_id_of
from apflow.errors import RunNotFoundError, TaskFrozenError
from apflow.storage.conditions import NODE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from apflow.storage.store import Tx

_GRAPH = "id, parent_id, priority, dependencies, status, epoch, task_tree_id, origin_type, name, CAST(schemas AS TEXT)"
_DETAILS = (
    "id, name, inputs, params, schemas, user_id, token_budget, cost_policy, max_attempts, backoff_strategy, "
    "backoff_base_seconds, updated_at"
)


@dataclass(frozen=True, slots=True)
class Details:
    """What a node runs. `executor` is its id; the rest is as the task dictionary had it.

    Attributes:
        updated_at: Of the row when this was read, as the driver gives it.
    """

    id: str
    inputs: dict[str, Any]
    params: dict[str, Any]
    executor: str
    user: str | None
    token_budget: int | None
    cost_policy: str | None
    max_attempts: int | None
    backoff_strategy: str | None
    backoff_base_seconds: float | None
    updated_at: Any


def load_scope(tx: Tx, task_id: str) -> list[Node]:
    """Return what executing a task takes: it, what is inside it, and what those depend on and did not complete.

    Raises:
        RunNotFoundError: There is no such node.
        TaskFrozenError: It is archived.
    """
    target = tx.row(f"SELECT {_GRAPH} FROM apflow_tasks WHERE id = :id AND {NODE}", {"id": task_id})
    if target is None:
        raise RunNotFoundError(task_id)
    if target[7] == "archive":
        raise TaskFrozenError(f"task {task_id} is archived; copy it with TaskCreator.from_copy and execute the copy")
    rows = {target[0]: target}
    rows.update((row[0], row) for row in tx.rows(*_tree_of(target)))
    wanted = _inside(rows, task_id)
    nodes = dict.fromkeys(one for one in rows if one in wanted)
    fresh = list(nodes)
    while fresh:
        needed = {one for row in fresh for one, _ in needs_of(rows[row][3])} - nodes.keys()
        rows.update((row[0], row) for row in _rows(tx, _GRAPH, sorted(needed - rows.keys())))
        nodes |= dict.fromkeys(one for one in needed if one not in rows or rows[one][4] != "completed")
        # What is archived stands as it is.
        fresh = [one for one in needed if one in rows and rows[one][4] != "completed" and rows[one][7] != "archive"]
        wanted.update(one for one in needed if one in nodes)
    places = {one: place for place, one in enumerate(rows)}
    return [_node(rows[one], places[one]) if one in rows else missing_node(one, len(places)) for one in nodes]


def _tree_of(row: tuple[Any, ...]) -> tuple[str, dict[str, Any]]:
    """Return the query for the nodes of the tree that a row is in, and its parameters."""
    if row[6] is not None:
        sql = f"SELECT {_GRAPH} FROM apflow_tasks WHERE task_tree_id = :tree AND {NODE} ORDER BY created_at, id"
        return sql, {"tree": row[6]}
    # Version 1 left some roots without: what is inside of those is found from parent to parent.
    sql = f"""
WITH RECURSIVE inside (id) AS (
  SELECT id FROM apflow_tasks WHERE id = :id
  UNION
  SELECT c.id FROM apflow_tasks c JOIN inside ON c.parent_id = inside.id
)
SELECT {_GRAPH} FROM apflow_tasks WHERE id IN (SELECT id FROM inside) AND {NODE} ORDER BY created_at, id"""
    return sql, {"id": row[0]}


def missing_node(task_id: str, position: int) -> Node:
    """Return what stands for a dependency that the database does not have any more: nothing can come of it."""
    return Node(task_id, position, None, NORMAL, (), "missing", 0, task_id)


def _inside(rows: dict[str, Any], task_id: str) -> set[str]:
    children: dict[str, list[str]] = {}
    for row in rows.values():
        if row[1] is not None:
            children.setdefault(row[1], []).append(row[0])
    found = {task_id: None}
    order = [task_id]
    for one in order:  # which grows while it is walked
        new = [child for child in children.get(one, ()) if child not in found]
        found |= dict.fromkeys(new)
        order += new
    return set(found)


def _node(row: tuple[Any, ...], position: int) -> Node:
    one, parent, priority, dependencies, status, epoch, tree, _, name, schemas = row
    return Node(
        id=one,
        position=position,
        parent_id=parent,
        priority=NORMAL if priority is None else priority,
        needs=needs_of(dependencies),
        status=status or "pending",
        epoch=epoch or 0,
        root_id=tree or one,
        executor=executor_id_of(name, _json(schemas)),
    )


def needs_of(dependencies: Any) -> tuple[tuple[str, bool], ...]:
    """Return ids and whether they are required, of `[{"id", "required"}]` or `["id"]`."""
    found = _json(dependencies) or []
    return tuple(
        (one, True) if isinstance(one, str) else (one["id"], one.get("required", True) is not False) for one in found
    )


def load_details(tx: Tx, ids: Sequence[str]) -> dict[str, Details]:
    """Return what these nodes run, by id."""
    found = {}
    for row in _rows(tx, _DETAILS, ids):
        one, name, inputs, params, schemas, user, token_budget, cost_policy, max_attempts, strategy, base, updated = row
        found[one] = Details(
            id=one,
            inputs=_json(inputs) or {},
            params=_json(params) or {},
            executor=executor_id_of(name, _json(schemas)),
            user=user,
            token_budget=token_budget,
            cost_policy=cost_policy,
            max_attempts=max_attempts,
            backoff_strategy=strategy,
            backoff_base_seconds=None if base is None else float(base),
            updated_at=updated,
        )
    return found


def results_in(tx: Tx, ids: Sequence[str]) -> dict[str, tuple[str, str | None]]:
    """Return status and result, as JSON text, of these nodes by id; a link has the result of what it refers to."""
    found: dict[str, tuple[str, str | None]] = {}
    for names, params in chunks(ids):
        sql = (
            "SELECT n.id, n.status, CAST(CASE WHEN n.origin_type = 'link' THEN o.result ELSE n.result END AS TEXT) "
            "FROM apflow_tasks n LEFT JOIN apflow_tasks o ON n.origin_type = 'link' AND o.id = n.original_task_id "
            f"WHERE n.id IN ({names})"
        )
        found.update((one, (status, text)) for one, status, text in tx.rows(sql, params))
    return found


def _rows(tx: Tx, columns: str, ids: Sequence[str]) -> Iterable[tuple[Any, ...]]:
    for names, params in chunks(ids):
        yield from tx.rows(f"SELECT {columns} FROM apflow_tasks WHERE id IN ({names}) ORDER BY created_at, id", params)


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value
