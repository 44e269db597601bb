"""Executor classes as modules: what they are made of, and what they say about themselves."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
from apcore import ModuleAnnotations, Registry

import apflow
from apflow import ExecutableTask
from apflow.bridge.examples import examples_of
from apflow.bridge.module_adapter import ExecutableTaskModuleAdapter
from apflow.bridge.task_base import whole_numbers
from apflow.engine.inputs import inputs_of

INPUTS = {"type": "object", "properties": {"times": {"type": "integer", "minimum": 1}}, "required": ["times"]}
OUTPUTS = {"type": "object", "properties": {"said": {"type": "string"}}}


class Bell(ExecutableTask):
    """Nobody has registered it."""

    id = "bell"
    name = "Bell"
    description = "Rings."
    type = "sound"

    async def execute(self, inputs: dict[str, Any]) -> Any:
        return {"said": "ding " * inputs["times"]}

    def get_input_schema(self) -> dict[str, Any]:
        return INPUTS


def adapter(kind: Any = Bell, executor_id: Any = "bell", **changes: Any) -> ExecutableTaskModuleAdapter:
    given: dict[str, Any] = {
        "executor_name": "Bell",
        "executor_description": "Rings.",
        "input_schema": INPUTS,
        "output_schema": OUTPUTS,
        "tags": ["sound", "idempotent"],
        "dependencies": ["brass"],
        "always_available": False,
    }
    return ExecutableTaskModuleAdapter(kind, executor_id, **(given | changes))


@pytest.mark.parametrize(
    ("kind", "says"), [(Bell(), "give the class"), ("Bell", "give the class"), (int, "derive int")]
)
def test_what_is_no_executor_class_is_refused(kind: object, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        adapter(kind)


def test_a_class_that_lacks_something_is_refused() -> None:
    class Half(ExecutableTask):
        id = "half"

    with pytest.raises(TypeError, match=r"write description, execute, get_input_schema, name in .*Half"):
        adapter(Half)


@pytest.mark.parametrize("executor_id", ["", "  ", None])
def test_an_id_is_needed(executor_id: object) -> None:
    with pytest.raises(ValueError, match="give what its runs are called"):
        adapter(executor_id=executor_id)


def test_it_has_what_apcore_asks_for() -> None:
    module = adapter()
    assert module.input_schema.model_json_schema() is module.input_schema.model_json_schema()
    assert module.input_schema.model_json_schema() == INPUTS
    assert (module.description, module.name, module.version) == ("Rings.", "Bell", "1.0.0")
    assert module.tags == ["sound", "idempotent"]
    assert (module.executor_id, module.executor_class) == ("bell", Bell)
    assert module.annotations.idempotent
    assert module.annotations.open_world
    assert module.annotations.extra == {
        "resources": {"timeout": 0},
        "executor_id": "bell",
        "executor_type": "sound",
        "dependencies": ["brass"],
        "always_available": False,
    }


def test_tags_and_a_description_are_never_missing() -> None:
    module = adapter(tags=[], executor_description="")
    assert module.tags
    assert module.description == "Runs the executor bell."


def test_annotations_survive_a_round_trip_through_json() -> None:
    annotations = adapter().annotations
    assert ModuleAnnotations.from_dict(json.loads(json.dumps(asdict(annotations)))) == annotations


def test_the_registry_describes_it() -> None:
    registry = Registry()
    registry.register("mine.bell", adapter())
    assert registry.export_schema("mine.bell") == {
        "module_id": "mine.bell",
        "description": "Rings.",
        "input_schema": INPUTS,
        "output_schema": OUTPUTS,
    }
    definition = registry.get_definition("mine.bell")
    assert definition is not None
    assert definition.tags == ["sound", "idempotent"]
    assert definition.annotations is not None
    assert definition.annotations.extra["executor_id"] == "bell"


def test_results_that_are_no_objects_stand_under_result() -> None:
    module = adapter(output_schema={"type": "integer"})
    assert module.wraps
    assert module.output_schema.model_json_schema()["properties"] == {"result": {"type": "integer"}}
    assert adapter(output_schema={}).wraps
    assert not adapter().wraps


@pytest.mark.anyio
@pytest.mark.parametrize("inputs", [None, [], "{}", 3])
async def test_inputs_that_are_no_dict_are_the_mistake_of_a_program(inputs: Any) -> None:
    with pytest.raises(TypeError, match="inputs must be a dict"):
        await adapter().execute(inputs)


def test_its_schema_checks_what_is_given() -> None:
    module = adapter()
    assert module.input_schema.model_validate({"times": 3.0}) == {"times": 3.0}
    with pytest.raises(ValueError, match="'times' should be at least 1"):
        module.input_schema.model_validate({"times": 0})


@pytest.mark.parametrize(
    ("schema", "value", "whole"),
    [
        ({"type": "integer"}, 4.0, 4),
        ({"type": "integer"}, 4.5, 4.5),
        ({"type": "number"}, 4.0, 4.0),
        ({"type": "integer"}, True, True),
        ({"type": "array", "items": {"type": "integer"}}, [1.0, "x"], [1, "x"]),
        ({"properties": {"a": {"type": "integer"}}}, {"a": 2.0, "b": 2.0}, {"a": 2, "b": 2.0}),
        ({}, None, None),
    ],
)
def test_floats_become_integers_where_the_schema_wants_one(schema: dict[str, Any], value: Any, whole: Any) -> None:
    found = whole_numbers(schema, value)
    assert json.dumps(found) == json.dumps(whole)


# -- examples ------------------------------------------------------------------------------------------------------


@apflow.task(name="ma_research")
async def research(topic: str, depth: int = 1) -> str:
    """Look something up.

    Examples:
        The second one takes longer:

        >>> await research(topic="tides")
        >>> research(topic="winds", depth=3)
        'much'
        >>> research("tides")
        >>> research(topic=open("x"))
        >>> research(topic={1: 2})
        >>> research(**more)
        >>> other(topic="tides")
        >>> research(topic=

    Returns:
        >>> research(topic="not an example any more")
    """
    return topic * depth


@apflow.task(name="ma_plain")
async def plain() -> None:
    """Say >>> plain() outside of any section."""


def test_examples_are_calls_with_literal_keywords() -> None:
    found = examples_of(research.definition)
    assert [(one.title, one.inputs) for one in found] == [
        ('await research(topic="tides")', {"topic": "tides"}),
        ('research(topic="winds", depth=3)', {"topic": "winds", "depth": 3}),
    ]
    for one in found:
        inputs_of(research.definition).check(one.inputs)
    assert examples_of(plain.definition) == []
