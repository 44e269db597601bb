"""What the schemas of decorated tasks say of results, and which tasks have none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, NoReturn

import pytest
from typing_extensions import TypedDict, Unpack

from apflow import task
from apflow.engine.inputs import TaskInputs, inputs_of
from apflow.errors import ExecutorNotFoundError, TaskDefinitionError


class Filters(TypedDict, total=False):
    year: int


class NoForm:
    pass


def inputs(function: Any) -> TaskInputs:
    return inputs_of(function.definition)


def test_output_schemas() -> None:
    @task
    async def lines() -> AsyncIterator[int]:
        yield 1

    @task
    def unknown():  # type: ignore[no-untyped-def]  # noqa: ANN202
        return 1

    @task
    def never() -> NoReturn:
        raise ValueError

    @task
    def typed() -> timedelta:
        return timedelta(1)

    assert inputs(lines).output_schema == {"type": "array", "items": {"type": "integer"}}
    assert inputs(unknown).output_schema == {}
    assert inputs(unknown).schema == {"type": "object", "properties": {}, "additionalProperties": False}
    assert inputs(never).output_schema == {"type": "null"}
    assert inputs(typed).output_schema == {"type": "string", "format": "duration"}


def test_who_takes_dependencies() -> None:
    @task
    def by_name(dependencies: dict[str, Any]) -> None: ...

    @task
    def among_others(**others: Any) -> None: ...

    @task
    def among_objects(needed: int, **others: dict[str, Any]) -> None: ...

    @task
    def numbers(**others: float) -> None: ...

    @task
    def named(**others: Unpack[Filters]) -> None: ...

    @task
    def not_at_all(number: int) -> None: ...

    functions = (by_name, among_others, among_objects, numbers, named, not_at_all)
    takes = {function.name: inputs(function).takes_dependencies for function in functions}
    assert takes == {
        "by_name": True,
        "among_others": True,
        "among_objects": True,
        "numbers": False,
        "named": False,
        "not_at_all": False,
    }


def test_methods_and_annotations_without_a_form() -> None:
    class Agent:
        @task
        def ask(self, question: str) -> None: ...

        @staticmethod
        @task
        def half(number: int) -> None: ...

    @task
    def odd(fine: int, callback: NoForm) -> NoForm:
        return callback

    with pytest.raises(ExecutorNotFoundError, match="'ask' is a method"):
        inputs(Agent.ask)
    assert inputs(Agent.half).convert({"number": 2}) == {"number": 2}
    with pytest.raises(TaskDefinitionError, match="parameter 'callback'"):
        inputs(odd).convert({"fine": 1, "callback": 1})
    with pytest.raises(TaskDefinitionError, match="the result"):
        _ = inputs(odd).output_schema
