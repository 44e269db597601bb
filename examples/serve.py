"""Tasks that agents call over the network, each caller on a budget of their own.

    python examples/serve.py [PORT]

MCP is at http://127.0.0.1:8000/mcp, A2A at http://127.0.0.1:8000/, and a page to try the tasks out at /explorer. A
bearer token tells who calls; two of them are made and printed at each start. Runs are kept in `apflow.db`: kill the
server in the middle of a report, start it again, and the report is finished.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator

import apflow
from apflow import Budget

DAILY = Budget(tokens=5_000, per="user", window="1d", name="daily")


@apflow.task(retry=3)
async def _summarise(page: str) -> str:
    """Say in one sentence what a page says. Nobody calls it from outside: its name begins with an underscore."""
    # Here you would ask a model, and hand its response to report_usage.
    summary = page.partition(".")[0]
    await asyncio.sleep(0.2)
    apflow.report_usage(input=100 * len(page.split()), output=100 * len(summary.split()))
    return summary


@apflow.task(budget=DAILY, checkpoint=True)
async def report(pages: list[str]) -> str:
    """Summarise pages into a report. What was summarised before a crash is not summarised again.

    Args:
        pages: The texts of the pages.
    """
    lines = []
    for done, page in enumerate(pages, 1):
        lines.append(await _summarise(page))
        await apflow.progress(done, len(pages), f"page {done}")
    return "\n".join(lines)


@apflow.task(tags=("readonly", "idempotent"))
async def words(text: str) -> AsyncIterator[str]:
    """Stream the words of a text, one after the other.

    Args:
        text: What has the words.
    """
    for word in text.split():
        await asyncio.sleep(0.1)
        yield word


def main() -> None:
    """Serve until Ctrl-C."""
    tokens = {secrets.token_urlsafe(): user for user in ("ada", "bob")}
    for token, user in tokens.items():
        print(f"{user} calls with the header  Authorization: Bearer {token}", flush=True)
    apflow.serve(port=int(sys.argv[1]) if sys.argv[1:] else 8000, auth=tokens, explorer=True)


if __name__ == "__main__":
    main()
