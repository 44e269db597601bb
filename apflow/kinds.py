"""The four kinds of task: an `async def` function, a plain one, and their two kinds of generators.

A task is called exactly as its function was. What depends on the kind (the call, `submit`, `map`, `fn`) is
typed four times; everything else is in the base. `map` and `__get__` take `self` as a plain callable, because
only then do type checkers take the first parameter off its signature.
"""

from __future__ import annotations

import inspect
import sys
from copy import deepcopy
from functools import update_wrapper
from types import MethodType
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Self,
    TypeVar,
    cast,
    overload,
)

from apflow import drive
from apflow.definition import as_method, vary
from apflow.errors import TaskDefinitionError
from apflow.functions import CLASS_METHOD, first_parameter
from apflow.option_values import NOT_GIVEN

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Callable,
        Coroutine,
        Generator,
        Iterable,
        Iterator,
        Sequence,
    )
    from datetime import timedelta

    from apflow.call import Middleware
    from apflow.durability.circuit_breaker import CircuitBreakerConfig
    from apflow.durability.retry import RetryPolicy
    from apflow.governance.amounts import Reserve
    from apflow.governance.budget import Budget
    from apflow.governance.policy import CostPolicy
    from apflow.option_values import NotGiven
    from apflow.options import Options, TaskDefinition
    from apflow.run import Run
    from apflow.runtime import Runtime

A = TypeVar("A")
R = TypeVar("R")
S = TypeVar("S")
Y = TypeVar("Y")
R_co = TypeVar("R_co", covariant=True)
P = ParamSpec("P")
Q = ParamSpec("Q")


class Task(Generic[P, R_co]):
    """A function whose calls are recorded runs: the base of the four kinds."""

    __module__ = "apflow"

    __name__: str
    __qualname__: str
    __wrapped__: Callable[P, Any]

    def __init__(self, definition: TaskDefinition, *, static: bool = False) -> None:
        update_wrapper(cast("Any", self), definition.fn)
        self._definition = definition
        self._options = definition.options
        self._instance: tuple[Any, ...] = ()
        self._static = static

    def __repr__(self) -> str:
        return f"<apflow.{type(self).__name__} {self.name}>"

    @property
    def name(self) -> str:
        """What the task is called. A private one begins with an underscore."""
        return self._definition.name

    @property
    def description(self) -> str:
        """What the task does, in a sentence."""
        return self._definition.description

    @property
    def tags(self) -> tuple[str, ...]:
        """Words to find it by."""
        return self._definition.tags

    @property
    def version(self) -> str:
        """A new version does not reuse the results of an old one."""
        return self._definition.version

    @property
    def definition(self) -> TaskDefinition:
        """What the decorator made of the function."""
        return self._definition

    @property
    def options(self) -> Options:
        """What governs its calls: the decorator's options, as `with_options` has changed them."""
        return self._options

    def with_options(
        self,
        *,
        retry: int | RetryPolicy | NotGiven | None = NOT_GIVEN,
        checkpoint: bool | NotGiven | None = NOT_GIVEN,
        breaker: bool | CircuitBreakerConfig | NotGiven | None = NOT_GIVEN,
        timeout: float | timedelta | NotGiven | None = NOT_GIVEN,
        budget: int | Budget | Sequence[Budget] | NotGiven | None = NOT_GIVEN,
        policy: str | CostPolicy | Sequence[str | CostPolicy] | NotGiven | None = NOT_GIVEN,
        models: Sequence[str] | NotGiven | None = NOT_GIVEN,
        reserve: Reserve | NotGiven | None = NOT_GIVEN,
        middleware: Sequence[Middleware] | NotGiven | None = NOT_GIVEN,
        key: str | NotGiven | None = NOT_GIVEN,
        user: str | NotGiven | None = NOT_GIVEN,
        runtime: Runtime | NotGiven | None = NOT_GIVEN,
        map_limit: int | NotGiven | None = NOT_GIVEN,
        name: str | NotGiven = NOT_GIVEN,
        description: str | NotGiven = NOT_GIVEN,
        tags: Sequence[str] | NotGiven = NOT_GIVEN,
        version: str | NotGiven = NOT_GIVEN,
    ) -> Self:
        """Return this task with other options for its calls. The task itself stays as it is.

        An option that is left out stays, and one that is None is switched off. Those of `@apflow.task` mean
        what they mean there; a copy with another name is a task of its own. The others belong to the calls:

        - `key`: an idempotency key, 1 to 255 characters. Calls with the same task, version, user and key are
          one run, whose result they share.
        - `user`: id of the user on whose behalf the call is made, 1 to 255 characters.
        - `runtime`: where the call runs, instead of the parent run's runtime or the default one.
        - `reserve`: what each attempt holds of the budgets above it before it starts: a number of tokens, or a
          mapping such as `{"tokens": 2_000, "usd": "0.05"}`; in place of what the task's budgets say.
        - `map_limit`: how many calls of one `map` run at once, at least 1.

        Raises:
            TaskDefinitionError: A value is not what its option takes.
        """
        given = {
            "retry": retry,
            "checkpoint": checkpoint,
            "breaker": breaker,
            "timeout": timeout,
            "budget": budget,
            "policy": policy,
            "models": models,
            "reserve": reserve,
            "middleware": middleware,
            "key": key,
            "user": user,
            "runtime": runtime,
            "map_limit": map_limit,
            "name": name,
            "description": description,
            "tags": tags,
            "version": version,
        }
        changes = {option: value for option, value in given.items() if value is not NOT_GIVEN}
        definition, options = vary(self._definition, self._options, changes)
        return self._copy(_definition=definition, _options=options)

    def _copy(self, **changes: object) -> Self:
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__ | changes)
        return copy

    def _as_attribute(self, instance: object, owner: object) -> Self:
        """Return the task bound to `instance`, or itself where a function would return itself."""
        if instance is None or self._static or self._instance:
            return self
        if instance is owner:  # This is how classmethod asks.
            raise TaskDefinitionError(f"{self.__qualname__}: {CLASS_METHOD}")
        return self._bind(instance)

    def _bind(self, instance: object) -> Self:
        return self._copy(_instance=(instance,), __wrapped__=MethodType(self._definition.fn, instance))

    def __set_name__(self, owner: type, name: str) -> None:
        definition = self._definition
        own = definition.fn.__qualname__.rpartition(".")[0] == owner.__qualname__
        if own and not self._static and not definition.takes_self and first_parameter(definition.signature):
            self._definition = as_method(definition)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self._bind(deepcopy(self._instance[0], memo)) if self._instance else self

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Pickle as functions and methods do: by name. A copy with other options has none."""
        if not self._instance:
            return self.__qualname__
        if self._options is not self._definition.options:
            from pickle import PicklingError

            raise PicklingError(f"{self!r} has options of its own, so it cannot be pickled by its name")
        return getattr, (self._instance[0], self.__name__)


class AsyncTask(Task[P, R_co]):
    """A task made of an `async def` function."""

    __module__ = "apflow"

    if sys.version_info >= (3, 12):

        def __init__(self, definition: TaskDefinition, *, static: bool = False) -> None:
            super().__init__(definition, static=static)
            inspect.markcoroutinefunction(self)

    else:

        @property
        def _is_coroutine(self) -> object:
            """What `asyncio.iscoroutinefunction` looks for, so that frameworks know what to await."""
            from asyncio import coroutines

            return vars(coroutines)["_is_coroutine"]

    @property
    def fn(self) -> Callable[P, Coroutine[Any, Any, R_co]]:
        """The function as written: nothing is recorded."""
        return self.__wrapped__

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        return drive.call_async(self._definition, self._options, (*self._instance, *args), kwargs)

    def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Run[R_co]]:
        """Start a run in the background. Awaited, it is stored and accepted: it survives this process."""
        return drive.submit_async(self._definition, self._options, (*self._instance, *args), kwargs)

    def map(
        self: Callable[Concatenate[A, Q], Coroutine[Any, Any, R]],  # pyright: ignore[reportGeneralTypeIssues]
        items: Iterable[A],
        /,
        *args: Q.args,
        **same_for_all: Q.kwargs,
    ) -> Coroutine[Any, Any, list[R]]:
        """Call the task once for each item, all at once, and return the results in the order of the items.

        Args:
            items: What the calls take as their first argument.
            args: Nothing: the other arguments are given by name.
            same_for_all: Arguments of every call.

        Raises:
            TypeError: There are other positional arguments.
            Exception: What the first call to fail raised; the others are cancelled.
        """
        return drive.map_async(*_map_call(self, items, args, same_for_all))

    @overload
    def __get__(self, instance: None, owner: Any, /) -> Self: ...
    @overload
    def __get__(
        self: Callable[Concatenate[S, Q], Coroutine[Any, Any, R]], instance: S, owner: Any, /
    ) -> AsyncTask[Q, R]: ...
    @overload
    def __get__(self, instance: object, owner: Any, /) -> Self: ...
    def __get__(self: Any, instance: object, owner: object = None, /) -> Any:
        return self._as_attribute(instance, owner)


class SyncTask(Task[P, R_co]):
    """A task made of a plain function."""

    __module__ = "apflow"

    @property
    def fn(self) -> Callable[P, R_co]:
        """The function as written: nothing is recorded."""
        return self.__wrapped__

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R_co:
        return cast("R_co", drive.call_sync(self._definition, self._options, (*self._instance, *args), kwargs))

    def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> Run[R_co]:
        """Start a run in the background. It is stored and accepted when this returns."""
        return drive.submit_sync(self._definition, self._options, (*self._instance, *args), kwargs)

    def map(
        self: Callable[Concatenate[A, Q], R],  # pyright: ignore[reportGeneralTypeIssues]
        items: Iterable[A],
        /,
        *args: Q.args,
        **same_for_all: Q.kwargs,
    ) -> list[R]:
        """Call the task once for each item and return the results in order. See `AsyncTask.map`."""
        return drive.map_sync(*_map_call(self, items, args, same_for_all))

    @overload
    def __get__(self, instance: None, owner: Any, /) -> Self: ...
    @overload
    def __get__(self: Callable[Concatenate[S, Q], R], instance: S, owner: Any, /) -> SyncTask[Q, R]: ...
    @overload
    def __get__(self, instance: object, owner: Any, /) -> Self: ...
    def __get__(self: Any, instance: object, owner: object = None, /) -> Any:
        return self._as_attribute(instance, owner)


class AsyncStreamTask(Task[P, list[Y]], Generic[P, Y]):
    """A task made of an asynchronous generator: a call streams its items, the result is their list."""

    __module__ = "apflow"

    @property
    def fn(self) -> Callable[P, AsyncIterator[Y]]:
        """The function as written: nothing is recorded."""
        return self.__wrapped__

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[Y, None]:
        return drive.stream_async(self._definition, self._options, (*self._instance, *args), kwargs)

    def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Run[list[Y]]]:
        """Start a run in the background; its result is the list of the items. See `AsyncTask.submit`."""
        return drive.submit_async(self._definition, self._options, (*self._instance, *args), kwargs)

    def map(
        self: Callable[Concatenate[A, Q], AsyncIterator[Y]],  # pyright: ignore[reportGeneralTypeIssues]
        items: Iterable[A],
        /,
        *args: Q.args,
        **same_for_all: Q.kwargs,
    ) -> Coroutine[Any, Any, list[list[Y]]]:
        """Collect one stream for each item and return their lists in order. See `AsyncTask.map`."""
        return drive.map_async(*_map_call(self, items, args, same_for_all))

    @overload
    def __get__(self, instance: None, owner: Any, /) -> Self: ...
    @overload
    def __get__(
        self: Callable[Concatenate[S, Q], AsyncIterator[Y]], instance: S, owner: Any, /
    ) -> AsyncStreamTask[Q, Y]: ...
    @overload
    def __get__(self, instance: object, owner: Any, /) -> Self: ...
    def __get__(self: Any, instance: object, owner: object = None, /) -> Any:
        return self._as_attribute(instance, owner)


class StreamTask(Task[P, list[Y]], Generic[P, Y]):
    """A task made of a generator: a call streams its items, the result is their list."""

    __module__ = "apflow"

    @property
    def fn(self) -> Callable[P, Iterator[Y]]:
        """The function as written: nothing is recorded."""
        return self.__wrapped__

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Generator[Y, None, None]:
        return drive.stream_sync(self._definition, self._options, (*self._instance, *args), kwargs)

    def submit(self, /, *args: P.args, **kwargs: P.kwargs) -> Run[list[Y]]:
        """Start a run in the background; its result is the list of the items. See `AsyncTask.submit`."""
        return drive.submit_sync(self._definition, self._options, (*self._instance, *args), kwargs)

    def map(
        self: Callable[Concatenate[A, Q], Iterator[Y]],  # pyright: ignore[reportGeneralTypeIssues]
        items: Iterable[A],
        /,
        *args: Q.args,
        **same_for_all: Q.kwargs,
    ) -> list[list[Y]]:
        """Collect one stream for each item and return their lists in order. See `AsyncTask.map`."""
        return drive.map_sync(*_map_call(self, items, args, same_for_all))

    @overload
    def __get__(self, instance: None, owner: Any, /) -> Self: ...
    @overload
    def __get__(self: Callable[Concatenate[S, Q], Iterator[Y]], instance: S, owner: Any, /) -> StreamTask[Q, Y]: ...
    @overload
    def __get__(self, instance: object, owner: Any, /) -> Self: ...
    def __get__(self: Any, instance: object, owner: object = None, /) -> Any:
        return self._as_attribute(instance, owner)


def _map_call(task: Any, items: Iterable[Any], args: tuple[Any, ...], same_for_all: dict[str, Any]) -> Any:
    if args:
        raise TypeError(
            f"{task.name}.map() takes the items and keyword arguments, not {len(args)} more positional ones"
        )
    # `map` knows itself only as a callable, so this cannot be a method.
    return task.definition, task.options, items, task._instance, same_for_all  # noqa: SLF001
