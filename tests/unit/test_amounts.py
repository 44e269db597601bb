"""Amounts: tokens, requests, and dollars that are exact to the nano-dollar."""

from __future__ import annotations

import decimal
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apflow.governance.amounts import (
    MOST_USD,
    MOST_WHOLE,
    NANO,
    Amounts,
    Unit,
    amounts,
    nano,
    public,
    shown,
    usd_of,
    whole,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0.50", 500_000_000),
        ("1", NANO),
        (2, 2 * NANO),
        (Decimal("0.000000001"), 1),
        ("1e-9", 1),
        ("1E+3", 1_000 * NANO),
        ("0.1000000000000", 100_000_000),
        (" 0.25 ", 250_000_000),
        (str(MOST_USD), MOST_USD * NANO),
        ("999999999.999999999", MOST_USD * NANO - 1),
    ],
)
def test_dollars_become_whole_nano_dollars(value: Any, expected: int) -> None:
    assert nano(value, "usd") == expected


@pytest.mark.parametrize("value", [0, "0.0", Decimal("-0")])
def test_nothing_is_an_amount_where_it_may_be(value: Any) -> None:
    assert nano(value, "usd", least=0) == 0
    with pytest.raises(ValueError, match=r"^usd must be more than 0"):
        nano(value, "usd")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        *((value, "takes dollars as a string") for value in (0.5, True, None, b"1", [1])),
        *((value, "is no number") for value in ("", "1,50", "$1", "1.2.3")),
        *((value, "must be from 0 to 1000000000") for value in ("NaN", "inf", "-Infinity", "-0.01", -1)),
        *((value, "must be from 0 to 1000000000") for value in (MOST_USD + 1, "1000000000.000000001", "1e30")),
        *((value, "more than 9 decimals") for value in ("0.0000000001", Decimal("1.0000000005"), "1e-10")),
    ],
)
def test_what_is_no_amount_of_dollars_is_refused_by_name(value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=rf"^cost .*{why}|^cost {why}"):
        nano(value, "cost")


@given(st.integers(1, MOST_USD * NANO))
def test_dollars_come_back_exactly(nusd: int) -> None:
    dollars = usd_of(nusd)
    assert nano(dollars, "usd") == nano(str(dollars), "usd") == nano(f"{dollars:f}", "usd") == nusd
    assert usd_of(-nusd) == -dollars


@given(st.integers(1, MOST_USD * NANO))
def test_the_callers_decimal_context_changes_nothing(nusd: int) -> None:
    exact = usd_of(nusd)
    with decimal.localcontext() as context:
        context.prec = 3
        context.traps[decimal.Inexact] = True
        assert usd_of(nusd) == exact
        assert nano(exact, "usd") == nusd


def test_dollars_show_no_trailing_zeros() -> None:
    assert [str(usd_of(nusd)) for nusd in (0, NANO, 1_500_000_000, 1, -250_000_000)] == [
        *("0", "1", "1.5", "1E-9", "-0.25")
    ]


@pytest.mark.parametrize("value", [True, 1.0, "1", None, Decimal(1)])
def test_only_whole_numbers_are_whole(value: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"^tokens must be a whole number, got a value of type {type(value).__name__}"
    ):
        whole(value, "tokens")


@pytest.mark.parametrize("value", [0, -1, MOST_WHOLE + 1])
def test_whole_numbers_have_a_range(value: int) -> None:
    with pytest.raises(ValueError, match=rf"^requests must be from 1 to {MOST_WHOLE}, got {value}$"):
        whole(value, "requests")
    assert (whole(1, "requests"), whole(MOST_WHOLE, "requests"), whole(0, "requests", least=0)) == (1, MOST_WHOLE, 0)


def test_an_int_stands_for_tokens_and_a_mapping_for_its_units() -> None:
    assert amounts(500) == Amounts(tokens=500)
    assert amounts({"usd": "0.05", "requests": 2}) == Amounts(usd=50_000_000, requests=2)
    assert amounts({}) == amounts(0) == Amounts()
    given_already = Amounts(1, 2, 3)
    assert amounts(given_already) is given_already


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (-1, "tokens"),
        ("500", "tokens"),
        (None, "tokens"),
        ({"tokens": -1}, "tokens"),
        ({"usd": 0.1}, "usd"),
        ({"requests": True}, "requests"),
        ({"token": 5}, "'token'"),
        ({"tokens": 5, 3: 1}, "3"),
    ],
)
def test_a_wrong_amount_is_named(value: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        amounts(value)


def test_only_something_is_true() -> None:
    assert not Amounts()
    assert all([Amounts(tokens=1), Amounts(usd=1), Amounts(requests=1)])


def test_amounts_are_shown_with_their_unit() -> None:
    shown_amounts: list[tuple[Unit, int]] = [
        ("tokens", 1),
        ("tokens", 0),
        ("tokens", 1_000),
        ("requests", 1),
        ("requests", 2),
    ]
    assert [shown(unit, amount) for unit, amount in shown_amounts] == [
        *("1 token", "0 tokens", "1000 tokens", "1 request", "2 requests")
    ]
    assert [shown("usd", nusd) for nusd in (1, NANO, 10 * NANO)] == ["0.000000001 USD", "1 USD", "10 USD"]


def test_programs_see_dollars_as_decimals() -> None:
    assert (public("usd", 250_000_000), public("tokens", 250)) == (Decimal("0.25"), 250)
    assert isinstance(public("tokens", 250), int)
