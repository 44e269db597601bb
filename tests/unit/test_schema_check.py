"""Inputs of executor classes, checked by the schema of the class, without showing a value."""

from __future__ import annotations

from typing import Any

import pytest

from apflow.engine.inputs import check_by_schema
from apflow.errors import InvalidInputsError, TaskDefinitionError

SECRET = "s3cr3t-value"  # noqa: S105 - stands for what no text may show


def refusal(schema: dict[str, Any], given: dict[str, Any], later: tuple[str, ...] = ()) -> str:
    """Return the text of the refusal."""
    with pytest.raises(InvalidInputsError) as caught:
        check_by_schema("rest", schema, given, later=later)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert SECRET not in str(caught.value)
    return str(caught.value).removeprefix("inputs of 'rest' do not fit: ")


SCHEMA = {
    "type": "object",
    "properties": {
        "url": {"type": "string", "minLength": 3},
        "method": {"enum": ["GET", "POST"]},
        "retries": {"type": ["integer", "null"], "maximum": 5},
        "auth": {"type": "object", "properties": {"user": {}}, "required": ["user"], "additionalProperties": False},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]+$"}, "uniqueItems": True},
    },
    "required": ["url", "method"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        ({}, "'url' is missing; 'method' is missing"),
        (
            {"url": "x", "method": SECRET},
            "'url' should have at least 3 characters; 'method' should be one of [\"GET\", \"POST\"]",
        ),
        ({"url": SECRET, "method": "GET", "retries": SECRET}, "'retries' should be an integer or null"),
        ({"url": SECRET, "method": "GET", "retries": 9}, "'retries' should be at most 5"),
        ({"url": SECRET, "method": "GET", "auth": {"pass": SECRET}}, "'auth.user' is missing; 'auth.pass' is unknown"),
        ({"url": SECRET, "method": "GET", "tags": ["a", SECRET]}, "'tags[1]' should match the pattern ^[a-z]+$"),
        ({"url": SECRET, "method": "GET", "tags": ["a", "a"]}, "'tags' should not repeat an item"),
        ({"url": SECRET, "method": "GET", "urls": 1}, "'urls' is unknown (known are auth, method, retries, tags, url)"),
        ({"url": SECRET, "method": {1, 2}}, "'method' is no JSON value (set)"),
    ],
)
def test_inputs_of_classes(given: dict[str, Any], problems: str) -> None:
    assert refusal(SCHEMA, given) == problems


def test_inputs_of_classes_that_come_later() -> None:
    check_by_schema("rest", SCHEMA, {"url": "abc", "method": "GET", "retries": 3.0})
    check_by_schema("rest", SCHEMA, {"url": 3}, later=["url", "method", "dependencies"])
    either = {"type": "object", "anyOf": [{"required": ["a"]}, {"required": ["b"]}], "required": ["c"]}
    check_by_schema("either", either, {"c": 1}, later=["a"])
    assert "none of the forms" in refusal(either, {"c": 1})
    assert "'address' is unknown" in refusal(SCHEMA, {}, ("url", "method", "address"))
    assert "'c' is missing" in refusal(either, {}, ("a",))


def test_the_schema_that_counts_is_the_one_given() -> None:
    strict = {"type": "object", "properties": {"a": {"type": "integer"}}}
    check_by_schema("rest", {"type": "object"}, {"a": "x"})
    refusal(strict, {"a": "x"})
    strict["properties"] = {}
    check_by_schema("rest", strict, {"a": "x"})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "objekt"},
        {"$ref": "https://example.com/schema.json"},
        {"properties": {"a": {"$ref": "#/$defs/nowhere"}}},
    ],
)
def test_a_schema_that_is_none_is_told(schema: dict[str, Any]) -> None:
    with pytest.raises(TaskDefinitionError, match="the input schema of executor 'odd' cannot be used"):
        check_by_schema("odd", schema, {"a": SECRET})
