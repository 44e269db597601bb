"""What budgets count: tokens, requests, and dollars as whole nano-dollars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Final, Literal, TypedDict

Unit = Literal["tokens", "usd", "requests"]
UNITS: Final[tuple[Unit, ...]] = ("tokens", "usd", "requests")
NANO: Final = 1_000_000_000
DIGITS: Final = 9

#: What fits into the columns with room to add.
MOST_USD: Final = 1_000_000_000
MOST_WHOLE: Final = 2**53

#: What fits into the columns of a run's row: NUMERIC(12,6) and INTEGER.
MOST_MICRO: Final = 999_999_999_999
MOST_TOKENS: Final = 2**31 - 1


class AmountsDict(TypedDict, total=False):
    """Amounts as they are written in code: `{"tokens": 2_000, "usd": "0.05"}`."""

    tokens: int
    usd: str | Decimal | int
    requests: int


Reserve = int | AmountsDict


@dataclass(frozen=True, slots=True)
class Amounts:
    """One amount of each unit.

    Attributes:
        tokens: Tokens.
        usd: Nano-dollars.
        requests: Calls of a model.
    """

    tokens: int = 0
    usd: int = 0
    requests: int = 0

    def of(self, unit: Unit) -> int:
        """Return the amount of one unit."""
        return self.usd if unit == "usd" else self.tokens if unit == "tokens" else self.requests

    def __bool__(self) -> bool:
        return bool(self.tokens or self.usd or self.requests)


NOTHING: Final = Amounts()


def amounts(value: object) -> Amounts:
    """Return the amounts that an int (tokens) or a mapping of units stands for.

    Raises:
        ValueError: An amount is no number of its unit, or a unit is unknown; the text names it.
    """
    if isinstance(value, Amounts):
        return value
    if not isinstance(value, Mapping):
        return Amounts(tokens=whole(value, "tokens", least=0))
    unknown = [repr(name) for name in value if name not in UNITS]
    if unknown:
        raise ValueError(f"has {', '.join(unknown)}; it takes {', '.join(UNITS)}")
    return Amounts(
        tokens=whole(value.get("tokens", 0), "tokens", least=0),
        usd=nano(value.get("usd", 0), "usd", least=0),
        requests=whole(value.get("requests", 0), "requests", least=0),
    )


def whole(value: object, field: str, *, least: int = 1) -> int:
    """Return `value` if it is a whole number from `least` to 2**53.

    Raises:
        ValueError: It is not; the text names `field`.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{field} must be a whole number, got a value of type {type(value).__name__}")
    if not least <= value <= MOST_WHOLE:
        raise ValueError(f"{field} must be from {least} to {MOST_WHOLE}, got {value}")
    return value


def nano(value: object, field: str, *, least: int = 1) -> int:
    """Return dollars as nano-dollars.

    Args:
        value: A string such as `"0.50"`, a Decimal or an int, with at most 9 decimals and at most 1e9 dollars.
        field: How error texts call it.
        least: The smallest number of nano-dollars that is right.

    Raises:
        ValueError: It is none of these, or out of its range; the text names `field`.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        wrong = type(value).__name__
        raise ValueError(f'{field} takes dollars as a string such as "0.50", a Decimal or an int, not a {wrong}')
    try:
        dollars = Decimal(value)
    except InvalidOperation:
        raise ValueError(f'{field} takes dollars such as "0.50", and this text is no number') from None
    if not dollars.is_finite() or not 0 <= dollars <= MOST_USD:
        raise ValueError(f"{field} must be from 0 to {MOST_USD} dollars, got {dollars}")
    # Not by multiplication: that would round to the precision of the caller's decimal context.
    _, digits, exponent = dollars.as_tuple()
    assert isinstance(exponent, int)
    number = int("".join(map(str, digits)) or "0")
    power = exponent + DIGITS
    if power < 0:
        number, rest = divmod(number, 10**-power)
        if rest:
            raise ValueError(f"{field} has more than {DIGITS} decimals; a nano-dollar is the smallest amount")
    else:
        number *= int(10**power)
    if number < least:
        raise ValueError(f"{field} must be more than 0 dollars" if least else f"{field} must not be negative")
    return number


def usd_of(nusd: int) -> Decimal:
    """Return nano-dollars as dollars, exactly, without trailing zeros."""
    dollars, rest = divmod(abs(nusd), NANO)
    text = f"{dollars}.{rest:09d}".rstrip("0").rstrip(".")
    return Decimal(f"-{text}" if nusd < 0 else text)


def shown(unit: Unit, amount: int) -> str:
    """Return an amount with its unit, for people."""
    if unit == "usd":
        return f"{usd_of(amount):f} USD"
    return f"{amount} {unit if amount != 1 else unit.removesuffix('s')}"


def public(unit: Unit, amount: int) -> int | Decimal:
    """Return an amount as programs outside apflow see it: dollars as a Decimal."""
    return usd_of(amount) if unit == "usd" else amount
