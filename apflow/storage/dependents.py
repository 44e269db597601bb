"""Who depends on a task: `dependencies` read backwards. No index helps, so the database looks at every task's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from apflow.storage.conditions import NODE, by_code_points

if TYPE_CHECKING:
    from apflow.storage.store import Dialect, Tx

#: `dependencies` of a table of tasks as JSON text.
AS_TEXT = "CAST({}.dependencies AS TEXT)"
_TEXT = "CAST(dependencies AS TEXT)"


def dependents_of(tx: Tx, task_id: str) -> list[str]:
    """Return the ids of the tasks whose `dependencies` name this one: those of its own tree first, then by age."""
    position = "strpos" if tx.dialect == "postgresql" else "instr"
    tree = "(SELECT COALESCE(task_tree_id, id) FROM apflow_tasks WHERE id = :id)"
    rows = tx.rows(
        f"SELECT id, {_TEXT} FROM apflow_tasks WHERE {NODE} AND dependencies IS NOT NULL "
        f"AND ({position}({_TEXT}, :plain) > 0 OR {position}({_TEXT}, :escaped) > 0) "
        f"ORDER BY CASE WHEN COALESCE(task_tree_id, id) = {tree} THEN 0 ELSE 1 END, created_at NULLS LAST, "
        f"id{by_code_points(tx.dialect)}",
        # As apflow writes it, and as other programs do, which write ASCII only.
        {"id": task_id, "plain": json.dumps(task_id, ensure_ascii=False), "escaped": json.dumps(task_id)},
    )
    return [one for one, dependencies in rows if task_id in named(dependencies)]


def all_dependents(tx: Tx) -> dict[str, list[str]]:
    """Return the ids of the tasks that depend on each task which is depended on: one query, however deep they go."""
    sql = f"SELECT id, {_TEXT} FROM apflow_tasks WHERE {NODE} AND dependencies IS NOT NULL AND {_TEXT} <> '[]'"
    found: dict[str, list[str]] = {}
    for one, dependencies in tx.rows(sql):
        for needed in named(dependencies):
            found.setdefault(needed, []).append(one)
    return found


def entries(dialect: Dialect, table: str) -> tuple[str, str]:
    """Return how a query gets at what tasks depend on, without reading it: what it cannot read names nobody.

    Args:
        dialect: The kind of database.
        table: The name that tasks have in the query.

    Returns:
        What to put after that table, so that each row has one entry of its dependencies; and the id in it, or NULL.
    """
    text = AS_TEXT.format(table)
    if dialect == "sqlite":
        array = f"CASE WHEN NOT json_valid({text}) THEN '[]' WHEN json_type({text}) = 'array' THEN {text} ELSE '[]' END"
        one = "CASE entry.type WHEN 'object' THEN json_extract(entry.value, '$.id') WHEN 'text' THEN entry.value END"
        return f"CROSS JOIN json_each({array}) AS entry", one
    # PostgreSQL stores a NUL inside JSON, and fails when it has to give it as text.
    readable = f"json_typeof({table}.dependencies) = 'array' AND strpos({text}, '\\u0000') = 0"
    array = f"CASE WHEN {readable} THEN {table}.dependencies ELSE '[]' END"
    one = (
        "CASE json_typeof(entry.value) WHEN 'object' THEN entry.value ->> 'id' "
        "WHEN 'string' THEN entry.value #>> '{}' END"
    )
    return f"CROSS JOIN LATERAL json_array_elements({array}) AS entry (value)", one


def named(dependencies: str) -> set[str]:
    """Return the ids that `dependencies` names: its entries are ids, or objects with an `id`."""
    try:
        listed = json.loads(dependencies)
    except ValueError:  # Another program wrote it; only reading that very task has to fail.
        return set()
    if not isinstance(listed, list):
        return set()
    ids = (entry.get("id") if isinstance(entry, dict) else entry for entry in listed)
    return {one for one in ids if isinstance(one, str)}
