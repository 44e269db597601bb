"""What `@apflow.task(...)` and `with_options(...)` take as values, and what it becomes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from apflow.errors import TaskDefinitionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from apflow.call import Middleware
    from apflow.durability.circuit_breaker import CircuitBreakerConfig
    from apflow.durability.retry import RetryPolicy
    from apflow.governance.amounts import Amounts
    from apflow.governance.budget import Budget
    from apflow.governance.policy import CostPolicy
    from apflow.options import Options
    from apflow.runtime import Runtime

_MAX_TEXT = 255
_MAX_VERSION = 50


class NotGiven(Enum):
    """Tells an option that was left out from one that was switched off with None."""

    NOT_GIVEN = "not given"

    def __repr__(self) -> str:
        return "<not given>"


NOT_GIVEN: Final = NotGiven.NOT_GIVEN


def check_options(task: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `Options` and `TaskDefinition` that these values stand for.

    Raises:
        TaskDefinitionError: A value is of the wrong kind or out of range.
    """
    checked = {}
    for option, value in given.items():
        try:
            checked[option] = _CHECKS[option](value)
        except (TypeError, ValueError) as error:
            raise TaskDefinitionError(f"task {task!r}: {option} {error}") from error
    return checked


def change(options: Options, changes: Mapping[str, Any]) -> Options:
    """Return `options` with these checked values, remembering which durable ones a call has changed."""
    durable = _DURABLE.intersection(changes)
    return replace(options, overrides=options.overrides | durable, **changes)


def _retry(value: object) -> RetryPolicy | None:
    if value is None:
        return None
    from apflow.durability.retry import RetryPolicy

    if isinstance(value, RetryPolicy):
        return value
    return RetryPolicy(max_attempts=_integer(value, "a number of attempts or a RetryPolicy"))


def _breaker(value: object) -> CircuitBreakerConfig | None:
    if value is None or value is False:
        return None
    from apflow.durability.circuit_breaker import CircuitBreakerConfig

    if value is True:
        return CircuitBreakerConfig()
    if isinstance(value, CircuitBreakerConfig):
        return value
    raise TypeError(_takes("True, False or a CircuitBreakerConfig", value))


def _checkpoint(value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise TypeError(_takes("True or False", value))


def _timeout(value: object) -> float | None:
    if value is None:
        return None
    from datetime import timedelta

    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(_takes("a number of seconds or a timedelta", value))
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"has to be finite and more than 0 seconds, not {value:g}")
    return float(value)


def _middleware(value: object) -> tuple[Middleware, ...]:
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(_takes("a list of middleware functions", value))
    for layer in value:
        if not callable(layer):
            raise TypeError(f"has {_a(layer)} in its list, which cannot be called")
    return tuple(value)


def _runtime(value: object) -> Runtime | None:
    if value is None:
        return None
    from apflow.runtime import Runtime

    if isinstance(value, Runtime):
        return value
    raise TypeError(_takes("a Runtime", value))


def _map_limit(value: object) -> int | None:
    if value is None:
        return None
    limit = _integer(value, "how many calls of one map() may run at once")
    if limit < 1:
        raise ValueError(f"has to be at least 1, not {limit}")
    return limit


def _budget(value: object) -> tuple[Budget, ...]:
    if value is None:
        return ()
    from apflow.governance.budget import budgets

    return budgets(value)


def _policy(value: object) -> tuple[str | CostPolicy, ...]:
    if value is None:
        return ()
    from apflow.governance.policy import CostPolicy

    several = value if isinstance(value, list | tuple) else (value,)
    for one in several:
        if not isinstance(one, str | CostPolicy):
            raise TypeError(_takes("the name of a policy, a CostPolicy or a list of them", one))
    return tuple(several)


def _models(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    from apflow.governance.policy import policy_for_models

    if not isinstance(value, list | tuple):
        raise TypeError(_takes("a list of model names, the most expensive one first", value))
    return tuple(policy_for_models("models", value).downgrade_chain)


def _reserve(value: object) -> Amounts | None:
    if value is None:
        return None
    from apflow.governance.amounts import amounts

    return amounts(value)


def _text(value: object) -> str | None:
    if value is None:
        return None
    return _words(value, _MAX_TEXT)


def _version(value: object) -> str:
    return _words(value, _MAX_VERSION)


def _description(value: object) -> str:
    if isinstance(value, str):
        return value
    raise TypeError(_takes("a string", value))


def _tags(value: object) -> tuple[str, ...]:
    if isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(tag, str) for tag in value):
        return tuple(value)
    raise TypeError(_takes("a list of strings", value))


def _integer(value: object, wanted: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise TypeError(_takes(wanted, value))


def _words(value: object, most: int) -> str:
    """Return a text that fits into its column. It may be somebody's secret, so no error shows it."""
    if not isinstance(value, str):
        raise TypeError(_takes("a string", value))
    if not 0 < len(value) <= most:
        raise ValueError(f"takes 1 to {most} characters, not {len(value)}")
    return value


def _takes(wanted: str, value: object) -> str:
    return f"takes {wanted}, not {_a(value)}"


def _a(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


_CHECKS: dict[str, Callable[[object], Any]] = {
    "retry": _retry,
    "checkpoint": _checkpoint,
    "breaker": _breaker,
    "timeout": _timeout,
    "middleware": _middleware,
    "key": _text,
    "user": _text,
    "runtime": _runtime,
    "map_limit": _map_limit,
    "budget": _budget,
    "policy": _policy,
    "models": _models,
    "reserve": _reserve,
    "description": _description,
    "tags": _tags,
    "version": _version,
}
_DURABLE = frozenset({"retry", "checkpoint", "timeout", "budget", "policy", "models", "reserve"})
