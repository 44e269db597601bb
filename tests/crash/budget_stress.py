"""Coroutines that spend from one account in every way there is, and journal what they saw committed."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable
from typing import Any

import apflow
from apflow import Budget, BudgetExhaustedError, RunInterruptedError
from tests.crash.effects import effect

LIMIT = 24_000
HOT = Budget(tokens=LIMIT, per="global", name="hot")
COROUTINES = 50
CANCELLED = 0.15
LONGEST_SECONDS = 0.1

_numbers = itertools.count(1)
#: What was reported and not yet seen committed, by call.
_reported: defaultdict[str, list[str]] = defaultdict(list)


def use(call: str, tokens: int) -> None:
    """Report usage under a name that tells its event from all others."""
    name = f"{os.getpid()}-{next(_numbers)}"
    _reported[call].append(f"{name} {tokens}")
    apflow.report_usage(input=tokens, provider=name)


def saw_committed(call: str) -> None:
    """Journal what a call has used, now that whoever called it could know that it is stored."""
    for one in _reported.pop(call, ()):
        effect(f"saw {one}")


async def watched(call: str, work: Awaitable[Any]) -> Any:
    """Wait for a call; however it ended, what it has used is stored."""
    try:
        return await work
    finally:
        saw_committed(call)


@apflow.task(budget=HOT)
async def spend(call: str, used: list[int], fails: bool = False) -> int:
    for tokens in used:
        use(call, tokens)
        await asyncio.sleep(0)
    if fails:
        raise ValueError("on purpose")
    return sum(used)


@apflow.task
async def help_out(call: str, used: int) -> int:
    """Hold nothing and live on what the parent holds."""
    use(call, used)
    return used


@apflow.task(budget=HOT)
async def nest(call: str, outer: int, inner: int, used: tuple[int, int]) -> None:
    async with apflow.reserve(tokens=outer):
        use(call, used[0])
        async with apflow.reserve(tokens=inner):
            await asyncio.sleep(0)
            use(call, used[1])
        saw_committed(call)


@apflow.task(budget=HOT)
def nest_plainly(call: str, outer: int, inner: int, used: tuple[int, int]) -> None:
    with apflow.reserve(tokens=outer):
        use(call, used[0])
        with apflow.reserve(tokens=inner):
            use(call, used[1])
        saw_committed(call)


@apflow.task(budget=HOT)
async def feed(call: str, own: int, children: list[tuple[int, int, bool]]) -> int:
    """Spend a part of the own hold, then have children draw on the rest of it, and on the account."""
    await watched(f"{call}.own", help_out(f"{call}.own", own))
    calls = [
        watched(f"{call}.{number}", spend.with_options(reserve=held)(f"{call}.{number}", [used], fails))
        for number, (held, used, fails) in enumerate(children)
    ]
    ended = await asyncio.gather(*calls, return_exceptions=True)
    return sum(isinstance(one, int) for one in ended)


def any_call(draw: random.Random, call: str) -> tuple[Awaitable[Any], bool]:
    """Return one call that never uses more than it holds, and whether it may be cancelled."""
    kind = draw.choice(("spend", "spend", "nest", "plain", "feed"))
    held = draw.randint(2, 120)
    used = draw.choice((held, draw.randint(0, held)))
    if kind == "spend":
        part = draw.randint(0, used)
        fails = draw.random() < 0.3
        return spend.with_options(reserve=held)(call, [part, used - part], fails), True
    if kind == "feed":
        family = [(most, draw.randint(0, most), draw.random() < 0.2) for most in (held // 2, held, 2 * held)]
        return feed.with_options(reserve=held)(call, used, family), True
    inner = draw.randint(1, 2 * held)
    shares = held - min(held, inner), draw.choice((inner, draw.randint(0, inner)))
    if kind == "nest":
        return nest(call, held, inner, shares), True
    return asyncio.to_thread(nest_plainly, call, held, inner, shares), False


async def keep_spending(worker: int, coroutine: int, rounds: int | None, outcomes: Counter[str]) -> None:
    """Call again and again, for ever without `rounds`; refused is refused, and the next call may fit."""
    draw = random.Random(f"{worker} {coroutine}")
    for number in itertools.count() if rounds is None else range(rounds):
        call = f"{worker}/{coroutine}/{number}"
        work, cancellable = any_call(draw, call)
        task = asyncio.ensure_future(watched(call, work))
        if cancellable and draw.random() < CANCELLED:
            await asyncio.sleep(draw.uniform(0, LONGEST_SECONDS))
            task.cancel()
        ended = await asyncio.gather(task, return_exceptions=True)
        outcomes[_word(ended[0])] += 1


def _word(outcome: object) -> str:
    if isinstance(outcome, asyncio.CancelledError | RunInterruptedError):
        return "cancelled"
    if isinstance(outcome, BudgetExhaustedError):
        return "refused"
    return type(outcome).__name__ if isinstance(outcome, BaseException) else "done"
