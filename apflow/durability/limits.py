"""Checks of the numbers that users configure."""

from __future__ import annotations


def check_whole(field: str, value: object, low: int, high: int) -> None:
    """Refuse what is not a whole number from `low` to `high`.

    Raises:
        ValueError: It names the field.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{field} must be between {low} and {high} (a whole number), got {value!r}")


def check_number(field: str, value: object, low: float, high: float) -> None:
    """Refuse what is not an `int` or `float` from `low` to `high`; NaN is neither.

    Raises:
        ValueError: It names the field.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{field} must be between {low} and {high}, got {value!r}")
