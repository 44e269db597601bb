"""All kinds of tasks as nodes: plain functions, generators, retries, timeouts, middleware; and how many at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import apflow
from apflow import CircuitBreakerConfig, RetryPolicy, Runtime, definition
from apflow.call import Call, CallNext
from apflow.engine.creator import TaskCreator
from apflow.engine.manager import TaskManager
from tests.integration.tree_helpers import Bench, Gate, bench, column, ended, ids, ref, task

pytestmark = pytest.mark.anyio

log: list[Any] = []
FAST = RetryPolicy(max_attempts=3, backoff_base_seconds=0.1, jitter=False)


@pytest.fixture
async def made(database_url: str) -> AsyncIterator[Bench]:
    log.clear()
    async with bench(database_url) as found:
        yield found


@apflow.task(name="tk_step")
async def step(value: Any = None) -> Any:
    log.append(apflow.current().task_id)
    return value


# -- kinds -------------------------------------------------------------------------------------------------------


async def test_plain_functions_run_at_the_same_time_on_threads_of_their_own(made: Bench) -> None:
    meeting = threading.Barrier(4)

    @apflow.task(name="tk_plain")
    def plain(n: int) -> int:
        log.append(threading.get_ident())
        meeting.wait(30)
        return n * 2

    work = made.execute(
        task("r", "tk_plain", inputs={"n": 0}),
        *(task(f"a{n}", "tk_plain", inputs={"n": n}) for n in range(3)),
        task("b", "tk_step", "a2", inputs={"value": ref("a2")}),
    )
    assert (await ended(work))["result"] == 0
    assert (await made.results())["b"] == 4
    assert len({one for one in log if one != "b"} | {threading.get_ident()}) == 5


async def test_generators_have_a_list_as_result(made: Bench) -> None:
    @apflow.task(name="tk_many")
    async def many(n: int) -> AsyncIterator[int]:
        for one in range(n):
            yield one

    @apflow.task(name="tk_many_sync")
    def many_sync(n: int) -> Iterator[int]:
        yield from range(n)

    await ended(
        made.execute(
            task("r", "tk_many", inputs={"n": 3}),
            task("s", "tk_many_sync", "r", inputs={"n": ref("r", "2")}),
            task("t", "tk_step", "s", inputs={"value": ref("s", "1")}),
        )
    )
    assert await made.results() == {"r": [0, 1, 2], "s": [0, 1], "t": 1}


async def test_what_nodes_call_is_stored_below_them(made: Bench) -> None:
    @apflow.task(name="tk_caller")
    async def caller() -> int:
        return int(await step(1)) + int(await (await step.submit(2)))

    assert (await ended(made.execute(task("r", "tk_caller"), task("a", "tk_caller"))))["result"] == 3
    tree = await made.runtime.runs.tree("r")
    assert sorted(child.run.name for child in tree.children) == ["tk_caller", "tk_step", "tk_step"]
    assert set(await made.statuses()) == {"r", "a"}


# -- what options do ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", ["async", "sync"])
async def test_a_task_with_a_timeout(made: Bench, colour: str) -> None:
    @apflow.task(name="tk_slow", timeout=0.05)
    async def slow() -> None:
        await asyncio.sleep(60)

    @apflow.task(name="tk_slow_sync", timeout=0.05)
    def slow_sync() -> None:
        while not apflow.current().cancelled:
            threading.Event().wait(0.01)

    name = "tk_slow" if colour == "async" else "tk_slow_sync"
    await ended(made.execute(task("r", "tk_step"), task("s", name, "r"), task("a", "tk_step", "s?")))
    assert await made.statuses() == {"r": "completed", "s": "failed", "a": "completed"}
    assert "RunTimeoutError" in str((await made.errors())["s"])


async def test_how_often_a_node_is_tried(made: Bench) -> None:
    @apflow.task(name="tk_shaky", retry=FAST)
    async def shaky(good: int) -> int:
        log.append(apflow.current().attempt)
        if apflow.current().attempt < good:
            raise ConnectionError("away")
        return apflow.current().attempt

    @apflow.task(name="tk_once")
    async def once() -> None:
        log.append("once")
        raise ConnectionError("away")

    quick = {"backoff_strategy": "fixed", "backoff_base_seconds": 0.1}
    await ended(
        made.execute(
            task("r", "tk_shaky", inputs={"good": 3}),
            task("fewer", "tk_shaky", inputs={"good": 3}, max_attempts=2),
            task("more", "tk_shaky", inputs={"good": 5}, max_attempts=5, **quick),
            task("once", "tk_once"),
            task("twice", "tk_once", max_attempts=2, **quick),
        )
    )
    assert await made.statuses() == {
        "r": "completed",
        "fewer": "failed",
        "more": "completed",
        "once": "failed",
        "twice": "failed",
    }
    assert await column(made.store, "attempt_count") == {"r": 3, "fewer": 2, "more": 5, "once": 1, "twice": 2}
    assert log.count("once") == 3


async def test_a_retry_that_the_row_does_not_name_is_the_tasks_of_today(made: Bench) -> None:
    @apflow.task(name="tk_deployed")
    async def before() -> None:
        raise ConnectionError("away")

    await ended(made.execute(task("r", "tk_deployed"), task("own", "tk_deployed", max_attempts=1)))
    assert await column(made.store, "attempt_count") == {"r": 1, "own": 1}

    async with bench(made.store) as later:

        @apflow.task(name="tk_deployed", retry=FAST)
        async def after() -> int:
            if apflow.current().attempt < 3:
                raise ConnectionError("away")
            return 1

        known = definition._known["tk_deployed"]
        for key in list(known):
            if known[key].fn is not after.fn:
                del known[key]
        await ended(later.manager.execute_task("r"))
        assert await later.statuses() == {"r": "completed", "own": "failed"}
        assert await column(later.store, "attempt_count") == {"r": 3, "own": 1}


async def test_middleware_sees_nodes_and_not_the_execution_of_their_tree(database_url: str) -> None:
    seen: list[tuple[str, str]] = []

    async def watch(call: Call, call_next: CallNext) -> Any:
        seen.append((call.task.name, call.run_id))
        result = await call_next(call)
        return "changed" if result == "mark" else result

    async with bench(database_url, middleware=[watch]) as made:
        await ended(
            made.execute(
                task("r", "tk_step", inputs={"value": "mark"}), task("a", "tk_step", "r", inputs={"value": ref("r")})
            )
        )
        assert sorted(seen) == [("tk_step", "a"), ("tk_step", "r")]
        assert await made.results() == {"r": "changed", "a": "changed"}


async def test_an_open_breaker_fails_its_nodes(made: Bench) -> None:
    @apflow.task(name="tk_breaking", breaker=CircuitBreakerConfig(failure_threshold=1, reset_timeout_seconds=60))
    async def breaking() -> None:
        log.append("called")
        raise ConnectionError("away")

    await ended(made.execute(task("r", "tk_breaking"), task("a", "tk_breaking", "r?")))
    assert log == ["called"]
    assert "CircuitOpenError" in str((await made.errors())["a"])


async def test_a_node_knows_its_id_user_and_attempt(made: Bench) -> None:
    @apflow.task(name="tk_who")
    async def who() -> list[Any]:
        here = apflow.current()
        return [here.task_id, here.user, here.attempt, here.idempotency_key]

    await ended(made.execute(task("r", "tk_who", user_id="ada"), task("a", "tk_who")))
    assert await made.results() == {"r": ["r", "ada", 1, "r"], "a": ["a", "ada", 1, "a"]}


# -- how many at once --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("of_runtime", "of_manager"), [(2, 100), (100, 2)])
async def test_so_many_nodes_run_at_once_and_no_more(database_url: str, of_runtime: int, of_manager: int) -> None:
    here = most = 0
    met = asyncio.Event()

    @apflow.task(name="tk_counted")
    async def counted() -> None:
        nonlocal here, most
        here += 1
        most = max(most, here)
        if here == 2:
            met.set()
        await met.wait()
        await asyncio.sleep(0.01)
        here -= 1

    async with bench(database_url, at_once=of_manager, concurrency=of_runtime) as made:
        await ended(made.execute(*(task(f"n{n}", "tk_counted") for n in range(8))))
        assert set((await made.statuses()).values()) == {"completed"}
    assert most == 2


async def test_trees_share_what_the_runtime_allows(database_url: str) -> None:
    gate = Gate()

    @apflow.task(name="tk_gated")
    async def gated() -> None:
        await gate.wait(apflow.current().task_id)

    async with bench(database_url, concurrency=3) as made:
        for tree in "xyz":
            await made.create(*(task(f"{tree}{n}", "tk_gated") for n in range(3)))
        work = asyncio.gather(*(made.manager.execute_task(f"{tree}0") for tree in "xyz"))
        await gate.reached(3)
        await asyncio.sleep(0.1)
        assert len(gate.arrived) == 3
        gate.open()
        assert {one["status"] for one in await ended(work)} == {"completed"}
    assert len(gate.arrived) == 9


# -- stores, runtimes and loops ----------------------------------------------------------------------------------


async def test_the_manager_uses_the_runtime_that_has_its_store(database_url: str) -> None:
    async with Runtime(database_url, shutdown_seconds=0.1) as runtime:
        assert TaskManager(runtime.store).runtime is runtime
    store = apflow.create_session(database_url)
    async with TaskManager(store) as manager, TaskManager(store) as second:
        assert manager.runtime is second.runtime
        await TaskCreator(store).create_task_tree_from_array([task("r", "tk_step", inputs={"value": 1})])
        assert (await second.execute_task("r"))["result"] == 1
    assert manager.runtime.closed is False  # it makes another one when it is used again
    await manager.aclose()
    assert (await store.read(lambda tx: tx.row("SELECT status FROM apflow_tasks WHERE id = 'r'"))) == ("completed",)
    store.close()


def test_one_event_loop_after_another(sqlite_url: str) -> None:
    store = apflow.create_session(sqlite_url)
    creator, manager = TaskCreator(store), TaskManager(store)
    log.clear()

    async def execute(one: str) -> Any:
        await creator.create_task_tree_from_array(
            [task(one, "tk_step", inputs={"value": one}), task(f"{one}2", "tk_step", one, parent_id=one)]
        )
        return (await manager.execute_task(one))["result"]

    assert [asyncio.run(execute(one)) for one in "abc"] == ["a", "b", "c"]
    asyncio.run(manager.aclose())
    store.close()
    assert ids(log) == "a a2 b b2 c c2"
