"""Small flows, each for one way of dying."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import apflow
from apflow import ApflowError, BackoffStrategy, OutsideRunError, RetryPolicy
from tests.crash.effects import GATE, LOOK_SECONDS, done, effect, gate, is_open, plain_gate, reach

ORDER = "CRASH_ORDER"
SHIPS = 200
MINUTELY = RetryPolicy(max_attempts=3, backoff_strategy=BackoffStrategy.FIXED, backoff_base_seconds=60, jitter=False)
ONCE_MORE = RetryPolicy(max_attempts=2, backoff_base_seconds=0.1)


@apflow.task
async def mark(name: str) -> str:
    effect(f"mark {name}")
    return name


@apflow.task
def plain_mark(name: str) -> str:
    effect(f"mark {name}")
    return name


# -- what an owner does when it wakes up too late ------------------------------------------------------------------


def am_zombie() -> bool:
    """Whether this is the process that is to be late: only that one has a gate."""
    return bool(os.environ.get(GATE))


async def attempt(what: str, work: Callable[[], Awaitable[Any]]) -> None:
    """Try something and note how it ended."""
    try:
        await work()
    except ApflowError as error:
        effect(f"{what} refused: {type(error).__name__}")
    else:
        effect(f"{what} accepted")


@apflow.task(checkpoint=True)
async def listening() -> int:
    await mark("listening")
    effect("listening waits")
    try:
        await gate()
    except asyncio.CancelledError:
        effect("listening cancelled")
        raise
    return 1


@apflow.task(checkpoint=True)
async def deaf() -> int:
    await mark("deaf")
    effect("deaf waits")
    try:
        await gate()
    except asyncio.CancelledError:
        effect("deaf cancelled")
        await attempt("child", lambda: mark("too late"))
        await attempt("submission", lambda: mark.submit("too late"))
        await attempt("checkpoint", lambda: apflow.checkpoint({"too": "late"}))
    return 2


@apflow.task
def patient() -> int:
    effect("patient waits")
    while not is_open() and not apflow.current().cancelled:
        time.sleep(LOOK_SECONDS)
    if apflow.current().cancelled:
        effect("patient cancelled")
    return 3


@apflow.task(checkpoint=True)
async def returning() -> int:
    effect("returning waits")
    await gate()
    return 1


@apflow.task(checkpoint=True)
async def raising() -> int:
    effect("raising waits")
    await gate()
    if am_zombie():
        raise ValueError("too late")
    return 2


@apflow.task(checkpoint=True, retry=ONCE_MORE)
async def retrying() -> int:
    effect("retrying waits")
    await gate()
    if am_zombie():
        raise ConnectionError("too late")
    return 3


@apflow.task(checkpoint=True)
async def calling() -> int:
    effect("calling waits")
    await gate()
    if am_zombie():
        await attempt("child", lambda: mark("a late child"))
    return 4


@apflow.task(checkpoint=True)
async def submitting() -> int:
    effect("submitting waits")
    await gate()
    if am_zombie():
        await attempt("submission", lambda: mark.submit("a late submission"))
    return 5


@apflow.task(checkpoint=True)
async def saving() -> int:
    effect("saving waits")
    await gate()
    if am_zombie():
        await attempt("checkpoint", lambda: apflow.checkpoint({"too": "late"}))
    return 6


@apflow.task(checkpoint=True)
async def telling() -> int:
    effect("telling waits")
    await gate()
    if am_zombie():
        await attempt("progress", lambda: apflow.progress(1, 2))
    return 7


# -- many children -------------------------------------------------------------------------------------------------

_ships = itertools.count(1)


@apflow.task
async def ship(number: int) -> int:
    mine = next(_ships)
    await asyncio.sleep(random.uniform(0, 0.02))
    reach(f"ship {mine} before")
    effect(f"ship {apflow.current().task_id}")
    reach(f"ship {mine} after")
    return number * 2


@apflow.task(checkpoint=True)
async def fleet() -> list[int]:
    # Each number twice: two calls with the same arguments are two children.
    numbers = [number // 2 for number in range(SHIPS)]
    random.Random(os.environ[ORDER]).shuffle(numbers)
    return sorted(await asyncio.gather(*(ship(number) for number in numbers)))


# -- one key, several processes ------------------------------------------------------------------------------------


@apflow.task
async def slow(name: str) -> int:
    effect(f"slow {name}")
    await asyncio.sleep(0.3)
    return os.getpid()


@apflow.task
async def first_waits(name: str) -> int:
    effect(f"enters {name}")
    if done().count(f"enters {name}") == 1:
        await asyncio.Event().wait()
    return os.getpid()


# -- runs that others carry on -------------------------------------------------------------------------------------


@apflow.task
async def errand(name: str) -> str:
    effect(f"errand {name}")
    await gate()
    return f"{name} by {os.getpid()}"


@apflow.task
def plain_errand(name: str) -> str:
    effect(f"errand {name}")
    plain_gate()
    return f"{name} by {os.getpid()}"


@apflow.task(checkpoint=True)
async def captain(name: str) -> str:
    run = await errand.submit(name)
    effect(f"captain of {name}")
    await gate()
    return await run


@apflow.task
async def deadly() -> None:
    effect(f"deadly, attempt {apflow.current().attempt}")
    os.kill(os.getpid(), signal.SIGKILL)


@apflow.task
async def deadly_once(number: int) -> int:
    effect(f"step {number}")
    if done().count(f"step {number}") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@apflow.task(checkpoint=True)
async def deadly_steps() -> int:
    return sum([await deadly_once(number) for number in range(5)])


@apflow.task(retry=MINUTELY)
async def flaky() -> None:
    effect(f"attempt {apflow.current().attempt}")
    raise ConnectionError("away")


@apflow.task(checkpoint=True)
async def flaky_child() -> None:
    await flaky()


# -- forks ---------------------------------------------------------------------------------------------------------


def live_as_fork(name: str) -> None:
    """Be a forked child: no run of its own, and tasks that work."""
    try:
        apflow.current()
    except OutsideRunError:
        effect(f"{name} is outside")
    assert plain_mark(f"{name}, plain") == f"{name}, plain"
    assert asyncio.run(mark(f"{name}, async")) == f"{name}, async"
    assert plain_mark.submit(f"{name}, submitted").result() == f"{name}, submitted"


def bare_fork(name: str) -> None:
    """Fork, live, and leave without a word."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            live_as_fork(name)
            status = 0
        finally:
            os._exit(status)
    effect(f"{name} ends with {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}")


def library_fork(name: str) -> None:
    """Do the same through multiprocessing."""
    child = multiprocessing.get_context("fork").Process(target=live_as_fork, args=(name,))
    child.start()
    child.join()
    effect(f"{name} ends with {child.exitcode}")


@apflow.task(checkpoint=True)
async def forks() -> str:
    run = await errand.submit("beside the forks")
    await mark("before the forks")
    bare_fork("bare fork")
    library_fork("library fork")
    plain_forks()
    effect("forks done")
    await mark("after the forks")
    return await run


@apflow.task
def plain_forks() -> None:
    bare_fork("fork of a plain task")


# -- Ctrl-C --------------------------------------------------------------------------------------------------------


@apflow.task(checkpoint=True)
async def interruptible() -> str:
    await mark("first step")
    effect("waits")
    await gate()
    return "finished"


@apflow.task(checkpoint=True)
def plain_interruptible() -> str:
    plain_mark("first step")
    effect("waits")
    while not is_open() and not apflow.current().cancelled:
        time.sleep(LOOK_SECONDS)
    plain_mark("second step")
    return "finished"
