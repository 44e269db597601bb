"""Conditions on rows of `apflow_tasks`, and the order in which they are listed; the same on both databases."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypedDict

from apflow.storage.task_rows import checked_text, stored, utc

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from apflow.storage.store import Dialect, Store

#: A node of a task tree: v1 made nothing else, and had no column that says so.
NODE = "COALESCE(kind, 'node') = 'node'"
_LISTED = "COALESCE(kind, 'node') <> 'tree'"
_EQUAL = ("user_id", "name", "parent_id", "task_tree_id", "kind", "origin_type", "original_task_id", "priority")
_SORTED = {"created_at": False, "updated_at": False, "priority": False, "name": True}
_NO_ROW = "1 = 0"
_CHUNK = 1000


class TaskFilters(TypedDict, total=False):
    """What tasks have to be, all of it; None is anything.

    Attributes:
        user_id: Of this user.
        name: Of this name.
        status: `pending`, `in_progress`, `completed`, `failed` or `cancelled`; or several, any of which will do.
        parent_id: Directly inside this one.
        task_tree_id: In the tree of this root.
        kind: `node`, `run` or `child`; or `tree`: apflow's own notes, one for each execution of a task tree, which
            are left out unless they are asked for.
        origin_type: `create`, `link`, `copy` or `archive`.
        original_task_id: Made from this one.
        priority: 0 (urgent) to 3 (low).
        root_only: Inside no other one.
        start_time: Created then or later; aware.
        end_time: Created then or earlier; aware.
    """

    user_id: str | None
    name: str | None
    status: str | Sequence[str] | None
    parent_id: str | None
    task_tree_id: str | None
    kind: str | None
    origin_type: str | None
    original_task_id: str | None
    priority: int | None
    root_only: bool
    start_time: datetime | None
    end_time: datetime | None


def filtered(store: Store, filters: TaskFilters) -> tuple[str, dict[str, Any]]:
    """Return the clause for tasks that are all of what is given, and its parameters.

    Raises:
        TypeError: There is no such filter.
        ValueError: A value is out of its range; the text names the filter.
    """
    unknown = filters.keys() - TaskFilters.__optional_keys__
    if unknown:
        raise TypeError(f"tasks have no filter {', '.join(sorted(unknown))}")
    conditions, params = created_between(store, filters.get("start_time"), filters.get("end_time"))
    wanted = {name: filters.get(name) for name in _EQUAL}
    for name, value in wanted.items():
        if value is not None:
            conditions.append(NODE if (name, value) == ("kind", "node") else f"{name} = :{name}")
            params[name] = stored(store, name, value) if name == "priority" else checked_text(value, name)
    if wanted["kind"] is None:
        conditions.append(_LISTED)
    if filters.get("root_only"):
        conditions.append("parent_id IS NULL")
    _add_status(filters.get("status"), conditions, params)
    return where(conditions), params


def _add_status(status: str | Sequence[str] | None, conditions: list[str], params: dict[str, Any]) -> None:
    if status is None:
        return
    several = [status] if isinstance(status, str) else list(status)
    values = {f"status{number}": checked_text(one, "status") for number, one in enumerate(several)}
    names = ", ".join(f":{name}" for name in values)
    conditions.append(f"status IN ({names})" if values else _NO_ROW)
    params |= values


def ordered(dialect: Dialect, order_by: str) -> str:
    """Return the clause that sorts tasks: by a column, then by id. What has no value there comes last.

    Args:
        dialect: The kind of database; texts are compared by their code points on both.
        order_by: A column, with `-` before it to have the largest value first.

    Raises:
        ValueError: Tasks are not sorted by that.
    """
    column = order_by.removeprefix("-") if isinstance(order_by, str) else ""
    if column not in _SORTED:
        raise ValueError(f"order_by must be one of {', '.join(_SORTED)}, with or without - before it")
    direction = "DESC" if order_by.startswith("-") else "ASC"
    text = by_code_points(dialect)
    return f"ORDER BY {column}{text * _SORTED[column]} {direction} NULLS LAST, id{text} {direction}"


def by_code_points(dialect: Dialect) -> str:
    """Return what makes a database compare text as SQLite and Python do."""
    return ' COLLATE "C"' if dialect == "postgresql" else ""


def among(dialect: Dialect, column: str) -> str:
    """Return the condition that a column has one of the values of a chunk, the parameter `chunk`."""
    return (
        f"{column} = ANY(:chunk)" if dialect == "postgresql" else f"{column} IN (SELECT value FROM json_each(:chunk))"
    )


def chunks(dialect: Dialect, values: Iterable[str]) -> Iterator[Any]:
    """Yield the values as parameters for `among`, in their order, at most a thousand at once."""
    listed = list(values)
    for start in range(0, len(listed), _CHUNK):
        chunk = listed[start : start + _CHUNK]
        yield chunk if dialect == "postgresql" else json.dumps(chunk)


def checked_id(field: str, value: object) -> str:
    """Return an id that a caller gave.

    Raises:
        ValueError: It is empty, blank or no text, or has a NUL, which no database takes; the text names `field`.
    """
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError(f"{field} must be a non-empty string without NUL")
    return value


def where(conditions: list[str]) -> str:
    """Return the clause for conditions that all have to hold; nothing when there are none."""
    return f"WHERE {' AND '.join(conditions)}" if conditions else ""


def created_between(
    store: Store, start: datetime | None, end: datetime | None, *, end_inside: bool = True
) -> tuple[list[str], dict[str, Any]]:
    """Return the conditions that `created_at` is within bounds, and their parameters.

    Args:
        store: Where they will be asked.
        start: The first moment inside; aware. None is no bound.
        end: The last moment inside, called `end_time`; or the first one outside, called `until`.
        end_inside: Which of the two `end` is. `start` is called `start_time` or `since`.

    Raises:
        ValueError: A time has no zone, or the end is before the start; the text names them.
    """
    first, last = ("start_time", "end_time") if end_inside else ("since", "until")
    times = {name: utc(value, name) for name, value in ((first, start), (last, end)) if value is not None}
    if len(times) > 1 and times[last] < times[first]:
        raise ValueError(f"{last} must not be before {first}")
    signs = {first: ">=", last: "<=" if end_inside else "<"}
    params = {name: store.timestamp(time) for name, time in times.items()}
    if store.dialect == "sqlite":
        # Text without a fraction of a second, which SQLite's own clock writes, sorts before the same with one.
        params = {name: text if signs[name] == "<=" else text.removesuffix(".000000") for name, text in params.items()}
    return [f"created_at {signs[name]} :{name}" for name in params], params
