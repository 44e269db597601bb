"""Carrying runs on that were interrupted, and what stands in the way of that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

import apflow
from apflow import ApflowError, RunCancelledError, Runtime, SerializationError, TaskDefinitionError, create_session

pytestmark = pytest.mark.anyio

gates: dict[str, asyncio.Event] = {}
executed: list[str] = []


@pytest.fixture(autouse=True)
def _clean() -> None:
    gates.clear()
    executed.clear()


@pytest.fixture
async def runtime(database_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(database_url, shutdown_seconds=0) as made:
        yield made


@apflow.task
async def leaf(name: str) -> str:
    executed.append(name)
    if name in gates:
        await gates[name].wait()
    return name


@apflow.task(checkpoint=True)
async def branch(name: str) -> str:
    run = await leaf.submit(name)
    return await run


@apflow.task(checkpoint=True)
async def trunk(name: str) -> str:
    return await branch(name)


@apflow.task
async def waits(name: str) -> str:
    executed.append(name)
    await gates[name].wait()
    return name


class Agent:
    def __init__(self, name: str) -> None:
        self.name = name

    @apflow.task
    async def ask(self) -> str:
        return self.name


async def interrupted(url: str, *names: str) -> list[str]:
    """Submit runs, leave the runtime while they wait, and return their ids."""
    for name in names:
        gates[name] = asyncio.Event()
    async with Runtime(url, shutdown_seconds=0):
        return [(await waits.submit(name)).id for name in names]


async def test_recover_takes_over_what_was_submitted(database_url: str) -> None:
    [run_id] = await interrupted(database_url, "a")
    gates["a"].set()
    async with Runtime(database_url) as runtime:
        runs = await runtime.recover()
        handle = runs[0] if runs else await runtime.runs.resume(run_id)
        assert await handle == "a"
        row = await runtime.runs.get(run_id)
    assert row is not None
    assert (row.status, row.epoch, row.recoveries) == ("completed", 2, 0)


async def test_a_plain_call_is_only_carried_on_when_asked_for(database_url: str) -> None:
    gates["a"] = asyncio.Event()
    async with Runtime(database_url) as runtime:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waits("a"), 0.3)
        gates["a"].set()
        assert await runtime.recover() == []
        [run] = await runtime.recover(everything=True)
        assert await run == "a"


async def test_one_unreadable_run_does_not_hold_up_the_others(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = await interrupted(database_url, "a", "b")
    gates["b"].set()
    store = create_session(database_url)
    await store.write(
        lambda tx: tx.execute("UPDATE apflow_tasks SET inputs = '{\"name\": 3}' WHERE id = :id", {"id": first})
    )
    store.close()
    async with Runtime(database_url) as runtime:
        with caplog.at_level(logging.WARNING):
            await runtime.recover()
            assert await (await runtime.runs.resume(second)) == "b"
        row = await runtime.runs.get(first)
    assert row is not None
    assert row.interrupted


async def test_resume_of_a_task_that_nobody_knows_says_so(database_url: str) -> None:
    [run_id] = await interrupted(database_url, "a")
    store = create_session(database_url)
    await store.write(lambda tx: tx.execute("UPDATE apflow_tasks SET origin = 'elsewhere'"))
    store.close()
    async with Runtime(database_url) as runtime:
        with pytest.raises(ApflowError, match="import its module"):
            await runtime.runs.resume(run_id)


async def test_submitted_grandchild_has_its_place_in_the_tree(runtime: Runtime) -> None:
    gates["x"] = asyncio.Event()
    run = await trunk.submit("x")
    while "x" not in executed:  # noqa: ASYNC110 - the leaf runs in a task of its own
        await asyncio.sleep(0.01)
    tree = await runtime.runs.tree(run.id)
    assert [row.name for row in tree.walk()] == ["trunk", "branch", "leaf"]
    await run.cancel()
    with pytest.raises(RunCancelledError):
        await run
    statuses = {row.name: row.status for row in (await runtime.runs.tree(run.id)).walk()}
    assert statuses == {"trunk": "cancelled", "branch": "cancelled", "leaf": "cancelled"}


async def test_a_key_needs_a_self_that_can_be_told_apart(runtime: Runtime) -> None:
    with pytest.raises(SerializationError, match="__apflow_key__"):
        await Agent("a").ask.with_options(key="k")()
    with pytest.raises(SerializationError, match="__apflow_key__"):
        await Agent("a").ask.submit()
    assert await Agent("b").ask() == "b"


async def test_a_result_without_a_json_form_is_refused_before_the_work(runtime: Runtime) -> None:
    class Opaque:
        pass

    @apflow.task
    async def makes() -> Opaque:
        executed.append("worked")
        return Opaque()

    with pytest.raises(TaskDefinitionError):
        await makes()
    assert executed == []
