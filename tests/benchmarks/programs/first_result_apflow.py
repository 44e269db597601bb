"""Print one result of apflow, stored in the fresh database that the first argument names."""

from __future__ import annotations

import asyncio
import sys

import apflow


@apflow.task
async def noop(n: int) -> int:
    return n


async def main(url: str) -> None:
    async with apflow.Runtime(url):
        print(await noop(1), flush=True)


asyncio.run(main(sys.argv[1]))
