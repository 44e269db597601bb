"""Executing a tree reads what its nodes need in large pieces, in whatever order they were created."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import pytest

import apflow
from apflow.engine import results
from apflow.storage.store import Store, Tx
from tests.integration.tree_helpers import Bench, bench, change, ended, ref, task

T = TypeVar("T")

pytestmark = pytest.mark.anyio

NODES = 200
MANY = NODES // 8


@apflow.task(name="tr_add")
async def add(n: int) -> int:
    return n + 1


@pytest.fixture
async def made(sqlite_url: str) -> AsyncIterator[Bench]:
    async with bench(sqlite_url) as made:
        yield made


class Counting:
    """Counts the reads of a store."""

    def __init__(self, store: Store) -> None:
        self.reads = 0
        self._read = store.read
        store.read = self.read  # type: ignore[method-assign]  # a seam that only this needs

    async def read(self, fn: Callable[[Tx], T]) -> T:
        self.reads += 1
        return await self._read(fn)


def follower(n: int, *needs: int) -> dict[str, Any]:
    """Return a node that adds one to the result of the first one that it needs."""
    inputs = {"n": ref(f"n{needs[0]}") if needs else n}
    return task(f"n{n}", "tr_add", *(f"n{one}" for one in needs), inputs=inputs)


def chain(count: int = NODES) -> list[dict[str, Any]]:
    return [follower(n, *([n - 1] if n else [])) for n in range(count)]


async def execute(made: Bench) -> int:
    """Execute the tree, and return how often that read the database."""
    counting = Counting(made.store)
    assert (await ended(made.manager.execute_task("root")))["status"] == "completed"
    return counting.reads


@pytest.mark.parametrize("backwards", [False, True])
async def test_a_chain(made: Bench, backwards: bool) -> None:
    nodes = chain()
    await made.create(task("root", "tr_add", inputs={"n": 0}), *(nodes[::-1] if backwards else nodes))
    assert await execute(made) < MANY
    assert (await made.results())[f"n{NODES - 1}"] == NODES


async def test_results_of_nodes_that_completed_before(made: Bench) -> None:
    pairs = [node for n in range(0, NODES, 2) for node in (follower(n), follower(n + 1, n))]
    await made.create(task("root", "tr_add", inputs={"n": 0}), *pairs)
    sql = "UPDATE apflow_tasks SET status = 'completed', result = '41', epoch = 1 WHERE id = :id"
    for n in range(0, NODES, 2):
        await change(made.store, sql, id=f"n{n}")
    assert await execute(made) < MANY
    found = await made.results()
    assert {found[f"n{n}"] for n in range(1, NODES, 2)} == {42}


async def test_one_result_that_all_others_need(made: Bench) -> None:
    await made.create(task("root", "tr_add", inputs={"n": 0}), follower(0), *(follower(n, 0) for n in range(1, NODES)))
    await change(made.store, "UPDATE apflow_tasks SET status = 'completed', result = '41', epoch = 1 WHERE id = 'n0'")
    assert await execute(made) < MANY
    found = await made.results()
    assert {found[f"n{n}"] for n in range(1, NODES)} == {42}


async def test_results_that_are_too_large_to_keep_are_read_again(made: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "KEPT", 0)
    await made.create(task("root", "tr_add", inputs={"n": 0}), *chain(10))
    await execute(made)
    assert (await made.results())["n9"] == 10
