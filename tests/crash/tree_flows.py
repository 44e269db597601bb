"""Executors of the task trees that die."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import time
from typing import Any, ClassVar

import apflow
from apflow import RetryPolicy
from apflow.engine.executable import ExecutableTask
from apflow.engine.registry import executor_register
from tests.crash.effects import LOOK_SECONDS, done, effect, gate, is_open, reach
from tests.crash.flows import am_zombie, attempt

AGAIN = RetryPolicy(max_attempts=2, backoff_base_seconds=0.1, jitter=False)

_acts = itertools.count(1)


def act(what: str) -> None:
    """Do what the world can see of a node; the journal tells which one it was."""
    mine = next(_acts)
    reach(f"act {mine} before")
    effect(f"{what} {apflow.current().task_id}")
    reach(f"act {mine} after")


def total(number: int, dependencies: dict[str, Any]) -> dict[str, int]:
    """Return a value that tells what a node was given."""
    given = sorted(result.get("value", result.get("count")) for result in dependencies.values())
    return {"value": (number + sum(place * value for place, value in enumerate(given, 1))) % 1_000_003}


# -- what random trees are made of -----------------------------------------------------------------------------------


@apflow.task
async def grow(number: int, dependencies: dict[str, Any] = {}) -> dict[str, int]:  # noqa: B006 - never changed
    await asyncio.sleep(random.uniform(0, 0.005))
    act("grow")
    return total(number, dependencies)


@apflow.task
def press(number: int, dependencies: dict[str, Any] = {}) -> dict[str, int]:  # noqa: B006 - never changed
    act("press")
    return total(number, dependencies)


@apflow.task
async def leaf(number: int) -> int:
    act("leaf")
    return number * 3


@apflow.task(checkpoint=True)
async def branch(number: int, dependencies: dict[str, Any] = {}) -> dict[str, int]:  # noqa: B006 - never changed
    leaves = await leaf.map([number, number + 1, number])
    act("branch")
    return total(sum(leaves), dependencies)


@apflow.task(retry=AGAIN)
async def stumble(number: int, dependencies: dict[str, Any] = {}) -> dict[str, int]:  # noqa: B006 - never changed
    """Fail at first; its retry is the task's own."""
    return _at_last(number, dependencies, "stumble")


@apflow.task
def hesitate(number: int, dependencies: dict[str, Any] = {}) -> dict[str, int]:  # noqa: B006 - never changed
    """Fail at first; its retry is in the tree."""
    return _at_last(number, dependencies, "hesitate")


def _at_last(number: int, dependencies: dict[str, Any], what: str) -> dict[str, int]:
    act(f"{what} {apflow.current().attempt}")
    if apflow.current().attempt == 1:
        raise ConnectionError("away")
    return total(number, dependencies)


@apflow.task
async def spend(number: int, dependencies: dict[str, Any] = {}) -> dict[str, int]:  # noqa: B006 - never changed
    async with apflow.reserve(tokens=100):
        act("spend")
        apflow.report_usage(input=7, output=3)
    return total(number, dependencies)


@apflow.task
async def wilt(number: int) -> None:
    act("wilt")
    raise ValueError(f"number {number}")


class Named(ExecutableTask):
    """What the executors below have in common."""

    name = "An executor"
    description = "Does something."

    def get_input_schema(self) -> dict[str, Any]:
        return {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}


@executor_register
class Weigh(Named):
    id = "weigh"

    def __init__(self, factor: int = 1) -> None:
        self._factor = factor

    async def execute(self, inputs: dict[str, Any]) -> dict[str, int]:
        act("weigh")
        return total(inputs["number"] * self._factor, inputs.get("dependencies", {}))


# -- nodes that wait, are cancelled, or come too late ----------------------------------------------------------------


@apflow.task
async def look_back(dependencies: dict[str, Any]) -> list[str]:
    act("looks back")
    return sorted(dependencies)


@apflow.task
async def wait_here(name: str) -> str:
    act("waits")
    await gate()
    return name


@apflow.task(checkpoint=True)
async def ignore_the_end(name: str) -> str:
    """Go on after the run was lost, and try all that a run can do."""
    await leaf(1)
    act("waits")
    try:
        await gate()
    except asyncio.CancelledError:
        effect(f"{name} cancelled")
        await attempt("child", lambda: leaf(2))
        await attempt("submission", lambda: leaf.submit(3))
        await attempt("checkpoint", lambda: apflow.checkpoint({"too": "late"}))
    return name


@apflow.task
def wait_plainly(name: str) -> str:
    act("waits")
    while not is_open() and not apflow.current().cancelled:
        time.sleep(LOOK_SECONDS)
    if apflow.current().cancelled:
        effect(f"{name} cancelled")
    return name


@apflow.task(checkpoint=True)
async def come_late(name: str) -> str:
    """Go on in a process that does not know yet that it has lost the run."""
    act("waits")
    await gate()
    if am_zombie():
        await attempt("child", lambda: leaf(2))
        await attempt("checkpoint", lambda: apflow.checkpoint({"too": "late"}))
    return name


@executor_register
class Walk(Named):
    """Makes steps, and waits in the middle; what it has stored tells how far it got."""

    id = "walk"
    checkpoint_seconds: ClassVar[float] = 0.02

    def __init__(self, fails: bool = False) -> None:
        self._fails = fails
        self._steps: list[int] = []

    def supports_checkpoint(self) -> bool:
        return True

    def get_checkpoint(self) -> dict[str, Any] | None:
        return {"steps": list(self._steps)}

    async def resume_from_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._steps = list(checkpoint["steps"])
        act(f"restored {len(self._steps)}")

    async def cancel(self) -> None:
        act("cleaned up")

    async def execute(self, inputs: dict[str, Any]) -> list[int]:
        act(f"walks from {len(self._steps)}")
        while len(self._steps) < inputs["number"]:
            self._steps.append(len(self._steps))
            if len(self._steps) == 3:
                await gate()
                if self._fails:
                    raise ConnectionError("away")
        return self._steps


# -- nodes that kill their process -----------------------------------------------------------------------------------


@apflow.task
async def kill() -> None:
    act("kills")
    os.kill(os.getpid(), signal.SIGKILL)


@apflow.task
async def kill_once(name: str) -> str:
    effect(f"kills once {name}")
    if done().count(f"kills once {name}") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return name
