"""Two runtimes on one database, as two processes have them: one executes, the other one waits, cancels, takes over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

import apflow
from tests.integration.tree_helpers import Bench, Gate, bench, change, ended, ids, ref, task, until

pytestmark = pytest.mark.anyio

log: list[str] = []
gates: list[Gate] = []


@pytest.fixture
async def both(database_url: str) -> AsyncIterator[tuple[Bench, Bench]]:
    log.clear()
    gates[:] = [Gate()]
    async with bench(database_url, lease_seconds=1) as first, bench(database_url, lease_seconds=1) as second:
        yield first, second


@apflow.task(name="ts_step")
async def step(value: str = "") -> str:
    log.append(apflow.current().task_id)
    return value


@apflow.task(name="ts_wait")
async def waits(*, fails: bool = False) -> str:
    log.append(apflow.current().task_id)
    await gates[0].wait(apflow.current().task_id)
    if fails:
        raise ValueError("no")
    return "done"


async def test_who_comes_second_waits_for_the_first(both: tuple[Bench, Bench]) -> None:
    first, second = both
    await first.create(task("r", "ts_wait"), task("a", "ts_step", "r", inputs={"value": ref("r")}))
    work = asyncio.create_task(first.manager.execute_task("r"))
    await gates[0].reached()
    late = asyncio.create_task(second.manager.execute_task("r"))
    await asyncio.sleep(0.1)
    gates[0].open()
    assert await ended(work) == await ended(late)
    assert log == ["r", "a"]


@pytest.mark.parametrize("fails", [False, True])
async def test_a_task_that_another_process_executes_is_waited_for(both: tuple[Bench, Bench], fails: bool) -> None:
    first, second = both
    await first.create(task("r", "ts_step"), task("w", "ts_wait", inputs={"fails": fails}), task("a", "ts_step", "w"))
    inner = asyncio.create_task(first.manager.execute_task("w"))
    await gates[0].reached()
    outer = asyncio.create_task(second.manager.execute_task("r"))
    await until(lambda: "r" in log)
    gates[0].open()
    assert (await ended(inner))["status"] == ("failed" if fails else "completed")
    await ended(outer)
    assert (await first.statuses())["a"] == ("cancelled" if fails else "completed")
    assert gates[0].arrived == ["w"]


async def test_another_process_cancels(both: tuple[Bench, Bench]) -> None:
    first, second = both
    await first.create(
        task("r", "ts_step"), task("w", "ts_wait"), task("a", "ts_step", "w"), task("b", "ts_step", "w?")
    )
    work = asyncio.create_task(first.manager.execute_task("r"))
    await gates[0].reached()
    await second.manager.cancel_task("w")
    await ended(work)
    assert await first.statuses() == {"r": "completed", "w": "cancelled", "a": "cancelled", "b": "completed"}


async def test_who_has_lost_a_tree_stops_and_hands_its_nodes_over(both: tuple[Bench, Bench]) -> None:
    first, second = both
    await first.create(task("r", "ts_step"), task("w", "ts_wait"), task("v", "ts_step", "r"), task("a", "ts_step", "w"))
    work = asyncio.create_task(first.manager.execute_task("r"))
    await gates[0].reached()
    await until(lambda: "v" in log)
    # The first one was asleep for so long that somebody else has taken the execution over.
    sql = "UPDATE apflow_tasks SET epoch = epoch + 1, lease_expires_at = NULL, owner = 'nobody' WHERE kind = 'tree'"
    await change(first.store, sql)
    late = asyncio.create_task(second.manager.execute_task("r"))
    await gates[0].reached(2)
    gates[0].open()
    assert await ended(work) == await ended(late)
    assert set((await second.statuses()).values()) == {"completed"}
    assert ids(log) == "a r v w w"
