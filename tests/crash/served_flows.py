"""A server that tests kill: `python -m tests.crash.served_flows URL PORT SHUTDOWN_SECONDS`."""

from __future__ import annotations

import sys

import apflow
from apflow import Runtime
from tests.crash.effects import effect, gate

TOKENS = {"alice-0123456789": "alice", "bob-0123456789-b": "bob"}


@apflow.task
async def _leg(n: int) -> str:
    effect(f"leg {n}")
    return f"leg {n}"


@apflow.task(checkpoint=True)
async def journey(legs: int) -> list[str]:
    """Travel, with a stop in the middle until the gate is open."""
    done = []
    for n in range(legs):
        if n == legs // 2:
            effect("waits")
            await gate()
        done.append(await _leg(n))
    return done


def main(url: str, port: str, shutdown_seconds: str) -> None:
    runtime = Runtime(url, lease_seconds=600, shutdown_seconds=float(shutdown_seconds))
    runtime.include_engine()
    apflow.serve(runtime, port=int(port), auth=TOKENS)


if __name__ == "__main__":
    main(*sys.argv[1:])
