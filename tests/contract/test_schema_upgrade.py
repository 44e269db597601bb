from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlmodel import Session

from apflow.storage import tables
from apflow.storage.migrations import v1_log
from apflow.storage.schema import SCHEMA_VERSION, VERSION_TABLE
from tests.contract import v1_databases as v1
from tests.contract.raw_database import RawDatabase, fresh_shape

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def database(database_url: str) -> Iterator[RawDatabase]:
    with closing((database := RawDatabase(database_url)).connection):
        yield database


def births() -> list[Any]:
    """Return every dialect with every kind of v1 database that there is of it."""
    return [
        pytest.param(dialect, birth, id=f"{dialect}, {birth}")
        for dialect, births_of in v1.BIRTHS.items()
        for birth in births_of
    ]


@pytest.mark.parametrize(("dialect", "birth"), births())
def test_any_v1_database_comes_to_the_same_schema(dialect: str, birth: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue("sqlite_url" if dialect == "sqlite" else "postgres_url")
    kept = "SELECT id, name, status, inputs, created_at FROM apflow_tasks ORDER BY id"
    with closing((database := RawDatabase(url)).connection):
        database.make(v1.BIRTHS[dialect][birth])
        _fill(database)
        before = database.rows(kept)
        database.ensure()
        shape = database.shape()
        left_over = shape["apflow_tasks"]["columns"].pop("has_copy", None)
        assert (left_over is not None) == (birth == "migrated to 0.18")
        assert shape == fresh_shape(database)
        assert database.rows(kept) == before


def _fill(database: RawDatabase) -> None:
    database.connection.execute(
        "INSERT INTO apflow_tasks (id, name, status, inputs, result, progress, created_at) VALUES "
        "('old', 'fetch', 'completed', '{\"url\": \"x\"}', '1.5', 0.25, '2024-05-01 10:00:00.000000'), "
        "('pages', 'fetch', 'completed', NULL, '[1, 2]', 1, '2024-05-01 10:00:00.000000'), "
        "('open', 'fetch', 'in_progress', NULL, NULL, NULL, NULL)"
    )


def test_old_rows_are_read_through_the_tables(database: RawDatabase) -> None:
    database.make(v1.BORN_0_18)
    _fill(database)
    database.ensure()
    engine = database.engine()
    with Session(engine) as session:
        old, pages = (session.get_one(tables.TaskModel, task_id) for task_id in ("old", "pages"))
        assert (old.status, old.inputs, old.result, old.kind) == ("completed", {"url": "x"}, 1.5, None)
        assert (old.task_tree_id, old.max_attempts, pages.result) == ("old", 3, [1, 2])
        assert old.created_at is not None
        assert old.created_at.tzinfo is UTC
    engine.dispose()


@pytest.mark.parametrize("birth", [v1.BORN_0_11, v1.BORN_0_18], ids=["0.11", "0.18"])
def test_every_old_task_learns_its_tree(database: RawDatabase, birth: str) -> None:
    database.make(birth)
    insert = "INSERT INTO apflow_tasks (id, parent_id, name) VALUES "
    roots = [f"('root{n}', NULL, 'n')" for n in range(250)]
    children = [f"('child{n}', 'root{n}', 'n'), ('grandchild{n}', 'child{n}', 'n')" for n in range(250)]
    odd = ["('orphan', 'gone', 'n')", "('child of orphan', 'orphan', 'n')"]
    database.connection.execute(insert + ", ".join(roots + children + odd))
    database.ensure()
    found = dict(database.rows("SELECT id, task_tree_id FROM apflow_tasks"))
    wanted = {f"{level}{n}": f"root{n}" for n in range(250) for level in ("root", "child", "grandchild")}
    assert found == wanted | {"orphan": "orphan", "child of orphan": "orphan"}


def test_a_tree_that_v1_knew_is_kept(database: RawDatabase) -> None:
    database.make(v1.BORN_0_18)
    database.connection.execute(
        "INSERT INTO apflow_tasks (id, parent_id, task_tree_id, name) VALUES "
        "('a', NULL, 'elsewhere', 'n'), ('b', 'a', NULL, 'n'), ('c', 'b', 'own', 'n'), ('d', 'c', NULL, 'n')"
    )
    database.ensure()
    found = dict(database.rows("SELECT id, task_tree_id FROM apflow_tasks"))
    assert found == {"a": "elsewhere", "b": "elsewhere", "c": "own", "d": "own"}


def test_copies_of_0_11_count_as_references(database: RawDatabase) -> None:
    database.make(v1.BORN_0_11)
    database.connection.execute("INSERT INTO apflow_tasks (id, name, has_copy) VALUES ('a', 'n', true)")
    database.ensure()
    assert database.rows("SELECT id FROM apflow_tasks WHERE has_references") == [("a",)]


@pytest.mark.parametrize("family", [0, 1, 2], ids=["class names", "file names", "aliases"])
def test_what_v1_noted_about_its_migrations_stays_as_it_was(sqlite_url: str, family: int) -> None:
    noted = sorted(names[family] for names in v1_log.NAMES.values())
    with closing((database := RawDatabase(sqlite_url)).connection):
        database.make(v1.BORN_0_18)
        for name in noted:
            database.make(
                "INSERT INTO apflow_schema_migrations (id, description, apflow_version) "
                f"VALUES ('{name}', 'd', '0.18.2')"
            )
        database.ensure()
        assert database.rows("SELECT id FROM apflow_schema_migrations ORDER BY id") == [(n,) for n in noted]


def test_a_step_that_v1_never_took_is_noted_for_it(database: RawDatabase) -> None:
    database.make(v1.BORN_0_11)
    database.ensure()
    noted = database.rows("SELECT id FROM apflow_schema_migrations ORDER BY id")
    assert noted == [("AddDistributedSupport",), ("AddSchedulingFields",), ("AddTaskTreeFields",)]


def test_a_database_between_two_revisions_takes_the_rest(database: RawDatabase) -> None:
    database.make(v1.BORN_0_18)
    database.connection.execute(f"CREATE TABLE {VERSION_TABLE} (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
    database.connection.execute(f"INSERT INTO {VERSION_TABLE} VALUES ('003')")
    database.ensure()
    shape = database.shape()
    # Revision 001 was not taken again, so the two indexes that it drops are still there.
    assert shape["apflow_tasks"]["indexes"].pop("ix_apflow_tasks_id")
    assert shape["apflow_schema_migrations"]["indexes"].pop("ix_apflow_schema_migrations_id")
    assert shape == fresh_shape(database)


def test_deleting_an_old_task_takes_its_leases_and_events_along(database: RawDatabase) -> None:
    database.make(v1.BORN_0_18)
    database.make("""
INSERT INTO apflow_tasks (id, name) VALUES ('a', 'n'), ('b', 'n');
INSERT INTO apflow_distributed_nodes (node_id, executor_types, status, heartbeat_at)
  VALUES ('node', '[]', 'dead', '2024-05-01');
INSERT INTO apflow_task_leases (task_id, node_id, lease_token, expires_at)
  VALUES ('a', 'node', 't1', '2024-05-01'), ('b', 'node', 't2', '2024-05-01');
INSERT INTO apflow_task_events (event_id, task_id, event_type) VALUES ('1', 'a', 'e'), ('2', 'b', 'e')""")
    database.ensure()
    if database.dialect == "sqlite":
        database.connection.execute("PRAGMA foreign_keys=ON")
    database.connection.execute("INSERT INTO task_checkpoints (id, task_id, checkpoint_data) VALUES ('1', 'a', '{}')")
    database.connection.execute("DELETE FROM apflow_tasks WHERE id = 'a'")
    assert database.rows("SELECT task_id FROM apflow_task_leases") == [("b",)]
    assert database.rows("SELECT task_id FROM apflow_task_events") == [("b",)]
    assert database.rows("SELECT task_id FROM task_checkpoints") == []


def test_an_event_whose_task_is_gone_does_not_stop_the_upgrade(sqlite_url: str) -> None:
    """SQLite checks foreign keys only when it is asked to, and v1 did not ask."""
    with closing((database := RawDatabase(sqlite_url)).connection):
        database.make(v1.BORN_0_18)
        database.make("INSERT INTO apflow_task_events (event_id, task_id, event_type) VALUES ('1', 'gone', 'e')")
        database.connection.execute("PRAGMA foreign_keys=ON")
        database.ensure()
        assert database.rows("SELECT task_id FROM apflow_task_events") == [("gone",)]


def test_an_upgrade_that_fails_leaves_everything_as_it_was(database: RawDatabase) -> None:
    database.make(v1.BORN_0_11)
    _fill(database)
    # The last revision makes an index of this name, and there can be only one.
    database.connection.execute("CREATE TABLE mine (id INTEGER)")
    database.connection.execute("CREATE INDEX ix_apflow_tasks_run_key ON mine (id)")
    before = (database.shape(), database.contents())
    with pytest.raises((sqlite3.OperationalError, psycopg.errors.DuplicateTable), match="run_key"):
        database.ensure()
    assert (database.shape(), database.contents()) == before

    database.connection.execute("DROP INDEX ix_apflow_tasks_run_key")
    database.ensure()
    assert database.rows(f"SELECT version_num FROM {VERSION_TABLE}") == [(SCHEMA_VERSION,)]
