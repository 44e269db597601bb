"""Three ways to time calls; each returns the seconds that one call took."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

Samples = list[float]


async def one_by_one(call: Callable[[int], Awaitable[object]], count: int) -> Samples:
    """Await `call(0)` to `call(count - 1)` after each other; one sample per call."""
    samples = []
    for n in range(count):
        started = perf_counter()
        await call(n)
        samples.append(perf_counter() - started)
    return samples


def plain_one_by_one(call: Callable[[int], object], count: int) -> Samples:
    """Do the same with a plain function."""
    samples = []
    for n in range(count):
        started = perf_counter()
        call(n)
        samples.append(perf_counter() - started)
    return samples


async def all_at_once(calls: Iterable[Awaitable[object]], count: int) -> Samples:
    """Await `count` calls under one gather; one sample, their total time divided by `count`."""
    started = perf_counter()
    await asyncio.gather(*calls)
    return [(perf_counter() - started) / count]
