"""Serve one task over MCP and A2A: `serve_apflow.py PORT DATABASE_URL plain|budget`."""

import sys

import apflow


async def echo(text: str) -> str:
    """Return the text."""
    return text


if __name__ == "__main__":
    port, url, kind = sys.argv[1:]
    task = apflow.task(checkpoint=True, budget=1_000_000 if kind == "budget" else None)(echo)
    apflow.configure(url)
    apflow.serve([task], port=int(port))
