"""Calling a task: from its arguments through the onion to its function."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from apflow import portal
from apflow.call import Call, compose
from apflow.durability import replay
from apflow.durability.circuit_breaker import breaker_layer
from apflow.durability.retry import retry_layer
from apflow.durability.timeout import finish_body, timeout_layer
from apflow.runtime import runtime_for
from apflow.state import RunState, current_state

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

    from apflow.call import CallNext, Middleware
    from apflow.options import Options, TaskDefinition
    from apflow.runtime import Runtime


def prepare(
    definition: TaskDefinition,
    options: Options,
    arguments: Mapping[str, Any],
    *,
    owned: bool = False,
) -> Call:
    """Return the call of a task, as part of the current run if there is one.

    Args:
        definition: The task.
        options: What governs the call.
        arguments: What the function is called with, bound to the names of its parameters.
        owned: The run has an owner of its own even inside another run: it was submitted.

    Raises:
        SerializationError: One of them cannot be stored.
        RunCancelledError: The current run has to stop, so it cannot start anything more.
        RuntimeClosedError: The runtime was left.
        UserRequiredError: A budget counts per user, and the call has none.
        PolicyNotFoundError: The runtime does not know a policy of the task.
    """
    parent = current_state()
    if parent is not None:
        if options.runtime is not None and options.runtime is not parent.runtime:
            parent = None
        else:
            parent.check_alive()
    runtime = parent.runtime if parent is not None else runtime_for(options)
    runtime.claim_name(definition)
    state = RunState(
        definition,
        options,
        runtime,
        arguments,
        parent,
        owned=owned or options.key is not None,
        user=options.user or (parent.user if parent is not None else runtime.user),
    )
    replay.identify(state, submitted=owned)
    govern(state)
    return as_call(state)


def govern(state: RunState) -> None:
    """Give a run its meter, if anything governs it.

    Raises:
        UserRequiredError: A budget counts per user, and the run has none.
        PolicyNotFoundError: The runtime does not know a policy of the task.
    """
    options, parent = state.options, state.parent
    above = state.above is not None or (parent is not None and parent.meter is not None and parent.meter.governs)
    if above or options.budget or options.policy or options.models or options.reserve:
        from apflow.governance.attach import attach

        attach(state)


def as_call(state: RunState) -> Call:
    """Return what the middleware of a run gets to see."""
    model = state.arguments.get("model")
    return Call(
        task=state.definition,
        arguments=state.arguments,
        options=state.options,
        run_id=state.id,
        attempt=state.attempt,
        user=state.user,
        model=model if isinstance(model, str) else None,
        state=state,
    )


def onion(runtime: Runtime, call: Call, endpoint: CallNext, slot: Middleware | None = None) -> Awaitable[Any]:
    """Send a call through the layers: record, breaker, the runtime's middleware, the task's, retry, budget, timeout.

    A background root waits for its slot right inside record, so that its lease is held meanwhile.
    """
    options = call.options
    layers: list[Middleware] = [runtime.recorder.layer]
    if slot is not None:
        layers.append(slot)
    if options.breaker is not None:
        layers.append(breaker_layer(runtime.breakers))
    if call.state.kind != "tree":  # It runs nothing of anybody's: its nodes have an onion each.
        layers += runtime.middleware
    layers += options.middleware
    if options.retry is not None:
        layers.append(retry_layer(runtime.clock))
    if call.state.meter is not None:
        from apflow.governance.meter import budget_layer

        layers.append(budget_layer)
    if options.timeout is not None:
        layers.append(timeout_layer)
    return compose(layers, endpoint)(call)


async def run_async(call: Call) -> Any:
    """Send the call of an async task through the onion, on the running loop."""
    runtime = call.state.runtime
    await runtime.ready()
    return await onion(runtime, call, _await_function)


async def _await_function(call: Call) -> Any:
    args, kwargs = call.task.codec.call_with(call.arguments)
    return await call.task.fn(*args, **kwargs)


async def run_sync(call: Call) -> Any:
    """Send the call of a plain task through the onion, on the portal's loop; its body runs elsewhere."""
    runtime = call.state.runtime
    await runtime.ready()
    return await onion(runtime, call, _run_body)


async def _run_body(call: Call) -> Any:
    args, kwargs = call.task.codec.call_with(call.arguments)
    return await run_body(call, functools.partial(call.task.fn, *args, **kwargs))


async def run_body(call: Call, body: Callable[[], Any]) -> Any:
    """Run a plain function's body on the thread that is meant for it."""
    state = call.state
    job = portal.Job(body)
    state.bodies.start(job)
    return await finish_body(state, job.future, state.runtime.shutdown_seconds)


def call_async(
    definition: TaskDefinition, options: Options, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Coroutine[Any, Any, Any]:
    """Return the coroutine of a call of an async task.

    Raises:
        TypeError: The arguments do not fit the function.
    """
    return _call_async(definition, options, definition.codec.bind(args, kwargs))


async def _call_async(definition: TaskDefinition, options: Options, arguments: Mapping[str, Any]) -> Any:
    return await run_async(prepare(definition, options, arguments))


def call_sync(definition: TaskDefinition, options: Options, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Call a plain task and return its result."""
    call = prepare(definition, options, definition.codec.bind(args, kwargs))
    thread = call.state.bodies = portal.CallerThread()
    return thread.wait(portal.start_on_portal(run_sync(call)))
