"""What a door and the module behind it tell each other about one call."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from apflow.state import Listener, Progress

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Calling:
    """One call through a door, beyond its inputs.

    Attributes:
        key: Idempotency key; calls of one caller with the same one are one run.
        run_id: Id that the run shall have; afterwards the id of the run.
        listener: Who hears of progress and of the items of a generator. Called on any thread.
        started: Whether a run has been stored.
        detached: When the wait for the result is cancelled, the run goes on.
        module: Whom it is for; None is for the module that asks first.
        begun: Told the id of the run as soon as it is stored, or joined.
    """

    key: str | None = None
    run_id: str | None = None
    listener: Listener | None = None
    started: bool = False
    detached: bool = False
    module: object = None
    begun: Callable[[str], None] | None = None

    def begin(self, run_id: str) -> None:
        """Take down that the call is this run from now on."""
        self.run_id, self.started = run_id, True
        if self.begun is not None:
            try:
                self.begun(run_id)
            except Exception as error:  # noqa: BLE001 - the run goes on whatever a door makes of its id
                logger.warning("nobody was told of run %s: %s", run_id, type(error).__qualname__)


class SafeListener:
    """A listener whose own trouble, such as a client that has left, does not end the run that it listens to."""

    def __init__(self, listener: Listener) -> None:
        self._listener: Listener | None = listener

    def progressed(self, progress: Progress) -> None:
        """Pass it on."""
        if self._listener is not None:
            try:
                self._listener.progressed(progress)
            except Exception as error:  # noqa: BLE001 - see above
                self._leave(error)

    def produced(self, item: object) -> None:
        """Pass it on."""
        if self._listener is not None:
            try:
                self._listener.produced(item)
            except Exception as error:  # noqa: BLE001 - see above
                self._leave(error)

    def _leave(self, error: Exception) -> None:
        self._listener = None
        logger.warning("a listener is told no more of its run: it raised %s", type(error).__qualname__)


_calling: ContextVar[Calling | None] = ContextVar("apflow_calling", default=None)


@contextmanager
def calling(one: Calling) -> Iterator[None]:
    """Give the module that is called next in this context what a door knows."""
    token = _calling.set(one)
    try:
        yield
    finally:
        _calling.reset(token)


def take_calling(module: object = None) -> Calling:
    """Return what the door knows of this call. It is for one module: what that one calls gets nothing of it.

    Args:
        module: Who asks. What another module calls on its way gets nothing either.
    """
    found = _calling.get()
    if found is None or (found.module is not None and found.module is not module):
        return Calling()
    _calling.set(None)
    return found
