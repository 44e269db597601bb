"""Walks over Python values: is what came back the same, and where does it stop being JSON?

Paths read like Python (`.pages[3]`, `["title"]`); the keys of a mapping are `.keys()` and the members of a
set `{...}`, so that a path shows none of those values.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime, time
from json import JSONEncoder
from math import isnan
from typing import Any, NamedTuple

from pydantic import BaseModel

_MISSING: Any = object()
_IDENTITY: Any = object.__eq__
_SCALARS = frozenset({str, int, float, bool, type(None)})
_KEY_LENGTH = 40  # longest key of a mapping that a path repeats, in characters

encode = JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
encode_sorted = JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")).encode


class Mismatch(NamedTuple):
    """Where a value and what came back from JSON part ways.

    Attributes:
        path: From the root of the value, empty for the root.
        value: What went in.
        back: What came back.
    """

    path: str
    value: Any
    back: Any


def difference(value: Any, back: Any) -> Mismatch | None:
    """Return the first place where `back` is not the same as `value`, or None.

    The same means: of the same class and equal, all the way down. NaN is the same as NaN. An int may come
    back as the equal float, which is what an int given for a `float` becomes; a time keeps its offset from
    UTC, but not the name of its zone and not `fold`.

    Raises:
        RecursionError: The values are nested too deeply.
    """
    if value is back:
        return None
    kind = type(value)
    if kind is not type(back):
        as_float = kind is int and type(back) is float and value == back
        return None if as_float else Mismatch("", value, back)
    if kind in _SCALARS:
        same = value == back or (kind is float and isnan(value) and isnan(back))
        return None if same else Mismatch("", value, back)
    if isinstance(value, (list, tuple, deque)):
        return _sequence_difference(value, back)
    if isinstance(value, Mapping):
        return _mapping_difference(value, back)
    if isinstance(value, AbstractSet):
        return _lost(value, back) or _surplus(value, back)
    if (members := _members(value)) is not None:
        return _member_difference(members, _members(back) or {})
    return None if _equal(value, back) else Mismatch("", value, back)


def _sequence_difference(value: Sequence[Any], back: Sequence[Any]) -> Mismatch | None:
    if found := _surplus(value, back):
        return found
    if _all_scalars(value, back) and value == back:
        return None
    for index, (item, other) in enumerate(zip(value, back, strict=True)):
        if found := difference(item, other):
            return found._replace(path=f"[{index}]{found.path}")
    return None


def _all_scalars(items: Iterable[Any], others: Iterable[Any]) -> bool:
    """Tell whether both are scalars of the same types, so that `==` alone can compare them."""
    kinds = [*map(type, items)]
    return _SCALARS.issuperset(kinds) and kinds == [*map(type, others)]


def _mapping_difference(value: Mapping[Any, Any], back: Mapping[Any, Any]) -> Mismatch | None:
    alike = _all_scalars(value, back) and _all_scalars(value.values(), back.values())
    if alike and [*value.items()] == [*back.items()]:
        return None
    if found := _lost(value.keys(), back.keys()):
        return found._replace(path=".keys()")
    for key, item in value.items():
        if found := difference(item, back[key]):
            return found._replace(path=_key_path(key) + found.path)
    return _surplus(value, back)


def _surplus(value: Collection[Any], back: Collection[Any]) -> Mismatch | None:
    return None if len(value) == len(back) else Mismatch("", value, back)


def _lost(value: AbstractSet[Any], back: AbstractSet[Any]) -> Mismatch | None:
    """Return the first member of `value` that is not in `back`, or is another there."""
    others = {item: item for item in back}
    for item in value:
        other = others.get(item, _MISSING)
        if other is _MISSING:
            return Mismatch("{...}", item, next(iter(back), None))
        if found := difference(item, other):
            return found._replace(path="{...}")
    return None


def _member_difference(members: dict[str, Any], others: dict[str, Any]) -> Mismatch | None:
    for name, item in members.items():
        if found := difference(item, others.get(name, _MISSING)):
            return found._replace(path=f".{name}{found.path}")
    surplus = next((name for name in others if name not in members), None)
    return None if surplus is None else Mismatch(f".{surplus}", None, others[surplus])


def _equal(value: Any, back: Any) -> bool:
    kind = type(value)
    if isinstance(value, (datetime, time)):
        # `==` is False between zones where a clock is put back.
        return value.isoformat() == str(back.isoformat())
    if kind.__eq__ is _IDENTITY:
        return difference(getattr(value, "__dict__", None), getattr(back, "__dict__", None)) is None
    try:
        return bool(value == back)
    except Exception:  # noqa: BLE001 - an array, whose `==` is no bool: its class is all there is to compare
        return True


def _members(value: Any) -> dict[str, Any] | None:
    """Return what a model or a dataclass is made of, None for anything else."""
    if isinstance(value, BaseModel):
        stored = value.__dict__
        members = {name: stored.get(name, _MISSING) for name in type(value).model_fields}
        return members | (value.__pydantic_extra__ or {})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name, _MISSING) for f in dataclasses.fields(value) if f.compare}
    return None


def _key_path(key: object) -> str:
    if not isinstance(key, str):
        return "[...]"
    return f"[{encode(key if len(key) <= _KEY_LENGTH else key[:_KEY_LENGTH] + '...')}]"


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield path and value of everything directly inside `value`."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield ".keys()", key
            yield _key_path(key), item
    elif isinstance(value, (list, tuple, deque)):
        yield from ((f"[{index}]", item) for index, item in enumerate(value))
    elif isinstance(value, AbstractSet):
        yield from (("{...}", item) for item in value)
    elif (members := _members(value)) is not None:
        yield from ((f".{name}", item) for name, item in members.items())


def locate(value: Any, refused: Callable[[Any], bool]) -> tuple[str, Any]:
    """Return path and value of the innermost part, in order, for which `refused` says yes.

    The root itself when no part of it is refused alone. A part that contains itself is returned as soon as it
    is met again.
    """
    return _locate(value, refused, frozenset()) or ("", value)


def _locate(value: Any, refused: Callable[[Any], bool], above: frozenset[int]) -> tuple[str, Any] | None:
    if id(value) in above or len(above) > 200:  # noqa: PLR2004 - deeper than any stack frame limit allows
        return "", value
    inside = above | {id(value)}
    for path, child in _children(value):
        if found := _locate(child, refused, inside):
            return path + found[0], found[1]
    return ("", value) if refused(value) else None


def follow(value: Any, location: Sequence[str | int]) -> tuple[str, Any]:
    """Return path and value of what pydantic calls `location`, as far as it can be followed.

    Steps that are not part of the value (the branch of a union, a validator) are passed over.
    """
    path = ""
    for step in location:
        suffix, child = _step(value, step)
        if child is not _MISSING:
            path, value = path + suffix, child
    return path, value


def _step(value: Any, step: str | int) -> tuple[str, Any]:
    if isinstance(value, Mapping):
        return _key_path(step), value.get(step, _MISSING)
    if isinstance(value, (list, tuple, deque)):
        inside = isinstance(step, int) and step < len(value)
        return f"[{step}]", value[step] if inside else _MISSING  # type: ignore[index]
    return f".{step}", (_members(value) or {}).get(str(step), _MISSING)


def order_sets(value: Any, node: Any) -> Any:
    """Return the JSON `node` of `value` with the arrays that were sets in a fixed order.

    The order of a set changes with each process; that of its sorted JSON texts does not.
    """
    if isinstance(node, list):
        if isinstance(value, (AbstractSet, list, tuple, deque)) and len(value) == len(node):
            node = [order_sets(item, child) for item, child in zip(value, node, strict=True)]
        return sorted(node, key=encode_sorted) if isinstance(value, AbstractSet) else node
    if not isinstance(node, dict):
        return node
    if isinstance(value, Mapping):  # a key that was no text is found by its place
        parts = value if node.keys() <= value.keys() else dict(zip(node, value.values(), strict=False))
    else:
        parts = _members(value) or {}
    return {name: order_sets(parts.get(name), child) for name, child in node.items()}
