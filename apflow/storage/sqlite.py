"""SQLite as a dialect: connection strings, pragmas, and values as JSON text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class SQLiteDialect:
    """What has to be known to use SQLite in a file, in memory, or in memory shared by name."""

    @staticmethod
    def normalize_data(data: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy in which dicts and lists are JSON text, as SQLite stores them."""
        return {key: _dumped(value) for key, value in data.items()}

    @staticmethod
    def denormalize_data(data: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy in which JSON text of objects and arrays is parsed again.

        Other strings stay as they are: `normalize_data` leaves a string such as `"42"` alone, so it has to
        come back as the string that it was.
        """
        return {key: _parsed(value) for key, value in data.items()}

    @staticmethod
    def get_connection_string(path: str = ":memory:") -> str:
        """Return the URL of a database.

        Args:
            path: `:memory:`; or `file:NAME?mode=memory&cache=shared&uri=true`, which all connections of this
                process share; or the path of a file, which is made absolute.

        Raises:
            ValueError: `path` is empty.
        """
        if not path:
            raise ValueError("the path of a SQLite database is empty; write ':memory:' for one in memory")
        if path == ":memory:" or "mode=memory" in path:
            return f"sqlite:///{path}"
        return f"sqlite:///{Path(path).absolute()}"

    @staticmethod
    def get_engine_kwargs() -> dict[str, Any]:
        """Return the arguments for SQLAlchemy's `create_engine`; which pool to use depends on the URL."""
        return {"pool_pre_ping": True}

    @staticmethod
    def get_pragma_statements() -> list[str]:
        """Return the statements that prepare every new connection.

        Readers and one writer at a time do not block each other (WAL); a commit survives any crash of the
        process but is not flushed to the disk by itself (NORMAL); 64,000 KiB of cache; foreign keys are
        checked; a lock held by somebody else is waited for up to 5,000 ms.
        """
        return [
            "PRAGMA journal_mode=WAL",
            "PRAGMA synchronous=NORMAL",
            "PRAGMA cache_size=-64000",
            "PRAGMA foreign_keys=ON",
            "PRAGMA busy_timeout=5000",
        ]


def _dumped(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value


def _parsed(value: Any) -> Any:
    if not (isinstance(value, str) and value.startswith(("{", "["))):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value
