# mypy: ignore-errors
"""DBOS's side of the comparison, with its defaults. It runs in an environment of its own.

Usage: `python -m tests.benchmarks.dbos_side DATABASE_URL`
"""

from __future__ import annotations

import asyncio
import sys

from dbos import DBOS

from .timing import Samples, all_at_once, one_by_one, plain_one_by_one
from .worker import serve, take_standard_output


@DBOS.workflow()
async def noop(n: int) -> int:
    return n


@DBOS.workflow()
def plain_noop(n: int) -> int:
    return n


@DBOS.step()
async def step(n: int) -> int:
    return n


@DBOS.workflow()
async def parent(count: int) -> Samples:
    return await one_by_one(step, count)


@DBOS.workflow()
async def fan_out(count: int) -> Samples:
    return await all_at_once((step(n) for n in range(count)), count)


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


SCENARIOS = {"root": root, "sync_root": sync_root, "child": child, "map": map_items, "gather": gather}


async def main(url: str) -> None:
    answers = take_standard_output()
    DBOS(config={"name": "bench", "system_database_url": url, "log_level": "ERROR"})
    DBOS.launch()
    try:
        await serve(SCENARIOS, answers)
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
