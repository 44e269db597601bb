"""Which functions can be tasks, and of which of the four kinds."""

from __future__ import annotations

import inspect
import sys
from collections import abc
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, get_origin

from apflow.errors import TaskDefinitionError

if TYPE_CHECKING:
    from apflow.options import Colour

CLASS_METHOD = (
    "a class method cannot be a task, because a class cannot be stored as an argument. Make it a static "
    "method, or a function outside of the class"
)
_STARS: dict[object, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
_COLLECT = "Write a generator with `yield`, whose items are streamed and stored, or return a list"
_AWAIT = "Write it as `async def` and await inside of it"
_ADVICE = {
    abc.Iterator: _COLLECT,
    abc.Generator: _COLLECT,
    abc.AsyncIterable: _COLLECT,
    abc.AsyncIterator: _COLLECT,
    abc.AsyncGenerator: _COLLECT,
    abc.Awaitable: _AWAIT,
    abc.Coroutine: _AWAIT,
}
_BY_NAME = {kind.__name__: kind for kind in _ADVICE}


def check_function(fn: object) -> FunctionType:
    """Return `fn` when it is a Python function.

    Raises:
        TaskDefinitionError: It is something else; the text says what to decorate instead.
    """
    if isinstance(fn, FunctionType):
        return fn
    raise TaskDefinitionError(f"@apflow.task takes a function, not {_refused(fn)}")


def _refused(fn: object) -> str:
    if isinstance(fn, classmethod):
        return f"{fn.__qualname__}: {CLASS_METHOD}"
    if isinstance(fn, type):
        return f"the class {fn.__qualname__}. Decorate its methods, or a function that makes it"
    if isinstance(fn, partial):
        return "a functools.partial. Write a function that makes the call, with a name and a signature"
    if isinstance(fn, MethodType):
        return f"a method of an object. Decorate {fn.__qualname__} in its class"
    if inspect.isroutine(fn):
        return f"the built-in {fn.__name__}, whose signature is unknown. Write a function that calls it"
    if callable(fn):
        return f"an object of class {type(fn).__qualname__}. Decorate its __call__, or a function that calls it"
    if isinstance(fn, str):
        return "a string. Options have names, as in @apflow.task(name=...)"
    return f"a value of type {type(fn).__name__}"


def signature_of(fn: FunctionType) -> inspect.Signature:
    """Return the signature of a function whose arguments can be stored by their names.

    Raises:
        TaskDefinitionError: They cannot, or the function is one of a class.
    """
    try:
        signature = _read_signature(fn)
    except (TypeError, ValueError) as error:
        raise TaskDefinitionError(f"{fn.__qualname__} has no signature that can be read: {error}") from error
    for parameter in signature.parameters.values():
        stars = _STARS.get(parameter.kind)
        if stars and parameter.annotation is parameter.empty:
            named = stars + parameter.name
            raise TaskDefinitionError(
                f"{fn.__qualname__} takes {named} of unknown type. Annotate it, as in `{named}: int`; if "
                "another decorator made this function, let it use functools.wraps"
            )
    if stands_in_class(fn) and first_parameter(signature) == "cls":
        raise TaskDefinitionError(f"{fn.__qualname__}: {CLASS_METHOD}")
    return signature


def _read_signature(fn: FunctionType) -> inspect.Signature:
    if sys.version_info >= (
        3,
        14,
    ):  # pragma: no cover - annotations are evaluated there unless one asks not to
        from annotationlib import Format

        return inspect.signature(fn, annotation_format=Format.FORWARDREF)
    return inspect.signature(fn)


def colour_of(fn: FunctionType, signature: inspect.Signature) -> Colour:
    """Return which of the four kinds of task a function makes.

    Raises:
        TaskDefinitionError: A call of it would give something that cannot be stored, or nobody can tell what.
    """
    colour = _colour(fn)
    wrapped = inspect.unwrap(fn)
    if wrapped is not fn:
        if colour == "sync" and _colour(wrapped) != "sync":
            raise TaskDefinitionError(
                f"{fn.__qualname__} is a plain function around one that is not, so nobody can tell what "
                "calling it gives. Put @apflow.task next to the function, below the other decorator"
            )
        return colour
    returned = _returned(fn, signature.return_annotation)
    if colour in ("async", "sync") and returned in _ADVICE:
        raise TaskDefinitionError(
            f"{fn.__qualname__} returns {returned.__name__}, which cannot be stored. {_ADVICE[returned]}"
        )
    return colour


def _colour(fn: object) -> Colour:
    if inspect.isasyncgenfunction(fn):
        return "async_stream"
    if inspect.iscoroutinefunction(fn):
        return "async"
    return "stream" if inspect.isgeneratorfunction(fn) else "sync"


def _returned(fn: FunctionType, annotation: Any) -> Any:
    """Return the class that a return annotation names, without evaluating what stands in its brackets."""
    if not isinstance(annotation, str):
        return get_origin(annotation) or annotation
    path = annotation.strip("'\" ").partition("[")[0].split(".")
    found: Any = fn.__globals__.get(path[0])
    for part in path[1:]:
        found = getattr(found, part, None)
    if found is None:  # Imported for type checkers only, as linters advise.
        return _BY_NAME.get(path[-1])
    return get_origin(found) or found


def first_parameter(signature: inspect.Signature) -> str | None:
    """Return the name of the first parameter that takes a positional argument, or None."""
    for parameter in signature.parameters.values():
        positional = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        return parameter.name if positional else None
    return None


def stands_in_class(fn: FunctionType) -> bool:
    """Tell whether a function was written directly in the body of a class."""
    around = fn.__qualname__.rpartition(".")[0]
    return bool(around) and not around.endswith("<locals>")
