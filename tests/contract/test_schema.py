from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from apflow.errors import SchemaTooNewError, StorageError
from apflow.storage import tables
from apflow.storage.migrations import generate
from apflow.storage.migrations.upgrade import upgrade
from apflow.storage.schema import KNOWN_VERSIONS, SCHEMA_VERSION, VERSION_TABLE, ensure_schema
from tests.contract import v1_databases as v1
from tests.contract.raw_database import RawDatabase, fresh_shape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apflow.storage.store import Dialect

#: Makes the schema when it is told to, then prints which heavy libraries that took.
PROGRAM = """
import sqlite3, sys
from apflow.storage.schema import ensure_schema
url = sys.argv[1]
if url.startswith("sqlite"):
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    dialect = "sqlite"
else:
    import psycopg
    connection = psycopg.connect(url, autocommit=True)
    dialect = "postgresql"
print("ready", flush=True)
sys.stdin.readline()
ensure_schema(connection, dialect)
connection.close()
print(*sorted({"alembic", "sqlalchemy", "sqlmodel", "pydantic"} & set(sys.modules)))
"""


@pytest.fixture
def database(database_url: str) -> Iterator[RawDatabase]:
    with closing((database := RawDatabase(database_url)).connection):
        yield database


def test_a_fresh_database_is_what_the_tables_say(database: RawDatabase) -> None:
    database.ensure()
    assert database.rows(f"SELECT version_num FROM {VERSION_TABLE}") == [(SCHEMA_VERSION,)]
    engine = database.engine()
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True, "version_table": VERSION_TABLE}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), tables.metadata) == []
    engine.dispose()


def test_a_database_at_head_is_left_alone(database: RawDatabase) -> None:
    database.ensure()
    database.connection.execute("INSERT INTO apflow_tasks (id, name) VALUES ('a', 'n')")
    before = database.contents()
    database.ensure()
    assert database.contents() == before


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_the_generated_sql_is_up_to_date(dialect: Dialect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = generate.path(dialect).read_text(encoding="utf-8")
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    generate.main()
    generated = generate.path(dialect).read_text(encoding="utf-8")
    assert written == generated, "run: python -m apflow.storage.migrations.generate"


def test_a_fresh_database_equals_one_that_took_every_revision(
    database: RawDatabase,
) -> None:
    upgrade(database.connection, database.dialect, needed=lambda: True)
    assert database.shape() == fresh_shape(database)


def test_neither_a_fresh_database_nor_one_at_head_imports_sqlalchemy(database_url: str) -> None:
    for _ in ("fresh", "head"):
        program = _start(database_url)
        output, _errors = program.communicate("go\n", timeout=60)
        assert (program.returncode, output) == (0, "ready\n\n")


def test_a_database_in_memory_works() -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        ensure_schema(connection, "sqlite")
        assert connection.execute("SELECT count(*) FROM apflow_tasks").fetchone() == (0,)


@pytest.mark.parametrize(("start", "processes"), [("", 4), (v1.BORN_0_18, 2)], ids=["fresh", "v1"])
def test_processes_that_start_together_make_one_schema(database: RawDatabase, start: str, processes: int) -> None:
    database.make(start)
    programs = [_start(database.url) for _ in range(processes)]
    for program in programs:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
    for program in programs:
        assert program.stdin is not None
        program.stdin.write("go\n")
        program.stdin.flush()
    results = [(program.communicate(timeout=60), program.returncode) for program in programs]
    assert all(code == 0 for _, code in results), results
    assert database.shape() == fresh_shape(database)
    assert database.rows(f"SELECT version_num FROM {VERSION_TABLE}") == [(SCHEMA_VERSION,)]


def _start(url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_program_that_waited_for_another_ones_upgrade_does_nothing(database: RawDatabase) -> None:
    database.make(v1.BORN_0_18)
    before = database.shape()
    upgrade(database.connection, database.dialect, needed=lambda: False)
    assert database.shape() == before


@pytest.mark.parametrize("start", ["", v1.BORN_0_18], ids=["fresh", "v1"])
def test_the_connection_is_given_back_as_it_came(database: RawDatabase, start: str) -> None:
    if database.dialect == "sqlite":
        database.connection.execute("PRAGMA foreign_keys=ON")
        database.connection.execute("PRAGMA busy_timeout=7")
    database.make(start)
    database.ensure()
    if database.dialect == "sqlite":
        assert database.rows("PRAGMA foreign_keys") == [(1,)]
        assert database.rows("PRAGMA busy_timeout") == [(7,)]
        assert not database.connection.in_transaction
    else:
        assert database.connection.autocommit
        assert database.connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_a_connection_that_does_not_commit_by_itself_works_too(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        ensure_schema(connection, "postgresql")
        ensure_schema(connection, "postgresql")
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT count(*) FROM apflow_tasks").fetchone() == (0,)


def test_a_damaged_file_is_reported_as_such(sqlite_url: str) -> None:
    Path(sqlite_url.removeprefix("sqlite:///")).write_bytes(b"not a database, but long enough to look at")
    connection = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    with closing(connection), pytest.raises(sqlite3.DatabaseError, match="not a database"):
        ensure_schema(connection, "sqlite")


def test_a_newer_database_is_refused(database: RawDatabase) -> None:
    database.ensure()
    database.connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '999'")
    before = (database.shape(), database.contents())
    with pytest.raises(SchemaTooNewError, match=rf"999.*{SCHEMA_VERSION}.*Upgrade apflow") as caught:
        database.ensure()
    assert (caught.value.found, caught.value.known) == ("999", SCHEMA_VERSION)
    assert (database.shape(), database.contents()) == before


def test_the_versions_known_are_the_revisions_there_are() -> None:
    config = Config()
    config.set_main_option("script_location", "apflow.storage:migrations")
    scripts = ScriptDirectory.from_config(config)
    revisions: list[Any] = list(scripts.walk_revisions())
    assert {script.revision for script in revisions} == KNOWN_VERSIONS
    assert scripts.get_current_head() == SCHEMA_VERSION
    for script in revisions:
        with pytest.raises(StorageError, match=f"{script.revision} cannot be undone"):
            script.module.downgrade()
