"""What `prune` and `runs.delete` leave alone: tasks of trees that others need."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import apflow
from apflow import (
    RunActiveError,
    RunNotFoundError,
    Runtime,
    TaskCreator,
    TaskFrozenError,
    TaskInUseError,
    TaskManager,
    TaskRepository,
)

pytestmark = pytest.mark.anyio

SOON = timedelta(seconds=5)


@apflow.task
async def made() -> int:
    return await inner(1)


@apflow.task
async def inner(n: int) -> int:
    return n


@apflow.task
async def read(dependencies: dict[str, Any]) -> list[Any]:
    return list(dependencies.values())


@pytest.fixture
async def runtime(database_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(database_url, shutdown_seconds=1) as opened:
        yield opened


async def create(runtime: Runtime, *tasks: Mapping[str, Any]) -> None:
    await TaskCreator(runtime.store).create_task_trees_from_array([{"name": "made", **task} for task in tasks])


async def ids(runtime: Runtime) -> set[str]:
    return {task.id for task in await TaskRepository(runtime.store).list_tasks(kind="node")}


async def prune(runtime: Runtime) -> int:
    return await runtime.prune(older_than=datetime.now(UTC) + SOON)


# -- pruning -------------------------------------------------------------------------------------------------


async def test_prune_keeps_what_a_waiting_task_will_read(runtime: Runtime) -> None:
    manager = TaskManager(runtime.store)
    await create(runtime, {"id": "p"}, {"id": "under-p", "parent_id": "p"}, {"id": "alone"})
    await manager.execute_task("p")
    await manager.execute_task("alone")
    await create(runtime, {"id": "q", "name": "read", "dependencies": [{"id": "under-p", "required": False}]})
    assert await prune(runtime) > 0
    assert await ids(runtime) == {"p", "under-p", "q"}
    assert (await runtime.runs.tree("p")).children
    assert (await manager.execute_task("q"))["result"] == [1]
    assert await prune(runtime) > 0
    assert await ids(runtime) == set()


@pytest.mark.parametrize("dependencies", ['["p"]', '[{"id": "p"}]', '["nobody", {"id": "p", "required": false}]'])
@pytest.mark.parametrize("status", ["pending", "in_progress", None])
async def test_prune_reads_dependencies_however_they_are_written(
    runtime: Runtime, dependencies: str, status: str | None
) -> None:
    await create(runtime, {"id": "p"}, {"id": "q", "name": "made"}, {"id": "odd"})
    await TaskManager(runtime.store).execute_task("p")
    cast = "::json" if runtime.store.dialect == "postgresql" else ""
    sql = f"UPDATE apflow_tasks SET status = :status, dependencies = :needs{cast} WHERE id = :id"
    waiting = {"status": status, "needs": dependencies, "id": "q"}
    await runtime.store.write(lambda tx: tx.execute(sql, waiting))
    odd = {"status": status, "needs": '{"id": ["\\u0000"]}', "id": "odd"}
    await runtime.store.write(lambda tx: tx.execute(sql, odd))
    assert await prune(runtime) == 0
    gone = {"status": "completed", "needs": dependencies, "id": "q"}
    await runtime.store.write(lambda tx: tx.execute(sql, gone))
    assert await prune(runtime) > 0
    assert "p" not in await ids(runtime)


# -- one run -------------------------------------------------------------------------------------------------


async def test_prune_keeps_archives(runtime: Runtime) -> None:
    creator = TaskCreator(runtime.store)
    await creator.create_task_tree_from_array([{"id": "old", "name": "made"}])
    await TaskManager(runtime.store).execute_task("old")
    archive = (await creator.from_archive("old")).task.id
    assert await prune(runtime) > 0
    assert await ids(runtime) == {archive}


async def test_a_task_goes_with_all_that_is_inside_it(runtime: Runtime) -> None:
    await create(
        runtime,
        {"id": "p"},
        {"id": "under-p", "parent_id": "p", "dependencies": ["p"]},
        {"id": "under-all", "parent_id": "under-p", "dependencies": ["under-p"]},
        {"id": "beside", "parent_id": "p"},
    )
    await TaskManager(runtime.store).execute_task("p")
    assert await runtime.runs.delete("under-p") == 4  # Each with the run of its function.
    assert await ids(runtime) == {"p", "beside"}
    assert await runtime.runs.delete("p") == 4
    assert await runtime.runs.count() == 0
    with pytest.raises(RunNotFoundError):
        await runtime.runs.delete("p")


async def test_a_task_that_another_tree_needs_is_not_deleted(runtime: Runtime) -> None:
    await create(runtime, {"id": "p"}, {"id": "under-p", "parent_id": "p"})
    await create(runtime, {"id": "q", "name": "read", "dependencies": ["under-p"]})
    for task_id in ("p", "under-p"):
        with pytest.raises(TaskInUseError) as caught:
            await runtime.runs.delete(task_id)
        assert caught.value.ids == ("q",)
    assert await ids(runtime) == {"p", "under-p", "q"}
    assert await runtime.runs.delete("q") == 1
    assert await runtime.runs.delete("p") == 2


async def test_a_task_that_is_linked_to_or_archived_is_not_deleted(runtime: Runtime) -> None:
    await create(runtime, {"id": "p"}, {"id": "under-p", "parent_id": "p"})
    await TaskManager(runtime.store).execute_task("p")
    creator = TaskCreator(runtime.store)
    link = (await creator.from_link("p")).task.id
    archive = (await creator.from_archive("p")).task.id
    with pytest.raises(TaskInUseError) as caught:
        await runtime.runs.delete("p")
    assert link in caught.value.ids
    with pytest.raises(TaskFrozenError, match="archived"):
        await runtime.runs.delete(archive)
    assert {"p", link, archive} <= await ids(runtime)
    assert await runtime.runs.delete(link) == 2
    assert await runtime.runs.delete("p") == 4
    assert await TaskRepository(runtime.store).delete_task(archive, cascade=True) == 2


async def test_nothing_of_a_tree_goes_while_some_of_it_runs(runtime: Runtime) -> None:
    await create(runtime, {"id": "p"}, {"id": "under-p", "parent_id": "p"})
    ends = datetime.now(UTC) + timedelta(hours=1)
    sql = (
        "UPDATE apflow_tasks SET status = 'in_progress', epoch = 1, owner = 'elsewhere:0:1:1:00', "
        "lease_expires_at = :ends WHERE id = 'under-p'"
    )
    await runtime.store.write(lambda tx: tx.execute(sql, {"ends": runtime.store.timestamp(ends)}))
    with pytest.raises(RunActiveError):
        await runtime.runs.delete("p")
    assert await ids(runtime) == {"p", "under-p"}
