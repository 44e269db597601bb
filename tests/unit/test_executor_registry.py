"""`@executor_register`: which classes become executors, by which id."""

from __future__ import annotations

from typing import Any

import pytest

from apflow import DuplicateExecutorError, ExecutableTask, TaskDefinitionError, executor_register
from apflow.engine.executors import find_executor
from apflow.engine.registry import registered


class Plain(ExecutableTask):
    """Whatever its id will be."""

    name = "Plain"
    description = "Does nothing."

    async def execute(self, inputs: dict[str, Any]) -> Any:
        return inputs

    def get_input_schema(self) -> dict[str, Any]:
        return {}


def test_the_id_may_stand_in_the_decorator_alone() -> None:
    kind = executor_register(id="given_in_the_decorator")(type("Given", (Plain,), {}))
    assert kind().id == "given_in_the_decorator"
    found = find_executor("given_in_the_decorator")
    assert found.kind is not None
    assert found.kind.kind is kind


@pytest.mark.parametrize("wrong", ["With Space", "Upper", "a-b", "", "system.thing"])
def test_an_illegal_id_is_refused(wrong: str) -> None:
    with pytest.raises(TaskDefinitionError, match="task's name"):
        executor_register(id=wrong)(type("Wrong", (Plain,), {}))
    with pytest.raises(TaskDefinitionError, match="task's name"):
        executor_register(type("Wrong", (Plain,), {"id": wrong}))


def test_a_class_without_an_id_is_told_where_to_write_it() -> None:
    with pytest.raises(TaskDefinitionError, match="class attribute"):
        executor_register(type("Nameless", (Plain,), {}))


def test_what_is_missing_is_named() -> None:
    class Half(ExecutableTask):
        id = "half_an_executor"
        name = "Half"
        description = "Lacks the rest."

    with pytest.raises(TaskDefinitionError, match="execute, get_input_schema"):
        executor_register(Half)
    assert registered("half_an_executor") is None


def test_a_plain_execute_is_refused() -> None:
    def execute(_self: Plain, inputs: dict[str, Any]) -> Any:
        return inputs

    with pytest.raises(TaskDefinitionError, match="async def execute"):
        executor_register(id="plain_execute")(type("Blocking", (Plain,), {"execute": execute}))


def test_no_executor_is_made_of_anything_else() -> None:
    for other in (int, "text", None.__class__):
        with pytest.raises(TaskDefinitionError, match="subclass of ExecutableTask"):
            executor_register(other)  # type: ignore[type-var]


def test_one_id_in_two_places_names_both_and_the_same_place_again_replaces() -> None:
    first = executor_register(id="two_places")(type("First", (Plain,), {}))
    again = executor_register(id="two_places")(type("First", (Plain,), {}))
    assert first is not again
    with pytest.raises(DuplicateExecutorError, match=r"First.*Second"):
        executor_register(id="two_places")(type("Second", (Plain,), {}))
