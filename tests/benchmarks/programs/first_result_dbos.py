# mypy: ignore-errors
"""Print one result of DBOS, stored in the fresh database that the first argument names."""

from __future__ import annotations

import asyncio
import sys

from dbos import DBOS


@DBOS.workflow()
async def noop(n: int) -> int:
    return n


async def main(url: str) -> None:
    DBOS(config={"name": "bench", "system_database_url": url, "log_level": "ERROR"})
    DBOS.launch()
    print(await noop(1), flush=True)


asyncio.run(main(sys.argv[1]))
