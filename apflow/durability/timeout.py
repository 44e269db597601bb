"""The timeout layer, and the innermost step: calling the function."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from apflow.errors import RunTimeoutError

if TYPE_CHECKING:
    from apflow.call import Call, CallNext
    from apflow.state import RunState


async def timeout_layer(call: Call, call_next: CallNext) -> Any:
    """Cancel an attempt that takes longer than the task's `timeout`.

    A plain function cannot be cancelled: it sees `ctx.cancelled`, and gets some seconds to notice.

    Raises:
        RunTimeoutError: It took too long.
    """
    limit = call.options.timeout
    state = call.state
    scope = asyncio.timeout(limit)
    try:
        async with scope:
            return await call_next(call)
    except TimeoutError as error:
        if not scope.expired() or limit is None:
            raise
        running = state.body_left_running
        raise RunTimeoutError(state.id, call.task.name, limit, still_running=running) from error


async def finish_body(state: RunState, future: asyncio.Future[Any], grace_seconds: float) -> Any:
    """Wait for a plain function that runs on some thread; when cancelled, tell it and wait a little longer.

    Raises:
        asyncio.CancelledError: It was cancelled; `state.body_left_running` tells whether its thread has ended.
    """
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if future.cancelled():
            raise
        state.body_told_to_stop = True
        ended = await _patient(future, grace_seconds)
        state.body_left_running = not ended
        state.body_told_to_stop = not ended
        if state.stopping == "interrupted" and state.cancel_sent and ended and not state.stop_seen:
            return future.result()  # It never knew, and was in time: what is done need not be done again.
        raise


async def _patient(future: asyncio.Future[Any], seconds: float) -> bool:
    """Return whether the future ended within `seconds`; nothing can cancel this wait."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not future.done() and loop.time() < deadline:
        try:
            await asyncio.wait([future], timeout=deadline - loop.time())
        except asyncio.CancelledError:
            continue
    if future.done() and not future.cancelled():
        future.exception()
    return future.done()
