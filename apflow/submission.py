"""Submitting a task: stored and accepted before it returns, run in the background."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from apflow import portal
from apflow.calls import onion, prepare, run_body
from apflow.durability.claims import Joined, Replayed
from apflow.run import Run
from apflow.streams import collect_async, collect_sync

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from apflow.call import Call, Middleware
    from apflow.options import Options, TaskDefinition

_EXITED = "the function called sys.exit()"


async def submit_async(
    definition: TaskDefinition, options: Options, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Run[Any]:
    """Submit an async task; its function runs on the running loop."""
    return await submit_call(_prepared(definition, options, args, kwargs))


def submit_sync(
    definition: TaskDefinition, options: Options, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Run[Any]:
    """Submit a plain task; its function runs on a thread of its own."""
    return portal.run_blocking(submit_call(_prepared(definition, options, args, kwargs)))


def _prepared(definition: TaskDefinition, options: Options, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
    call = prepare(definition, options, definition.codec.bind(args, kwargs), owned=True)
    call.state.accepted = True
    return call


async def submit_call(call: Call) -> Run[Any]:
    """Store a call that was prepared as an owned, accepted run, and run it in the background."""
    state = call.state
    runtime = state.runtime
    await runtime.ready()
    found = await runtime.recorder.claims.open(state, wait=False)
    if found is None:
        return runtime.background.start(call)
    if isinstance(found, Joined):
        await runtime.recorder.writer.accept(found.run_id)
        return runtime.background.join(found.run_id, state.definition)
    outcome: Future[Any] = Future()
    assert isinstance(found, Replayed)
    outcome.set_result(state.definition.codec.load_result(found.text))
    return Run(runtime, state.id, state.definition, state=None, outcome=outcome)


async def run_collected(call: Call, slot: Middleware | None) -> Any:
    """Send a background call through the onion. A generator's items are only collected."""

    async def endpoint(call: Call) -> Any:
        args, kwargs = call.task.codec.call_with(call.arguments)
        fn = call.task.fn
        if call.task.colour == "async":
            return await _stay(fn(*args, **kwargs))
        if call.task.colour == "async_stream":
            return await _stay(collect_async(fn(*args, **kwargs), call.state.listener))
        if call.task.colour == "stream":
            return await run_body(call, _staying(lambda: collect_sync(fn(*args, **kwargs), call.state.listener)))
        return await run_body(call, _staying(lambda: fn(*args, **kwargs)))

    return await onion(call.state.runtime, call, endpoint, slot)


async def _stay(body: Awaitable[Any]) -> Any:
    """Have a function in the background that calls `sys.exit` fail: it would end the event loop of all the others.

    Raises:
        RuntimeError: It did.
    """
    try:
        return await body
    except SystemExit as error:
        raise RuntimeError(_EXITED) from error


def _staying(body: Callable[[], Any]) -> Callable[[], Any]:
    """Return a plain body that does the same: it would be taken for interrupted, and be carried on again and again."""

    def stay() -> Any:
        try:
            return body()
        except SystemExit as error:
            raise RuntimeError(_EXITED) from error

    return stay
