"""Right uses: read by mypy --strict and pyright strict, which must accept every line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any, assert_type

import apflow
from apflow import AsyncStreamTask, AsyncTask, Call, CallNext, Run, StreamTask, SyncTask, Task


@apflow.task
async def fetch(url: str, *, timeout: float = 1.0) -> bytes:
    return url.encode()


async def layer(call: Call, call_next: CallNext) -> Any:
    return await call_next(call)


@apflow.task(
    name="pages.summarise",
    description="Says it shorter.",
    tags=["text"],
    version="2",
    retry=apflow.RetryPolicy(max_attempts=4),
    checkpoint=True,
    breaker=apflow.CircuitBreakerConfig(),
    timeout=timedelta(minutes=1),
    middleware=[layer],
)
async def summarise(text: bytes, words: int = 50) -> str:
    return text.decode()[:words]


@apflow.task
def add(a: int, b: int = 1) -> int:
    return a + b


@apflow.task(retry=3, breaker=True, timeout=2.5)
def head(rows: list[str]) -> str | None:
    return rows[0] if rows else None


@apflow.task
def log(line: str) -> None:
    del line


@apflow.task
async def words(prompt: str) -> AsyncIterator[str]:
    for word in prompt.split():
        yield word


@apflow.task(timeout=3)
def lines(path: str, *, skip: int = 0) -> Iterator[str]:
    yield path[skip:]


class Agent:
    @apflow.task
    async def ask(self, question: str, *, depth: int = 1) -> str:
        return question * depth

    @apflow.task(checkpoint=True)
    def plan(self, goal: str) -> list[str]:
        return [goal]

    @apflow.task
    async def think(self, goal: str) -> AsyncIterator[str]:
        yield goal

    @apflow.task
    def steps(self, goal: str) -> Iterator[str]:
        yield goal

    @staticmethod
    @apflow.task
    def half(n: int) -> float:
        return n / 2

    @apflow.task
    @staticmethod
    async def double(n: int) -> int:
        return n * 2


async def async_kind() -> None:
    assert_type(await fetch("u", timeout=2), bytes)
    assert_type(await summarise(b"t", words=3), str)
    _ = assert_type(await fetch.submit("u"), Run[bytes])
    assert_type(await (await fetch.submit("u", timeout=3)), bytes)
    assert_type(await fetch.map(["a", "b"]), list[bytes])
    assert_type(await summarise.map([b"a", b"b"], words=3), list[str])
    assert_type(await fetch.fn("u"), bytes)
    assert_type(await fetch.with_options(key="k", user="ada")("u"), bytes)
    assert_type(await fetch.with_options(retry=None, timeout=2.5, map_limit=4).map(["u"]), list[bytes])


def sync_kind() -> None:
    assert_type(add(1), int)
    assert_type(add(a=1, b=2), int)
    assert_type(head(["a"]), str | None)
    log("line")
    _ = assert_type(add.submit(1, 2), Run[int])
    assert_type(add.submit(1).result(timeout=2), int)
    assert_type(add.map(range(3), b=2), list[int])
    assert_type(head.map([["a"], []]), list[str | None])
    assert_type(add.fn(1, b=3), int)
    assert_type(add.with_options(retry=2, checkpoint=None, breaker=None)(1), int)


async def generators() -> None:
    async for word in words("hello world"):
        assert_type(word, str)
    stream = words("a b")
    await stream.aclose()
    _ = assert_type(await words.submit("a b"), Run[list[str]])
    assert_type(await words.map(["a b", "c"]), list[list[str]])
    async for word in words.fn("a"):
        assert_type(word, str)

    for line in lines("p", skip=1):
        assert_type(line, str)
    lines("p").close()
    assert_type(lines.submit("p").result(), list[str])
    assert_type(lines.map(["p", "q"], skip=2), list[list[str]])
    assert_type(list(lines.fn("p")), list[str])


async def methods(agent: Agent) -> None:
    assert_type(await agent.ask("q", depth=2), str)
    _ = assert_type(await agent.ask.submit("q"), Run[str])
    assert_type(await agent.ask.map(["q", "r"], depth=2), list[str])
    assert_type(await agent.ask.fn("q"), str)
    assert_type(await agent.ask.with_options(key="k")("q", depth=2), str)
    assert_type(await Agent.ask(agent, "q"), str)
    assert_type(agent.plan("g"), list[str])
    assert_type(agent.plan.submit("g").result(), list[str])
    assert_type(agent.plan.map(["g"]), list[list[str]])
    assert_type([part async for part in agent.think("g")], list[str])
    assert_type(await agent.think.map(["g"]), list[list[str]])
    assert_type(list(agent.steps("g")), list[str])
    _ = assert_type(agent.steps.submit("g"), Run[list[str]])


async def static_methods(agent: Agent) -> None:
    assert_type(Agent.half(3), float)
    assert_type(agent.half(3), float)
    assert_type(await Agent.double(3), int)


def any_task(task: Task[..., object]) -> str:
    return task.name


def each_kind(
    one: AsyncTask[[str], bytes],
    two: SyncTask[[int, int], int],
    three: AsyncStreamTask[[str], str],
    four: StreamTask[[str], str],
) -> list[str]:
    return [any_task(task) for task in (fetch, add, words, lines, one, two, three, four, Agent.ask)]


def what_a_task_tells() -> None:
    assert_type(fetch.name, str)
    assert_type(fetch.__name__, str)
    assert_type(fetch.tags, tuple[str, ...])
    assert_type(fetch.version, str)
    assert_type(fetch.description, str)
