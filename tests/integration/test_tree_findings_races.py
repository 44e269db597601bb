"""What reviews of task trees found where two things happen at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import apflow
from apflow.call import Call
from apflow.durability.claims import Claims
from apflow.engine import manager
from apflow.engine.execution import Execution
from apflow.errors import RunCancelledError, RunInterruptedError
from apflow.run import Run
from apflow.state import RunState
from apflow.storage.repository import TaskRepository
from apflow.submission import submit_call
from tests.integration.tree_helpers import Bench, Gate, bench, ended, ids, rows, task, until_stored

pytestmark = pytest.mark.anyio

INSIDE = "abcde"
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


@apflow.task(name="tfr_step")
async def step(value: int = 0) -> int:
    log.append(apflow.current().task_id)
    if apflow.current().task_id in broken:
        raise ValueError("no")
    return value


@apflow.task(name="tfr_wait")
async def waits() -> None:
    await gates[0].wait(apflow.current().task_id)
    if apflow.current().task_id in broken:
        raise ValueError("no")


# -- nodes that were begun before --------------------------------------------------------------------------------


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Nodes that are begun a second time stop here, between the row that says so and their functions."""
    gate, load = Gate(), Claims.load_earlier

    async def slow(self: Claims, state: RunState, *, saved: bool = True) -> None:
        if state.kind == "node":
            await gate.wait(state.id)
        await load(self, state, saved=saved)

    monkeypatch.setattr(Claims, "load_earlier", slow)
    return gate


async def again(made: Bench, window: Gate) -> asyncio.Task[object]:
    """Execute a tree that failed, and return the second execution once all nodes of it are begun."""
    broken.update(("p", *INSIDE))
    await made.execute(task("p", "tfr_step"), *(task(one, "tfr_step") for one in INSIDE))
    assert set((await made.statuses()).values()) == {"failed"}
    broken.clear()
    log.clear()
    work = asyncio.create_task(made.manager.execute_task("p"))
    await window.reached()
    return work


async def open_leases(made: Bench) -> list[tuple[object, ...]]:
    return await rows(made.store, "SELECT id FROM apflow_tasks WHERE kind = 'node' AND lease_expires_at IS NOT NULL")


async def test_an_execution_is_cancelled_while_its_nodes_are_begun_again(made: Bench, window: Gate) -> None:
    work = await again(made, window)
    [(tree,)] = await rows(made.store, "SELECT id FROM apflow_tasks WHERE kind = 'tree' AND status = 'in_progress'")
    cancelling = asyncio.create_task(made.runtime.runs.cancel(tree))
    await until_stored(lambda: requested(made, tree))
    window.open()
    await ended(cancelling)
    with pytest.raises(RunCancelledError):
        await ended(work)
    assert await made.statuses() == dict.fromkeys(("p", *INSIDE), "cancelled")
    assert await open_leases(made) == []
    assert log == []


async def requested(made: Bench, one: str) -> bool:
    sql = "SELECT 1 FROM apflow_tasks WHERE id = :id AND cancel_requested_at IS NOT NULL"
    return bool(await rows(made.store, sql, id=one))


async def test_one_node_is_cancelled_while_it_is_begun_again(made: Bench, window: Gate) -> None:
    work = await again(made, window)
    cancelling = asyncio.create_task(made.manager.cancel_task("c"))
    await until_stored(lambda: requested(made, "c"))
    window.open()
    assert (await ended(cancelling))["status"] == "cancelled"
    assert (await ended(work)) is not None
    assert await made.statuses() == {**dict.fromkeys(("p", *INSIDE), "completed"), "c": "cancelled"}
    assert ids(log) == "a b d e p"


# -- cancellations right at the start ----------------------------------------------------------------------------


async def test_a_cancellation_before_the_graph_is_read_stays(made: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    load, accepted = Execution._load, Gate()

    async def slow(self: Execution) -> None:
        await accepted.wait("execution")
        await load(self)

    monkeypatch.setattr(Execution, "_load", slow)
    await made.create(task("p", "tfr_step"))
    work = asyncio.create_task(made.manager.execute_task("p"))
    await accepted.reached()
    assert (await made.manager.cancel_task("p"))["status"] == "cancelled"
    accepted.open()
    assert (await ended(work))["status"] == "cancelled"
    assert log == []


async def test_a_cancellation_before_a_recovery_stays(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    accepted = Gate()

    async def dies(self: Execution) -> None:
        await accepted.wait("execution")

    async with bench(database_url, lease_seconds=600) as second:
        await second.runtime.ready()
        with monkeypatch.context() as patch:
            patch.setattr(Execution, "_load", dies)
            async with bench(database_url, lease_seconds=600) as first:
                await first.create(task("p", "tfr_step"))
                work = asyncio.create_task(first.manager.execute_task("p"))
                await accepted.reached()
        with pytest.raises(RunInterruptedError):
            await ended(work)
        assert (await second.manager.cancel_task("p"))["status"] == "cancelled"
        for run in await second.manager.recover():
            await ended(run)
        assert await second.statuses() == {"p": "cancelled"}
        assert log == []


# -- executions that others join ---------------------------------------------------------------------------------


async def joined(made: Bench) -> asyncio.Task[dict[str, object]]:
    """Return a second call that waits for the one that executes `p`."""
    watched = Gate()

    async def told(call: Call) -> Run[Any]:
        run = await submit_call(call)
        watched.arrived.append(run.id)
        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manager, "submit_call", told)
        late = asyncio.create_task(made.manager.execute_task("p"))
        await watched.reached()
    return late


async def test_who_joins_executes_what_was_created_meanwhile(made: Bench) -> None:
    await made.create(task("p", "tfr_wait"))
    work = asyncio.create_task(made.manager.execute_task("p"))
    await gates[0].reached()
    await made.creator.create_task_tree_from_array([task("q", "tfr_step", parent_id="p")])
    late = await joined(made)
    gates[0].open()
    await ended(work)
    assert (await ended(late))["status"] == "completed"
    assert await made.statuses() == {"p": "completed", "q": "completed"}


async def test_who_joins_does_not_try_again_what_failed(made: Bench) -> None:
    broken.update("pa")
    await made.create(task("p", "tfr_wait"), task("a", "tfr_step"), task("b", "tfr_step", "a"))
    work = asyncio.create_task(made.manager.execute_task("p"))
    await gates[0].reached()
    await made.creator.create_task_tree_from_array([task("q", "tfr_step", parent_id="p")])
    late = await joined(made)
    gates[0].open()
    assert (await ended(work))["status"] == (await ended(late))["status"] == "failed"
    assert await made.statuses() == {"p": "failed", "a": "failed", "b": "cancelled", "q": "completed"}
    assert (gates[0].arrived, ids(log)) == (["p"], "a q")


# -- changes while a tree runs -----------------------------------------------------------------------------------


async def test_a_pending_task_is_changed_while_its_tree_runs(made: Bench) -> None:
    await made.create(task("p", "tfr_wait"), task("q", "tfr_step", "p", inputs={"value": 2}))
    work = asyncio.create_task(made.manager.execute_task("p"))
    await gates[0].reached()
    await TaskRepository(made.store).update_task("q", inputs={"value": 99})
    gates[0].open()
    await ended(work)
    assert (await made.results())["q"] == 99
