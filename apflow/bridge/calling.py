"""What a door and the module behind it tell each other about one call."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apflow.state import Listener


@dataclass(slots=True)
class Calling:
    """One call through a door, beyond its inputs.

    Attributes:
        key: Idempotency key; calls of one caller with the same one are one run.
        run_id: Id that the run shall have; afterwards the id of the run.
        listener: Who hears of progress and of the items of a generator. Called on any thread.
        started: Whether a run has been stored.
        detached: When the wait for the result is cancelled, the run goes on.
    """

    key: str | None = None
    run_id: str | None = None
    listener: Listener | None = None
    started: bool = False
    detached: bool = False


_calling: ContextVar[Calling | None] = ContextVar("apflow_calling", default=None)


@contextmanager
def calling(one: Calling) -> Iterator[None]:
    """Give the module that is called next in this context what a door knows."""
    token = _calling.set(one)
    try:
        yield
    finally:
        _calling.reset(token)


def take_calling() -> Calling:
    """Return what the door knows of this call. It is for one module: what that one calls gets nothing of it."""
    found = _calling.get()
    if found is None:
        return Calling()
    _calling.set(None)
    return found
