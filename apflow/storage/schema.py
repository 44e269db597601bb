"""The schema of a database: made when it is fresh, upgraded when it is older, refused when it is newer.

Only an upgrade imports Alembic and SQLAlchemy.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from apflow.errors import SchemaTooNewError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

    from apflow.storage.store import Dialect

SCHEMA_VERSION = "007"
KNOWN_VERSIONS = frozenset({"001", "002", "003", "004", "005", "006", SCHEMA_VERSION})
VERSION_TABLE = "apflow_alembic_version"

#: Milliseconds that SQLite waits while another process makes or upgrades the schema.
WAIT_MILLISECONDS = 30_000

#: How a transaction begins that nobody else can have open at the same time. The number spells "apflow".
#: Without READ COMMITTED a session that waited for the lock would not see what it waited for.
LOCKS = {
    "sqlite": ("BEGIN IMMEDIATE",),
    "postgresql": (
        "SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
        f"SELECT pg_advisory_xact_lock({int.from_bytes(b'apflow', 'big')})",
    ),
}

_READ_VERSION = f"SELECT version_num FROM {VERSION_TABLE}"


def ensure_schema(connection: sqlite3.Connection | psycopg.Connection[Any], dialect: Dialect) -> None:
    """Bring the database to `SCHEMA_VERSION`, whoever else tries the same at the same moment.

    Either everything that is missing is made, in one transaction, or nothing changes. A database that is up
    to date costs one SELECT.

    Args:
        connection: A driver connection without an open transaction: `sqlite3` with `isolation_level=None`, or
            psycopg 3 with its default rows. It is as before when this returns.
        dialect: What kind of database it is.

    Raises:
        SchemaTooNewError: The database has a version that this apflow does not know.
        sqlite3.Error, psycopg.Error: The database refused or failed.
    """
    database = _SQLite(connection) if isinstance(connection, sqlite3.Connection) else _PostgreSQL(connection)
    state = _state(database)
    if state == "fresh":
        with database.locked():
            state = _state(database)
            if state == "fresh":
                database.run(_head(dialect))
                return
    if state == "older":
        from apflow.storage.migrations.upgrade import upgrade

        upgrade(connection, dialect, needed=lambda: _state(database) != "head")


def _head(dialect: Dialect) -> str:
    """Return the statements that make a fresh database."""
    path = Path(__file__).parent / "migrations" / f"head_{dialect}.sql"
    return path.read_text(encoding="utf-8")


def _state(database: _SQLite | _PostgreSQL) -> Literal["fresh", "older", "head"]:
    versions = database.versions()
    if versions is None:
        return "older" if database.has_tasks() else "fresh"
    if unknown := versions - KNOWN_VERSIONS:
        raise SchemaTooNewError(", ".join(sorted(unknown)), SCHEMA_VERSION)
    return "head" if versions == {SCHEMA_VERSION} else "older"


class _SQLite:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def versions(self) -> set[str] | None:
        """Return what stands in the version table; None when there is no such table."""
        try:
            return self._read_versions()
        except sqlite3.OperationalError:
            # It may have been made since by another process; any other error comes back with the second try.
            return self._read_versions() if self._has(VERSION_TABLE) else None

    def has_tasks(self) -> bool:
        return self._has("apflow_tasks")

    def _read_versions(self) -> set[str]:
        return {version for (version,) in self._connection.execute(_READ_VERSION)}

    def _has(self, table: str) -> bool:
        query = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?"
        return bool(self._connection.execute(query, (table,)).fetchone()[0])

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold a transaction that no other process has open; commit it at the end."""
        with pragmas(self._connection, busy_timeout=WAIT_MILLISECONDS):
            for statement in LOCKS["sqlite"]:
                self._connection.execute(statement)
            with self._connection:
                yield

    def run(self, script: str) -> None:
        """Execute all statements of the script; `executescript` would commit first."""
        for statement in script.split(";\n"):
            self._connection.execute(statement)


@contextlib.contextmanager
def pragmas(connection: sqlite3.Connection, **values: int) -> Iterator[None]:
    """Set pragmas for a while."""
    before = {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in values}
    try:
        for name, value in values.items():
            connection.execute(f"PRAGMA {name}={value}")
        yield
    finally:
        for name, value in before.items():
            connection.execute(f"PRAGMA {name}={value}")


class _PostgreSQL:
    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def versions(self) -> set[str] | None:
        """Return what stands in the version table; None when there is no such table."""
        import psycopg.errors

        with contextlib.suppress(psycopg.errors.UndefinedTable), self._connection.transaction():
            return {version for (version,) in self._connection.execute(_READ_VERSION)}
        return None

    def has_tasks(self) -> bool:
        with self._connection.transaction():
            row = self._connection.execute("SELECT to_regclass('apflow_tasks') IS NOT NULL").fetchone()
        return bool(row and row[0])

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold a transaction that no other session has open; commit it at the end."""
        with self._connection.transaction():
            for statement in LOCKS["postgresql"]:
                self._connection.execute(statement)
            yield

    def run(self, script: str) -> None:
        """Execute all statements of the script."""
        self._connection.execute(script)
