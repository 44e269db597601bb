"""Columns of `apflow_tasks`: how their values leave the database, and how they enter it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from apflow.storage.statements import moment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sqlalchemy.types import TypeEngine

    from apflow.storage.store import Row, Store
    from apflow.storage.tables import TaskModel

_LARGEST_INTEGER = 2**31 - 1
#: As the databases round, whatever the program has set.
_ROUNDING = Context(prec=60, rounding=ROUND_HALF_UP)


def selected() -> str:
    """Return the columns that `models` expects, as a query lists them."""
    return ", ".join(_columns())


def models(rows: Iterable[Row]) -> list[TaskModel]:
    """Return tasks from rows that have the columns of `selected`."""
    columns = _columns()
    return models_of(_values(columns, row) for row in rows)


def models_of(rows: Iterable[Mapping[str, Any]]) -> list[TaskModel]:
    """Return rows that are in the database as objects; columns that a row leaves out are None.

    They are made as SQLAlchemy makes what it loads: the constructor takes fifty times as long, and trees are large.
    """
    from sqlalchemy import inspect

    from apflow.storage.tables import TaskModel

    mapper = inspect(TaskModel)
    mapper.registry.configure()
    nothing = dict.fromkeys(column.key for column in mapper.column_attrs)
    found: list[TaskModel] = []
    for row in rows:
        model: TaskModel = mapper.class_manager.new_instance()
        vars(model).update(nothing | dict(row))
        object.__setattr__(model, "__pydantic_fields_set__", set(row))
        found.append(model)
    return found


def stored(store: Store, name: str, value: Any) -> Any:
    """Return a value of a column as the parameter of a statement.

    Raises:
        ValueError: There is no such column, or it cannot hold the value; the text names the column.
    """
    column = _columns().get(name)
    if column is None:
        raise ValueError(f"{name!r} is no column of apflow_tasks; known are: {', '.join(_columns())}")
    if value is None:
        if not column.nullable:
            raise ValueError(f"{name} must have a value")
        return None
    written = column.write(value, name)
    return store.timestamp(written) if isinstance(written, datetime) else written


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
        return _read_time, utc
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
    return str, partial(checked_text, longest=kind.length)


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


def utc(value: Any, name: str) -> datetime:
    """Return an aware time in UTC.

    Raises:
        ValueError: It is no time, or has no zone; the text names `name`.
    """
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


def checked_text(value: Any, name: str, longest: int | None = None) -> str:
    """Return text that a database takes.

    Raises:
        ValueError: It is no text, has a NUL, or more than `longest` characters; the text names `name`.
    """
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"{name} must be text without NUL")
    if longest is not None and len(value) > longest:
        raise ValueError(f"{name} must have at most {longest} characters, got {len(value)}")
    return value
