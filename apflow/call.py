"""One call on its way through the onion."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apflow.options import Options, TaskDefinition
    from apflow.state import RunState


@dataclass(frozen=True, slots=True)
class Call:
    """What a middleware sees. Changed only with `dataclasses.replace`.

    Attributes:
        task: The task that is called: `name`, `version`, `tags`, `fn`.
        arguments: The function's arguments by name, defaults applied.
        options: What governs this call.
        run_id: Id of the run, a row of `apflow_tasks`.
        attempt: 1 for the first try.
        user: Id of the user on whose behalf it runs.
        model: The argument named `model`, when the function has one; inside budget, what governance gave it.
        state: apflow's own record of the run; not for middleware.
    """

    task: TaskDefinition
    arguments: Mapping[str, Any]
    options: Options
    run_id: str
    attempt: int
    user: str | None
    model: str | None
    state: RunState


CallNext = Callable[[Call], Awaitable[Any]]
Middleware = Callable[[Call, CallNext], Awaitable[Any]]


def compose(layers: Sequence[Middleware], endpoint: CallNext) -> CallNext:
    """Return one callable that passes a call through `layers`, the first outermost, to `endpoint`.

    The runtime gives the layers in this order: record, breaker, the runtime's middleware, the task's,
    retry, budget, timeout.
    """
    call_next = endpoint
    for layer in reversed(layers):
        call_next = _bind(layer, call_next)
    return call_next


def _bind(layer: Middleware, call_next: CallNext) -> CallNext:
    def bound(call: Call) -> Awaitable[Any]:
        return layer(call, call_next)

    return bound
