"""JSON schemas as apcore wants them: objects that describe and validate, made once for each module."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticCustomError, ValidationError

from apflow.errors import InvalidInputsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class JsonSchema:
    """A JSON schema with the part of a pydantic class that apcore asks for.

    apcore would generate the schema of a class anew three times for each call; this one is made when it is first
    needed, and kept.

    Args:
        make: Returns the schema.
        check: Raises InvalidInputsError about data that do not fit; None takes everything.
    """

    def __init__(
        self, make: Callable[[], Mapping[str, Any]], check: Callable[[Mapping[str, Any]], object] | None = None
    ) -> None:
        self._make = make
        self._check = check
        self._made: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return "<apflow JSON schema>"

    def model_json_schema(self, **_options: Any) -> dict[str, Any]:
        """Return the schema. It is shared: who wants to change it copies it.

        Raises:
            TaskDefinitionError: An annotation has no form in JSON.
        """
        if self._made is None:
            self._made = dict(self._make())
        return self._made

    def model_validate(self, data: Any, *, strict: bool | None = None) -> Any:  # noqa: ARG002 - it always is strict
        """Return data that fit, as they are.

        Raises:
            ValidationError: They do not; the text names fields.
        """
        if self._check is not None:
            try:
                self._check(data)
            except InvalidInputsError as error:
                kind = PydanticCustomError("inputs", "{text}", {"text": str(error)})
                details: Any = [{"type": kind, "loc": (), "input": None}]
                raise ValidationError.from_exception_data("inputs", details) from None
        return data

    def model_validate_json(self, text: str, *, strict: bool | None = None) -> Any:
        """Do what `model_validate` does with JSON text."""
        return self.model_validate(json.loads(text), strict=strict)

    def model_rebuild(self, **_options: Any) -> None:
        """Do nothing: there is nothing to rebuild."""


def is_object(schema: Mapping[str, Any]) -> bool:
    """Whether all that fits a schema is an object."""
    return _resolved(schema).get("type") == "object"


def as_object(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of what modules return, which has to be an object: other results stand under `result`."""
    definitions = {"$defs": schema["$defs"]} if "$defs" in schema else {}
    if is_object(schema):
        return {**_resolved(schema), **definitions}
    inner = {name: part for name, part in schema.items() if name != "$defs"}
    return {"type": "object", "properties": {"result": inner}, "required": ["result"], **definitions}


def _resolved(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the definition that a schema stands for, as that of a class does; itself when it says more than that."""
    name = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    found: Mapping[str, Any] = schema.get("$defs", {}).get(name, schema)
    return found if set(schema) <= {"$ref", "$defs"} else schema
