"""apflow's side again, with budgets on its task.

Usage: `python -m tests.benchmarks.governed_side DATABASE_URL nothing|run|global|three|used`
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from time import perf_counter

import apflow

from .timing import Samples, one_by_one
from .worker import serve, take_standard_output

_PLENTY = 2_000_000_000
_RUN = apflow.Budget(tokens=1_000_000)
_USER = apflow.Budget(tokens=_PLENTY, per="user")
_GLOBAL = apflow.Budget(tokens=_PLENTY, per="global")


async def noop(n: int) -> int:
    return n


async def spend(n: int) -> int:
    apflow.report_usage(input=6, output=4)
    return n


def task_with(budgets: str) -> Callable[[int], Awaitable[int]]:
    """Return the task that the arguments name.

    Raises:
        KeyError: There is no such.
    """
    make = {
        "nothing": lambda: apflow.task(noop),
        "run": lambda: apflow.task(budget=1_000_000)(noop),
        "global": lambda: apflow.task(budget=_GLOBAL)(noop),
        "three": lambda: apflow.task(budget=[_RUN, _USER, _GLOBAL])(noop),
        "used": lambda: apflow.task(budget=[replace(_RUN, reserve=10), _USER, _GLOBAL])(spend),
    }
    return make[budgets]()


@apflow.task(budget=_GLOBAL)
async def holder(count: int, at_once: int) -> Samples:
    """Reserve and release `count` times on one account; a sample is the total time divided by `count`."""
    started = perf_counter()
    numbers = iter(range(count))
    await asyncio.gather(*(_hold(numbers) for _ in range(at_once)))
    return [(perf_counter() - started) / count]


async def _hold(numbers: Iterator[int]) -> None:
    for _ in numbers:
        async with apflow.reserve(tokens=1):
            pass


async def reserve(count: int) -> Samples:
    return await holder(count, 1)


async def reserve_100(count: int) -> Samples:
    return await holder(count, 100)


async def main(url: str, budgets: str) -> None:
    task = task_with(budgets)

    async def root(count: int) -> Samples:
        return await one_by_one(task, count)

    answers = take_standard_output()
    async with apflow.Runtime(url, user="someone"):
        await serve({"root": root, "reserve": reserve, "reserve_100": reserve_100}, answers)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
