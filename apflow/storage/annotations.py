"""What the annotations of a task's function say, evaluated only when a value has to be stored."""

from __future__ import annotations

import inspect
import typing
from collections import abc
from contextlib import suppress
from types import FunctionType, GenericAlias
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typing_extensions

from apflow.errors import TaskDefinitionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from apflow.options import TaskDefinition

_UNPACK = (typing.Unpack, typing_extensions.Unpack)  # two objects before Python 3.12
_STREAMS = (
    *(abc.AsyncGenerator, abc.AsyncIterator, abc.AsyncIterable),
    *(abc.Generator, abc.Iterator, abc.Iterable),
)


def parameter_annotation(definition: TaskDefinition, parameter: inspect.Parameter) -> Any:
    """Return the evaluated annotation of what is stored for a parameter, `Any` when it has none.

    `*args` are stored as a list and `**kwargs` as a dict. A default of None allows None, as type checkers
    used to read it.

    Raises:
        TaskDefinitionError: It cannot be evaluated.
    """
    found = _evaluate(definition, f"parameter {parameter.name!r}", parameter.annotation)
    if parameter.kind is parameter.VAR_POSITIONAL:
        return GenericAlias(list, (found,))
    if parameter.kind is parameter.VAR_KEYWORD:
        return get_args(found)[0] if get_origin(found) in _UNPACK else GenericAlias(dict, (str, found))
    return found | None if parameter.default is None and found is not Any else found


def result_annotation(definition: TaskDefinition) -> Any:
    """Return the evaluated annotation of a task's result: for a generator, the list of its items.

    Raises:
        TaskDefinitionError: It cannot be evaluated, or is none that a generator can have.
    """
    found = _evaluate(definition, "the result", definition.signature.return_annotation)
    if definition.colour not in ("async_stream", "stream"):
        return found
    if get_origin(found) is Annotated:
        found = get_args(found)[0]
    if found is Any or found is object:
        return list[Any]
    if (get_origin(found) or found) not in _STREAMS:
        raise TaskDefinitionError(
            f"task {definition.name!r}: {definition.fn.__qualname__} ({definition.location}) is a generator, "
            "but its result is annotated otherwise. Annotate it AsyncIterator[...] or Iterator[...]"
        )
    return GenericAlias(list, (get_args(found) or (Any,))[:1])


def _evaluate(definition: TaskDefinition, what: str, annotation: Any) -> Any:
    if annotation is inspect.Parameter.empty:
        return Any
    fn = inspect.unwrap(definition.fn)
    probe = FunctionType(_nothing.__code__, fn.__globals__)
    probe.__annotations__ = {"value": annotation}
    try:
        return get_type_hints(probe, fn.__globals__, _local_names(fn), include_extras=True)["value"]
    except Exception as error:
        where = f"{fn.__qualname__} ({definition.location})"
        raise TaskDefinitionError(
            f"task {definition.name!r}: the annotation of {what} of {where} cannot be evaluated: {error}. "
            "Define or import its types at module level, outside of `if TYPE_CHECKING:`"
        ) from error


def _nothing() -> None: ...


def _local_names(fn: Callable[..., Any]) -> dict[str, Any]:
    """Return the names that a function sees besides its module's: type parameters, what it closes over."""
    names = {kind.__name__: kind for kind in getattr(fn, "__type_params__", ())}
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        with suppress(ValueError):  # nothing is assigned to it yet
            names[name] = cell.cell_contents
    return names
