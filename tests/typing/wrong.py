"""Wrong uses: both checkers must refuse each marked line, and an unneeded mark is an error of its own."""

from __future__ import annotations

from apflow import Run, SyncTask, task
from tests.typing.right import Agent, add, fetch, lines, log, words

strings, numbers = ["a"], [1]


async def arguments(agent: Agent) -> None:
    await fetch(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await fetch()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await fetch("u", timeout="x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await fetch("u", key="k")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    add("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add(1, 2, 3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    words(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    lines("p", 1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await agent.ask(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await agent.ask(agent, "q")  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportCallIssue]
    Agent.half("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def results() -> None:
    _a: str = await fetch("u")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    _b: str = add(1)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    _c: Run[str] = add.submit(1)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    _d: list[str] = add.map(numbers)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    _e: list[int] = [w async for w in words("a")]  # type: ignore[misc]  # pyright: ignore[reportAssignmentType]
    _f: list[str] = lines("p")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    _g: SyncTask[[str], None] = add  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


async def colours(agent: Agent) -> None:
    fetch("u")  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    fetch.map(strings)  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    fetch.submit("u").result()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    await add(1)  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    await add.map(numbers)  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    await agent.plan("g")  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    for _word in words("a"):  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues, reportUnknownVariableType]
        pass


async def submitting(agent: Agent) -> None:
    _ = await fetch.submit("u", timeout="x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    _ = await fetch.submit()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue, reportUnknownVariableType]
    _ = await agent.ask.submit(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    _ = log.submit(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def mapping(agent: Agent) -> None:
    await fetch.map(numbers)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await fetch.map(items=strings)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    add.map(strings)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.map(numbers, b="x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.map(numbers, c=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await words.map(numbers)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    lines.map(numbers)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await agent.ask.map(numbers)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await agent.ask.map(strings, deep=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    agent.plan.map(numbers)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def options() -> None:
    add.with_options(budgett=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    add.with_options(retry="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.with_options(key=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.with_options(2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    task(retry="3")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    task(middleware=[len])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    task("name")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    task(budget="1000")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
