"""Waiting for a write that has begun, whatever happens to the waiter."""

from __future__ import annotations

import asyncio
from typing import TypeVar

T = TypeVar("T")


async def outlive(future: asyncio.Future[T]) -> T:
    """Wait for `future` to its end even when the waiter is cancelled meanwhile.

    A write that was handed over cannot be called back, so its waiter has to know how it ended.

    Raises:
        asyncio.CancelledError: The waiter was cancelled, and the write has ended; its error, if any, is the cause.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError as error:
            cancelled = error
        except BaseException:  # noqa: BLE001, S110 - it is the write's own, raised by result() below
            pass
    if cancelled is not None:
        raise cancelled from future.exception()
    return future.result()
