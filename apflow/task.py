"""`@apflow.task`: the decorator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, final, overload

from apflow.definition import define
from apflow.errors import TaskDefinitionError
from apflow.kinds import AsyncStreamTask, AsyncTask, StreamTask, SyncTask, Task

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Coroutine, Iterator, Mapping, Sequence
    from datetime import timedelta

    from apflow.call import Middleware
    from apflow.durability.circuit_breaker import CircuitBreakerConfig
    from apflow.durability.retry import RetryPolicy
    from apflow.governance.amounts import Reserve
    from apflow.governance.budget import Budget
    from apflow.governance.policy import CostPolicy
    from apflow.options import Colour

    @final
    class _Nothing:
        """Nothing is of this class, so only functions that return `Any`, or never, match it."""


R = TypeVar("R")
Y = TypeVar("Y")
P = ParamSpec("P")


class TaskDecorator(Protocol):
    """What `@apflow.task(...)` returns: it makes the same four kinds as bare `@apflow.task`."""

    @overload
    def __call__(self, fn: Callable[P, _Nothing], /) -> SyncTask[P, Any]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
        self, fn: Callable[P, AsyncIterable[Y]], /
    ) -> AsyncStreamTask[P, Y]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, fn: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, fn: Callable[P, Iterator[Y]], /
    ) -> StreamTask[P, Y]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> SyncTask[P, R]: ...


@overload
def task(fn: Callable[P, _Nothing], /) -> SyncTask[P, Any]: ...
@overload
def task(  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
    fn: Callable[P, AsyncIterable[Y]], /
) -> AsyncStreamTask[P, Y]: ...
@overload
def task(  # type: ignore[overload-overlap]
    fn: Callable[P, Coroutine[Any, Any, R]], /
) -> AsyncTask[P, R]: ...
@overload
def task(  # type: ignore[overload-overlap]
    fn: Callable[P, Iterator[Y]], /
) -> StreamTask[P, Y]: ...
@overload
def task(fn: Callable[P, R], /) -> SyncTask[P, R]: ...
@overload
def task(
    *,
    name: str | None = None,
    description: str | None = None,
    tags: Sequence[str] = (),
    version: str = "1",
    retry: int | RetryPolicy | None = None,
    checkpoint: bool | None = None,
    breaker: bool | CircuitBreakerConfig | None = None,
    timeout: float | timedelta | None = None,
    budget: int | Budget | Sequence[Budget] | None = None,
    policy: str | CostPolicy | Sequence[str | CostPolicy] | None = None,
    models: Sequence[str] | None = None,
    reserve: Reserve | None = None,
    middleware: Sequence[Middleware] = (),
) -> TaskDecorator: ...
def task(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    tags: Sequence[str] = (),
    version: str = "1",
    retry: int | RetryPolicy | None = None,
    checkpoint: bool | None = None,
    breaker: bool | CircuitBreakerConfig | None = None,
    timeout: float | timedelta | None = None,
    budget: int | Budget | Sequence[Budget] | None = None,
    policy: str | CostPolicy | Sequence[str | CostPolicy] | None = None,
    models: Sequence[str] | None = None,
    reserve: Reserve | None = None,
    middleware: Sequence[Middleware] = (),
) -> Any:
    """Make a task of a function: its calls become recorded runs. Works bare and with options.

    Args:
        fn: A function or a method, `async def` or plain, a generator or not.
        name: What the task is called, at most 100 characters: its function's name in snake case by default. A
            leading underscore makes it private: recorded, but not exposed.
        description: What it does; the first paragraph of the docstring by default.
        tags: Words to find it by.
        version: At most 50 characters. A new one does not reuse the results of an old one.
        retry: How often an attempt is made, 1 to 100, or a whole policy. One attempt by default.
        checkpoint: Whether results of child runs are reused when a run is resumed or retried. By default a
            child run does as its parent, and others do not.
        breaker: Whether calls are refused for a while after repeated failures, or how that is decided.
        timeout: Seconds for one attempt, or a timedelta, more than 0. No limit by default.
        budget: What each run and everything below it may use, or one user, or everybody: a number of tokens, a
            `Budget` or several. No limit by default.
        policy: What happens when the fullest budget above a run has been used up to some part: the name of a policy
            that the runtime knows, a `CostPolicy`, or several.
        models: A chain of models, the most expensive one first. From 80 % of the fullest budget on, the model after
            the one asked for is used.
        reserve: What each attempt holds of the budgets above it before it starts: a number of tokens, or a mapping such
            as `{"tokens": 2_000, "usd": "0.05"}`; in place of what the budgets themselves say.
        middleware: Layers around the calls of this task, the first outermost, inside those of the runtime.

    Raises:
        TaskDefinitionError: The function or an option cannot make a task; the text says why.
    """
    given = {
        "description": description,
        "tags": tags,
        "version": version,
        "retry": retry,
        "checkpoint": checkpoint,
        "breaker": breaker,
        "timeout": timeout,
        "budget": budget,
        "policy": policy,
        "models": models,
        "reserve": reserve,
        "middleware": middleware,
    }

    def decorate(fn: object) -> Task[..., Any]:
        return _make(fn, name, given)

    return decorate if fn is None else decorate(fn)


def _make(fn: object, name: str | None, given: Mapping[str, Any]) -> Task[..., Any]:
    static = isinstance(fn, staticmethod)
    function = fn.__func__ if isinstance(fn, staticmethod) else fn
    if isinstance(function, Task):
        raise TaskDefinitionError(f"{function.name!r} is a task already. Change its options with with_options(...)")
    definition = define(function, name, given)
    return _KINDS[definition.colour](definition, static=static)


_KINDS: dict[Colour, type[Task[..., Any]]] = {
    "async": AsyncTask,
    "sync": SyncTask,
    "async_stream": AsyncStreamTask,
    "stream": StreamTask,
}
