"""`apflow db`, and how commands that only look open a database."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from apflow.bridge.cli.exits import Failed
from apflow.bridge.cli.output import json_option, write_fields, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from apflow.runtime import Runtime

T = TypeVar("T")

database_option = click.option("--database-url", metavar="URL", help="The database, instead of APFLOW_DATABASE_URL.")

_THERE = {
    "sqlite": "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = '{}'",
    "postgresql": "SELECT count(to_regclass('{}'))",
}


def ask(database_url: str | None, question: Callable[[Runtime], Coroutine[Any, Any, T]]) -> T:
    """Return what a coroutine finds out in a database. Nothing in it is carried on meanwhile.

    Raises:
        Failed: There is no such database, or the URL is none.
        ApflowError: Whatever the coroutine raises.
    """
    from apflow.runtime import Runtime

    class Onlooker(Runtime):
        """Takes nothing over, whatever it finds: this process is here to look."""

        def _tidy(self) -> None:
            pass

    async def asked() -> T:
        async with Onlooker(url) as runtime:
            return await question(runtime)

    url = url_of(database_url)
    _check_there(url)
    return asyncio.run(asked())


def url_of(given: str | None) -> str:
    """Return the URL of the database that a command is about.

    Raises:
        Failed: It is none.
    """
    from apflow.storage.connect import DEFAULT_URL, create_session

    url = given or os.environ.get("APFLOW_DATABASE_URL") or DEFAULT_URL
    try:
        create_session(url).close()
    except ValueError as error:
        raise Failed("usage", f"{error} (--database-url or APFLOW_DATABASE_URL)") from None
    return url


def _check_there(url: str) -> None:
    """Refuse to look into a file that would only be made by looking.

    Raises:
        Failed: There is none.
    """
    if not url.startswith("sqlite"):
        return
    from apflow.storage.sqlite_connection import parse_url

    target = parse_url(url)
    if not target.uri and not target.memory and not Path(target.path).exists():
        text = f"there is no database {target.path}; name one with --database-url or APFLOW_DATABASE_URL"
        raise Failed("not_found", text)


@click.group("db")
def database() -> None:
    """Look at the schema of a database, or upgrade it."""


@database.command()
@database_option
@json_option
def current(*, database_url: str | None, as_json: bool) -> None:
    """Write the version of the schema. Nothing is changed."""
    url = url_of(database_url)
    _check_there(url)
    _write(_state(url), as_json=as_json)


@database.command()
@database_option
@json_option
def upgrade(*, database_url: str | None, as_json: bool) -> None:
    """Make the schema, or bring it to the version of this apflow."""
    from apflow.storage.connect import create_session

    url = url_of(database_url)
    store = create_session(url)
    try:
        asyncio.run(store.open())
    finally:
        store.close()
    _write(_state(url), as_json=as_json)


def _write(state: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        write_json(state)
    else:
        write_fields(state)


def _state(url: str) -> dict[str, Any]:
    """Return which version the schema of a database has, and which one this apflow has."""
    from apflow.storage.schema import KNOWN_VERSIONS, SCHEMA_VERSION, VERSION_TABLE

    dialect = "sqlite" if url.startswith("sqlite") else "postgresql"
    with _connected(url) as connection:

        def there(table: str) -> bool:
            return bool(connection.execute(_THERE[dialect].format(table)).fetchone()[0])

        versions: set[str] = set()
        if there(VERSION_TABLE):
            versions = {row[0] for row in connection.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchall()}
        has_tasks = there("apflow_tasks")
    version = ", ".join(sorted(versions)) or None
    state = "current" if versions == {SCHEMA_VERSION} else "older" if versions or has_tasks else "empty"
    if not KNOWN_VERSIONS.issuperset(versions):
        state = "newer"
    return {"database": dialect, "version": version, "known": SCHEMA_VERSION, "state": state}


@contextlib.contextmanager
def _connected(url: str) -> Iterator[Any]:
    """Give a connection of the driver that only reads; its errors are apflow's.

    Raises:
        StorageError: The database cannot be used.
    """
    if url.startswith("sqlite"):
        from apflow.storage import sqlite_connection as sqlite

        target = sqlite.parse_url(url)
        path = target.path if target.uri or target.memory else f"{Path(target.path).as_uri()}?mode=ro"
        try:
            with contextlib.closing(sqlite3.connect(path, uri=not target.memory or target.uri)) as connection:
                yield connection
        except sqlite3.Error as error:
            raise sqlite.translated(error, target) from error
        return
    import psycopg

    from apflow.storage import postgres_connection as postgres

    try:
        with psycopg.connect(postgres.conninfo(url), autocommit=True) as session:
            yield session
    except psycopg.Error as error:
        raise postgres.translated(error) from error
