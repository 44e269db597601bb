"""A database below every abstraction of apflow, and what tests want to know of it."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy import create_engine, inspect

from apflow.storage.schema import ensure_schema
from tests.contract.v1_databases import statements
from tests.postgres_server import fresh_database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Engine, Inspector

    from apflow.storage.store import Dialect

Shape = dict[str, dict[str, Any]]


class RawDatabase:
    """A driver connection in autocommit mode, as the stores open it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.dialect: Dialect = "sqlite" if url.startswith("sqlite") else "postgresql"
        self.connection: Any
        if self.dialect == "sqlite":
            self.connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        else:
            self.connection = psycopg.connect(url, autocommit=True)

    def ensure(self) -> None:
        ensure_schema(self.connection, self.dialect)

    def make(self, template: str) -> None:
        for statement in statements(template, self.dialect):
            self.connection.execute(statement)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return list(self.connection.execute(query).fetchall())

    def engine(self) -> Engine:
        return create_engine(self.url.replace("postgresql:", "postgresql+psycopg:"))

    def shape(self) -> Shape:
        """Return everything about the tables except the order of their columns."""
        engine = self.engine()
        with engine.connect() as connection:
            shape = _shape(inspect(connection))
        engine.dispose()
        return shape

    def contents(self) -> dict[str, list[str]]:
        return {table: sorted(map(repr, self.rows(f"SELECT * FROM {table}"))) for table in self.shape()}


_fresh: dict[str, Shape] = {}


def fresh_shape(like: RawDatabase) -> Shape:
    """Return what a fresh database of the same kind looks like."""
    if like.dialect not in _fresh:
        with _empty_url(like) as url, closing((database := RawDatabase(url)).connection):
            database.ensure()
            _fresh[like.dialect] = database.shape()
    return _fresh[like.dialect]


@contextmanager
def _empty_url(like: RawDatabase) -> Iterator[str]:
    if like.dialect == "postgresql":
        with fresh_database(like.url) as url:
            yield url
    else:
        with TemporaryDirectory() as folder:
            yield f"sqlite:///{Path(folder) / 'fresh.db'}"


def _shape(inspector: Inspector) -> Shape:
    shape: Shape = defaultdict(dict)
    for (_, table), columns in inspector.get_multi_columns().items():
        shape[table]["columns"] = {
            column["name"]: (str(column["type"]), column["nullable"], str(column["default"]).strip("()"))
            for column in columns
        }
    for (_, table), indexes in inspector.get_multi_indexes().items():
        shape[table]["indexes"] = {
            index["name"]: (index["column_names"], bool(index["unique"]), _condition(index))
            for index in indexes
            if not index.get("duplicates_constraint")
        }
    for (_, table), key in inspector.get_multi_pk_constraint().items():
        shape[table]["primary key"] = key and key["constrained_columns"]
    for (_, table), keys in inspector.get_multi_foreign_keys().items():
        shape[table]["foreign keys"] = sorted(
            (key["constrained_columns"], key["referred_table"], key["options"]) for key in keys
        )
    for (_, table), constraints in inspector.get_multi_unique_constraints().items():
        shape[table]["unique"] = sorted(constraint["column_names"] for constraint in constraints)
    return dict(shape)


def _condition(index: Any) -> str:
    options = index.get("dialect_options", {})
    condition = options.get("sqlite_where", options.get("postgresql_where"))
    return "" if condition is None else str(condition).strip("()")
