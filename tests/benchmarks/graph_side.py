"""apflow's side once more: task graphs. Every tree is alone in its database, so that no file grows by repeating.

Usage: `python -m tests.benchmarks.graph_side FOLDER|POSTGRESQL_URL`
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import apflow
from apflow.engine.creator import TaskCreator
from apflow.engine.manager import TaskManager

from .graphs import Tree, chain, fan_out, layered, sleepers
from .worker import Measured, Scenario, serve, take_standard_output

Parts = dict[str, float]

#: Small trees are repeated: one alone would say little.
_SMALL, _TIMES = 200, 3
_ROOTS = 100
_WARM_NODES = 1000
_ENDS_SECONDS, _LONGEST_SECONDS = 0.1, 0.4


@apflow.task
async def noop(n: int) -> int:
    return n


@apflow.task
async def nap(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@apflow.task
def plain_nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


class Graphs:
    """Measures trees in one place: a folder for SQLite files, or a PostgreSQL database."""

    def __init__(self, target: str) -> None:
        self._target = target

    def cost(self, shape: Callable[[int], Tree]) -> Scenario:
        """Return what measures the seconds of one node: processor and clock time of its creation and its execution.

        The processor time of the execution is the sample; all four are parts, and the same of a root run.
        """

        async def measure(count: int) -> Measured:
            found = [await self._cost(shape(count)) for _ in range(_TIMES if count <= _SMALL else 1)]
            parts = {name: statistics.median(one[name] for one in found) for name in found[0]}
            return [one["execute_cpu"] for one in found], parts

        return measure

    def memory(self, shape: Callable[[int], Tree]) -> Scenario:
        """Return what measures the bytes that Python allocates for one node: at most, and what stays.

        The peak of the execution is the sample. What a process allocates only once is there before.
        """

        async def measure(count: int) -> Measured:
            async with self._manager() as manager:
                await _create(manager, shape(min(count, _WARM_NODES)))
                await _execute(manager)
            async with self._manager() as manager:
                tree = shape(count)
                create, _ = await _traced(_create(manager, tree))
                execute, kept = await _traced(_execute(manager))
            parts = {"create": create, "execute": execute, "kept": kept}
            return [execute / count], {name: value / count for name, value in parts.items()}

        return measure

    def sleeping(self, executor: str) -> Scenario:
        """Return what measures the seconds of a fan-out and fan-in of naps; its longest path is a part."""

        async def measure(count: int) -> Measured:
            middle = [_LONGEST_SECONDS * (n + 1) / count for n in range(count)]
            async with self._manager() as manager:
                await _create(manager, sleepers(executor, [_ENDS_SECONDS, *middle, _ENDS_SECONDS]))
                _, took = await _timed(_execute(manager))
                await _check(manager)
            _, longest = await _timed(_longest_path(middle))
            return [took], {"longest": longest}

        return measure

    async def _cost(self, tree: Tree) -> Parts:
        async with self._manager() as manager:
            root = noop.with_options(runtime=manager.runtime)
            await root(0)
            create = await _timed(_create(manager, tree))
            execute = await _timed(_execute(manager))
            await _check(manager)
            few = min(_ROOTS, len(tree))
            roots = await _timed(_one_by_one(root, few))
        parts: Parts = {}
        all_three = (("create", create, len(tree)), ("execute", execute, len(tree)), ("root", roots, few))
        for name, (cpu, wall), count in all_three:
            parts |= {f"{name}_cpu": cpu / count, f"{name}_wall": wall / count}
        return parts

    @asynccontextmanager
    async def _manager(self) -> AsyncIterator[TaskManager]:
        """Yield a manager over an empty database."""
        on_postgres = self._target.startswith("postgres")
        with TemporaryDirectory(dir=None if on_postgres else self._target) as folder:
            store = apflow.create_session(self._target if on_postgres else f"sqlite:///{folder}/graph.db")
            try:
                async with TaskManager(store) as manager:
                    if on_postgres:
                        await store.write(lambda tx: tx.execute("TRUNCATE apflow_tasks CASCADE"))
                    yield manager
            finally:
                store.close()


async def _create(manager: TaskManager, tree: Tree) -> None:
    await TaskCreator(manager.store).create_task_tree_from_array(tree)


async def _execute(manager: TaskManager) -> None:
    await manager.execute_task("node-0")


async def _check(manager: TaskManager) -> None:
    counts: dict[str, int] = await manager.store.read(
        lambda tx: dict(tx.rows("SELECT status, count(*) FROM apflow_tasks WHERE kind = 'node' GROUP BY status"))
    )
    if set(counts) != {"completed"}:
        raise RuntimeError(f"the tree did not complete: {counts}")


async def _one_by_one(root: Callable[[int], Awaitable[int]], count: int) -> None:
    for n in range(count):
        await root(n)


async def _longest_path(middle: list[float]) -> None:
    await asyncio.sleep(_ENDS_SECONDS)
    await asyncio.gather(*(asyncio.sleep(seconds) for seconds in middle))
    await asyncio.sleep(_ENDS_SECONDS)


async def _timed(work: Awaitable[None]) -> tuple[float, float]:
    """Return the seconds of processor and clock time that something takes, with no garbage from before."""
    gc.collect()
    cpu, wall = process_time(), perf_counter()
    await work
    return process_time() - cpu, perf_counter() - wall


async def _traced(work: Awaitable[None]) -> tuple[int, int]:
    """Return how many bytes something allocates at most, and how many stay."""
    gc.collect()
    tracemalloc.start()
    try:
        await work
        peak = tracemalloc.get_traced_memory()[1]
        gc.collect()
        return peak, tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


async def main(target: str) -> None:
    graphs = Graphs(target)
    scenarios: dict[str, Scenario] = {
        "sleepers": graphs.sleeping("nap"),
        "plain_sleepers": graphs.sleeping("plain_nap"),
    }
    for name, shape in (("chain", chain), ("fan_out", fan_out), ("layered", layered)):
        scenarios |= {name: graphs.cost(shape), f"{name}_memory": graphs.memory(shape)}
    await serve(scenarios, take_standard_output())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
