"""What is wrong with inputs, in words that name fields, types and rules and never show a value.

The texts of pydantic and jsonschema repeat what they were given, so none of them is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from json.encoder import JSONEncoder
from typing import TYPE_CHECKING, Any

from apflow.errors import InvalidInputsError
from apflow.storage.scalars import check_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

_PROBLEMS = 10  # most problems that one error tells of
_KNOWN = 20  # most names that an error about an unknown one suggests
_KEY_LENGTH = 40  # longest key that a path repeats, in characters
_DEPTH = 50  # most steps on the search for what is no JSON
_PATH_LENGTH = 200  # longest path, in characters
_RULE_LENGTH = 200  # longest rule, such as a list of allowed values, in characters

#: What `as_text` raises.
NOT_JSON = (TypeError, ValueError, OverflowError, RecursionError)

#: Where a value stands, and what is wrong with it.
Problem = tuple[str, str]

_encode = JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

_ARRAY, _OBJECT = "should be an array", "should be an object"
_KINDS = {
    "int": "should be an integer",
    "float": "should be a number",
    "string": "should be a string",
    "bool": "should be true or false",
    "bytes": "should be bytes as base64 text",
    "date": "should be a date as text, such as 2026-01-31",
    "time": "should be a time as text, such as 18:30:00",
    "datetime": "should be a time as text, such as 2026-01-31T18:30:00Z",
    "time_delta": "should be a duration as text, such as PT90S",
    "decimal": "should be a decimal number",
    "uuid": "should be a UUID as text",
    "url": "should be a URL",
    **dict.fromkeys(("list", "tuple", "set", "frozen_set", "deque", "iterable"), _ARRAY),
    **dict.fromkeys(("dict", "model", "model_attributes", "dataclass", "mapping", "named_tuple"), _OBJECT),
}
_RULES = {
    "missing": "is missing",
    "extra_forbidden": "is unknown",
    "none_required": "should be null",
    "enum": "should be {expected}",
    "literal_error": "should be {expected}",
    "greater_than": "should be greater than {gt}",
    "greater_than_equal": "should be at least {ge}",
    "less_than": "should be less than {lt}",
    "less_than_equal": "should be at most {le}",
    "multiple_of": "should be a multiple of {multiple_of}",
    "finite_number": "should be a finite number",
    "string_too_short": "should have at least {min_length} characters",
    "string_too_long": "should have at most {max_length} characters",
    "string_pattern_mismatch": "should match the pattern {pattern}",
    "bytes_too_short": "should have at least {min_length} bytes",
    "bytes_too_long": "should have at most {max_length} bytes",
    "bytes_invalid_encoding": _KINDS["bytes"],
    "too_short": "should have at least {min_length} items",
    "too_long": "should have at most {max_length} items",
    "decimal_max_digits": "should have at most {max_digits} digits",
    "decimal_max_places": "should have at most {decimal_places} decimal places",
    "timezone_aware": "should have a time zone",
    "timezone_naive": "should have no time zone",
    "date_from_datetime_parsing": _KINDS["date"],
    "datetime_from_date_parsing": _KINDS["datetime"],
    "union_tag_invalid": "has an unknown {discriminator}",
    "union_tag_not_found": "lacks {discriminator}",
    "value_error": "was refused by its validator",
    "assertion_error": "was refused by its validator",
    "json_invalid": "is nested too deeply",
    "recursion_loop": "is nested too deeply",
    "raised": "could not be validated: a validator raised {error}",
}
_TYPE_WORDS = {"null": "null", "array": "an array", "object": "an object", "integer": "an integer"}
_KEYWORDS = {
    "minimum": "should be at least {}",
    "maximum": "should be at most {}",
    "exclusiveMinimum": "should be greater than {}",
    "exclusiveMaximum": "should be less than {}",
    "multipleOf": "should be a multiple of {}",
    "minLength": "should have at least {} characters",
    "maxLength": "should have at most {} characters",
    "minItems": "should have at least {} items",
    "maxItems": "should have at most {} items",
    "minProperties": "should have at least {} members",
    "maxProperties": "should have at most {} members",
    "pattern": "should match the pattern {}",
    "enum": "should be one of {}",
    "const": "should be {}",
    "uniqueItems": "should not repeat an item",
    "anyOf": "fits none of the forms that its schema allows",
    "oneOf": "should fit exactly one of the forms that its schema allows",
}


def invalid(executor_id: str, problems: Iterable[Problem]) -> InvalidInputsError:
    """Return the error about inputs with these problems. What is wrong at one place is told together."""
    by_path: dict[str, dict[str, None]] = {}
    for path, words in problems:
        by_path.setdefault(path, {})[words] = None
    told = [
        f"{path!r} {', or '.join(words)}" if path else f"the whole {', or '.join(words)}"
        for path, words in by_path.items()
    ]
    more = f"; and {len(told) - _PROBLEMS} more" if len(told) > _PROBLEMS else ""
    return InvalidInputsError(f"inputs of {executor_id!r} do not fit: {'; '.join(told[:_PROBLEMS])}{more}")


def as_text(inputs: Mapping[str, Any]) -> str:
    """Return inputs as JSON text.

    Raises:
        ValueError: They are none, which all of `NOT_JSON` say; `not_json` tells what is none.
    """
    text = _encode(inputs)
    if not text.isascii():
        check_text(text)
    return text


def not_json(inputs: Mapping[str, Any]) -> list[Problem]:
    """Return what in inputs is no JSON: other types, NaN, halves of surrogate pairs, what contains itself."""
    found: list[Problem] = []
    for name, value in inputs.items():
        if not _is_json(name) or not isinstance(name, str):
            found.append(("", "has a name that is no text"))
        elif not _is_json(value):
            found.append(_innermost(value, (name,)))
    return found


def _innermost(value: Any, above: tuple[str | int, ...]) -> Problem:
    """Return the problem of the first part that is no JSON by itself."""
    name = above[:1]
    while isinstance(value, dict | list | tuple):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        found = next(((key, part) for key, part in parts if isinstance(key, str | int) and not _is_json(part)), None)
        # Parts that are JSON each, under names that are: it is only together that they are too deep.
        deep = found is None and (not isinstance(value, dict) or all(isinstance(k, str) and _is_json(k) for k in value))
        if deep or len(above) > _DEPTH:
            return path_text(name), "is nested too deeply, or contains itself"
        if found is None:
            break
        above, value = (*above, found[0]), found[1]
    return path_text(above), f"is no JSON value ({type(value).__qualname__})"


def _is_json(value: Any) -> bool:
    try:
        as_text(value)
    except NOT_JSON:
        return False
    return True


def unknown(names: Iterable[object], known: Collection[str]) -> list[Problem]:
    """Return the problems of names that nobody asked for, and tell of those that are known."""
    listed = ", ".join(sorted(known)[:_KNOWN]) + (", ..." if len(known) > _KNOWN else "")
    hint = f" (known are {listed})" if known else " (there are no inputs)"
    return [(_short(name), "is unknown" + (hint if number == 0 else "")) for number, name in enumerate(names)]


def steps(value: Any, location: Sequence[str | int]) -> list[str | int]:
    """Return the steps of pydantic's location that are part of a JSON value, not branches of unions and the like."""
    found: list[str | int] = []
    for step in location:
        inside = (isinstance(value, Mapping) and step in value) or (
            isinstance(value, list) and isinstance(step, int) and step < len(value)
        )
        if inside:
            value = value[step]
            found.append(step)
    return found


def of_detail(value: Any, detail: Mapping[str, Any], location: Sequence[str | int]) -> Problem:
    """Return what pydantic found wrong at a location in a JSON value."""
    found = steps(value, location)
    if detail["type"] in ("missing", "extra_forbidden") and location and found[-1:] != [location[-1]]:
        found.append(location[-1])
    return path_text(found), _words(detail)


def _words(detail: Mapping[str, Any]) -> str:
    kind = str(detail["type"])
    stem = kind
    for ending in ("_type", "_parsing", "_parsing_size", "_from_float"):
        stem = stem.removesuffix(ending)
    template = _RULES.get(kind) or _KINDS.get(stem)
    try:
        return "does not fit its annotation" if template is None else _cut(template.format_map(detail.get("ctx", {})))
    except (KeyError, ValueError):  # an error of the user's own that borrows the name of one of pydantic's
        return "does not fit its annotation"


def of_rule(keyword: str, rule: Any) -> str:
    """Return what a rule of a JSON schema asks for. The rule is the schema's, so it may be told."""
    if keyword == "type":
        kinds = [rule] if isinstance(rule, str) else list(rule)
        return f"should be {' or '.join(_TYPE_WORDS.get(kind, f'a {kind}') for kind in kinds)}"
    if keyword in _KEYWORDS:
        return _cut(_KEYWORDS[keyword].format(rule if isinstance(rule, str) else json.dumps(rule, default=repr)))
    return f"breaks the rule {keyword!r} of its schema"


def path_text(found: Iterable[str | int]) -> str:
    """Return steps into a JSON value as they read in Python, such as `pages[0].title`."""
    text = ""
    for step in found:
        if isinstance(step, int):
            text += f"[{step}]"
        elif not text:
            text = _short(step)
        else:
            text += f".{step}" if step.isidentifier() and len(step) <= _KEY_LENGTH else f"[{_short(step)!r}]"
    return text if len(text) <= _PATH_LENGTH else text[:_PATH_LENGTH] + "..."


def _short(name: object) -> str:
    text = str(name)
    return text if len(text) <= _KEY_LENGTH else text[:_KEY_LENGTH] + "..."


def _cut(words: str) -> str:
    return words if len(words) <= _RULE_LENGTH else words[:_RULE_LENGTH] + "..."
