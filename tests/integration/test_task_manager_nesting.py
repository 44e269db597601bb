"""Trees inside runs and runs inside trees: agents that execute trees, nodes that do, plain functions that do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import apflow
from apflow import RetryPolicy
from apflow.engine.manager import TaskManager
from apflow.errors import DeadlockError
from tests.integration.tree_helpers import Bench, Gate, bench, ended, ids, ref, task

pytestmark = pytest.mark.anyio

log: list[str] = []
broken: set[str] = set()
gates: list[Gate] = []
benches: list[Bench] = []
TWICE = RetryPolicy(max_attempts=2, backoff_base_seconds=0.1, jitter=False)


def ready(made: Bench) -> None:
    log.clear()
    broken.clear()
    gates[:] = [Gate()]
    benches[:] = [made]


@pytest.fixture
async def made(database_url: str) -> AsyncIterator[Bench]:
    async with bench(database_url) as found:
        ready(found)
        yield found


@pytest.fixture
async def narrow(database_url: str) -> AsyncIterator[Bench]:
    """Where one thing runs at a time, in the background and in each tree."""
    async with bench(database_url, at_once=1, concurrency=1) as found:
        ready(found)
        yield found


@apflow.task(name="tn_step")
async def step(value: Any = None) -> Any:
    here = apflow.current().task_id
    log.append(here)
    if here in broken:
        raise ValueError("broken")
    return value


@apflow.task(name="tn_wait")
async def waits() -> None:
    await gates[0].wait(apflow.current().task_id)


@apflow.task(name="tn_execute")
async def execute(tree: str) -> str:
    log.append(apflow.current().task_id)
    return str((await benches[0].manager.execute_task(tree))["status"])


@apflow.task(name="tn_execute_sync")
def execute_sync(tree: str) -> str:
    log.append(apflow.current().task_id)
    return str(benches[0].runtime.wait(benches[0].manager.execute_task(tree))["status"])


@apflow.task(name="tn_agent", checkpoint=True, retry=TWICE)
async def agent(tree: str) -> int:
    await step("own")
    outcome = await benches[0].manager.execute_task(tree)
    log.append(outcome["status"])
    if outcome["status"] == "failed":
        broken.clear()
        raise ConnectionError("once more")
    return int(outcome["result"])


@pytest.mark.parametrize("executor", ["tn_execute", "tn_execute_sync"])
async def test_nodes_execute_trees_where_only_one_thing_runs_at_a_time(narrow: Bench, executor: str) -> None:
    await narrow.create(task("inner", "tn_step", inputs={"value": 1}), task("inner2", "tn_step", "inner"))
    await narrow.create(
        task("middle", executor, inputs={"tree": "inner"}), task("middle2", executor, inputs={"tree": "inner"})
    )
    work = narrow.execute(
        task("outer", executor, inputs={"tree": "middle"}),
        task("last", "tn_step", "outer", inputs={"value": ref("outer")}),
    )
    assert (await ended(work))["result"] == "completed"
    assert log[:2] == ["outer", "middle"]
    assert ids(log) == "inner inner2 last middle middle2 outer"
    assert set((await narrow.statuses()).values()) == {"completed"}


async def test_submitted_runs_that_execute_trees_where_one_runs_at_a_time(narrow: Bench) -> None:
    for n in range(3):
        await narrow.create(task(f"r{n}", "tn_step"), task(f"a{n}", "tn_step", f"r{n}"))
    runs = [await execute.submit(f"r{n}") for n in range(3)]
    assert [await ended(run) for run in runs] == ["completed"] * 3


async def test_an_agent_that_is_tried_again_executes_what_failed_again(made: Bench) -> None:
    broken.add("b")
    await made.create(task("a", "tn_step", inputs={"value": 3}), task("b", "tn_step"), task("c", "tn_step", "b"))
    await made.create(task("r", "tn_step", "x?", inputs={"value": 3}), task("x", "tn_step"), task("y", "tn_step", "x"))
    broken.add("r")
    assert await ended(agent("r")) == 3
    assert [one for one in log if one in ("failed", "completed")] == ["failed", "completed"]
    assert [log.count(one) for one in "rxy"] == [2, 1, 1]
    assert sum(one not in {*"rxy", "failed", "completed"} for one in log) == 1  # its own child is not run again


async def test_an_agent_that_is_a_node(made: Bench) -> None:
    broken.add("r")
    await made.create(task("r", "tn_step", inputs={"value": 3}))
    outcome = await ended(made.execute(task("n", "tn_agent", inputs={"tree": "r"})))
    assert (outcome["status"], outcome["result"]) == ("completed", 3)
    assert log.count("r") == 2


async def test_what_an_interrupted_agent_executed_is_carried_on_where_one_runs_at_a_time(database_url: str) -> None:
    async with bench(database_url, at_once=1, concurrency=1) as first:
        ready(first)
        await first.create(task("r", "tn_step", inputs={"value": 4}), task("w", "tn_wait"), task("z", "tn_step", "w"))
        run = await agent.submit("r")
        await gates[0].reached()
    async with bench(database_url, at_once=1, concurrency=1) as second:
        benches[:] = [second]
        gates[0].open()
        found = await second.runtime.recover()
        [again] = [one for one in found if one.id == run.id]
        assert await ended(again) == 4
        assert set((await second.statuses()).values()) == {"completed"}
    assert ids(one for one in log if one in ("r", "z")) == "r z"


@pytest.mark.parametrize("executor", ["tn_execute", "tn_execute_sync"])
@pytest.mark.parametrize("which", ["its tree", "itself", "what depends on it"])
async def test_a_node_that_would_wait_for_itself_is_told(made: Bench, executor: str, which: str) -> None:
    target = {"its tree": "r", "itself": "n", "what depends on it": "a"}[which]
    await ended(
        made.execute(
            task("r", "tn_step"), task("n", executor, "r", inputs={"tree": target}), task("a", "tn_step", "n")
        ),
        20,
    )
    assert await made.statuses() == {"r": "completed", "n": "failed", "a": "cancelled"}
    assert DeadlockError.__name__ in str((await made.errors())["n"])


async def test_a_node_that_would_wait_for_itself_through_another_tree_is_told(made: Bench) -> None:
    await made.create(task("other", "tn_execute", inputs={"tree": "r"}))
    await ended(made.execute(task("r", "tn_execute", inputs={"tree": "other"})), 20)
    assert (await made.statuses())["other"] == "failed"
    assert DeadlockError.__name__ in str((await made.errors())["other"])


async def test_a_node_may_execute_what_has_nothing_to_do_with_it(made: Bench) -> None:
    outcome = await ended(
        made.execute(
            task("r", "tn_step"),
            task("n", "tn_execute", "r", inputs={"tree": "s"}),
            task("s", "tn_step", "r"),
            task("a", "tn_step", "n"),
        )
    )
    assert outcome["status"] == "completed"
    assert set((await made.statuses()).values()) == {"completed"}
    assert log.count("s") == 1


async def test_cancelling_an_agent_cancels_the_tree_that_it_executes(made: Bench) -> None:
    await made.create(task("r", "tn_step", inputs={"value": 1}), task("w", "tn_wait"), task("a", "tn_step", "w"))
    run = await agent.submit("r")
    await gates[0].reached()
    await ended(run.cancel())
    assert await made.statuses() == {"r": "completed", "w": "cancelled", "a": "cancelled"}
    assert await made.runtime.runs.count(status="in_progress") == 0


async def test_plain_code_executes_trees(database_url: str) -> None:
    def plain() -> dict[str, Any]:
        with apflow.Runtime(database_url, shutdown_seconds=0.1) as runtime:
            manager = TaskManager(runtime.store)
            creator = apflow_creator(runtime)
            runtime.wait(creator.create_task_tree_from_array([task("r", "tn_step", inputs={"value": 1})]))
            return runtime.wait(manager.execute_task("r"))

    log.clear()
    assert (await asyncio.to_thread(plain))["result"] == 1


def apflow_creator(runtime: apflow.Runtime) -> Any:
    from apflow.engine.creator import TaskCreator

    return TaskCreator(runtime.store)
