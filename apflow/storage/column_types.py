"""Column types that read the same from both databases."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import JSON, TIMESTAMP, DateTime, Text
from sqlalchemy.types import TypeDecorator
from typing_extensions import override

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect
    from sqlalchemy.types import TypeEngine


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time: `timestamptz` on PostgreSQL; on SQLite, text in UTC that sorts in the order of time.

    Raises:
        ValueError: A time without a zone is written.
    """

    impl = DateTime
    cache_ok = True

    def __init__(self) -> None:
        super().__init__(timezone=True)

    @override
    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("a time without a zone cannot be stored; use datetime.now(UTC)")
        return None if value is None else value.astimezone(UTC)

    @override
    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class UtcTimestamp(UtcDateTime):
    """`UtcDateTime` under the type name that the columns of revision 004 have on SQLite."""

    impl = TIMESTAMP
    cache_ok = True


class JsonValue(TypeDecorator[Any]):
    """Any JSON value, numbers included: `json` on PostgreSQL, `TEXT` on SQLite.

    A SQLite column declared `JSON` has numeric affinity, which turns the text `1.0` into the integer 1 and
    a long integer into a rounded float. Objects and arrays are safe there, so only columns that may hold a
    bare number need this type.
    """

    impl = JSON
    cache_ok = True

    def __init__(self) -> None:
        super().__init__(none_as_null=True)

    @override
    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Text() if dialect.name == "sqlite" else JSON(none_as_null=True))

    @override
    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return json.dumps(value) if dialect.name == "sqlite" and value is not None else value

    @override
    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return json.loads(value) if dialect.name == "sqlite" and value is not None else value
