"""Whatever is stored comes back the same, for values that nobody thought of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from apflow.errors import SerializationError
from tests.codecs import argument_codec, result_codec


class Shade(Enum):
    DARK = 1
    LIGHT = "light"


@dataclass(frozen=True)
class Point:
    x: int
    label: str | None = None


class Report(BaseModel):
    title: str
    scores: dict[str, list[float]] = {}
    points: tuple[Point, ...] = ()
    next: Report | None = None


text = st.text()  # without surrogates, as everywhere in apflow
numbers = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | st.integers() | numbers | text
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
points = st.builds(Point, st.integers(), st.none() | text)
reports = st.recursive(
    st.builds(
        Report,
        title=text,
        scores=st.dictionaries(text, st.lists(numbers, max_size=3), max_size=3),
        points=st.lists(points, max_size=3).map(tuple),
    ),
    lambda inner: st.builds(Report, title=text, next=inner),
    max_leaves=3,
)

KINDS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers()),
    (str, text),
    (float, st.floats()),
    (int | float | str | None, st.integers() | numbers | text | st.none()),
    (Any, json_values),
    (dict[str, Any], st.dictionaries(text, json_values, max_size=3)),
    (dict[int, list[float]], st.dictionaries(st.integers(), st.lists(st.floats(), max_size=3), max_size=3)),
    (list[bytes], st.lists(st.binary(), max_size=3)),
    (set[str], st.sets(text, max_size=4)),
    (frozenset[tuple[int, str]], st.frozensets(st.tuples(st.integers(), text), max_size=4)),
    (datetime, st.datetimes(min_value=datetime(1700, 1, 1))),  # noqa: DTZ001 - naive ones are values too
    (date, st.dates()),
    (time, st.times()),
    (timedelta, st.timedeltas(timedelta(days=-100_000), timedelta(days=100_000))),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    (UUID, st.uuids()),
    (Shade, st.sampled_from(Shade)),
    (set[Point], st.sets(points, max_size=3)),
    (Report, reports),
    (list[Report | Point], st.lists(points | reports, max_size=3)),
]


def picture(value: Any) -> Any:
    """Return what can be seen of a value: its class, and what is in it. An int is like the equal float."""
    kind = type(value).__name__
    if isinstance(value, BaseModel):
        return kind, picture(dict(value))
    if isinstance(value, dict):
        return kind, sorted(((picture(name), picture(item)) for name, item in value.items()), key=repr)
    if isinstance(value, (list, tuple)):
        return kind, [picture(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return kind, sorted((picture(item) for item in value), key=repr)
    if type(value) is int and abs(value) < 2**1000 and int(float(value)) == value:
        return "float", repr(float(value))
    if isinstance(value, (datetime, time)):
        return kind, value.isoformat()
    return kind, repr(value)


@pytest.mark.parametrize(("annotation", "values"), KINDS, ids=map(str, range(len(KINDS))))
@settings(max_examples=40)
@given(data=st.data())
def test_round_trip(annotation: Any, values: st.SearchStrategy[Any], data: st.DataObject) -> None:
    value = data.draw(values)
    codec = result_codec(annotation)
    stored = codec.dump_result(value)
    back = codec.load_result(stored)
    assert picture(back) == picture(value)
    json.loads(stored.encode())


def shuffled(value: Any, data: st.DataObject) -> Any:
    """Return an equal value whose dicts have another order."""
    if isinstance(value, dict):
        names = data.draw(st.permutations(list(value)))
        return {name: shuffled(value[name], data) for name in names}
    return [shuffled(item, data) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("annotation", [Any, list[Any]], ids=str)
@settings(max_examples=40)
@given(data=st.data())
def test_no_order_of_a_dict_changes_the_fingerprint(annotation: Any, data: st.DataObject) -> None:
    value = data.draw(st.lists(json_values, max_size=3))
    codec = argument_codec(annotation)
    assert codec.fingerprint({"value": value}) == codec.fingerprint({"value": shuffled(value, data)})


@pytest.mark.parametrize("annotation", [Any, list[Any] | dict[str, Any] | int | float | bool | str | None], ids=str)
@settings(max_examples=40)
@given(first=json_values, second=json_values)
def test_fingerprints_are_the_same_only_for_the_same_values(annotation: Any, first: Any, second: Any) -> None:
    codec = argument_codec(annotation)
    same = codec.fingerprint({"value": first}) == codec.fingerprint({"value": second})
    assert same == (repr(sorted_dicts(first)) == repr(sorted_dicts(second)))


def sorted_dicts(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: sorted_dicts(value[name]) for name in sorted(value)}
    return [sorted_dicts(item) for item in value] if isinstance(value, list) else value


# Anything at all: where JSON or the annotation cannot carry it, it is refused and never changed.
strange = st.recursive(
    scalars
    | st.floats()
    | st.binary()
    | st.datetimes()
    | points
    | st.sampled_from(Shade)
    | st.decimals()
    | st.complex_numbers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(scalars, inner, max_size=3)
        | st.sets(scalars, max_size=3)
    ),
    max_leaves=6,
)
ANNOTATIONS: list[Any] = [
    *(Any, object, int, float, str, str | None, list, dict, dict[str, Any], list[int], list[float | int]),
    *(
        dict[int | str, Any],
        tuple[Any, ...],
        set[Any],
        datetime | str,
        bytes | str,
        Decimal | float,
        Point | dict[str, Any],
    ),
]


@pytest.mark.parametrize("annotation", ANNOTATIONS, ids=map(str, range(len(ANNOTATIONS))))
@settings(max_examples=40)
@given(value=strange)
def test_nothing_is_stored_that_would_come_back_as_something_else(annotation: Any, value: Any) -> None:
    codec = result_codec(annotation)
    try:
        stored = codec.dump_result(value)
    except SerializationError:
        return
    assert picture(codec.load_result(stored)) == picture(value)
    assert argument_codec(annotation).fingerprint({"value": value})
