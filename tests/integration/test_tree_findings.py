"""What reviews of task trees found: circles, graphs that changed, progress, managers, executions that were left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

import apflow
from apflow import definition
from apflow.engine.creator import TaskCreator
from apflow.engine.manager import TaskManager
from apflow.errors import RunInterruptedError
from apflow.storage.connect import create_session
from tests.integration.tree_helpers import Bench, Gate, bench, change, column, ended, ids, rows, task

pytestmark = pytest.mark.anyio

log: list[str] = []
gates: list[Gate] = []
broken: set[str] = set()


@pytest.fixture
async def made(database_url: str) -> AsyncIterator[Bench]:
    async with bench(database_url) as found:
        yield found


@pytest.fixture(autouse=True)
async def _clean() -> None:
    log.clear()
    broken.clear()
    gates[:] = [Gate()]


@apflow.task(name="tf_step")
async def step() -> int:
    log.append(apflow.current().task_id)
    if apflow.current().task_id in broken:
        raise ValueError("no")
    return len(log)


@apflow.task(name="tf_wait")
async def waits() -> None:
    await gates[0].wait(apflow.current().task_id)


async def progress(made: Bench) -> dict[str, float]:
    return {one: float(share) for one, share in (await column(made.store, "progress")).items()}


# -- circles that another program made ---------------------------------------------------------------------------


async def test_what_waits_for_itself_fails_and_says_so(made: Bench) -> None:
    await made.create(
        task("r", "tf_step"),
        task("a", "tf_step"),
        task("b", "tf_step", "a"),
        task("c", "tf_step", "b"),
        task("d", "tf_step"),
    )
    await change(made.store, "UPDATE apflow_tasks SET dependencies = :needs WHERE id = 'a'", needs='["b"]')
    assert (await ended(made.manager.execute_task("r"), 20))["status"] == "completed"
    assert await made.statuses() == {
        **dict.fromkeys("rd", "completed"),
        **dict.fromkeys("ab", "failed"),
        "c": "cancelled",
    }
    errors = await made.errors()
    for one in "ab":
        assert str(errors[one]).startswith("apflow.TaskTreeError")
        assert "waits for itself" in str(errors[one])
        assert "'b' -> 'a' -> 'b'" in str(errors[one]) or "'a' -> 'b' -> 'a'" in str(errors[one])
    assert "needs task b, which failed" in str(errors["c"])
    assert ids(log) == "d r"


async def test_tasks_inside_each_other_are_executed(made: Bench) -> None:
    await made.create(task("p", "tf_step"), task("q", "tf_step"))
    await change(made.store, "UPDATE apflow_tasks SET parent_id = 'q' WHERE id = 'p'")
    # Without any end, the order of them would take all memory and never give way to a timeout.
    assert (await ended(made.manager.execute_task("p"), 20))["status"] == "completed"
    assert await made.statuses() == {"p": "completed", "q": "completed"}


# -- dependencies ------------------------------------------------------------------------------------------------


async def test_archived_dependencies_stand_as_they_are(made: Bench) -> None:
    broken.add("p")
    await made.execute(task("p", "tf_step"))
    archive = (await made.creator.from_archive("p")).task.id
    broken.clear()
    log.clear()
    await made.create(task("q", "tf_step", archive))
    outcome = await ended(made.manager.execute_task("q"))
    assert (outcome["status"], log) == ("cancelled", [])
    assert (await made.statuses())[archive] == "failed"


async def test_a_dependency_that_is_not_there_any_more(made: Bench) -> None:
    await made.create(task("p", "tf_step"))
    await made.create(task("r", "tf_step"), task("a", "tf_step", "p"), task("b", "tf_step", "p?"))
    await change(made.store, "DELETE FROM apflow_tasks WHERE id = 'p'")
    await ended(made.manager.execute_task("r"))
    assert await made.statuses() == {"r": "completed", "a": "cancelled", "b": "completed"}
    assert "needs task p, which is not there any more" in str((await made.errors())["a"])


async def test_rows_of_version_1_without_a_tree_are_executed_with_what_is_inside(made: Bench) -> None:
    await made.create(task("p", "tf_step"), task("q", "tf_step", "p"), task("r", "tf_step", parent_id="q"))
    await change(made.store, "UPDATE apflow_tasks SET task_tree_id = NULL, kind = NULL, epoch = NULL")
    await ended(made.manager.execute_task("p"))
    assert await made.statuses() == dict.fromkeys("pqr", "completed")


# -- progress ----------------------------------------------------------------------------------------------------


async def test_the_progress_of_a_parent_that_is_executed_in_part(made: Bench) -> None:
    await made.create(task("p", "tf_step"), *(task(one, "tf_step", "p") for one in "abc"))
    await ended(made.manager.execute_task("a"))
    assert (await progress(made))["p"] == 0.5


async def test_the_progress_of_all_that_a_task_is_inside_of(made: Bench) -> None:
    await made.create(
        task("r", "tf_step"),
        task("p", "tf_step"),
        task("a", "tf_step", parent_id="p"),
        task("b", "tf_step", parent_id="p"),
    )
    await ended(made.manager.execute_task("a"))
    await ended(made.manager.execute_task("b"))
    found = await progress(made)
    assert (found["p"], found["r"]) == (0.66, 0.5)


# -- managers ----------------------------------------------------------------------------------------------------


async def test_the_last_manager_of_a_store_closes_the_runtime_that_they_share(database_url: str) -> None:
    store = create_session(database_url)
    first, second = TaskManager(store, concurrency=1), TaskManager(store)
    async with second:
        async with first:
            assert first.runtime is second.runtime
            await TaskCreator(store).create_task_tree_from_array([task("p", "tf_wait")])
            work = asyncio.create_task(second.execute_task("p"))
            await gates[0].reached()
        gates[0].open()
        assert (await ended(work))["status"] == "completed"
        shared = second.runtime
    assert shared.closed
    store.close()


async def test_managers_of_one_store_keep_to_their_own_limits(database_url: str) -> None:
    store = create_session(database_url)
    first, second = TaskManager(store, concurrency=1), TaskManager(store)
    async with first, second:
        await TaskCreator(store).create_task_tree_from_array(
            [task("p", "tf_wait"), *(task(one, "tf_wait", parent_id="p") for one in "abc")]
        )
        work = asyncio.create_task(second.execute_task("p"))
        try:
            await asyncio.wait_for(gates[0].reached(4), 20)
        finally:
            gates[0].open()
        await ended(work)
    store.close()


# -- executors ---------------------------------------------------------------------------------------------------


async def test_an_execution_needs_its_executors_and_no_others(made: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    @apflow.task(name="tf_passing")
    async def passing() -> None: ...

    await made.create(task("p", "tf_step"), task("q", "tf_passing"), task("r", "tf_step"))
    monkeypatch.delitem(definition._known, "tf_passing")
    assert (await ended(made.manager.execute_task("r")))["status"] == "completed"
    assert await made.statuses() == {"p": "pending", "q": "pending", "r": "completed"}


async def test_an_execution_names_the_executors_of_other_trees_that_it_needs(made: Bench) -> None:
    @apflow.task(name="tf_elsewhere")
    async def elsewhere() -> None: ...

    await made.create(task("p", "tf_elsewhere"))
    await made.execute(task("q", "tf_step", "p"))
    [(inputs,)] = await rows(made.store, "SELECT CAST(inputs AS TEXT) FROM apflow_tasks WHERE kind = 'tree'")
    assert json.loads(inputs)["executors"] == ["tf_elsewhere", "tf_step"]


# -- executions that end outside of their process ----------------------------------------------------------------


async def left_behind(first: Bench) -> asyncio.Task[object]:
    """Begin a tree and return what executes it, for the runtime to be left."""
    await first.create(task("p", "tf_wait"), task("q", "tf_step", "p"), task("r", "tf_step", "q?"))
    work = asyncio.create_task(first.manager.execute_task("p"))
    await gates[0].reached()
    return work


@pytest.mark.parametrize("how", ["cancelled before", "cancelled after", "given up"])
async def test_an_execution_that_nobody_carries_on_leaves_nothing_open(database_url: str, how: str) -> None:
    async with bench(database_url, lease_seconds=600) as second:
        await second.runtime.ready()
        async with bench(database_url, lease_seconds=600) as first:
            work = await left_behind(first)
        with pytest.raises(RunInterruptedError):
            await ended(work)
        [(tree,)] = await rows(second.store, "SELECT id FROM apflow_tasks WHERE kind = 'tree'")
        now = second.store.timestamp(datetime.now(UTC))
        if how == "cancelled after":
            await second.runtime.runs.cancel(tree)
        elif how == "cancelled before":  # as its process did not live to see
            await change(
                second.store, "UPDATE apflow_tasks SET cancel_requested_at = :now WHERE kind = 'tree'", now=now
            )
        else:
            values = "recoveries = 50, recovered_at = :now, lease_expires_at = :past"
            sql = f"UPDATE apflow_tasks SET {values} WHERE kind = 'tree'"
            past = second.store.timestamp(datetime.now(UTC) - timedelta(days=1))
            await change(second.store, sql, now=now, past=past)
        for run in await second.manager.recover():
            await ended(run)
        assert await second.statuses() == dict.fromkeys("pqr", "cancelled")
        [(status,)] = await rows(second.store, "SELECT status FROM apflow_tasks WHERE kind = 'tree'")
        assert status == ("failed" if how == "given up" else "cancelled")
        assert log == []
