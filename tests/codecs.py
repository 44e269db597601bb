"""Codecs of functions that no decorator has seen."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from apflow.options import Colour, TaskDefinition
from apflow.storage.serialize import Codec


def codec_of(fn: Callable[..., Any], colour: Colour = "async", *, takes_self: bool = False) -> Codec:
    """Return the codec of a task that `fn` would make."""
    return TaskDefinition(
        fn=fn,
        name=fn.__name__,
        named=False,
        origin=fn.__module__,
        location="file.py:1",
        colour=colour,
        signature=inspect.signature(fn),
        takes_self=takes_self,
    ).codec


def result_codec(annotation: Any, colour: Colour = "async") -> Codec:
    """Return the codec of a task without parameters whose result has this annotation."""

    async def produce() -> None: ...

    produce.__annotations__["return"] = annotation
    return codec_of(produce, colour)


def argument_codec(annotation: Any) -> Codec:
    """Return the codec of a task with one parameter, `value`, of this annotation."""

    async def consume(value: object) -> None: ...

    consume.__annotations__["value"] = annotation
    return codec_of(consume)
