"""The options of `@apflow.task(...)` and `with_options(...)`: what they take, and what becomes of them."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest

from apflow import (
    Budget,
    Call,
    CallNext,
    CircuitBreakerConfig,
    RetryPolicy,
    Runtime,
    SyncTask,
    TaskDefinitionError,
    task,
)
from apflow.definition import known
from apflow.options import Options


def double(x: int) -> int:
    return 2 * x


async def layer(call: Call, call_next: CallNext) -> Any:
    return await call_next(call)


class Layer:
    async def __call__(self, call: Call, call_next: CallNext) -> Any:
        return await call_next(call)


LAYER = Layer()
POLICY = RetryPolicy(max_attempts=5)
DAILY = Budget(usd="1", per="user", window="1d")
BREAKER = CircuitBreakerConfig(failure_threshold=2)

TAKEN: list[tuple[str, Any, Any]] = [
    ("retry", 3, RetryPolicy(max_attempts=3)),
    ("retry", POLICY, POLICY),
    ("checkpoint", True, True),
    ("checkpoint", False, False),
    ("breaker", True, CircuitBreakerConfig()),
    ("breaker", False, None),
    ("breaker", BREAKER, BREAKER),
    ("timeout", 2, 2.0),
    ("timeout", 0.25, 0.25),
    ("timeout", timedelta(minutes=2), 120.0),
    ("middleware", [layer, LAYER], (layer, LAYER)),
    ("middleware", (), ()),
    ("budget", [100_000, DAILY], (Budget(tokens=100_000), DAILY)),
]
FOR_CALLS: list[tuple[str, Any, Any]] = [
    ("key", "k" * 255, "k" * 255),
    ("user", "ada", "ada"),
    ("map_limit", 1, 1),
]
REFUSED: list[tuple[str, Any, str]] = [
    ("retry", "3", "takes a number of attempts or a RetryPolicy, not a value of type str"),
    ("retry", True, "takes a number of attempts"),
    ("retry", 2.0, "takes a number of attempts"),
    ("retry", 0, "max_attempts"),
    ("retry", 101, "max_attempts"),
    ("checkpoint", "yes", "takes True or False"),
    ("checkpoint", 1, "takes True or False"),
    ("breaker", 5, "takes True, False or a CircuitBreakerConfig"),
    ("timeout", "1s", "takes a number of seconds or a timedelta"),
    ("timeout", True, "takes a number of seconds or a timedelta"),
    ("timeout", 0, "more than 0 seconds"),
    ("timeout", -1.5, "more than 0 seconds"),
    ("timeout", math.inf, "finite"),
    ("timeout", math.nan, "finite"),
    ("timeout", timedelta(0), "more than 0 seconds"),
    ("middleware", layer, "takes a list of middleware functions"),
    ("middleware", "layer", "takes a list of middleware functions"),
    ("middleware", [layer, 3], "cannot be called"),
    ("tags", "web", "takes a list of strings"),
    ("tags", [1], "takes a list of strings"),
    ("version", 2, "takes a string, not a value of type int"),
    ("version", "", "takes 1 to 50 characters, not 0"),
    ("version", "1" * 51, "takes 1 to 50 characters, not 51"),
    ("description", b"x", "takes a string"),
]
REFUSED_FOR_CALLS: list[tuple[str, Any, str]] = [
    ("key", "", "takes 1 to 255 characters"),
    ("key", "k" * 256, "takes 1 to 255 characters, not 256"),
    ("key", 7, "takes a string"),
    ("user", b"ada", "takes a string"),
    ("map_limit", 0, "at least 1, not 0"),
    ("map_limit", 1.5, "how many calls"),
    ("runtime", "sqlite:///x.db", "takes a Runtime"),
    ("version", None, "takes a string, not None"),
]


def cases(table: list[tuple[str, Any, Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("option", "value", "expected"),
        table,
        ids=[f"{number}-{option}" for number, (option, _, _) in enumerate(table)],
    )


@cases(TAKEN)
def test_the_decorator_takes(option: str, value: Any, expected: Any) -> None:
    made = task(**{option: value})(double)
    assert made.definition.options == Options(**{option: expected})


@cases([*TAKEN, *FOR_CALLS])
def test_a_call_takes(option: str, value: Any, expected: Any) -> None:
    made = task(double)
    changed = made.with_options(**{option: value})
    assert getattr(changed.options, option) == expected
    assert made.options == Options()
    assert changed.definition is made.definition


@cases(REFUSED)
def test_the_decorator_refuses(option: str, value: Any, expected: str) -> None:
    with pytest.raises(TaskDefinitionError) as caught:
        task(**{option: value})(double)
    assert str(caught.value).startswith(f"task 'double': {option} ")
    assert expected in str(caught.value)


@cases([*REFUSED, *REFUSED_FOR_CALLS])
def test_a_call_refuses(option: str, value: Any, expected: str) -> None:
    with pytest.raises(TaskDefinitionError) as caught:
        task(double).with_options(**{option: value})
    assert expected in str(caught.value)


def test_a_refusal_does_not_show_keys_and_users() -> None:
    with pytest.raises(TaskDefinitionError, match=r"^(?!.*secret)"):
        task(double).with_options(key="secret" * 100)
    with pytest.raises(TaskDefinitionError, match=r"^(?!.*secret)"):
        task(double).with_options(user="secret" * 100)


def test_without_options_nothing_governs_a_call() -> None:
    assert task(double).definition.options == Options()
    assert task()(double).definition.options == Options()


GOVERNED = task(retry=3, checkpoint=True, breaker=True, timeout=5, middleware=[layer])(double)


def test_none_switches_off() -> None:
    off = GOVERNED.with_options(retry=None, checkpoint=None, breaker=None, timeout=None, middleware=None)
    assert off.options == Options(overrides=frozenset({"retry", "checkpoint", "timeout"}))


def test_a_call_may_take_back_what_another_gave() -> None:
    runtime = Runtime("sqlite:///:memory:")
    given = GOVERNED.with_options(key="k", user="ada", map_limit=2, runtime=runtime)
    assert given.options.runtime is runtime
    taken_back = given.with_options(key=None, user=None, map_limit=None, runtime=None)
    assert taken_back.options == GOVERNED.options


def test_what_is_left_out_stays() -> None:
    assert GOVERNED.with_options().options == GOVERNED.options
    changed = GOVERNED.with_options(timeout=9)
    assert changed.options.timeout == 9
    assert changed.options.retry == RetryPolicy(max_attempts=3)
    assert GOVERNED.options.timeout == 5


def test_a_copy_remembers_which_durable_options_calls_have_changed() -> None:
    assert GOVERNED.options.overrides == frozenset()
    once = GOVERNED.with_options(timeout=9, breaker=None, key="k", user="ada")
    assert once.options.overrides == {"timeout"}
    assert once.with_options(retry=2).options.overrides == {"timeout", "retry"}
    assert once.with_options(key="other").options.key == "other"


def test_a_copy_is_of_the_same_kind_and_the_same_function() -> None:
    copy = GOVERNED.with_options(key="k")
    assert type(copy) is SyncTask
    assert copy.fn is double
    assert copy.__name__ == "double"


def test_another_name_makes_another_task() -> None:
    renamed = GOVERNED.with_options(name="double.again")
    assert (renamed.name, renamed.definition.named) == ("double.again", True)
    assert known("double.again") == [renamed.definition]
    assert (GOVERNED.name, GOVERNED.definition.named) == ("double", False)
    assert renamed.options == GOVERNED.options
    with pytest.raises(TaskDefinitionError, match="lower-case"):
        GOVERNED.with_options(name="Double")


def test_another_version_is_found_beside_the_first() -> None:
    original = task(name="double.versions")(double)
    changed = original.with_options(version="2", description="Twice.", tags=["math"])
    assert (changed.version, changed.description, changed.tags) == ("2", "Twice.", ("math",))
    assert (original.version, original.description, original.tags) == ("1", "", ())
    assert known("double.versions") == [original.definition, changed.definition]


def test_what_was_not_given_says_so() -> None:
    import inspect

    shown = inspect.signature(GOVERNED.with_options).parameters["retry"]
    assert repr(shown.default) == "<not given>"
