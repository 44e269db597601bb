"""Flows that spend budgets, each for one way of dying."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import apflow
from apflow import Budget, BudgetExhaustedError, CostPolicy, PolicyAction
from tests.crash.effects import GATE, LOOK_SECONDS, done, effect, gate

CALLS = 50
SHARED = Budget(tokens=2_000, per="global", name="shared")


def die_the_first_time(what: str) -> None:
    """Die here in the first life, whoever lives it."""
    effect(what)
    if done().count(what) == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def first_life() -> bool:
    """Whether this is the process that is to be late: only that one has a gate."""
    return bool(os.environ.get(GATE))


# -- many calls at once --------------------------------------------------------------------------------------------


@apflow.task(budget=Budget(tokens=1_000, per="user", reserve=100))
async def call_per_user() -> int:
    await asyncio.sleep(0)
    apflow.report_usage(input=60, output=40)
    return 100


@apflow.task(budget=Budget(tokens=1_000, per="global", reserve=100))
async def call_per_global() -> int:
    await asyncio.sleep(0)
    apflow.report_usage(input=60, output=40)
    return 100


@apflow.task(budget=Budget(tokens=1_000, per="global", name="careless"))
async def call_undeclared() -> int:
    effect("started")
    while done().count("started") < CALLS:  # noqa: ASYNC110 - no event crosses processes
        await asyncio.sleep(LOOK_SECONDS)
    apflow.report_usage(input=60, output=40)
    return 100


# -- a budget over a kill ------------------------------------------------------------------------------------------


@apflow.task
async def step(tokens: int) -> int:
    effect(f"step {tokens}")
    apflow.report_usage(input=tokens)
    return tokens


@apflow.task(budget=1_000, checkpoint=True)
async def journey(steps: list[int]) -> str:
    """Make the first step, die while something is held, and make the others in the next life."""
    await step(600)
    effect("enters")
    if done().count("enters") == 1:
        async with apflow.reserve(tokens=300):
            apflow.report_usage(input=0)
            effect("holds")
            await asyncio.Event().wait()
    effect("enters again")
    await gate()
    for number in steps:
        try:
            await step(number)
        except BudgetExhaustedError as error:
            effect(f"step {number} refused, {error.settled} settled")
    return "arrived"


@apflow.task(budget=1_000, checkpoint=True)
async def waste() -> str:
    await step(600)
    die_the_first_time("wastes")
    apflow.report_usage(input=500)
    return "wasted"


# -- the model over a kill -----------------------------------------------------------------------------------------

FRUGAL = CostPolicy("frugal", PolicyAction.DOWNGRADE, 0.5, ["large", "small", "tiny"])


@apflow.task(budget=SHARED)
async def use_shared(tokens: int) -> None:
    apflow.report_usage(input=tokens)


@apflow.task(budget=SHARED, policy=FRUGAL)
async def think(model: str) -> str:
    effect(f"thinks with {model}, {apflow.current().model}")
    die_the_first_time("thinks")
    return model


@apflow.task(budget=SHARED, policy=FRUGAL)
async def think_and_use(model: str = "large") -> str:
    effect(f"thinks with {model}, {apflow.current().model}")
    if "thinks" not in done():
        await use_shared(1_000)
    die_the_first_time("thinks")
    return model


@apflow.task(budget=SHARED, models=["large", "small"])
async def think_in_silence() -> str | None:
    """Have no argument for the model."""
    effect(f"thinks with {apflow.current().model}")
    if "thinks" not in done():
        await use_shared(1_700)
    die_the_first_time("thinks")
    return apflow.current().model


@apflow.task(budget=SHARED, checkpoint=True)
async def ask() -> str:
    """Have a child that thinks, with a model of its own."""
    return await think_and_use("large")


# -- submitted runs that others take over --------------------------------------------------------------------------


@apflow.task
async def errand(tokens: int) -> int:
    die_the_first_time("errand")
    apflow.report_usage(input=tokens)
    return tokens


@apflow.task(budget=Budget(tokens=1_000, reserve=400))
async def sends_errand(tokens: int) -> int:
    run = await errand.submit(tokens)
    return await run


@apflow.task
async def say_model() -> None:
    effect(f"child's model {apflow.current().model}")


@apflow.task
async def under_options() -> str:
    """Say what governs it, in both lives."""
    context = apflow.current()
    effect(f"model {context.model}, {context.budget.remaining('tokens')} left")
    effect("governed")
    if done().count("governed") == 1:
        await asyncio.Event().wait()
    await gate()
    apflow.report_usage(input=400)
    await say_model()
    apflow.report_usage(input=50)
    try:
        await step(10)
    except BudgetExhaustedError as error:
        effect(f"refused by {error.policy}, budget {error.budget}")
    return "done"


CAREFUL = CostPolicy("careful", PolicyAction.BLOCK, 0.9)
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "all": {
        "budget": Budget(tokens=500, name="mine"),
        "policy": CAREFUL,
        "models": ["first", "second"],
        "reserve": 40,
    },
}


# -- an owner that is late -----------------------------------------------------------------------------------------


async def use_late(name: str, dedupe: str | None = None) -> None:
    """Wait, and use 70 tokens in the first life, 90 in the second; who is cancelled has used them too."""
    effect(f"{name} waits")
    try:
        await gate()
    except asyncio.CancelledError:
        effect(f"{name} cancelled")
        raise
    finally:
        apflow.report_usage(input=70 if first_life() else 90, dedupe=dedupe)


@apflow.task(budget=Budget(tokens=1_000, per="global", name="late", reserve=100), checkpoint=True)
async def late() -> str:
    await use_late("late")
    return "spent"


@apflow.task(budget=Budget(tokens=1_000, per="global", name="named", reserve=100), checkpoint=True)
async def late_and_named() -> str:
    """Report in both lives what is one usage by its name."""
    await use_late("late_and_named", "the same")
    return "spent"


@apflow.task(budget=Budget(tokens=1_000, per="global", name="held"), checkpoint=True)
async def late_in_block() -> str:
    """Report inside a block whose hold is gone, then try to hold more."""
    async with apflow.reserve(tokens=200):
        try:
            await use_late("late_in_block")
        finally:
            if first_life():
                await reserve_late()
    return "spent"


async def reserve_late() -> None:
    try:
        async with apflow.reserve(tokens=500):
            effect("late reserve accepted")
    except apflow.ApflowError as error:
        effect(f"late reserve refused: {type(error).__name__}")


LATE = ("late", "late_and_named", "late_in_block")
