"""Tasks in classes: bound to their instances as functions would be."""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from typing import Any

import pytest

from apflow import SyncTask, TaskDefinitionError, task
from apflow.definition import known


@task
async def research(topic: str, *, depth: int = 1) -> str:
    return topic * depth


class Agent:
    def __init__(self, greeting: str = "hello") -> None:
        self.greeting = greeting

    @task
    def greet(self, name: str) -> str:
        """Greet somebody."""
        return f"{self.greeting} {name}"

    @task
    def shout(this, name: str) -> str:  # noqa: N805 - the name does not matter
        return f"{this.greeting} {name}!"

    @staticmethod
    @task
    def half(n: int) -> float:
        return n / 2

    @task
    @staticmethod
    def third(n: int) -> float:
        return n / 3


def test_a_method_gets_its_instance() -> None:
    agent = Agent()
    assert type(agent.greet) is SyncTask
    assert agent.greet.fn("ada") == "hello ada"
    assert agent.shout.fn("ada") == "hello ada!"
    assert Agent.greet.fn(agent, "ada") == "hello ada"
    assert agent.greet.with_options(key="k").fn("ada") == "hello ada"
    assert str(inspect.signature(agent.greet)) == "(name: 'str') -> 'str'"
    assert str(inspect.signature(Agent.greet)) == "(self, name: 'str') -> 'str'"
    assert agent.greet.__doc__ == "Greet somebody."
    assert agent.greet.definition is Agent.greet.definition


def test_a_method_says_that_it_takes_an_instance() -> None:
    assert Agent.greet.definition.takes_self
    assert Agent.shout.definition.takes_self
    assert not Agent.half.definition.takes_self
    assert not Agent.third.definition.takes_self


@task
def outside(self: Any) -> Any:
    return self


def test_a_function_outside_of_classes_takes_arguments_only() -> None:
    assert not outside.definition.takes_self


def test_what_is_known_is_what_the_class_told() -> None:
    assert known("shout") == [Agent.shout.definition]


def test_static_methods_get_no_instance() -> None:
    for owner in (Agent, Agent()):
        assert owner.half.fn(3) == 1.5
        assert owner.third.fn(3) == 1
    assert Agent.__dict__["third"].fn(6) == 2


def test_a_function_that_takes_nothing_cannot_be_a_method() -> None:
    class Odd:
        @task(name="odd.one")
        def one() -> int:
            return 1

    assert not Odd.__dict__["one"].definition.takes_self
    assert Odd.one.fn() == 1


def test_a_function_put_into_a_class_is_a_method_there() -> None:
    @task
    def tell(agent: Agent, name: str) -> str:
        return agent.greeting + name

    class Other(Agent):
        told = tell

    assert Other("oh ").told.fn("ada") == "oh ada"
    assert not tell.definition.takes_self
    assert tell.fn(Agent("a "), "b") == "a b"


def test_a_bound_task_is_bound_for_good() -> None:
    agent = Agent("hey")

    class Other:
        greet = agent.greet

    assert Other().greet.fn("ada") == "hey ada"


def test_subclasses_inherit_and_override() -> None:
    class Loud(Agent):
        @task(name="greet.loud")
        def greet(self, name: str) -> str:
            return str(super().greet.fn(name)).upper()

    assert Loud().greet.fn("ada") == "HELLO ADA"
    assert Loud().shout.fn("ada") == "hello ada!"


def test_an_abstract_task_stays_abstract() -> None:
    class Planned(ABC):
        @task(name="planned.step")
        @abstractmethod
        def step(self) -> str: ...

    with pytest.raises(TypeError, match="abstract"):
        Planned()  # type: ignore[abstract]


def test_class_methods_are_refused() -> None:
    with pytest.raises(TaskDefinitionError, match="class method"):

        class Below:
            @classmethod
            @task
            def make(cls) -> None: ...

    with pytest.raises(TaskDefinitionError, match="class method"):

        class Above:
            @task
            @classmethod
            def make(cls) -> None: ...


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="class methods no longer ask what they wrap")
def test_a_class_method_in_disguise_is_refused_at_its_first_use() -> None:
    class Disguised:
        @classmethod
        @task
        def make(klass) -> None: ...  # noqa: N804 - the name does not matter

    with pytest.raises(TaskDefinitionError, match="class method"):
        Disguised.make  # noqa: B018 - looking is enough


def test_map_takes_only_the_items_by_position() -> None:
    with pytest.raises(TypeError, match=r"half.map\(\) takes the items and keyword arguments, not 1 more"):
        Agent.half.map([1, 2], 3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"research.map\(\) takes"):
        research.map(["a"], 3)  # type: ignore[call-arg, unused-coroutine]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'items'"):
        Agent.half.map(items=[1])  # type: ignore[call-arg]
