"""A flow of six steps, every one of them of another kind, and with points to die at."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

import apflow
from apflow.call import Call, CallNext
from tests.crash.effects import effect, reach


class Chart(BaseModel):
    port: str
    depth: int


class Log(BaseModel):
    chart: Chart
    food: dict[str, int]
    legs: list[int]
    tug: str
    word: str
    books: dict[str, Any]


def act(step: str) -> None:
    """Do the one thing of a step that the world can see; the journal tells which run did it."""
    reach(f"{step} before")
    effect(f"{step} {apflow.current().task_id}")
    reach(f"{step} after")


async def die_when_returned(call: Call, call_next: CallNext) -> Any:
    """Stand between a function and the record of its result."""
    result = await call_next(call)
    leg = f"_{call.arguments['leg']}" if "leg" in call.arguments else ""
    reach(f"{call.task.name}{leg} returned")
    return result


@apflow.task
async def draw_chart(port: str) -> Chart:
    act("draw_chart")
    return Chart(port=port, depth=7)


@apflow.task
def buy_food(chart: Chart) -> dict[str, int]:
    act("buy_food")
    return {"biscuits": chart.depth * 2}


@apflow.task
async def sail_leg(leg: int) -> int:
    act(f"sail_leg_{leg}")
    return leg * 100


@apflow.task
async def enter_port(port: str) -> str:
    act("enter_port")
    return await take_pilot(port)


@apflow.task
async def take_pilot(port: str) -> str:
    tug = call_tug(port)
    act("take_pilot")
    return tug


@apflow.task
def call_tug(port: str) -> str:
    act("call_tug")
    return f"tug of {port}"


@apflow.task
async def send_word(miles: int) -> str:
    act("send_word")
    return f"arrived after {miles} miles"


@apflow.task(checkpoint=True)
async def voyage(port: str) -> Log:
    chart = await draw_chart(port)
    food = buy_food(chart)
    legs = await sail_leg.map([1, 2, 3])
    tug = await enter_port(port)
    word = await (await send_word.submit(sum(legs)))
    books = apflow.current().restored
    if books is None:
        act("keep_books")
        books = {"miles": sum(legs)}
        await apflow.checkpoint(books, step="books")
    return Log(chart=chart, food=food, legs=legs, tug=tug, word=word, books=books)


#: Every step with an effect of its own, in the order in which they happen.
STEPS = (
    "draw_chart",
    "buy_food",
    "sail_leg_1",
    "sail_leg_2",
    "sail_leg_3",
    "enter_port",
    "call_tug",
    "take_pilot",
    "send_word",
    "keep_books",
)
