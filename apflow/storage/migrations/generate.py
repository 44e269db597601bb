"""Writes the SQL that makes a fresh database: `python -m apflow.storage.migrations.generate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

from sqlalchemy import Column, MetaData, PrimaryKeyConstraint, String, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable, DDLElement

from apflow.storage.schema import SCHEMA_VERSION, VERSION_TABLE
from apflow.storage.store import Dialect
from apflow.storage.tables import metadata

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).parent

#: As Alembic makes it.
VERSIONS = Table(
    VERSION_TABLE,
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name=f"{VERSION_TABLE}_pkc"),
)


def path(dialect: Dialect) -> Path:
    """Return where the SQL for this kind of database stands."""
    return FOLDER / f"head_{dialect}.sql"


def head_sql(dialect: Dialect) -> str:
    """Return the statements that make a fresh database, each one ended by a semicolon and a new line."""
    compiler = {"sqlite": sqlite.dialect, "postgresql": postgresql.dialect}[dialect]()
    compiled = (str(statement.compile(dialect=compiler)) for statement in _statements())
    insert = f"INSERT INTO {VERSION_TABLE} (version_num) VALUES ('{SCHEMA_VERSION}')"
    clean = ("\n".join(line.rstrip() for line in text.strip().splitlines()) for text in (*compiled, insert))
    return ";\n".join(clean).replace("\t", "  ") + "\n"


def _statements() -> Iterator[DDLElement]:
    for table in (*metadata.sorted_tables, VERSIONS):
        yield CreateTable(table)
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            yield CreateIndex(index)


def main() -> None:
    """Write both files."""
    for dialect in get_args(Dialect):
        path(dialect).write_text(head_sql(dialect), encoding="utf-8")


if __name__ == "__main__":
    main()
