"""apflow's side of the comparison.

Usage: `python -m tests.benchmarks.apflow_side DATABASE_URL normal|full`
"""

from __future__ import annotations

import asyncio
import sys
from time import perf_counter
from typing import Literal

import apflow

from .timing import Samples, all_at_once, one_by_one, plain_one_by_one
from .worker import Scenario, serve, take_standard_output


@apflow.task
async def noop(n: int) -> int:
    return n


@apflow.task
def plain_noop(n: int) -> int:
    return n


@apflow.task(checkpoint=True)
async def parent(count: int) -> Samples:
    return await one_by_one(noop, count)


@apflow.task(checkpoint=True)
async def fan_out(count: int) -> Samples:
    started = perf_counter()
    await noop.map(list(range(count)))
    return [(perf_counter() - started) / count]


async def root(count: int) -> Samples:
    return await one_by_one(noop, count)


def sync_root(count: int) -> Samples:
    return plain_one_by_one(plain_noop, count)


async def child(count: int) -> Samples:
    return await parent(count)


async def map_items(count: int) -> Samples:
    return await fan_out(count)


async def gather(count: int) -> Samples:
    return await all_at_once((noop(n) for n in range(count)), count)


SCENARIOS: dict[str, Scenario] = {
    "root": root,
    "sync_root": sync_root,
    "child": child,
    "map": map_items,
    "gather": gather,
}


async def main(url: str, durability: Literal["normal", "full"]) -> None:
    answers = take_standard_output()
    async with apflow.Runtime(url, durability=durability):
        await serve(SCENARIOS, answers)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], "full" if sys.argv[2] == "full" else "normal"))
