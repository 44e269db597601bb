"""Usage: what is accepted, what is refused by name, and what a task's result states."""

from __future__ import annotations

import decimal
from collections import UserDict
from dataclasses import FrozenInstanceError, dataclass
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from apflow.governance.usage import Usage, checked_usage, returned_usage

COUNTS = ("input", "output", "cache_read", "cache_write", "reasoning", "requests", "total")


def test_a_usage_is_what_was_given() -> None:
    usage = checked_usage(
        model="m",
        provider="p",
        input=10,
        output=5,
        cache_read=3,
        cache_write=7,
        reasoning=5,
        requests=2,
        total=20,
        cost_usd="0.10",
        dedupe="d",
    )
    assert usage == Usage(10, 5, 20, 3, 7, 5, 2, "m", "p", Decimal("0.10"), "d")
    with pytest.raises(FrozenInstanceError):
        usage.input = 1  # type: ignore[misc]


def test_the_total_is_input_and_output_unless_it_is_given() -> None:
    assert checked_usage(input=3, output=4).total == 7
    assert checked_usage(total=80) == Usage(total=80)
    assert checked_usage() == Usage()


@pytest.mark.parametrize("field", COUNTS)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, ">= 0, got -1"),
        (True, "got bool"),
        (3.0, "got float"),
        ("3", "got str"),
        (2**53 + 1, "<= 9007199254740992"),
    ],
)
def test_a_count_that_cannot_be_is_refused_by_its_name(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{field} must be .*{message}"):
        checked_usage(**{field: value})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input": 5, "cache_read": 6}, r"^cache_read: .*\(6\) must be <= input \(5\)"),
        ({"input": 5, "cache_read": 3, "cache_write": 3}, r"^cache_write: .*\(6\) must be <= input \(5\)"),
        ({"output": 1, "reasoning": 2}, r"^reasoning \(2\) must be <= output \(1\)"),
        ({"input": 5, "output": 1, "total": 5}, r"^total \(5\) must be >= input \+ output \(6\)"),
    ],
)
def test_counts_that_contradict_each_other_are_refused(given: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_usage(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        *((0.5, r"float is not: write a string, as in cost_usd='0\.5'"), (True, "got bool"), ("cheap", "no number")),
        *(("-0.01", "between 0"), ("NaN", "finite"), ("sNaN", "finite"), ("inf", "finite"), (b"1", "got bytes")),
        *((1_000_000_001, "between 0"), ("1e-31", "30 decimal places")),
    ],
)
def test_a_cost_that_cannot_be_is_refused(cost: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^cost_usd must .*{message}"):
        checked_usage(cost_usd=cost)


@pytest.mark.parametrize("cost", ["0", "0.000000001", 3, Decimal("1.5"), 1_000_000_000])
def test_a_cost_is_kept_exactly(cost: str | int | Decimal) -> None:
    with decimal.localcontext(decimal.Context(prec=1)):
        assert checked_usage(cost_usd=cost).cost_usd == Decimal(cost)


@pytest.mark.parametrize("field", ["model", "provider", "dedupe"])
@pytest.mark.parametrize("value", ["", " ", "x" * 256, "a\x00b", "\ud800", 5, b"m"])
def test_a_name_has_to_fit_its_column_and_is_not_repeated(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{field} must be a") as caught:
        checked_usage(**{field: value})
    assert "xxx" not in str(caught.value)


# --- what a result states


@pytest.mark.parametrize("result", [None, 1, 2.5, True, "x", b"y", [1], (1,), {1}, {}, {"input": 5}, object(), len])
def test_an_ordinary_result_states_nothing(result: object) -> None:
    assert returned_usage(result) is None


def test_a_mapping_states_its_token_usage() -> None:
    stated = {"input": 10, "output": 5, "total": 15}
    assert returned_usage({"answer": 1, "token_usage": stated}) == Usage(10, 5, 15)
    assert returned_usage(UserDict(token_usage=stated)) == Usage(10, 5, 15)
    assert returned_usage({"token_usage": {"total": 80}}) == Usage(total=80)
    assert returned_usage({"token_usage": None}) is None


def test_a_mapping_may_state_more() -> None:
    stated = {"input": 10, "cache_read": 4, "cache_write": 1, "output": 6, "reasoning": 2}
    named = {"model": "m", "provider": "p", "requests": 3, "cost_usd": "0.25"}
    expected = Usage(10, 6, 16, 4, 1, 2, 3, "m", "p", Decimal("0.25"))
    assert returned_usage({"token_usage": {**stated, **named}}) == expected


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"input": -1}, r"^token_usage\['input'\] must be >= 0, got -1"),
        ({"output": 1.0}, r"^token_usage\['output'\] must be a whole number, got float"),
        ({"input": None}, r"^token_usage\['input'\] must be a whole number, got NoneType"),
        ({"input": 5, "total": 4}, r"^token_usage\['total'\] \(4\)"),
        ({"input": 5, "cache_read": 6}, r"^token_usage\['cache_read'\]"),
        ({"cost_usd": 0.1}, r"^token_usage\['cost_usd'\] must be exact"),
        ({"model": ""}, r"^token_usage\['model'\] must be a text"),
        ({"prompt": 5}, r"^token_usage\['prompt'\] is not a word of usage"),
        ({7: 5}, r"^token_usage\['int'\] is not a word of usage"),
        (80, r"^token_usage must be a mapping .* got int"),
    ],
)
def test_a_wrong_statement_is_refused_by_its_key(stated: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        returned_usage({"token_usage": stated})


class Untouchable:
    """A user's class whose every attribute is a trap."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"{name} was read")


class WithProperties:
    @property
    def usage(self) -> object:
        raise AssertionError("usage was read")

    token_usage = usage_metadata = context_wrapper = object = type = usage


class WithMethod:
    """A user's class whose method has the name of a library's one."""

    calls = 0

    def usage(self) -> object:
        type(self).calls += 1
        return SimpleNamespace(input_tokens=5, output_tokens=1)


@dataclass(slots=True)
class Slotted:
    usage: object


@dataclass
class Answer:
    """A user's own result that carries the numbers of a response; the response itself is reported elsewhere."""

    text: str
    usage: object


SLOTTED = Slotted(SimpleNamespace(input_tokens=5, output_tokens=1))
ANSWER = Answer("", SimpleNamespace(prompt_tokens=5, completion_tokens=1))
UNTOLD = SimpleNamespace(object="chat.completion", usage=None)
TEXT = SimpleNamespace(object="chat.completion", usage="none")


@pytest.mark.parametrize("number", range(7))
def test_the_users_own_objects_are_left_alone(number: int) -> None:
    own = [Untouchable(), WithProperties(), WithMethod(), SLOTTED, ANSWER, UNTOLD, TEXT]
    assert returned_usage(own[number]) is None
    assert WithMethod.calls == 0


def test_a_returned_response_states_its_usage() -> None:
    usage = SimpleNamespace(prompt_tokens=10, completion_tokens=5, total_tokens=15)
    response = SimpleNamespace(object="chat.completion", id="chatcmpl-0123456789abcdef", model="gpt-4o", usage=usage)
    expected = Usage(10, 5, 15, model="gpt-4o", provider="openai", dedupe="chatcmpl-0123456789abcdef")
    assert returned_usage(response) == expected


def test_a_returned_response_with_wrong_numbers_is_refused() -> None:
    usage = SimpleNamespace(prompt_tokens=-10, completion_tokens=5)
    with pytest.raises(ValueError, match=r"^prompt_tokens must be >= 0"):
        returned_usage(SimpleNamespace(object="chat.completion", usage=usage))
