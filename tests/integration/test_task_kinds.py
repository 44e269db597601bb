"""The four kinds of task, called, submitted and mapped, as functions and as methods."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from apflow import Runtime, task


@task
async def join(first: str, *, second: str = "-") -> str:
    return first + second


@task
def add(first: int, second: int = 1) -> int:
    return first + second


@task
async def letters(word: str, *, upper: bool = False) -> AsyncIterator[str]:
    for letter in word:
        yield letter.upper() if upper else letter


@task
def digits(number: int) -> Iterator[int]:
    for digit in str(number):
        yield int(digit)


class Agent:
    def __init__(self, name: str) -> None:
        self.name = name

    def __apflow_key__(self) -> str:
        return self.name

    @task
    async def ask(self, question: str, *, times: int = 1) -> str:
        return f"{self.name}: {question}" * times

    @task
    def tell(self, answer: str) -> str:
        return f"{self.name}! {answer}"

    @task
    async def spell(self, word: str) -> AsyncIterator[str]:
        for letter in word:
            yield self.name + letter

    @task
    def count(self, end: int) -> Iterator[str]:
        for number in range(end):
            yield f"{self.name}{number}"

    @staticmethod
    @task
    def half(n: int) -> float:
        return n / 2

    @task
    @staticmethod
    async def third(n: int) -> float:
        return n / 3


@pytest.mark.anyio
async def test_asynchronous_kinds() -> None:
    async with Runtime("sqlite:///:memory:"):
        assert await join("a", second="b") == "ab"
        assert await (await join.submit("a")) == "a-"
        assert await join.map(["a", "b"], second="!") == ["a!", "b!"]
        assert [letter async for letter in letters("abc")] == ["a", "b", "c"]
        assert await (await letters.submit("ab", upper=True)) == ["A", "B"]
        assert await letters.map(["ab", "c"], upper=True) == [["A", "B"], ["C"]]


def test_plain_kinds() -> None:
    with Runtime("sqlite:///:memory:"):
        assert add(1, 2) == 3
        assert add.submit(1).result(timeout=30) == 2
        assert add.map([1, 2], second=3) == [4, 5]
        assert list(digits(123)) == [1, 2, 3]
        assert digits.submit(45).result(timeout=30) == [4, 5]
        assert digits.map([12, 3]) == [[1, 2], [3]]


@pytest.mark.anyio
async def test_asynchronous_methods() -> None:
    agent = Agent("ada")
    async with Runtime("sqlite:///:memory:"):
        assert await agent.ask("why? ", times=2) == "ada: why? ada: why? "
        assert await Agent.ask(agent, "why?") == "ada: why?"
        assert await agent.ask.map(["who", "why"], times=1) == ["ada: who", "ada: why"]
        assert [part async for part in agent.spell("xy")] == ["adax", "aday"]
        assert await agent.spell.map(["x", "yz"]) == [["adax"], ["aday", "adaz"]]
        assert await Agent.third(6) == await agent.third(6) == 2
        assert await agent.third.map([3, 6]) == [1, 2]


def test_plain_methods() -> None:
    agent = Agent("bob")
    with Runtime("sqlite:///:memory:"):
        assert agent.tell("yes") == "bob! yes"
        assert agent.tell.map(["yes", "no"]) == ["bob! yes", "bob! no"]
        assert list(agent.count(2)) == ["bob0", "bob1"]
        assert agent.count.map([1, 2]) == [["bob0"], ["bob0", "bob1"]]
        assert Agent.half(3) == agent.half(3) == 1.5
        assert Agent.half.submit(3).result(timeout=30) == 1.5


@pytest.mark.anyio
async def test_the_bare_functions_need_no_runtime() -> None:
    assert await join.fn("a") == "a-"
    assert add.fn(1) == 2
    assert [letter async for letter in letters.fn("ab")] == ["a", "b"]
    assert list(digits.fn(12)) == [1, 2]
    assert await Agent("ada").ask.fn("who") == "ada: who"


def test_options_stay_with_a_bound_task() -> None:
    runtime = Runtime("sqlite:///:memory:")
    with runtime:
        tell = Agent("bob").tell.with_options(user="ada", key="k", runtime=runtime)
        assert tell("yes") == tell("yes") == "bob! yes"
        [row] = runtime.wait(runtime.runs.list(name="tell"))
        assert (row.user_id, row.status) == ("ada", "completed")


@pytest.mark.parametrize("made", [join, add, letters, digits], ids=lambda made: made.name)
def test_items_come_by_position_and_nothing_else(made: Any) -> None:
    with pytest.raises(TypeError, match=rf"{made.name}\.map\(\) takes the items and keyword arguments"):
        made.map([], 1)
