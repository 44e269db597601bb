"""What a model was used for: the record of it, its checks, and where a task's result states it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Context, Decimal, InvalidOperation
from typing import Any, cast

from apflow.governance.amounts import MOST_USD, MOST_WHOLE

#: Decimal places of an amount of dollars; sums of such amounts times counts stay exact in 200 digits.
USD_PLACES = 30
LONGEST_TEXT = 255

_KEYS = frozenset(
    {
        *("input", "output", "total", "cache_read", "cache_write", "reasoning", "requests"),
        *("model", "provider", "cost_usd"),
    }
)
# What most functions return. Nothing in these is looked at, so that a call that uses no model pays nothing.
_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset})
# A user's own decimal context may trap, or not trap, what parsing meets.
_PARSING = Context(traps=[InvalidOperation])


@dataclass(frozen=True, slots=True)
class Usage:
    """The usage of a model in one call of it, or in several that are reported together.

    Attributes:
        input: Tokens read, `cache_read` and `cache_write` included.
        output: Tokens written, `reasoning` included.
        total: `input + output`, or more when the source says so; what is beyond them has no class.
        cache_read: Tokens of `input` that came from the provider's cache.
        cache_write: Tokens of `input` that were written to that cache.
        reasoning: Tokens of `output` that were thought, not said.
        requests: Calls of a model.
        model: The model's name; None when unknown.
        provider: Who serves the model; None when unknown.
        cost_usd: What the source itself says it cost, in USD.
        dedupe: Names this usage: the same name within one tree of runs counts once.
    """

    input: int = 0
    output: int = 0
    total: int = 0
    cache_read: int = 0
    cache_write: int = 0
    reasoning: int = 0
    requests: int = 1
    model: str | None = None
    provider: str | None = None
    cost_usd: Decimal | None = None
    dedupe: str | None = None


def checked_usage(
    *,
    model: str | None = None,
    provider: str | None = None,
    input: int = 0,  # noqa: A002 - the word of the public interface
    output: int = 0,
    cache_read: int = 0,
    cache_write: int = 0,
    reasoning: int = 0,
    requests: int = 1,
    total: int | None = None,
    cost_usd: str | Decimal | int | None = None,
    dedupe: str | None = None,
) -> Usage:
    """Return the usage that these values state. `total` is `input + output` unless it is given.

    Raises:
        ValueError: A value is negative, of the wrong kind, too large, or contradicts another; the message
            names it.
    """
    given = {
        "input": input,
        "output": output,
        "cache_read": cache_read,
        "cache_write": cache_write,
        "reasoning": reasoning,
        "requests": requests,
        "total": total,
        "model": model,
        "provider": provider,
        "cost_usd": cost_usd,
        "dedupe": dedupe,
    }
    return _checked(given, "{}")


def stated_usage(stated: Mapping[Any, Any], label: str = "{}") -> Usage:
    """Return the usage that a mapping states in our own words: `input`, `output`, `total`, `cache_read`...

    `label` is how a key is written in an error, such as `token_usage['{}']`.

    Raises:
        ValueError: A key is unknown or its value is not as `checked_usage` wants it; the message names it.
    """
    unknown = next((key for key in stated if key not in _KEYS), None)
    if unknown is not None:
        name = unknown if isinstance(unknown, str) and len(unknown) <= LONGEST_TEXT else type(unknown).__name__
        raise ValueError(f"{label.format(name)} is not a word of usage; these are: {', '.join(sorted(_KEYS))}")
    return _checked(stated, label)


def returned_usage(result: object) -> Usage | None:
    """Return the usage that the result of a task's function states, None when it states none.

    A mapping states it under the key `token_usage`; the response object of a model library states it in its
    own way. Of any other object no attribute is read.

    Raises:
        ValueError: The stated usage is wrong; the message names the key, as in `token_usage['input']`.
    """
    kind = type(result)
    if kind in _PLAIN:
        return None
    # Not isinstance: that reads an attribute.
    if kind is dict or issubclass(kind, Mapping):
        stated = cast("Mapping[Any, Any]", result).get("token_usage")
        return None if stated is None else _token_usage(stated)
    from apflow.governance.readers import usage_of_response

    return usage_of_response(result)


def checked_usd(name: str, value: object) -> Decimal:
    """Return an amount of USD, 0 to 1,000,000,000, with at most 30 decimal places.

    Raises:
        ValueError: `value` is out of that range, a float, or no amount at all; the message names it.
    """
    if isinstance(value, float):
        raise ValueError(f"{name} must be exact, and a float is not: write a string, as in {name}={str(value)!r}")
    if isinstance(value, bool) or not isinstance(value, str | Decimal | int):
        raise ValueError(f"{name} must be a str, Decimal or int of USD, got {type(value).__name__}")
    try:
        amount = Decimal(value, _PARSING)
    except InvalidOperation:
        raise ValueError(f"{name} must be an amount of USD, got a str that is no number") from None
    if not amount.is_finite():
        raise ValueError(f"{name} must be finite, got {amount}")
    if amount < 0 or amount > MOST_USD:
        raise ValueError(f"{name} must be between 0 and {MOST_USD} USD, got {amount:.6g}")
    exponent = amount.as_tuple().exponent
    if isinstance(exponent, int) and exponent < -USD_PLACES:
        raise ValueError(f"{name} must have at most {USD_PLACES} decimal places, got {-exponent}")
    return amount.copy_abs()


def is_storable(text: object) -> bool:
    """Return whether this is text that fits a short column: not blank, not too long, encodable, without NUL."""
    if not isinstance(text, str) or not text.strip() or len(text) > LONGEST_TEXT or "\x00" in text:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _token_usage(stated: object) -> Usage:
    if not isinstance(stated, Mapping):
        raise ValueError(f"token_usage must be a mapping with input, output and total, got {type(stated).__name__}")
    return stated_usage(stated, "token_usage['{}']")


def _checked(given: Mapping[Any, Any], label: str) -> Usage:
    counts = {
        word: _count(label.format(word), given.get(word, 0))
        for word in ("input", "output", "cache_read", "cache_write", "reasoning")
    }
    cached, read, written = counts["cache_read"] + counts["cache_write"], counts["input"], counts["output"]
    if cached > read:
        name = label.format("cache_read" if counts["cache_read"] > read else "cache_write")
        raise ValueError(f"{name}: cache_read + cache_write ({cached}) must be <= input ({read}), which includes them")
    if counts["reasoning"] > written:
        name = label.format("reasoning")
        raise ValueError(f"{name} ({counts['reasoning']}) must be <= output ({written}), which includes it")
    cost = given.get("cost_usd")
    return Usage(
        input=read,
        output=written,
        cache_read=counts["cache_read"],
        cache_write=counts["cache_write"],
        reasoning=counts["reasoning"],
        total=_total(label.format("total"), given.get("total"), read + written),
        requests=_count(label.format("requests"), given.get("requests", 1)),
        cost_usd=None if cost is None else checked_usd(label.format("cost_usd"), cost),
        model=_text(label.format("model"), given.get("model")),
        provider=_text(label.format("provider"), given.get("provider")),
        dedupe=_text(label.format("dedupe"), given.get("dedupe")),
    )


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be a whole number, got {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{name} must be >= 0, got {value}")
    if value > MOST_WHOLE:
        raise ValueError(f"{name} must be <= {MOST_WHOLE}, got a number of {value.bit_length()} bits")
    return int(value)


def _total(name: str, value: object, least: int) -> int:
    total = _count(name, least if value is None else value)
    if total < least:
        raise ValueError(f"{name} ({total}) must be >= input + output ({least})")
    return total


def _text(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a str, got {type(value).__name__}")
    if not is_storable(value):
        raise ValueError(f"{name} must be a text of 1 to {LONGEST_TEXT} characters, not blank, got {len(value)}")
    return value
