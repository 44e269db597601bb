"""The worker's half: a process that answers requests for measurements, one line of JSON each."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import statistics
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import IO, Any

from .timing import Samples

Measured = tuple[Samples, dict[str, float]]
"""What each time took, and what else was measured meanwhile, by name."""

Scenario = Callable[[int], Samples] | Callable[[int], Awaitable[Samples | Measured]]


async def serve(scenarios: Mapping[str, Scenario], answers: IO[str]) -> None:
    """Answer requests from standard input until it ends.

    A scenario takes how often to do its work and returns the seconds that each time took, and more if it likes.
    Plain functions run in a thread, where no event loop runs.
    """
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await _answer(scenarios, json.loads(line))), file=answers, flush=True)


def take_standard_output() -> IO[str]:
    """Return the pipe to the bench; whatever a library prints goes to standard error from now on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


async def _answer(scenarios: Mapping[str, Scenario], request: dict[str, Any]) -> dict[str, Any]:
    scenario, count = scenarios[request["scenario"]], request["count"]
    try:
        if inspect.iscoroutinefunction(scenario):
            outcome = await scenario(count)
        else:
            outcome = await asyncio.to_thread(scenario, count)
    except Exception as error:  # noqa: BLE001  the row says so, the others are measured
        return {"error": f"{type(error).__name__}: {error}"}
    samples, parts = outcome if isinstance(outcome, tuple) else (outcome, {})
    return {"median": statistics.median(samples), "mean": statistics.fmean(samples), "parts": parts}
