"""Steps that a revision may take on a database of which it does not know what is there already."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import sqlalchemy as sa
from alembic import op

from apflow.errors import StorageError

if TYPE_CHECKING:
    from sqlalchemy.engine import Inspector


def is_postgresql() -> bool:
    """Whether the database is PostgreSQL; it is SQLite otherwise."""
    return op.get_bind().dialect.name == "postgresql"


def has_table(table: str) -> bool:
    """Whether the table is there."""
    return _inspector().has_table(table)


def has_column(table: str, column: str) -> bool:
    """Whether the table has the column."""
    return column in _columns(table)


def create_missing_table(table: str, *parts: sa.schema.SchemaItem, rowid: bool = True) -> None:
    """Create the table if it is not there; otherwise leave it as it is.

    Args:
        table: The table.
        parts: Columns and constraints.
        rowid: False makes the primary key the table itself on SQLite.
    """
    if not has_table(table):
        op.create_table(table, *parts, sqlite_with_rowid=rowid)


def add_missing_columns(table: str, *columns: sa.Column[object]) -> None:
    """Add those of the columns that the table does not have."""
    present = _columns(table)
    for column in columns:
        if column.name not in present:
            op.add_column(table, column)


def ensure_index(
    table: str, *columns: str, unique: bool = False, where: str | None = None, formerly: str | None = None
) -> None:
    """Create the index `ix_<table>_<columns>` if it is not there.

    Args:
        table: The table.
        columns: What it indexes.
        unique: Whether it is unique.
        where: The condition of a partial index.
        formerly: A name under which v1 may have made the same index; that one is dropped.
    """
    name = "_".join(("ix", table, *columns))
    if formerly is not None:
        drop_index(table, formerly)
    if name not in _indexes(table):
        condition = None if where is None else sa.text(where)
        op.create_index(name, table, list(columns), unique=unique, sqlite_where=condition, postgresql_where=condition)


def drop_index(table: str, name: str) -> None:
    """Drop the index if it is there."""
    if name in _indexes(table):
        op.drop_index(name, table)


def drop_defaults(table: str, *columns: str) -> None:
    """Drop the database's own defaults of the columns; SQLite keeps them, as it cannot change a column."""
    if is_postgresql():
        for column in columns:
            op.alter_column(table, column, server_default=None)


def drop_unique_constraint(table: str, name: str) -> None:
    """Drop the constraint if it is there, on PostgreSQL; on SQLite it has no name and stays."""
    if name in {constraint["name"] for constraint in _inspector().get_unique_constraints(table)}:
        op.drop_constraint(name, table, type_="unique")


def refuse_downgrade(revision: str) -> NoReturn:
    """Stop a downgrade.

    Raises:
        StorageError: Always.
    """
    raise StorageError(
        f"revision {revision} cannot be undone: it would delete what is in its columns. "
        "Restore a backup that was made before the upgrade."
    )


def _inspector() -> Inspector:
    """Return a new one each time: an inspector remembers what it saw."""
    inspector: Inspector = sa.inspect(op.get_bind())
    return inspector


def _columns(table: str) -> set[str]:
    return {column["name"] for column in _inspector().get_columns(table)}


def _indexes(table: str) -> set[str | None]:
    return {index["name"] for index in _inspector().get_indexes(table)}
