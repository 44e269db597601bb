"""Executions that do not come to their end: runtimes that are left, databases that fail; and older rows."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

import apflow
from apflow import RunInterruptedError
from apflow.errors import StorageError, StorageUnavailableError, TaskFrozenError
from tests.integration.tree_helpers import Bench, Gate, bench, change, column, ended, ids, ref, rows, task, until_stored

if TYPE_CHECKING:
    from apflow.storage.store import Store, Tx

T = TypeVar("T")

pytestmark = pytest.mark.anyio

log: list[str] = []
gates: list[Gate] = []


@pytest.fixture(autouse=True)
def _empty() -> None:
    log.clear()
    gates[:] = [Gate()]


@apflow.task(name="tr_step")
async def step(value: Any = None) -> Any:
    log.append(apflow.current().task_id)
    return value


@apflow.task(name="tr_wait")
async def waits() -> str:
    log.append(apflow.current().task_id)
    await gates[0].wait(apflow.current().task_id)
    return "done"


@apflow.task(name="tr_bad")
async def bad() -> None:
    log.append(apflow.current().task_id)
    raise ValueError("bad")


def tree() -> list[dict[str, Any]]:
    return [
        task("r", "tr_step", inputs={"value": 1}),
        task("f", "tr_bad", "r"),
        task("g", "tr_step", "f"),
        task("w", "tr_wait", "r"),
        task("a", "tr_step", "w", "r", inputs={"value": [ref("w"), ref("r")]}),
        task("b", "tr_step", "a"),
    ]


async def check(made: Bench) -> None:
    assert await made.statuses() == {
        **dict.fromkeys("rwab", "completed"),
        "f": "failed",
        "g": "cancelled",
    }
    assert (await made.results())["a"] == ["done", 1]
    assert set((await column(made.store, "max_attempts")).values()) == {None}  # as they were created
    assert await rows(made.store, "SELECT id FROM apflow_tasks WHERE status IN ('pending', 'in_progress')") == []


async def is_told(made: Bench) -> bool:
    return (await made.statuses())["g"] != "pending"


# -- runtimes that are left --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["execute_task", "recover"])
async def test_another_manager_goes_on_where_the_first_one_was_left(database_url: str, how: str) -> None:
    async with bench(database_url) as first:
        await first.create(*tree())
        work = asyncio.create_task(first.manager.execute_task("r"))
        await gates[0].reached()
        await until_stored(lambda: is_told(first))
    with pytest.raises(RunInterruptedError):
        await ended(work)
    gates[0].open()
    async with bench(database_url) as second:
        if how == "recover":
            for run in await second.manager.recover():
                await ended(run)
        else:
            assert (await ended(second.manager.execute_task("r")))["status"] == "completed"
        await check(second)
    assert ids(log) == "a b f r w w"  # what failed had its attempt in this execution


async def test_a_plain_function_that_never_knew_need_not_run_again(database_url: str) -> None:
    entered, let_go = threading.Event(), threading.Event()

    @apflow.task(name="tr_plain")
    def plain() -> str:
        log.append(apflow.current().task_id)
        entered.set()
        assert let_go.wait(30)
        return "done"

    async with bench(database_url, shutdown_seconds=5) as first:
        await first.create(task("r", "tr_plain"), task("a", "tr_step", "r", inputs={"value": ref("r")}))
        run = asyncio.create_task(first.manager.execute_task("r"))
        assert await asyncio.to_thread(entered.wait, 30)
        first.runtime.shutdown_seconds = 0.2
        asyncio.get_running_loop().call_later(0.3, let_go.set)
    with pytest.raises(RunInterruptedError):
        await ended(run)
    async with bench(database_url) as second:
        await ended(second.manager.execute_task("r"))
        assert await second.results() == {"r": "done", "a": "done"}


# -- databases that fail -----------------------------------------------------------------------------------------


class Failing:
    """Makes one write of a store fail, or all from one on."""

    def __init__(self, store: Store, number: int, *, for_good: bool, after: bool) -> None:
        self.failed = False
        self._write, self._left = store.write, number
        self._for_good, self._after = for_good, after
        store.write = self.write  # type: ignore[method-assign]  # a seam that only this needs
        self._store = store

    async def write(self, fn: Callable[[Tx], T], *, single: bool = False) -> T:
        self._left -= 1
        if self._left > 0 or (self.failed and not self._for_good):
            return await self._write(fn, single=single)
        self.failed = True
        if self._after:
            await self._write(fn, single=single)
        raise StorageUnavailableError("the test says so")

    def mend(self) -> None:
        self._store.write = self._write  # type: ignore[method-assign]


@pytest.mark.parametrize("after", [False, True], ids=["not stored", "stored"])
@pytest.mark.parametrize("number", range(1, 16))
async def test_one_write_fails(sqlite_url: str, number: int, after: bool) -> None:
    gates[0].open()
    async with bench(sqlite_url, lease_seconds=1) as made:  # what was not handed back waits for its lease
        await made.create(*tree())
        failing = Failing(made.store, number, for_good=False, after=after)
        try:
            await ended(made.manager.execute_task("r"))
        except StorageError:
            assert failing.failed
        done = {one for one, status in (await made.statuses()).items() if status == "completed"}
        log.clear()
        failing.mend()
        await ended(made.manager.execute_task("r"))
        await check(made)
        assert done.isdisjoint(log)


@pytest.mark.parametrize("number", [2, 4, 6, 8])
async def test_the_database_is_away_for_good(sqlite_url: str, number: int) -> None:
    gates[0].open()
    async with bench(sqlite_url, lease_seconds=1) as made:
        await made.create(*tree())
        failing = Failing(made.store, number, for_good=True, after=False)
        with pytest.raises(StorageError):
            await ended(made.manager.execute_task("r"))
        failing.mend()
    async with bench(sqlite_url, lease_seconds=1) as second:
        done = {one for one, status in (await second.statuses()).items() if status == "completed"}
        log.clear()
        await ended(second.manager.execute_task("r"))
        await check(second)
        assert done.isdisjoint(log)


async def test_the_store_is_closed_under_an_execution(sqlite_url: str) -> None:
    store = apflow.create_session(sqlite_url)
    async with bench(store, lease_seconds=1) as made:
        await made.create(*tree())
        work = asyncio.create_task(made.manager.execute_task("r"))
        await gates[0].reached()
        store.close()
        gates[0].open()
        with pytest.raises((StorageError, RunInterruptedError)):
            await ended(work)
    async with bench(sqlite_url, lease_seconds=1) as second:
        done = {one for one, status in (await second.statuses()).items() if status == "completed"}
        log.clear()
        await ended(second.manager.execute_task("r"), 60)
        await check(second)
        assert done.isdisjoint(log)


# -- rows that version 1 made, links and archives ----------------------------------------------------------------


async def old_row(store: Store, one: str, name: str = "tr_step", **values: Any) -> None:
    """Insert what version 1 had in its columns, and nothing else."""
    known = {"id": one, "name": name, "status": "pending"} | values
    json_columns = ("dependencies", "inputs", "params", "result", "schemas")
    cast = "::json" if store.dialect == "postgresql" else ""
    names = ", ".join(known)
    marks = ", ".join(f":{name}{cast if name in json_columns else ''}" for name in known)
    params = {name: json.dumps(value) if name in json_columns else value for name, value in known.items()}
    await change(store, f"INSERT INTO apflow_tasks ({names}) VALUES ({marks})", **params)


async def test_rows_of_version_1_execute(database_url: str) -> None:
    async with bench(database_url) as made:
        store = made.store
        await made.runtime.ready()
        await old_row(store, "r", task_tree_id="r", inputs={"value": 1}, priority=1)
        await old_row(
            store, "a", "anything", parent_id="r", task_tree_id="r", dependencies=["r"], schemas={"method": "tr_step"}
        )
        await old_row(store, "b", parent_id="r", task_tree_id="r", dependencies=[{"id": "a"}], status="in_progress")
        await old_row(
            store, "c", parent_id="r", task_tree_id="r", dependencies=[{"id": "b", "required": True}], status=None
        )
        await old_row(store, "d", parent_id="r", task_tree_id="r", status="failed", error="long ago")
        await old_row(store, "e", parent_id="r", task_tree_id="r", status="completed", result={"x": 5})
        await old_row(store, "f", parent_id="r", task_tree_id="r", dependencies=["e"], inputs={"value": ref("e", "x")})
        assert (await ended(made.manager.execute_task("r"), 20))["result"] == 1
        assert set((await made.statuses()).values()) == {"completed"}
        assert (await made.results())["f"] == 5
    assert ids(log) == "a b c d f r"
    assert log.index("r") < log.index("a") < log.index("b") < log.index("c")


async def test_a_row_of_version_1_without_a_tree(database_url: str) -> None:
    async with bench(database_url) as made:
        await made.runtime.ready()
        await old_row(made.store, "r", inputs={"value": 2})
        assert (await ended(made.manager.execute_task("r"), 20))["result"] == 2


async def test_rows_of_version_1_are_cancelled(database_url: str) -> None:
    async with bench(database_url) as made:
        await made.runtime.ready()
        await old_row(made.store, "r", task_tree_id="r")
        await old_row(made.store, "a", parent_id="r", task_tree_id="r", status="in_progress")
        await old_row(made.store, "b", parent_id="r", task_tree_id="r", dependencies=["a"])
        assert (await made.manager.cancel_task("a"))["status"] == "cancelled"
        assert await made.statuses() == {"r": "pending", "a": "cancelled", "b": "cancelled"}
        assert (await made.manager.cancel_task("r"))["status"] == "cancelled"
        await ended(made.manager.execute_task("r"), 20)
        assert set((await made.statuses()).values()) == {"completed"}


async def test_links_have_the_results_of_what_they_refer_to(database_url: str) -> None:
    async with bench(database_url) as made:
        await made.execute(task("o", "tr_step", inputs={"value": {"n": 3}}))
        link = await made.creator.from_link("o")
        log.clear()
        outcome = await made.manager.execute_task(link.task.id)
        assert (outcome["status"], outcome["result"]) == ("completed", {"n": 3})
        await made.execute(task("u", "tr_step", link.task.id, inputs={"value": ref(link.task.id, "n")}))
        assert log == ["u"]
        assert (await made.results())["u"] == 3


async def test_archives_are_not_executed(database_url: str) -> None:
    async with bench(database_url) as made:
        await made.execute(task("o", "tr_step"))
        archive = await made.creator.from_archive("o")
        for work in (made.manager.execute_task, made.manager.cancel_task):
            with pytest.raises(TaskFrozenError, match="archived"):
                await work(archive.task.id)
