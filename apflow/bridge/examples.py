"""Examples of calls, read from docstrings."""

from __future__ import annotations

import ast
import inspect
import json
from typing import TYPE_CHECKING, Any

from apcore import ModuleExample

if TYPE_CHECKING:
    from apflow.options import TaskDefinition

_HEADINGS = ("example:", "examples:")
_PROMPT = ">>> "


def examples_of(definition: TaskDefinition) -> list[ModuleExample]:
    """Return the calls of a task in the section `Example:` or `Examples:` of its docstring.

    What counts is a line `>>> research(topic="tides")`, with or without `await`, which calls the function by its name
    and gives nothing but keyword arguments, each a literal that JSON can carry. All other lines are for people.
    """
    found = []
    for line in _section(inspect.getdoc(definition.fn) or ""):
        inputs = _inputs(line, definition.fn.__name__) if line.startswith(_PROMPT) else None
        if inputs is not None:
            found.append(ModuleExample(title=line.removeprefix(_PROMPT), inputs=inputs))
    return found


def _section(docstring: str) -> list[str]:
    """Return the indented lines below the heading, without their indentation."""
    lines = docstring.splitlines()
    start = next((number for number, line in enumerate(lines) if line.strip().lower() in _HEADINGS), len(lines))
    found = []
    for line in lines[start + 1 :]:
        if line.strip() and not line.startswith(" "):
            break
        found.append(line.strip())
    return found


def _inputs(line: str, name: str) -> dict[str, Any] | None:
    """Return the keyword arguments of the call in a line, or None when it is something else."""
    try:
        call = ast.parse(line.removeprefix(_PROMPT).removeprefix("await "), mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name) or call.func.id != name:
            return None
        inputs = {one.arg: ast.literal_eval(one.value) for one in call.keywords if one.arg is not None}
        same = len(inputs) == len(call.keywords) and json.loads(json.dumps(inputs, allow_nan=False)) == inputs
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return None
    return inputs if same else None
