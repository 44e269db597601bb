"""JSON that somebody else wrote: what of it a task may have as its result."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

from apflow.engine.specs import MAX_DEPTH

_HALF_PAIR: Final = re.compile(r"\\u[dD][89a-fA-F]")


def parsed(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: It is no JSON, has a number or a text that cannot be stored, or is nested deeper than 100 levels.
        RecursionError: It is nested too deeply even to be read.
    """
    value = json.loads(text, parse_float=_finite, parse_constant=_finite)
    if _HALF_PAIR.search(text):
        json.dumps(value, ensure_ascii=False).encode()
    if is_deep(value):
        raise ValueError("nested too deeply")
    return value


def is_deep(value: Any) -> bool:
    """Whether a JSON value is nested deeper than 100 levels."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [one for one in level if isinstance(one, dict | list)]
        if not level:
            return False
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return True


def storable(value: Any) -> Any:
    """Return a value that was read by somebody else, as the text of it where it could not be stored as it is.

    Raises:
        RecursionError: It is nested too deeply even for a text.
    """
    text = json.dumps(value)
    try:
        return parsed(text)
    except ValueError:
        return text


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("no number that can be stored")
    return number
