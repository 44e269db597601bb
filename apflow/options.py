"""What governs a call, and what a task is. Both frozen: `replace` makes another one."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import inspect
    from collections.abc import Callable

    from apflow.call import Middleware
    from apflow.durability.circuit_breaker import CircuitBreakerConfig
    from apflow.durability.retry import RetryPolicy
    from apflow.governance.amounts import Amounts
    from apflow.governance.budget import Budget
    from apflow.governance.policy import CostPolicy
    from apflow.runtime import Runtime
    from apflow.storage.serialize import Codec

Colour = Literal["async", "sync", "async_stream", "stream"]


@dataclass(frozen=True, slots=True)
class Options:
    """What governs a call: given to `@apflow.task(...)`, changed by `with_options(...)`.

    Attributes:
        retry: Attempts and the waits between them; None is one attempt.
        checkpoint: Whether results of child runs are reused; None inherits from the parent run.
        breaker: Configuration of the task's circuit breaker; None has none.
        timeout: Seconds for one attempt; None has no limit.
        middleware: The task's own, outermost first.
        key: Idempotency key of the call.
        user: Id of the user; None inherits from the parent run, then from the runtime.
        runtime: Where the call runs; None is the parent run's runtime, then the default one.
        map_limit: How many calls of one `map` run at once; None has no limit.
        budget: What the run and everything below it may use, one user or everybody.
        policy: Cost policies, by the name that the runtime knows or inline.
        models: Chain of models, the most expensive one first, that is followed when a budget runs low.
        reserve: What each attempt holds before it starts, in place of what its budgets say.
        overrides: Names of the durable options that a call changed; stored with its run, so that another
            process carries it on under the same ones.
    """

    retry: RetryPolicy | None = None
    checkpoint: bool | None = None
    breaker: CircuitBreakerConfig | None = None
    timeout: float | None = None
    middleware: tuple[Middleware, ...] = ()
    key: str | None = None
    user: str | None = None
    runtime: Runtime | None = None
    map_limit: int | None = None
    budget: tuple[Budget, ...] = ()
    policy: tuple[str | CostPolicy, ...] = ()
    models: tuple[str, ...] = ()
    reserve: Amounts | None = None
    overrides: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class TaskDefinition:
    """A decorated function: what it is called and how it is called.

    Attributes:
        fn: The function as written.
        name: Snake case; also the module id.
        named: Whether `name=` was given.
        origin: Module of the function, or the path of the script for `__main__`.
        location: `file:line` of the function, for error messages.
        colour: Which of the four kinds it is.
        signature: The function's signature, without evaluated annotations.
        takes_self: Whether the first parameter is the instance of a method.
        carries: Tells by the stored arguments of a run whether this process can carry it on; None is always.
        options: What the decorator was given.
    """

    fn: Callable[..., Any]
    name: str
    named: bool
    origin: str
    location: str
    colour: Colour
    signature: inspect.Signature
    takes_self: bool
    description: str = ""
    tags: tuple[str, ...] = ()
    version: str = "1"
    carries: Callable[[str], bool] | None = None
    options: Options = field(default_factory=Options)

    @cached_property
    def codec(self) -> Codec:
        """How arguments and results become JSON and come back. Made on first use: it needs pydantic."""
        from apflow.storage.serialize import Codec

        return Codec(self)
