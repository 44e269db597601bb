"""Rows of `apflow_tasks` as objects: read, listed and updated alike on both databases."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from apflow.storage.statements import moment

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.types import TypeEngine

    from apflow.storage.store import Store
    from apflow.storage.tables import TaskModel

#: More rows than any database has.
_ALL = 1 << 62
_LARGEST_INTEGER = 2**31 - 1
#: As the databases round, whatever the program has set.
_ROUNDING = Context(prec=60, rounding=ROUND_HALF_UP)


class TaskRepository:
    """The tasks of one database: every run is one.

    Args:
        store: What `create_session(url)` returns.

    Attributes:
        store: The same.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    async def get_task_by_id(self, task_id: str) -> TaskModel | None:
        """Return the task, or None when there is none with this id.

        Raises:
            ValueError: `task_id` is no text that a database takes.
            StorageError: The database failed.
        """
        found = await self._query("WHERE id = :id", {"id": _text(task_id, "task_id")})
        return found[0] if found else None

    async def update_task(self, task_id: str, **columns: Any) -> bool:
        """Set columns of a task, and `updated_at` unless it is among them.

        Nothing asks here who owns the run: what runs tasks has statements of its own.

        Args:
            task_id: The task.
            columns: New values: dicts and lists for JSON, aware datetimes, Decimals. Decimals are rounded to what the
                column holds. None removes a value.

        Returns:
            Whether there is such a task.

        Raises:
            ValueError: A column is unknown or is `id`, or cannot hold the value; the text names the column.
            StorageError: Nothing was stored.
        """
        values = {"updated_at": self.store.clock.now()} | columns
        params = {name: self._stored(name, value) for name, value in values.items()}
        changes = ", ".join(f"{name} = :{name}" for name in params)
        params["task_id"] = _text(task_id, "task_id")
        sql = f"UPDATE apflow_tasks SET {changes} WHERE id = :task_id"
        return await self.store.write(lambda tx: tx.execute(sql, params), single=True) > 0

    def _stored(self, name: str, value: Any) -> Any:
        column = _columns().get(name)
        if column is None:
            raise ValueError(f"{name!r} is no column of apflow_tasks; known are: {', '.join(_columns())}")
        if name == "id":
            raise ValueError("id cannot be changed")
        if value is None:
            if not column.nullable:
                raise ValueError(f"{name} must have a value")
            return None
        stored = column.write(value, name)
        return self.store.timestamp(stored) if isinstance(stored, datetime) else stored

    async def list_tasks(
        self,
        *,
        user_id: str | None = None,
        name: str | None = None,
        status: str | None = None,
        parent_id: str | None = None,
        task_tree_id: str | None = None,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[TaskModel]:
        """Return the tasks that are all of what is given, the newest first.

        Args:
            user_id: Of this user.
            name: Of this name.
            status: `pending`, `in_progress`, `completed`, `failed` or `cancelled`.
            parent_id: Directly inside this one.
            task_tree_id: In the tree of this root.
            start_time: Created then or later; aware.
            end_time: Created then or earlier; aware.
            limit: How many at most, at least 1; None is all.
            offset: How many to skip, at least 0.

        Raises:
            ValueError: A value is out of its range.
            StorageError: The database failed.
        """
        if (limit is not None and limit < 1) or offset < 0:
            raise ValueError(f"limit must be at least 1 and offset at least 0, got {limit} and {offset}")
        conditions, params = created_between(self.store, start_time, end_time)
        wanted = {"user_id": user_id, "name": name, "status": status, "parent_id": parent_id}
        for column, value in (wanted | {"task_tree_id": task_tree_id}).items():
            if value is not None:
                conditions.append(f"{column} = :{column}")
                params[column] = _text(value, column)
        params |= {"limit": _ALL if limit is None else limit, "offset": offset}
        order = "ORDER BY created_at DESC NULLS LAST, id DESC LIMIT :limit OFFSET :offset"
        return await self._query(f"{where(conditions)} {order}", params)

    async def _query(self, tail: str, params: dict[str, Any]) -> list[TaskModel]:
        from apflow.storage.tables import TaskModel

        columns = _columns()
        sql = f"SELECT {', '.join(columns)} FROM apflow_tasks {tail}"
        rows = await self.store.read(lambda tx: tx.rows(sql, params))
        return [TaskModel(**_values(columns, row)) for row in rows]


# -- conditions ----------------------------------------------------------------------------------------------


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
    times = {name: _utc(value, name) for name, value in ((first, start), (last, end)) if value is not None}
    if len(times) > 1 and times[last] < times[first]:
        raise ValueError(f"{last} must not be before {first}")
    signs = {first: ">=", last: "<=" if end_inside else "<"}
    params = {name: store.timestamp(time) for name, time in times.items()}
    if store.dialect == "sqlite":
        # Text without a fraction of a second, which SQLite's own clock writes, sorts before the same with one.
        params = {name: text if signs[name] == "<=" else text.removesuffix(".000000") for name, text in params.items()}
    return [f"created_at {signs[name]} :{name}" for name in params], params


# -- columns -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Column:
    """How the values of a column leave the database, and how they enter it. Neither meets None.

    Attributes:
        read: Takes what the driver returned.
        write: Takes a value and the column's name; raises ValueError when it cannot be stored.
        nullable: Whether None may be stored.
    """

    read: Callable[[Any], Any]
    write: Callable[[Any, str], Any]
    nullable: bool


@cache
def _columns() -> dict[str, _Column]:
    from apflow.storage.tables import metadata

    table = metadata.tables["apflow_tasks"]
    return {column.name: _Column(*_converters(column.type), bool(column.nullable)) for column in table.columns}


def _converters(kind: TypeEngine[Any]) -> tuple[Callable[[Any], Any], Callable[[Any, str], Any]]:
    """Return how to read and to write what a column of this type has."""
    from sqlalchemy import JSON, Boolean, Integer, Numeric, String

    from apflow.storage.column_types import JsonValue, UtcDateTime

    if isinstance(kind, UtcDateTime):
        return _read_time, _utc
    if isinstance(kind, JsonValue):
        return _read_json, _json
    if isinstance(kind, JSON):
        return _read_json, _json_tree
    if isinstance(kind, Numeric):
        precision, scale = kind.precision or 0, kind.scale or 0
        return partial(_read_decimal, scale=scale), partial(_decimal, precision=precision, scale=scale)
    if isinstance(kind, Boolean):
        return bool, _flag
    if isinstance(kind, Integer):
        return int, _integer
    assert isinstance(kind, String)
    return str, partial(_text, longest=kind.length)


def _values(columns: dict[str, _Column], row: tuple[Any, ...]) -> dict[str, Any]:
    pairs = zip(columns.items(), row, strict=True)
    return {name: None if value is None else column.read(value) for (name, column), value in pairs}


def _read_time(value: Any) -> datetime:
    time = moment(value)
    assert time is not None
    return time.astimezone(UTC)


def _read_json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _read_decimal(value: Any, scale: int) -> Decimal:
    return Decimal(str(value)).quantize(Decimal(1).scaleb(-scale), context=_ROUNDING)


def _utc(value: Any, name: str) -> datetime:
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise ValueError(f"{name} must be a time with a zone, for example datetime.now(UTC)")
    return value.astimezone(UTC)


def _json(value: Any, name: str) -> str:
    """Return JSON that stands for exactly this value: no tuples, no keys but text, no infinity."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        same = json.loads(text) == value
    except (TypeError, ValueError, RecursionError):
        same, text = False, ""
    if not same:
        raise ValueError(f"{name} must be what JSON carries: dicts with text as keys, lists, text, numbers, bool, None")
    return text


def _json_tree(value: Any, name: str) -> str:
    if not isinstance(value, dict | list):
        raise ValueError(f"{name} must be a dict or a list, got a value of type {type(value).__name__}")
    return _json(value, name)


def _decimal(value: Any, name: str, precision: int, scale: int) -> str:
    limit = Decimal(10) ** (precision - scale)
    try:
        number = limit if isinstance(value, bool) else Decimal(str(value))
    except InvalidOperation:
        number = limit
    if number.is_finite() and number.copy_abs() < limit:
        number = number.quantize(Decimal(1).scaleb(-scale), context=_ROUNDING)
    if not number.is_finite() or number.copy_abs() >= limit:
        raise ValueError(f"{name} must be a number between -{limit} and {limit}, both left out")
    return f"{number:f}"


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got a value of type {type(value).__name__}")
    return value


def _integer(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _LARGEST_INTEGER:
        raise ValueError(f"{name} must be a whole number of at most {_LARGEST_INTEGER}, positive or negative")
    return value


def _text(value: Any, name: str, longest: int | None = None) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"{name} must be text without NUL")
    if longest is not None and len(value) > longest:
        raise ValueError(f"{name} must have at most {longest} characters, got {len(value)}")
    return value
