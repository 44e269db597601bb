"""PostgreSQL connections that end, servers that are gone: a retry or a clear error, never a hung caller."""

from __future__ import annotations

import asyncio
import functools
import tempfile
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import psycopg
import pytest

import apflow
from apflow import Runtime, create_session
from apflow.clock import SystemClock
from apflow.errors import (
    StorageBusyError,
    StorageError,
    StorageUnavailableError,
)
from apflow.storage.postgres import PostgresStore
from tests.postgres_server import start_bundled, stop_bundled

if TYPE_CHECKING:
    from apflow.storage.store import Tx

T = TypeVar("T")

pytestmark = pytest.mark.anyio

INSERT = "INSERT INTO apflow_tasks (id, name, status) VALUES (:id, :name, 'pending')"


def insert(name: str, tx: Tx) -> int:
    return tx.execute(INSERT, {"id": str(uuid.uuid4()), "name": name})


def count(tx: Tx) -> int:
    row = tx.row("SELECT count(*) FROM apflow_tasks")
    assert row is not None
    return int(row[0])


adding = functools.partial(insert, "a")


@apflow.task
async def double(n: int) -> int:
    return n * 2


@apflow.task(checkpoint=True)
async def quadruple(n: int) -> int:
    return await double(await double(n))


def end_connections(url: str) -> None:
    """Have the server end every connection to the database but ours."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


async def test_connections_that_ended_between_statements_are_replaced(postgres_url: str) -> None:
    store = create_session(postgres_url)
    await asyncio.gather(*(store.write(adding) for _ in range(50)))
    await asyncio.to_thread(store.write_blocking, adding)
    end_connections(postgres_url)
    assert await asyncio.gather(*(store.write(adding, single=n % 2 == 0) for n in range(49))) == [1] * 49
    end_connections(postgres_url)
    assert await asyncio.to_thread(store.write_blocking, adding) == 1
    assert await store.read(count) == 101
    store.close()


async def test_connections_that_end_during_statements_are_replaced(postgres_url: str) -> None:
    store = create_session(postgres_url)
    entered = threading.Event()
    tries = 0

    def slow(tx: Tx) -> int:
        nonlocal tries
        tries += 1
        done = insert("slow", tx)
        entered.set()
        if tries == 1:
            tx.row("SELECT pg_sleep(20)")
        return done

    waiter = asyncio.create_task(store.write(slow))
    assert await asyncio.to_thread(entered.wait, 20)
    await asyncio.to_thread(end_connections, postgres_url)
    assert await waiter == 1
    assert tries == 2
    assert await store.read(count) == 1
    store.close()


async def test_runs_survive_connections_that_end(postgres_url: str) -> None:
    async with Runtime(postgres_url, shutdown_seconds=1):
        runs = asyncio.gather(*(quadruple(n) for n in range(60)))
        for _ in range(3):
            await asyncio.sleep(0.03)
            await asyncio.to_thread(end_connections, postgres_url)
        assert await runs == [n * 4 for n in range(60)]
    with psycopg.connect(postgres_url) as conn:
        rows = conn.execute("SELECT kind, status, count(*) FROM apflow_tasks GROUP BY 1, 2 ORDER BY 1").fetchall()
    assert rows == [("child", "completed", 120), ("run", "completed", 60)]


async def test_a_waiter_is_woken_after_its_connection_ended(postgres_url: str) -> None:
    store, other = create_session(postgres_url), create_session(postgres_url)
    seen = await store.changed("a", None, 5)
    await asyncio.to_thread(end_connections, postgres_url)
    await asyncio.sleep(1)  # it connects again
    loop = asyncio.get_running_loop()
    began = loop.time()
    waiter = asyncio.create_task(store.changed("a", seen, 60))
    await asyncio.sleep(0.05)
    await other.write(lambda tx: tx.row("SELECT pg_notify('apflow_runs', 'a')"))
    store.unwatch("a", await waiter)
    assert loop.time() - began < 30
    store.close()
    other.close()


async def test_a_transaction_that_failed_inside_is_never_taken_for_stored(postgres_url: str) -> None:
    store = create_session(postgres_url)

    def careless(tx: Tx) -> int:
        done = insert("a", tx)
        try:
            tx.execute("UPDATE nowhere SET a = 1")
        except psycopg.Error:
            return done
        return 0

    with pytest.raises(StorageError, match="nothing was stored"):
        await store.write(careless)
    assert await store.read(count) == 0
    store.close()


async def test_a_row_locked_for_too_long_is_an_error(postgres_url: str) -> None:
    store = PostgresStore(postgres_url, clock=SystemClock(), wait_seconds=0.2)
    await store.write(adding)
    change = functools.partial(lambda tx: tx.execute("UPDATE apflow_tasks SET name = 'b'"))
    with psycopg.connect(postgres_url) as conn:
        conn.execute("SELECT * FROM apflow_tasks FOR UPDATE")
        with pytest.raises(StorageBusyError):
            await store.write(change)
    assert await store.write(change) == 1
    store.close()


async def test_a_server_that_stopped_for_good() -> None:
    folder = Path(tempfile.mkdtemp(prefix="apflow-tests-"))  # a folder of pytest's is closed to its user
    url = start_bundled(folder)
    store = PostgresStore(url, clock=SystemClock(), wait_seconds=0.5)
    try:
        assert await store.write(adding) == 1
    finally:
        stop_bundled(folder)
    outcomes = await asyncio.gather(*(store.write(adding) for _ in range(30)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {StorageUnavailableError}
    with pytest.raises(StorageUnavailableError):
        await asyncio.to_thread(store.write_blocking, adding)
    store.close()


async def test_an_unknown_database_is_named(postgres_url: str) -> None:
    name = urlsplit(postgres_url).path
    store = create_session(postgres_url.replace(name, "/not_there"))
    with pytest.raises(StorageUnavailableError, match="not_there"):
        await store.open()
    store.close()


async def test_an_unknown_user_is_named(postgres_url: str) -> None:
    url = psycopg.conninfo.conninfo_to_dict(postgres_url)
    store = create_session(f"postgresql://nobody_here:hush@/{url['dbname']}?host={url['host']}")
    with pytest.raises(StorageUnavailableError, match="nobody_here") as caught:
        await store.open()
    assert "hush" not in str(caught.value)
    store.close()


def test_a_url_that_is_none() -> None:
    with pytest.raises(ValueError, match="not a PostgreSQL URL") as caught:
        create_session("postgresql://user:hush@host:port:port/x?y")
    assert "hush" not in str(caught.value)


async def test_errors_do_not_tell_stored_values(postgres_url: str) -> None:
    store = create_session(postgres_url)
    params = {"id": "a-secret-id", "name": "a"}
    await store.write(lambda tx: tx.execute(INSERT, params))
    with pytest.raises(StorageError) as caught:
        await store.write(lambda tx: tx.execute(INSERT, params))
    assert "a-secret-id" not in str(caught.value)
    store.close()


async def test_full_durability_is_asked_of_postgresql(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as conn:
        name = urlsplit(postgres_url).path.strip("/")
        conn.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off'.encode())
    for durability, expected in (("normal", "off"), ("full", "on")):
        store = create_session(postgres_url, durability=durability)  # type: ignore[arg-type]  # both are right
        assert await store.write(lambda tx: tx.row("SHOW synchronous_commit")) == (expected,)
        store.close()
