"""What a task is called, and where its function stands."""

from __future__ import annotations

import inspect
import os
import re
from typing import TYPE_CHECKING, Any

from apflow.errors import TaskDefinitionError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_NAME = 100
RULE = (
    "a task's name has lower-case letters, digits and underscores, in segments with dots between them; each "
    f"segment begins with a letter, and the whole has at most {MAX_NAME} characters. Underscores in front "
    "make the task private"
)

_ID = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")
_WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
#: First segments that apcore keeps for its own modules; a task is one of its modules when it is served.
_RESERVED = frozenset({"acl", "apcore", "core", "ephemeral", "internal", "plugin", "schema", "system"})
_MAX_ORIGIN = 500
_SCRIPT_MODULES = ("__main__", "__mp_main__")


def snake_case(name: str) -> str:
    """Return `name` in snake case: `HTTPFetch2Pages` becomes `http_fetch2_pages`."""
    return _WORD_STARTS.sub("_", name).lower()


def default_name(fn: Callable[..., Any]) -> str:
    """Return the name of a task whose decorator gives none: its function's own, in snake case.

    Raises:
        TaskDefinitionError: The function has no name, or one that cannot be a task's.
    """
    if fn.__name__ == "<lambda>":
        raise TaskDefinitionError("a lambda has no name to call its task by; give one with name=...")
    name = snake_case(fn.__name__)
    try:
        return check_name(name)
    except TaskDefinitionError as error:
        raise TaskDefinitionError(f"{error}. Give another one with name=...") from None


def check_name(name: object) -> str:
    """Return `name` when a task may have it.

    Raises:
        TaskDefinitionError: It may not; the text tells the rule.
    """
    if not isinstance(name, str):
        raise TaskDefinitionError(f"name takes a string, not {type(name).__name__}")
    if len(name) > MAX_NAME or not _ID.fullmatch(name.lstrip("_")):
        raise TaskDefinitionError(f"{name!r} cannot be a task's name: {RULE}")
    first = name.partition(".")[0]
    if first in _RESERVED:
        reserved = ", ".join(sorted(_RESERVED))
        raise TaskDefinitionError(f"{name!r} cannot be a task's name: the first segments {reserved} are reserved")
    return name


def origin(fn: Callable[..., Any]) -> str:
    """Return what another process has to have loaded to know this function.

    That is its module, or the path of the script for a function of the main program. A notebook, a prompt and
    `python -c` have neither and say `__main__`.
    """
    if fn.__module__ not in _SCRIPT_MODULES:
        return fn.__module__
    program = inspect.unwrap(fn).__globals__
    spec, path = program.get("__spec__"), program.get("__file__")
    if spec is not None and spec.name not in _SCRIPT_MODULES:
        return str(spec.name)
    return os.path.abspath(path)[-_MAX_ORIGIN:] if path else "__main__"  # noqa: PTH100 - pathlib costs an import


def location(fn: Callable[..., Any]) -> str:
    """Return `file:line` of a function, below its decorators."""
    code = inspect.unwrap(fn).__code__
    return f"{code.co_filename}:{code.co_firstlineno}"
