from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import StatementError
from sqlmodel import Session, SQLModel, col, select

from apflow.storage import tables
from tests.contract.raw_database import RawDatabase

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def database(database_url: str) -> Iterator[RawDatabase]:
    with closing((database := RawDatabase(database_url)).connection):
        yield database


@pytest.mark.parametrize("result", [1.0, 12345678901234567890, 1e300, "1.0", True, {"a": [None]}, None], ids=repr)
def test_a_result_comes_back_as_it_was(database: RawDatabase, result: Any) -> None:
    database.ensure()
    engine = database.engine()
    with Session(engine) as session:
        session.add(tables.TaskModel(id="a", name="n", result=result))
        session.commit()
    with Session(engine) as session:
        back = session.get_one(tables.TaskModel, "a").result
        assert (back, type(back)) == (result, type(result))
        missing = session.scalar(text("SELECT count(*) FROM apflow_tasks WHERE result IS NULL"))
        assert missing == (result is None)
    engine.dispose()


def test_times_are_stored_in_utc_and_sort(database: RawDatabase) -> None:
    database.ensure()
    noon = datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=5)))
    engine = database.engine()
    with Session(engine) as session:
        session.add(tables.TaskModel(id="a", name="n", started_at=noon, checkpoint_at=noon))
        session.commit()
        a_second_ago = col(tables.TaskModel.started_at) > noon - timedelta(seconds=1)
        assert session.exec(select(tables.TaskModel.id).where(a_second_ago)).all() == ["a"]
    with Session(engine) as session:
        task = session.get_one(tables.TaskModel, "a")
        for back in (task.started_at, task.checkpoint_at):
            assert back == noon
            assert back.tzinfo is UTC
    engine.dispose()
    if database.dialect == "sqlite":
        stored = database.rows("SELECT started_at, checkpoint_at FROM apflow_tasks")
        assert stored == [("2026-03-01 07:00:00.000000", "2026-03-01 07:00:00.000000")]


def test_a_time_without_a_zone_is_refused(database: RawDatabase) -> None:
    database.ensure()
    engine = database.engine()
    with Session(engine) as session:
        session.add(tables.TaskModel(id="a", name="n", started_at=datetime(2026, 3, 1)))  # noqa: DTZ001 - the point
        with pytest.raises(StatementError, match="zone"):
            session.commit()
    engine.dispose()


def test_a_run_key_is_used_once(database: RawDatabase) -> None:
    database.ensure()
    database.connection.execute("INSERT INTO apflow_tasks (id, name) VALUES ('a', 'n'), ('b', 'n')")
    database.connection.execute("INSERT INTO apflow_tasks (id, name, run_key) VALUES ('c', 'n', 'k')")
    with pytest.raises((sqlite3.IntegrityError, psycopg.errors.UniqueViolation)):
        database.connection.execute("INSERT INTO apflow_tasks (id, name, run_key) VALUES ('d', 'n', 'k')")


def test_the_tables_stay_out_of_an_applications_own_metadata() -> None:
    assert not set(tables.metadata.tables) & set(SQLModel.metadata.tables)
