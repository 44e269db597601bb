"""Runs Alembic over a connection that somebody else has opened."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from apflow.storage.schema import LOCKS, WAIT_MILLISECONDS, pragmas

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg
    from sqlalchemy.engine import Connection, Engine

    from apflow.storage.store import Dialect

logger = logging.getLogger("apflow.storage")

# Alembic keeps the upgrade at work in module variables.
_one_at_a_time = threading.Lock()

_URLS = {"sqlite": "sqlite://", "postgresql": "postgresql+psycopg://"}


def upgrade(
    connection: sqlite3.Connection | psycopg.Connection[Any], dialect: Dialect, *, needed: Callable[[], bool]
) -> None:
    """Upgrade the database to the newest revision, in one transaction that nobody else can have open.

    Args:
        connection: A driver connection without an open transaction.
        dialect: What kind of database it is.
        needed: Asked inside the transaction: another process may have upgraded the database meanwhile.

    Raises:
        sqlite3.Error, psycopg.Error: The database refused or failed, and is as it was.
    """
    try:
        with _one_at_a_time, _transactional(connection), _engine(connection, dialect).begin() as transaction:
            if needed():
                logger.info("apflow upgrades the schema of its %s database", dialect)
                command.upgrade(_config(transaction), "head")
    except DBAPIError as error:
        raise (error.orig or error) from error


def _engine(connection: sqlite3.Connection | psycopg.Connection[Any], dialect: Dialect) -> Engine:
    """Return an engine for this one connection. It is never disposed of, which would close the connection."""
    options = {"use_native_hstore": False} if dialect == "postgresql" else {}
    engine = create_engine(_URLS[dialect], creator=lambda: connection, poolclass=StaticPool, **options)

    @event.listens_for(engine, "begin")
    def begin(transaction: Connection) -> None:
        for statement in LOCKS[dialect]:
            transaction.exec_driver_sql(statement)

    return engine


def _config(transaction: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", "apflow.storage:migrations")
    config.attributes["connection"] = transaction
    return config


@contextlib.contextmanager
def _transactional(connection: sqlite3.Connection | psycopg.Connection[Any]) -> Iterator[None]:
    """Let the driver neither commit by itself nor begin by itself.

    SQLite has to stop checking foreign keys while tables are replaced, and can do so only outside a
    transaction.
    """
    if isinstance(connection, sqlite3.Connection):
        with pragmas(connection, busy_timeout=WAIT_MILLISECONDS, foreign_keys=0):
            yield
        return
    before = connection.autocommit
    connection.autocommit = False
    try:
        yield
    finally:
        connection.autocommit = before
