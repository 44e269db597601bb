"""Changes that meet others in the middle of their work, through two connections to one database."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import closing
from typing import Any, TypeVar

import pytest

import apflow
from apflow import TaskCreator, create_session
from apflow.errors import RunActiveError, RunNotFoundError, TaskTreeError
from apflow.storage.repository import TaskRepository
from apflow.storage.store import Row, Store, Tx
from tests.contract.ledger_rows import Counting, CountingTx, one
from tests.contract.raw_database import RawDatabase
from tests.contract.task_nodes import add_node, left

pytestmark = pytest.mark.anyio

T = TypeVar("T")

BEGIN = (
    "UPDATE apflow_tasks SET status = 'in_progress', epoch = 1, owner = 'elsewhere:0:1:1:00', "
    "lease_expires_at = '2999-01-01 00:00:00.000000+00' WHERE id = 'a' AND status = 'pending'"
)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    made = create_session(database_url)
    await made.open()
    yield made
    made.close()


@pytest.fixture
def other(store: Store) -> Iterator[RawDatabase]:
    """Somebody else's connection, on which every statement is a transaction unless one is begun."""
    database = RawDatabase(store.url)
    with closing(database.connection):
        yield database


class PausedTx(CountingTx):
    """A transaction that does something else first when a statement of some kind comes for the first time."""

    def __init__(self, tx: Tx, store: Paused) -> None:
        super().__init__(tx, store)
        self._store = store

    def execute(self, sql: str, params: Mapping[str, Any] = {}) -> int:
        self._store.look(sql)
        return super().execute(sql, params)

    def rows(self, sql: str, params: Mapping[str, Any] = {}) -> list[Row]:
        self._store.look(sql)
        return super().rows(sql, params)


class Paused(Counting):
    """A store whose transactions call `before` once, ahead of the first statement that contains `word`, or `COMMIT`."""

    def __init__(self, store: Store, word: str, before: Callable[[], object]) -> None:
        super().__init__(store)
        self._word, self._before = word, before
        self.paused = False

    def look(self, sql: str) -> None:
        if self._word in sql and not self.paused:
            self.paused = True
            self._before()

    async def write(self, fn: Callable[[Tx], T], *, single: bool = False) -> T:
        def paused(tx: Tx) -> T:
            result = fn(PausedTx(tx, self))
            self.look("COMMIT")
            return result

        return await self._store.write(paused, single=single)


def wait_until_blocked(store: Store, thread: threading.Thread) -> None:
    """Return when the thread's statement waits for a lock, or has ended. SQLite does not tell; it has one lock."""
    if store.dialect == "sqlite":
        thread.join(0.05)
        return
    watcher = RawDatabase(store.url)
    with closing(watcher.connection):
        waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        while thread.is_alive() and not watcher.rows(waiting):
            time.sleep(0.005)


async def test_who_begins_it_first_keeps_it(store: Store, other: RawDatabase) -> None:
    await add_node(store, "a")
    other.connection.execute("BEGIN IMMEDIATE" if store.dialect == "sqlite" else "BEGIN")
    assert other.connection.execute(BEGIN).rowcount == 1
    deletion = asyncio.create_task(TaskRepository(store).delete_task("a"))
    await asyncio.wait([deletion], timeout=0.1)
    assert not deletion.done()
    other.connection.execute("COMMIT")
    with pytest.raises(RunActiveError):
        await deletion
    assert await left(store) == "a"


@pytest.mark.parametrize("cascade", [False, True])
async def test_who_begins_it_later_finds_nothing(store: Store, other: RawDatabase, cascade: bool) -> None:
    await add_node(store, "a")
    begun: list[int] = []

    def begin() -> None:
        connection = other.connection
        if store.dialect == "sqlite":
            connection = sqlite3.connect(store.url.removeprefix("sqlite:///"), isolation_level=None, timeout=30)
        begun.append(connection.execute(BEGIN).rowcount)
        if connection is not other.connection:
            connection.close()

    thread = threading.Thread(target=begin)

    def meanwhile() -> None:
        thread.start()
        wait_until_blocked(store, thread)

    paused = Paused(store, "DELETE FROM", meanwhile)
    assert await TaskRepository(paused.as_store).delete_task("a", cascade=cascade) == 1
    await asyncio.to_thread(thread.join)
    assert paused.paused
    assert begun == [0]
    assert await left(store) == ""


async def test_one_of_two_deletions_finds_it(store: Store) -> None:
    second = create_session(store.url)
    for number in range(10):
        for task_id, needs in (("a", ()), ("b", ("a",)), ("c", ("b", "a"))):
            await add_node(store, f"{number}{task_id}", *(f"{number}{one}" for one in needs))
        outcomes = await asyncio.gather(
            *(TaskRepository(one).delete_task(f"{number}a", cascade=True) for one in (store, second, store)),
            return_exceptions=True,
        )
        found = [outcome for outcome in outcomes if not isinstance(outcome, RunNotFoundError)]
        assert found == [3]
        assert await left(store) == ""
    second.close()


async def test_deletions_that_overlap_do_not_block_each_other_for_ever(store: Store) -> None:
    count = 12
    for number in range(count):
        needs = [f"n{number - 1}"] if number else []
        await add_node(store, f"n{number}", *needs, parent_id=f"n{number // 2}" if number else None)
    tasks = TaskRepository(store)
    outcomes = await asyncio.gather(
        *(tasks.delete_task(f"n{number}", cascade=True) for number in reversed(range(count))), return_exceptions=True
    )
    assert all(isinstance(outcome, int | RunNotFoundError) for outcome in outcomes)
    assert sum(outcome for outcome in outcomes if isinstance(outcome, int)) == count
    assert await left(store) == ""


@pytest.mark.parametrize(("column", "mark"), [("parent_id", "has_children"), ("original_task_id", "has_references")])
async def test_the_last_two_leave_no_mark(store: Store, column: str, mark: str) -> None:
    await add_node(store, "a", **{mark: True})
    for task_id in ("b", "c"):
        await add_node(store, task_id, **{column: "a"})
    second = create_session(store.url)
    await second.open()
    deleted: list[int] = []

    def delete() -> None:
        deleted.append(asyncio.run(TaskRepository(second).delete_task("c")))

    thread = threading.Thread(target=delete)

    def meanwhile() -> None:
        thread.start()
        wait_until_blocked(store, thread)

    paused = Paused(store, "COMMIT", meanwhile)
    assert await TaskRepository(paused.as_store).delete_task("b") == 1
    await asyncio.to_thread(thread.join)
    second.close()
    assert deleted == [1]
    assert await one(store, f"SELECT id FROM apflow_tasks WHERE NOT {mark}") == ("a",)


async def test_what_came_before_the_lock_goes_too(postgres_url: str) -> None:
    store = create_session(postgres_url)
    await add_node(store, "a")
    database = RawDatabase(postgres_url)
    with closing(database.connection):
        sql = "INSERT INTO apflow_tasks (id, name, kind, parent_id) VALUES ('b', 'work', 'node', 'a')"
        paused = Paused(store, "FOR UPDATE", lambda: database.connection.execute(sql))
        assert await TaskRepository(paused.as_store).delete_task("a", cascade=True) == 2
        assert paused.paused
    assert await left(store) == ""
    store.close()


@apflow.task
async def raced() -> int:
    return 1


async def at_once(
    store: Store, first: Callable[[Store], Awaitable[object]], second: Callable[[Store], Awaitable[object]]
) -> list[str]:
    """Do one thing, and the other one from a second connection before the first is committed; return the refusals."""
    other = create_session(store.url)
    await other.open()
    refused: list[str] = []

    async def tried(do: Callable[[Store], Awaitable[object]], where: Store) -> None:
        try:
            await do(where)
        except TaskTreeError as error:
            refused.append(str(error))

    thread = threading.Thread(target=lambda: asyncio.run(tried(second, other)))

    def meanwhile() -> None:
        thread.start()
        wait_until_blocked(store, thread)

    paused = Paused(store, "COMMIT", meanwhile)
    await tried(first, paused.as_store)
    await asyncio.to_thread(thread.join)
    other.close()
    assert paused.paused
    return refused


@pytest.mark.parametrize("column", ["parent_id", "dependencies"])
async def test_two_changes_do_not_close_a_circle_together(store: Store, column: str) -> None:
    for task_id in "abcd":
        await add_node(store, task_id)

    def hangs(task_id: str, above: str) -> Callable[[Store], Awaitable[object]]:
        value = above if column == "parent_id" else [above]
        return lambda where: TaskRepository(where).update_task(task_id, **{column: value})

    await hangs("b", "c")(store)
    await hangs("d", "a")(store)
    [refused] = await at_once(store, hangs("a", "b"), hangs("c", "d"))
    assert refused.startswith(f"{column}: ")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"task_tree_id": "t"}, {"task_tree_id": "t"}),
        ({"task_tree_id": "t"}, {"id": "t"}),
        ({"id": "t"}, {"task_tree_id": "t"}),
        ({"id": "t"}, {"id": "t"}),
    ],
    ids=str,
)
async def test_one_of_two_trees_gets_the_name(store: Store, first: dict[str, str], second: dict[str, str]) -> None:
    def made(task: dict[str, str]) -> Callable[[Store], Awaitable[object]]:
        return lambda where: TaskCreator(where).create_task_trees_from_array([{"name": "raced", **task}])

    [refused] = await at_once(store, made(first), made(second))
    assert "'t'" in refused
    assert await one(store, "SELECT COUNT(*) FROM apflow_tasks WHERE task_tree_id = 't'") == (1,)


async def test_trees_with_other_names_do_not_wait_for_each_other(postgres_url: str) -> None:
    store = create_session(postgres_url)
    ended: list[bool] = []

    def made(task_id: str) -> Callable[[Store], Awaitable[object]]:
        return lambda where: TaskCreator(where).create_task_tree_from_array([{"id": task_id, "name": "raced"}])

    async def second(where: Store) -> None:
        for number in range(100):  # Some of them share a lock with the first one.
            await made(f"n{number}")(where)
        ended.append(await one(store, "SELECT COUNT(*) FROM apflow_tasks WHERE id = 'first'") == (0,))

    assert await at_once(store, made("first"), second) == []
    assert ended == [True]
    store.close()
