"""A write that waits in a store's queue, and the delivery of outcomes to the event loops that wait."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future

    from apflow.storage.store import Tx


class Write:
    """One queued transaction and who waits for it.

    Attributes:
        loop: The event loop of the waiter; None for a thread.
        result: What `fn` returned, once it was committed.
        error: Why nothing was stored, or None.
        since: When the waiting began, as `time.monotonic()`.
    """

    __slots__ = ("error", "fn", "future", "loop", "result", "since", "single")

    def __init__(
        self,
        fn: Callable[[Tx], Any],
        loop: asyncio.AbstractEventLoop | None,
        future: asyncio.Future[Any] | Future[Any],
        *,
        single: bool = False,
    ) -> None:
        self.fn, self.loop, self.future, self.single = fn, loop, future, single
        self.since = time.monotonic()
        self.result: Any = None
        self.error: BaseException | None = None

    def settle(self) -> None:
        """Hand the outcome to the waiter, unless it has gone."""
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.result)
        elif isinstance(self.error, StopIteration):  # no future takes one
            self.future.set_exception(RuntimeError("a write raised StopIteration"))
        else:
            self.future.set_exception(self.error)


def deliver(batch: Iterable[Write]) -> None:
    """Wake every waiter: one wake-up per event loop."""
    by_loop: dict[asyncio.AbstractEventLoop | None, list[Write]] = {}
    for write in batch:
        by_loop.setdefault(write.loop, []).append(write)
    for loop, writes in by_loop.items():
        if loop is None:
            _settle_all(writes)
            continue
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(_settle_all, writes)


def _settle_all(writes: list[Write]) -> None:
    for write in writes:
        write.settle()
