"""What tests of task trees share: making trees, reading their rows, and gates that tasks wait at."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from apflow import Runtime
from apflow.engine.creator import TaskCreator
from apflow.engine.manager import TaskManager
from apflow.engine.tree import TaskTreeNode
from apflow.storage.store import Store

#: After so long a test fails that waits for something.
SECONDS = 60.0


@dataclass
class Bench:
    """A runtime, and what creates and executes trees on its database."""

    runtime: Runtime
    creator: TaskCreator
    manager: TaskManager

    @property
    def store(self) -> Store:
        return self.runtime.store

    async def create(self, *tasks: Mapping[str, Any]) -> TaskTreeNode:
        """Create a tree; every task but the first is inside the first, unless it says otherwise."""
        first = tasks[0].get("id")
        return await self.creator.create_task_tree_from_array(
            [tasks[0], *({"parent_id": first} | dict(task) for task in tasks[1:])]
        )

    async def execute(self, *tasks: Mapping[str, Any]) -> dict[str, Any]:
        """Create a tree, execute it and return how its first task ended."""
        tree = await self.create(*tasks)
        return await self.manager.execute_task(tree.task.id)

    async def statuses(self) -> dict[str, str]:
        return await column(self.store, "status")

    async def results(self) -> dict[str, Any]:
        found = await column(self.store, "CAST(result AS TEXT)")
        return {one: None if text is None else json.loads(text) for one, text in found.items()}

    async def errors(self) -> dict[str, str | None]:
        return await column(self.store, "error")


@asynccontextmanager
async def bench(database_url: str | Store, *, at_once: int = 100, **options: Any) -> AsyncIterator[Bench]:
    """A runtime on this database; `at_once` is how many nodes of one tree run at once."""
    async with Runtime(database_url, **({"shutdown_seconds": 0.1} | options)) as runtime:
        yield Bench(runtime, TaskCreator(runtime.store), TaskManager(runtime.store, concurrency=at_once))


async def column(store: Store, expression: str) -> dict[str, Any]:
    """Return a column of all graph nodes, by id."""
    sql = f"SELECT id, {expression} FROM apflow_tasks WHERE kind = 'node' OR kind IS NULL"
    return {row[0]: row[1] for row in await store.read(lambda tx: tx.rows(sql))}


async def rows(store: Store, sql: str, **params: Any) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await store.read(lambda tx: tx.rows(sql, params))]


async def change(store: Store, sql: str, **params: Any) -> None:
    """Change the database behind apflow's back."""
    await store.write(lambda tx: tx.execute(sql, params))


def task(one: str, name: str, *needs: str, **more: Any) -> dict[str, Any]:
    """Return a task dictionary; `needs` are the ids of what it depends on, with a `?` behind optional ones."""
    found = [{"id": need.rstrip("?"), "required": not need.endswith("?")} for need in needs]
    return {"id": one, "name": name, **({"dependencies": found} if found else {}), **more}


def ref(one: str, path: str | None = None, **more: Any) -> dict[str, Any]:
    return {"$from": one, **({} if path is None else {"path": path}), **more}


@dataclass
class Gate:
    """Tasks wait at it. `arrived` tells who came."""

    arrived: list[str] = field(default_factory=list)
    _open: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self, who: str) -> None:
        self.arrived.append(who)
        await self._open.wait()

    async def reached(self, number: int = 1) -> None:
        """Return once so many have arrived."""
        await until(lambda: len(self.arrived) >= number)

    def open(self) -> None:
        self._open.set()


async def until(ask: Callable[[], bool]) -> None:
    """Ask again until it is so. The timeout of the test could not end this."""
    async with asyncio.timeout(SECONDS):
        while not ask():  # noqa: ASYNC110 - other threads and processes change it
            await asyncio.sleep(0.005)


async def until_stored(ask: Callable[[], Awaitable[object]]) -> None:
    """Ask the database again until it is so."""
    async with asyncio.timeout(SECONDS):
        while not await ask():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)


async def ended(work: Awaitable[Any], seconds: float = SECONDS) -> Any:
    """Return what some work returns; one that hangs fails the test here and not after its timeout."""
    return await asyncio.wait_for(work, seconds)


def ids(names: Iterable[str]) -> str:
    return " ".join(sorted(names))
