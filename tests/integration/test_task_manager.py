"""Task trees: order, results that travel, failures, and what another execution does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import apflow
from apflow import definition
from apflow.engine.creator import TaskCreator
from apflow.engine.manager import TaskManager
from apflow.errors import ExecutorNotFoundError, RunNotFoundError, TaskTreeError
from tests.integration.tree_helpers import Bench, Gate, bench, column, ended, ids, ref, task, until, until_stored

pytestmark = pytest.mark.anyio

log: list[str] = []
broken: set[str] = set()


@pytest.fixture(autouse=True)
def _empty() -> None:
    log.clear()
    broken.clear()


@pytest.fixture
async def made(database_url: str) -> AsyncIterator[Bench]:
    async with bench(database_url) as found:
        yield found


@apflow.task(name="tm_step")
async def step(value: Any = None) -> Any:
    """Return what it was given, unless this very run is broken."""
    here = apflow.current().task_id
    log.append(here)
    if here in broken:
        raise ValueError("broken")
    return value


@apflow.task(name="tm_gather")
async def gather(dependencies: dict[str, Any], more: int = 0) -> dict[str, Any]:
    return {"found": dependencies, "more": more}


@apflow.task(name="tm_number")
async def number(value: int, **others: Any) -> list[Any]:
    return [value, others]


# -- order -------------------------------------------------------------------------------------------------------


async def test_what_does_not_depend_on_each_other_runs_at_the_same_time(made: Bench) -> None:
    meeting = asyncio.Barrier(3)

    @apflow.task(name="tm_meet")
    async def meet() -> str:
        await meeting.wait()  # nobody gets out before all three are in
        log.append(apflow.current().task_id)
        return apflow.current().task_id

    work = made.execute(
        task("f1", "tm_step", inputs={"value": 1}),
        *(task(f"f{n}", "tm_meet", "f1") for n in (2, 3, 4)),
        task("fin", "tm_gather", "f2", "f3", "f4"),
    )
    assert await ended(work) == {
        "task_id": "f1",
        "status": "completed",
        "result": 1,
        "error": None,
        "token_usage": None,
    }
    assert log[0] == "f1"
    assert ids(log) == "f1 f2 f3 f4"
    assert (await made.results())["fin"] == {"found": {"f2": "f2", "f3": "f3", "f4": "f4"}, "more": 0}
    assert set((await made.statuses()).values()) == {"completed"}


async def test_urgent_nodes_go_first_and_then_older_ones(database_url: str) -> None:
    async with bench(database_url, at_once=1) as made:
        await made.execute(
            task("r", "tm_step", priority=3),
            *(
                task(one, "tm_step", "r", priority=priority)
                for one, priority in zip("abcde", (2, 3, 0, 2, 1), strict=True)
            ),
            task("late", "tm_step", "c", priority=0),
            task("normal", "tm_step", "r"),
        )
    assert log == ["r", "c", "late", "e", "a", "d", "normal", "b"]


async def test_a_parent_waits_for_nothing_and_holds_nothing_up(made: Bench) -> None:
    outcome = await made.execute(task("r", "tm_step", "a"), task("a", "tm_step"), task("b", "tm_step", parent_id="a"))
    assert outcome["status"] == "completed"
    assert log.index("a") < log.index("r")
    assert ids(log) == "a b r"


# -- results that travel -----------------------------------------------------------------------------------------


async def test_inputs_name_places_in_the_results_of_dependencies(made: Bench) -> None:
    await made.execute(
        task("a", "tm_step", inputs={"value": {"list": [{"n": 7}, None], "text": "x"}}),
        task("whole", "tm_step", "a", inputs={"value": ref("a")}),
        task("inside", "tm_number", "a", inputs={"value": ref("a", "list.0.n")}),
        task("deep", "tm_step", "a", inputs={"value": [{"k": ref("a", "text")}, ref("a", "list.1", default="d")]}),
        task("default", "tm_step", "a", inputs={"value": ref("a", "list.9.n", default={"d": [1]})}),
        task("missing", "tm_step", "a", inputs={"value": ref("a", "list.n")}),
        task("after", "tm_step", "missing"),
    )
    results = await made.results()
    assert results["whole"] == results["a"] == {"list": [{"n": 7}, None], "text": "x"}
    assert results["inside"][0] == 7
    assert results["deep"] == [{"k": "x"}, None]
    assert results["default"] == {"d": [1]}
    assert ids(one for one, status in (await made.statuses()).items() if status != "completed") == "after missing"
    error = (await made.errors())["missing"]
    assert error is not None
    assert "InvalidInputsError" in error
    assert "'list.n'" in error
    assert "'a'" in error


async def test_a_function_with_any_keyword_gets_all_results(made: Bench) -> None:
    await made.execute(
        task("a", "tm_step", inputs={"value": 5}),
        task("b", "tm_number", "a", inputs={"value": ref("a"), "other": 1}),
        task("c", "tm_number", inputs={"value": 1}),
    )
    results = await made.results()
    assert results["b"] == [5, {"other": 1, "dependencies": {"a": 5}}]
    assert results["c"] == [1, {}]


async def test_results_come_from_every_dependency_that_completed(made: Bench) -> None:
    broken.add("bad")
    await made.execute(
        task("r", "tm_step", inputs={"value": "r"}),
        task("bad", "tm_step"),
        task("opt", "tm_gather", "bad?", "r", inputs={"more": ref("bad", default=3)}),
        task("strict", "tm_step", "bad?", inputs={"value": ref("bad")}),
    )
    assert (await made.results())["opt"] == {"found": {"r": "r"}, "more": 3}
    statuses = await made.statuses()
    assert (statuses["bad"], statuses["opt"], statuses["strict"]) == ("failed", "completed", "failed")
    assert "task bad" in str((await made.errors())["strict"]).replace("'", "")


async def test_inputs_that_do_not_fit_at_run_time_fail_that_node_only(made: Bench) -> None:
    await made.execute(
        task("a", "tm_step", inputs={"value": "not a number"}),
        task("b", "tm_number", "a", inputs={"value": ref("a")}),
        task("c", "tm_step", "a", inputs={"value": 2}),
        task("d", "tm_step", "b"),
    )
    assert await made.statuses() == {"a": "completed", "b": "failed", "c": "completed", "d": "cancelled"}
    error = (await made.errors())["b"]
    assert error is not None
    assert error.startswith("apflow.InvalidInputsError")
    assert "not a number" not in error


async def test_a_tree_with_an_executor_that_is_gone_is_not_executed(
    made: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    @apflow.task(name="tm_passing")
    async def passing() -> None: ...

    await made.create(task("a", "tm_step"), task("b", "tm_passing"), task("c", "tm_gather", "b?", "a"))
    await made.create(task("x", "tm_step", "b?"), task("y", "tm_step", "b"))
    monkeypatch.delitem(definition._known, "tm_passing")
    for needs_it in "abcxy":  # also the task of another tree that depends on it
        with pytest.raises(ExecutorNotFoundError, match="tm_passing"):
            await made.manager.execute_task(needs_it)
    assert set((await made.statuses()).values()) == {"pending"}


# -- failures ----------------------------------------------------------------------------------------------------


async def test_what_needs_a_failed_node_is_cancelled_and_says_why(made: Bench) -> None:
    broken.add("b")
    await made.execute(
        task("a", "tm_step"),
        task("b", "tm_step", "a"),
        task("c", "tm_step", "b"),
        task("d", "tm_step", "c"),
        task("e", "tm_step", "d?"),
        task("f", "tm_step", "a"),
    )
    assert await made.statuses() == {
        "a": "completed",
        "b": "failed",
        "c": "cancelled",
        "d": "cancelled",
        "e": "completed",
        "f": "completed",
    }
    errors = await made.errors()
    assert errors["b"] == "ValueError: broken"
    assert "needs task b, which failed" in str(errors["c"])
    assert "needs task c, which was cancelled" in str(errors["d"])
    assert ids(log) == "a b e f"


async def test_the_outcome_of_a_failed_task(made: Bench) -> None:
    broken.add("a")
    outcome = await made.execute(task("a", "tm_step"), task("b", "tm_step", "a"))
    assert outcome == {
        "task_id": "a",
        "status": "failed",
        "result": None,
        "error": "ValueError: broken",
        "token_usage": None,
    }
    inner = await made.manager.execute_task("b")
    assert inner["status"] == "cancelled"
    assert "needs task a" in inner["error"]


async def test_executing_a_failed_tree_again_runs_only_what_did_not_complete(made: Bench) -> None:
    broken.update({"b", "x"})
    tasks = [task("a", "tm_step"), task("b", "tm_step", "a"), task("c", "tm_step", "b"), task("d", "tm_step", "a")]
    await made.execute(*tasks, task("x", "tm_step"), task("y", "tm_gather", "x?"))
    assert ids(log) == "a b d x"
    log.clear()
    broken.discard("b")
    await made.manager.execute_task("a")
    assert ids(log) == "b c x"
    assert await made.statuses() == {**dict.fromkeys("abcdy", "completed"), "x": "failed"}
    errors = await made.errors()
    assert (errors["b"], errors["c"]) == (None, None)
    log.clear()
    broken.clear()
    await made.manager.execute_task("a")
    assert log == ["x"]
    log.clear()
    assert (await made.manager.execute_task("a"))["status"] == "completed"
    assert log == []


# -- parts, forests, and doing it twice --------------------------------------------------------------------------


async def test_an_inner_task_runs_what_it_needs_and_nothing_else(made: Bench) -> None:
    await made.create(
        task("r", "tm_step"),
        task("a", "tm_step"),
        task("b", "tm_step", "a", inputs={"value": 3}),
        task("inside", "tm_step", parent_id="b"),
        task("other", "tm_step"),
        task("after", "tm_step", "b"),
    )
    assert (await made.manager.execute_task("b"))["result"] == 3
    assert ids(log) == "a b inside"
    assert ids(one for one, status in (await made.statuses()).items() if status == "pending") == "after other r"
    await made.manager.execute_task("r")
    assert ids(log) == "a after b inside other r"


async def test_a_task_may_depend_on_one_of_another_tree(made: Bench) -> None:
    await made.creator.create_task_trees_from_array(
        [
            task("t1", "tm_step", inputs={"value": 1}),
            task("t1a", "tm_step", "t1", parent_id="t1", inputs={"value": ref("t1")}),
            task("t1b", "tm_step", parent_id="t1"),
            task("t2", "tm_step", "t1a", inputs={"value": ref("t1a")}),
        ]
    )
    assert (await made.manager.execute_task("t2"))["result"] == 1
    assert log == ["t1", "t1a", "t2"]
    assert (await made.statuses())["t1b"] == "pending"


async def test_a_finished_tree_is_given_back(made: Bench) -> None:
    tree = await made.create(task("r", "tm_step", inputs={"value": 2}), task("a", "tm_step", "r"), task("b", "tm_step"))
    finished = await made.manager.distribute_task_tree(tree)
    assert (finished.status, finished.progress, finished.task.result) == ("completed", 1.0, 2)
    assert [child.task.id for child in finished.children] == ["a", "b"]
    assert tree.task.status == "pending"


async def test_two_executions_of_one_task_at_once_are_one(made: Bench) -> None:
    gate = Gate()

    @apflow.task(name="tm_wait")
    async def waits() -> str:
        await gate.wait(apflow.current().task_id)
        return "done"

    await made.create(task("r", "tm_wait"), task("a", "tm_step", "r"))
    other = TaskManager(made.store)
    both = asyncio.gather(made.manager.execute_task("r"), other.execute_task("r"))
    await gate.reached()
    [tree] = [state for state in made.runtime.keeper.held.values() if state.kind == "tree"]
    await until(lambda: len(tree.waiters) > 1)  # the second has found the first
    gate.open()
    first, second = await ended(both)
    assert first == second
    assert first["result"] == "done"
    assert (gate.arrived, log) == (["r"], ["a"])
    assert await made.runtime.runs.count(name="_task_tree") == 1


@pytest.mark.parametrize("fails", [True, False])
async def test_an_inner_task_that_somebody_else_executes_is_waited_for(made: Bench, fails: bool) -> None:
    gate = Gate()

    @apflow.task(name="tm_wait")
    async def waits() -> str:
        await gate.wait(apflow.current().task_id)
        if fails:
            raise ValueError("no")
        return "done"

    await made.create(task("r", "tm_step"), task("a", "tm_wait"), task("b", "tm_step", "a"), task("c", "tm_step"))
    inner = asyncio.create_task(made.manager.execute_task("a"))
    await gate.reached()
    outer = asyncio.create_task(made.manager.execute_task("r"))
    await until(lambda: "c" in log)
    gate.open()
    assert (await ended(inner))["status"] == ("failed" if fails else "completed")
    assert (await ended(outer))["status"] == "completed"
    assert gate.arrived == ["a"]
    assert (await made.statuses())["b"] == ("cancelled" if fails else "completed")


async def test_what_is_no_task(made: Bench) -> None:
    await step()
    [record] = await made.runtime.runs.list()
    for one in ("nobody", record.id):
        with pytest.raises(RunNotFoundError):
            await made.manager.execute_task(one)
        with pytest.raises(RunNotFoundError):
            await made.manager.cancel_task(one)
    with pytest.raises(ValueError, match="concurrency"):
        TaskManager(made.store, concurrency=0)
    with pytest.raises(TaskTreeError):
        await TaskCreator(made.store).create_task_tree_from_array([task("a", "tm_nobody")])


# -- progress ----------------------------------------------------------------------------------------------------


async def test_progress_of_what_has_others_inside_it(made: Bench) -> None:
    gate = Gate()

    @apflow.task(name="tm_wait")
    async def waits() -> None:
        await gate.wait(apflow.current().task_id)

    await made.create(
        task("r", "tm_step"), task("p", "tm_step"), task("p1", "tm_step", parent_id="p"), task("w", "tm_wait", "r")
    )
    work = asyncio.create_task(made.manager.execute_task("r"))
    await gate.reached()

    async def is_told() -> bool:
        found = {one: float(part) for one, part in (await column(made.store, "progress")).items()}
        return found == {"r": 0.75, "p": 1.0, "p1": 1.0, "w": 0.0}

    await until_stored(is_told)
    gate.open()
    await ended(work)
    assert {float(part) for part in (await column(made.store, "progress")).values()} == {1.0}


async def test_progress_counts_only_what_completed(made: Bench) -> None:
    broken.add("b")
    await made.execute(task("r", "tm_step"), task("a", "tm_step"), task("b", "tm_step"), task("c", "tm_step", "b"))
    assert float((await column(made.store, "progress"))["r"]) == 0.5
