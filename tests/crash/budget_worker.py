"""What worker processes that spend budgets do. Each function gets the URL of the database first."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import apflow
from apflow import Runtime
from tests.crash import budget_flows, budget_stress
from tests.crash.effects import exists, gate, until
from tests.crash.rigging import hold_renewals
from tests.crash.worker import tell


async def stress(url: str, number: int, rounds: int | None) -> None:
    """Spend in fifty coroutines, when the gate opens."""
    outcomes: Counter[str] = Counter()
    tell(ready=True)
    await gate()
    async with Runtime(url, lease_seconds=600):
        spenders = (
            budget_stress.keep_spending(number, coroutine, rounds, outcomes)
            for coroutine in range(budget_stress.COROUTINES)
        )
        await asyncio.gather(*spenders)
    tell(outcomes=outcomes)


async def sweep(url: str) -> None:
    """Release what dead processes hold, and tell what the report says."""
    async with Runtime(url) as runtime:
        swept = await runtime.governor.sweep()
        used = (await runtime.usage.by("task")).total.total_tokens
        tell(swept=swept, again=await runtime.governor.sweep(), used=used)


async def call_many(url: str, name: str, calls: int) -> None:
    """Call a task many times at once, when the gate opens."""
    tell(ready=True)
    await gate()
    task = getattr(budget_flows, name).with_options(user="ada")
    async with Runtime(url, lease_seconds=600):
        outcomes = await asyncio.gather(*(task() for _ in range(calls)), return_exceptions=True)
    tell(outcomes=[type(one).__name__ if isinstance(one, BaseException) else one for one in outcomes])


async def call(url: str, name: str, *arguments: Any, sweeps: bool = True) -> None:
    """Call a task with its name as its key, and tell how it ended."""
    runtime = Runtime(url)
    if not sweeps:
        setattr(runtime, "_sweep", lambda: None)  # noqa: B010 - the rest of the runtime stays as it is
    async with runtime:
        tell(result=await _outcome(name, *arguments))


async def call_late(url: str, renews: bool = True) -> None:
    """Call the tasks that may be late, each with its name as its key and with the shortest lease."""
    runtime = Runtime(url, lease_seconds=1)
    if not renews:
        hold_renewals(runtime.store)
    async with runtime:
        outcomes = await asyncio.gather(*map(_outcome, budget_flows.LATE))
    tell(outcomes=outcomes)


async def _outcome(name: str, *arguments: Any) -> Any:
    try:
        return await getattr(budget_flows, name).with_options(key=name)(*arguments)
    except apflow.ApflowError as error:
        return type(error).__name__


async def submit(url: str, name: str, options: str, *arguments: Any) -> None:
    """Submit a run under options that have a name, and wait for its end."""
    async with Runtime(url):
        await (await getattr(budget_flows, name).with_options(**budget_flows.OPTIONS[options]).submit(*arguments))


async def raise_limit(url: str, name: str, tokens: int) -> None:
    """Raise the limit of a budget of all together."""
    async with Runtime(url) as runtime:
        await runtime.budgets.set_limit(name, per="global", tokens=tokens)
    tell(raised=tokens)


async def watch(url: str, leave: str) -> None:
    """Be a live process that knows the tasks, until a file says to leave."""
    async with Runtime(url, lease_seconds=1):
        await until(lambda: exists(leave))
    tell(left=True)
