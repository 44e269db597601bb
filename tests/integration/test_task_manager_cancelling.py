"""Task trees that are cancelled, as a whole and in part, before, while and after they run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

import apflow
from apflow.errors import RunCancelledError
from tests.integration.tree_helpers import Bench, Gate, bench, change, ended, ids, task, until

pytestmark = pytest.mark.anyio

log: list[str] = []
gates: list[Gate] = []


@pytest.fixture
async def made(database_url: str) -> AsyncIterator[Bench]:
    log.clear()
    gates[:] = [Gate()]
    async with bench(database_url) as found:
        yield found


@apflow.task(name="tc_step")
async def step() -> None:
    log.append(apflow.current().task_id)


@apflow.task(name="tc_wait")
async def waits() -> None:
    log.append(apflow.current().task_id)
    await gates[0].wait(apflow.current().task_id)


async def test_a_task_that_has_not_begun(made: Bench) -> None:
    await made.create(
        task("r", "tc_step"),
        task("a", "tc_step"),
        task("inside", "tc_step", parent_id="a"),
        task("b", "tc_step", "a"),
        task("c", "tc_step", "b"),
        task("d", "tc_step", "a?"),
        task("e", "tc_step", "inside"),
    )
    assert await made.manager.cancel_task("a") == {"task_id": "a", "status": "cancelled"}
    statuses = await made.statuses()
    assert ids(one for one in statuses if statuses[one] == "cancelled") == "a b c e inside"
    assert ids(one for one in statuses if statuses[one] == "pending") == "d r"
    errors = await made.errors()
    assert "needs task a, which was cancelled" in str(errors["b"])
    assert "needs task b, which was cancelled" in str(errors["c"])
    assert log == []


async def test_a_task_that_waits_for_its_turn_in_a_running_tree(made: Bench) -> None:
    await made.create(
        task("r", "tc_step"),
        task("w", "tc_wait"),
        task("a", "tc_step", "w"),
        task("b", "tc_step", "a"),
        task("c", "tc_step", "a?"),
    )
    work = asyncio.create_task(made.manager.execute_task("r"))
    await gates[0].reached()
    assert (await made.manager.cancel_task("a"))["status"] == "cancelled"
    gates[0].open()
    await ended(work)
    assert await made.statuses() == {
        **dict.fromkeys("rwc", "completed"),
        **dict.fromkeys("ab", "cancelled"),
    }
    assert ids(log) == "c r w"


async def test_a_task_that_runs(made: Bench) -> None:
    await made.create(
        task("r", "tc_step"), task("w", "tc_wait"), task("a", "tc_step", "w"), task("b", "tc_step", "w?", "r")
    )
    work = asyncio.create_task(made.manager.execute_task("r"))
    await gates[0].reached()
    assert await ended(made.manager.cancel_task("w")) == {"task_id": "w", "status": "cancelled"}
    assert (await ended(work))["status"] == "completed"
    assert await made.statuses() == {**dict.fromkeys("rb", "completed"), **dict.fromkeys("wa", "cancelled")}
    assert ids(log) == "b r w"
    gates[0].open()
    await made.manager.execute_task("r")
    assert set((await made.statuses()).values()) == {"completed"}
    assert ids(log) == "a b r w w"


async def test_a_task_that_has_ended_stays_as_it_is(made: Bench) -> None:
    await made.execute(task("r", "tc_step"), task("a", "tc_step", "r"))
    for one in "ra":
        assert await made.manager.cancel_task(one) == {"task_id": one, "status": "completed"}
    assert set((await made.statuses()).values()) == {"completed"}


async def test_a_tree_by_its_root(made: Bench) -> None:
    await made.create(
        task("r", "tc_step"), task("w", "tc_wait", "r"), task("x", "tc_wait"), task("a", "tc_step", "w", parent_id="w")
    )
    work = asyncio.create_task(made.manager.execute_task("r"))
    await gates[0].reached(2)
    assert await ended(made.manager.cancel_task("r")) == {"task_id": "r", "status": "completed"}
    assert (await ended(work))["status"] == "completed"
    assert await made.statuses() == {"r": "completed", **dict.fromkeys("wxa", "cancelled")}
    assert await made.runtime.runs.count(status="in_progress") == 0


async def test_a_tree_whose_root_runs(made: Bench) -> None:
    await made.create(task("r", "tc_wait"), task("a", "tc_step", "r"), task("b", "tc_step"))
    work = asyncio.create_task(made.manager.execute_task("r"))
    await gates[0].reached()
    assert (await ended(made.manager.cancel_task("r")))["status"] == "cancelled"
    outcome = await ended(work)
    assert (outcome["status"], outcome["result"]) == ("cancelled", None)
    assert (await made.statuses())["a"] == "cancelled"


async def test_the_wait_for_a_tree_is_not_the_tree(made: Bench) -> None:
    await made.create(task("r", "tc_wait"), task("a", "tc_step", "r"))
    work = asyncio.create_task(made.manager.execute_task("r"))
    await gates[0].reached()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    gates[0].open()
    assert (await ended(made.manager.execute_task("r")))["status"] == "completed"
    assert log == ["r", "a"]


@pytest.mark.parametrize("seen", ["when it is cancelled here", "when the next node begins"])
async def test_an_execution_that_is_cancelled_by_its_run(made: Bench, seen: str) -> None:
    await made.create(task("r", "tc_step"), task("w", "tc_wait"), task("a", "tc_step", "w?"), task("b", "tc_step", "a"))
    work = asyncio.create_task(made.manager.execute_task("r"))
    await gates[0].reached()
    [execution] = await made.runtime.runs.list(name="_task_tree")
    if seen == "when it is cancelled here":
        await made.runtime.runs.cancel(execution.id)
        with pytest.raises(RunCancelledError):
            await ended(work)
        assert (await made.statuses())["w"] == "cancelled"
    else:  # as another process does it, before this one has renewed its lease
        sql = "UPDATE apflow_tasks SET cancel_requested_at = :now WHERE id = :id"
        await change(made.store, sql, now=made.store.timestamp(datetime.now(UTC)), id=execution.id)
        gates[0].open()
        with pytest.raises(RunCancelledError):
            await ended(work)
    statuses = await made.statuses()
    assert (statuses["a"], statuses["b"]) == ("cancelled", "cancelled")
    assert "a" not in log
    gates[0].open()
    await ended(made.manager.execute_task("r"))
    assert set((await made.statuses()).values()) == {"completed"}


async def test_a_node_that_cancels_itself(made: Bench) -> None:
    @apflow.task(name="tc_suicide")
    async def suicide() -> None:
        await made.manager.cancel_task(apflow.current().task_id)
        await asyncio.sleep(60)

    await ended(made.execute(task("r", "tc_step"), task("s", "tc_suicide", "r"), task("a", "tc_step", "s")))
    assert await made.statuses() == {"r": "completed", "s": "cancelled", "a": "cancelled"}


@pytest.mark.parametrize("colour", ["async", "sync"])
async def test_a_node_that_cancels_its_whole_tree(made: Bench, colour: str) -> None:
    @apflow.task(name="tc_killer_async")
    async def killer_async() -> None:
        await made.manager.cancel_task("r")
        await asyncio.sleep(60)

    @apflow.task(name="tc_killer_sync")
    def killer_sync() -> None:
        made.runtime.wait(made.manager.cancel_task("r"))

    await ended(
        made.execute(
            task("r", "tc_step"),
            task("w", "tc_wait", "r"),
            task("k", f"tc_killer_{colour}", "r"),
            task("a", "tc_step", "k"),
        )
    )
    statuses = await made.statuses()
    assert (statuses["r"], statuses["w"], statuses["a"]) == ("completed", "cancelled", "cancelled")
    assert statuses["k"] == "cancelled"


@pytest.mark.parametrize("colour", ["async", "sync"])
async def test_a_function_that_ends_as_if_it_was_cancelled_has_failed(made: Bench, colour: str) -> None:
    @apflow.task(name="tc_stray_async")
    async def stray_async() -> None:
        raise asyncio.CancelledError

    @apflow.task(name="tc_stray_sync")
    def stray_sync() -> None:
        raise asyncio.CancelledError

    outcome = await ended(
        made.execute(task("r", f"tc_stray_{colour}"), task("a", "tc_step", "r"), task("b", "tc_step", "r?")), 20
    )
    assert outcome["status"] == "failed"
    assert "CancelledError" in outcome["error"]
    assert await made.statuses() == {"r": "failed", "a": "cancelled", "b": "completed"}


async def test_cancelling_while_an_inner_task_is_executed_elsewhere(made: Bench) -> None:
    await made.create(task("r", "tc_step"), task("w", "tc_wait"), task("a", "tc_step", "w"))
    inner = asyncio.create_task(made.manager.execute_task("w"))
    await gates[0].reached()
    outer = asyncio.create_task(made.manager.execute_task("r"))
    await until(lambda: "r" in log)
    run = (await made.runtime.runs.list(name="_task_tree"))[0]  # the newest
    await ended(made.runtime.runs.cancel(run.id), 20)
    with pytest.raises(RunCancelledError):
        await ended(outer)
    gates[0].open()
    assert (await ended(inner))["status"] == "completed"
    assert (await made.statuses())["a"] == "cancelled"
