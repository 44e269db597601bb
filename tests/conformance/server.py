"""The server that is tested, with tasks of the names that the suite asks for.

Usage: `python -m tests.conformance.server PORT`
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

from jsonschema import Draft202012Validator

import apflow
from apflow import ExecutableTask
from apflow.bridge.module_adapter import ExecutableTaskModuleAdapter


@apflow.task(tags=("readonly",))
async def test_simple_text() -> str:
    """Answer with a text."""
    return "This is a simple text response for testing."


@apflow.task
async def test_error_handling() -> str:
    """Fail."""
    raise apflow.PublicError("This tool intentionally returns an error for testing")


@apflow.task
async def test_tool_with_progress() -> str:
    """Tell how far it is, three times."""
    for done in (0, 50, 100):
        await apflow.progress(done, 100)
        await asyncio.sleep(0.05)
    return "done"


@apflow.task(tags=("readonly", "idempotent"))
async def add(a: int, b: int = 2) -> int:
    """Add two numbers.

    Args:
        a: The first one.
        b: The second one.
    """
    return a + b


@apflow.task
async def count_down(start: int) -> AsyncIterator[int]:
    """Count down to one."""
    for n in range(start, 0, -1):
        yield n


class Described(ExecutableTask):
    """An executor whose schema is written by hand, with keywords of JSON Schema 2020-12."""

    id = "json_schema_2020_12_tool"
    name = "Described"
    description = "Tool with JSON Schema 2020-12 features"

    async def execute(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return inputs

    def get_input_schema(self) -> dict[str, Any]:
        address = {"type": "object", "properties": {"street": {"type": "string"}, "city": {"type": "string"}}}
        return {
            "$schema": Draft202012Validator.META_SCHEMA["$id"],
            "type": "object",
            "$defs": {"address": address},
            "properties": {"name": {"type": "string"}, "address": {"$ref": "#/$defs/address"}},
            "additionalProperties": False,
        }


def described() -> ExecutableTaskModuleAdapter:
    """Return the executor as a module."""
    schema, returned = Described().get_input_schema(), Described().get_output_schema()
    about = (Described.id, Described.name, Described.description)
    return ExecutableTaskModuleAdapter(Described, *about, schema, returned, ["executor"], [], always_available=True)


if __name__ == "__main__":
    runtime = apflow.configure("sqlite:///conformance.db")
    runtime.registry.register(Described.id, described())
    apflow.serve(runtime, port=int(sys.argv[1]), explorer=True, name="apflow-conformance")
