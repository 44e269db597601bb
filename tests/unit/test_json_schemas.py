"""Schemas as apcore asks for them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from apflow.bridge.schemas import JsonSchema, as_object, is_object
from apflow.errors import InvalidInputsError


def test_a_schema_is_made_once_and_when_it_is_needed() -> None:
    made: list[int] = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"type": "object"}

    schema = JsonSchema(make)
    assert made == []
    assert schema.model_json_schema() == schema.model_json_schema(by_alias=True) == {"type": "object"}
    assert made == [1]
    schema.model_rebuild(force=True)
    assert repr(schema) == "<apflow JSON schema>"


def test_a_schema_that_cannot_be_made_yet_is_tried_again() -> None:
    answers: list[Any] = [ValueError("not yet"), {"type": "object"}]

    def make() -> dict[str, Any]:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return dict(found)

    schema = JsonSchema(make)
    with pytest.raises(ValueError, match="not yet"):
        schema.model_json_schema()
    assert schema.model_json_schema() == {"type": "object"}


def test_data_that_do_not_fit_are_refused_in_the_words_of_pydantic() -> None:
    def check(data: Any) -> None:
        if data != {"a": 1}:
            raise InvalidInputsError("'a' should be {1}")

    schema = JsonSchema(dict, check)
    assert schema.model_validate({"a": 1}, strict=True) == {"a": 1}
    assert schema.model_validate_json('{"a": 1}') == {"a": 1}
    with pytest.raises(ValidationError) as caught:
        schema.model_validate({"a": "hunter2"})
    (found,) = caught.value.errors()
    assert (found["msg"], found["input"]) == ("'a' should be {1}", None)
    assert "hunter2" not in str(caught.value)
    assert JsonSchema(dict).model_validate("anything") == "anything"


@pytest.mark.parametrize(
    ("schema", "wrapped"),
    [
        ({"type": "object", "properties": {}}, None),
        ({"type": "integer"}, {"type": "integer"}),
        ({}, {}),
        ({"anyOf": [{"type": "object"}, {"type": "null"}]}, {"anyOf": [{"type": "object"}, {"type": "null"}]}),
        ({"$ref": "#/$defs/X", "$defs": {"X": {"type": "string"}}}, {"$ref": "#/$defs/X"}),
        ({"$ref": "#/$defs/X", "$defs": {}}, {"$ref": "#/$defs/X"}),
    ],
)
def test_results_that_are_no_objects_stand_under_result(schema: dict[str, Any], wrapped: Any) -> None:
    found = as_object(schema)
    assert is_object(found)
    if wrapped is None:
        assert found == schema
        return
    assert not is_object(schema)
    assert found["properties"] == {"result": wrapped}
    assert found["required"] == ["result"]
    assert found.get("$defs") == schema.get("$defs")


def test_the_schema_of_a_class_is_that_of_its_objects() -> None:
    found = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}
    schema = {"$ref": "#/$defs/Node", "$defs": {"Node": found}}
    assert is_object(schema)
    assert as_object(schema) == {**found, "$defs": {"Node": found}}
