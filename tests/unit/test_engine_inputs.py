"""JSON inputs of executors: what is converted, what is refused, and that no text shows a value."""

from __future__ import annotations

import gc
import json
import traceback
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from math import inf, isnan
from typing import Annotated, Any, Required
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field
from typing_extensions import TypedDict, Unpack

from apflow import task
from apflow.engine.inputs import TaskInputs, inputs_of
from apflow.errors import InvalidInputsError
from tests.codecs import codec_of

SECRET = "s3cr3t-value"  # noqa: S105 - stands for what no text may show
NOWHERE = object()


class Page(BaseModel):
    title: str
    rank: int = Field(default=1, ge=1)
    next: Page | None = None


class Renamed(BaseModel):
    class_: int = Field(alias="class")


class Shade(Enum):
    DARK = 1
    LIGHT = "light"


class Filters(TypedDict, total=False):
    year: Required[int]
    author: str


def refuse(value: str) -> str:
    raise ValueError(f"cannot take {value}")


def break_down(value: Any) -> Any:
    raise KeyError(value)


@task
async def fetch(url: str, pages: int = 3, *, since: date | None = None) -> list[Page]:
    """Fetch some pages.

    What it fetches is returned.

    Args:
        url: Where they are: a host
            and a path.
        pages (int, optional): How many.

    Returns:
        The pages.
    """
    return []


@task
def report(
    page: Page, when: datetime, shades: list[Shade], ident: UUID | None = None, price: Decimal = Decimal(1)
) -> None:
    """Report on a page."""


@task
def awkward(
    _private: int, model_config: str, schema: Annotated[int, Field(ge=1, description="A level.")], json: bool = True
) -> None: ...


@task
def loose(a: int, b, /, *rest: int, flag: bool = False, marker: Any = NOWHERE, **more: float) -> None: ...  # type: ignore[no-untyped-def]  # noqa: ANN001


@task
def search(query: str, **filters: Unpack[Filters]) -> None: ...


@task
def refusing(  # noqa: PLR0917
    checked: Annotated[str, AfterValidator(refuse)] = "",
    broken: Annotated[int, BeforeValidator(break_down)] = 0,
    data: bytes = b"",
    number: float = inf,
    choice: int | str = 0,
    free: Any = None,
    renamed: Renamed | None = None,
    items: Iterable[int] = (),
) -> None: ...


def inputs(function: Any) -> TaskInputs:
    return inputs_of(function.definition)


def refusal(act: Callable[[], Any]) -> str:
    """Return the text of the refusal, having seen that its traceback shows no value."""
    with pytest.raises(InvalidInputsError) as caught:
        act()
    shown = "".join(traceback.format_exception(caught.value))
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert "During handling" not in shown
    assert SECRET not in str(caught.value)
    return str(caught.value)


def test_arguments_are_converted_to_what_the_annotations_say() -> None:
    found = inputs(report).convert(
        {
            "page": {"title": "tides", "next": {"title": "moons", "rank": 2}},
            "when": "2026-11-22T08:00:00Z",
            "shades": [1, "light"],
            "ident": "12345678-1234-5678-1234-567812345678",
            "price": "2.50",
        }
    )
    assert found["page"] == Page(title="tides", next=Page(title="moons", rank=2))
    assert found["when"] == datetime.fromisoformat("2026-11-22T08:00:00+00:00")
    assert found["shades"] == [Shade.DARK, Shade.LIGHT]
    assert found["ident"] == UUID("12345678-1234-5678-1234-567812345678")
    assert found["price"] == Decimal("2.50")
    report.definition.codec.dump_arguments(found)


def test_arguments_are_what_bind_returns() -> None:
    bind = loose.definition.codec.bind
    found = inputs(loose).convert({"a": 1, "b": [None], "rest": [2, 3], "x": 1.5, "y": 2})
    assert found == bind((1, [None], 2, 3), {"x": 1.5, "y": 2.0})
    assert inputs(loose).convert({"a": 1, "b": 2}) == bind((1, 2), {})
    assert found["marker"] is NOWHERE
    assert inputs(fetch).convert({"url": "x"}) == fetch.definition.codec.bind(("x",), {})


def test_lists_and_dicts_of_two_calls_are_not_the_same_object() -> None:
    first, second = (inputs(loose).convert({"a": 1, "b": 2}) for _ in range(2))
    assert first["rest"] is not second["rest"]
    assert first["more"] is not second["more"]


def test_awkward_names_and_constraints() -> None:
    given = {"_private": 1, "model_config": "x", "schema": 2}
    assert inputs(awkward).convert(given) == {**given, "json": True}
    assert refusal(lambda: inputs(awkward).convert({**given, "schema": 0})) == (
        "inputs of 'awkward' do not fit: 'schema' should be at least 1"
    )


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "'url' is missing"),
        ({"url": "x", "page": 1}, "'page' is unknown (known are pages, since, url)"),
        ({"url": 3}, "'url' should be a string"),
        ({"url": None}, "'url' should be a string"),
        ({"url": "x", "pages": "3"}, "'pages' should be an integer"),
        ({"url": "x", "pages": True}, "'pages' should be an integer"),
        ({"url": "x", "pages": 3.5}, "'pages' should be an integer"),
        ({"url": "x", "since": "soon"}, "'since' should be a date as text, such as 2026-01-31"),
        ({"url": "x", "since": date(2026, 1, 31)}, "'since' is no JSON value (date)"),
        ({"url": {"a": [{1, 2}]}}, "'url.a[0]' is no JSON value (set)"),
        ({"url": "\ud800"}, "'url' is no JSON value (str)"),
        ({"url": "x", 3: 1}, "'3' is unknown (known are pages, since, url)"),
    ],
)
def test_what_does_not_fit_is_named(given: dict[str, Any], problem: str) -> None:
    assert refusal(lambda: inputs(fetch).convert(given)) == f"inputs of 'fetch' do not fit: {problem}"
    assert refusal(lambda: inputs(fetch).check(given)) == f"inputs of 'fetch' do not fit: {problem}"


def test_all_problems_are_told_at_once() -> None:
    page = {"rank": 0, "next": {"rank": "x"}}
    assert refusal(lambda: inputs(report).convert({"page": page, "when": SECRET, "shades": [SECRET, 1], "z": 1})) == (
        "inputs of 'report' do not fit: 'z' is unknown (known are ident, page, price, shades, when); "
        "'page.title' is missing; 'page.rank' should be at least 1; 'page.next.title' is missing; "
        "'page.next.rank' should be an integer; 'when' should be a time as text, such as 2026-01-31T18:30:00Z; "
        "'shades[0]' should be 1 or 'light'"
    )


def test_at_most_ten_problems_are_told() -> None:
    text = refusal(lambda: inputs(report).convert({f"z{number:02}": 1 for number in range(12)}))
    assert "'z09' is unknown; and 5 more" in text
    assert "z10" not in text


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"checked": SECRET}, "'checked' was refused by its validator"),
        ({"broken": SECRET}, "the whole could not be validated: a validator raised KeyError"),
        ({"data": SECRET + "~"}, "'data' should be bytes as base64 text"),
        ({"number": SECRET}, "'number' should be a number"),
        ({"choice": [SECRET]}, "'choice' should be an integer, or should be a string"),
        ({"renamed": {"class": SECRET}}, "'renamed.class' should be an integer"),
        ({"free": {SECRET: object()}, "choice": SECRET}, None),
        ({"items": [1, SECRET]}, "'items[1]' should be an integer"),
    ],
)
def test_no_value_is_shown(given: dict[str, Any], problem: str | None) -> None:
    if problem is not None:
        assert refusal(lambda: inputs(refusing).convert(given)) == f"inputs of 'refusing' do not fit: {problem}"
        return
    with pytest.raises(InvalidInputsError, match=r"is no JSON value \(object\)"):  # the name of a field is shown
        inputs(refusing).convert(given)


def test_what_contains_itself_or_is_deep_is_refused() -> None:
    loop: dict[str, Any] = {}
    loop["loop"] = loop
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    assert "'free' is nested too deeply" in refusal(lambda: inputs(refusing).convert({"free": loop}))
    assert "nested too deeply" in refusal(lambda: inputs(refusing).convert({"free": deep}))


def test_integral_floats_are_ints_and_names_of_numbers_are_floats() -> None:
    assert type(inputs(fetch).convert({"url": "x", "pages": 3.0})["pages"]) is int
    found = inputs(refusing).convert({"choice": 4.0, "number": "NaN", "items": [1.0, 2], "free": 5.0})
    assert found["choice"] == 4
    assert type(found["choice"]) is int
    assert isnan(found["number"])
    assert found["items"] == [1, 2]
    assert type(found["free"]) is float
    page = inputs(report).convert({"page": {"title": "x", "rank": 2.0}, "when": "2026-11-22T08:00", "shades": []})[
        "page"
    ]
    assert type(page.rank) is int


def test_models_take_names_and_aliases() -> None:
    for name in ("class", "class_"):
        assert inputs(refusing).convert({"renamed": {name: 1}})["renamed"] == Renamed(**{"class": 1})


def test_typed_keyword_arguments() -> None:
    assert inputs(search).convert({"query": "x", "year": 2026}) == {"query": "x", "filters": {"year": 2026}}
    text = refusal(lambda: inputs(search).convert({"query": "x", "yaer": 2026}))
    assert text == "inputs of 'search' do not fit: 'yaer' is unknown (known are author, query, year); 'year' is missing"
    assert inputs(search).schema == {
        "type": "object",
        "properties": {"query": {"type": "string"}, "year": {"type": "integer"}, "author": {"type": "string"}},
        "additionalProperties": False,
        "required": ["query", "year"],
        "$defs": inputs(search).schema["$defs"],
    }


def test_other_keyword_arguments_are_named_as_they_were_given() -> None:
    start = "inputs of 'loose' do not fit: "
    assert refusal(lambda: inputs(loose).convert({"a": 1, "b": 1, "x": SECRET})) == start + "'x' should be a number"
    assert refusal(lambda: inputs(loose).convert({"a": 1, "x": {1}})) == start + "'x' is no JSON value (set)"
    assert inputs(loose).convert({"a": 1, "b": 1, "more": 2})["more"] == {"more": 2.0}


def test_values_that_come_later_are_not_missed() -> None:
    inputs(fetch).check({}, later=["url", "since"])
    inputs(fetch).check({"url": {"$from": "other"}}, later=["url"])
    inputs(search).check({}, later=["query", "year"])
    inputs(loose).check({}, later=["a", "b", "anything"])
    assert "'when' is missing" in refusal(lambda: inputs(report).check({"shades": []}, later=["page"]))
    assert "'address' is unknown" in refusal(lambda: inputs(fetch).check({}, later=["url", "address"]))
    assert "'pages' should be an integer" in refusal(lambda: inputs(fetch).check({"pages": "x"}, later=["url"]))


def test_inputs_are_an_object() -> None:
    assert refusal(lambda: inputs(fetch).convert([SECRET])) == (  # type: ignore[arg-type]
        "inputs of 'fetch' have to be a JSON object, not list"
    )


def test_schema_of_a_documented_function() -> None:
    assert inputs(fetch).schema == {
        "type": "object",
        "properties": {
            "url": {"type": "string", "description": "Where they are: a host and a path."},
            "pages": {"type": "integer", "description": "How many.", "default": 3},
            "since": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}], "default": None},
        },
        "additionalProperties": False,
        "required": ["url"],
    }
    output = inputs(fetch).output_schema
    assert (output["type"], output["items"]) == ("array", {"$ref": "#/$defs/Page"})
    assert output["$defs"]["Page"]["properties"]["rank"] == {"type": "integer", "minimum": 1, "default": 1}


def test_schema_of_constraints_stars_and_odd_defaults() -> None:
    schema = inputs(awkward).schema
    assert schema["properties"]["schema"] == {"type": "integer", "minimum": 1, "description": "A level."}
    assert schema["required"] == ["_private", "model_config", "schema"]
    schema = inputs(loose).schema
    assert schema["properties"]["rest"] == {"type": "array", "items": {"type": "integer"}}
    assert schema["properties"]["marker"] == {}
    assert schema["additionalProperties"] == {"type": "number"}
    assert schema["required"] == ["a", "b"]
    assert inputs(report).schema["properties"]["price"]["default"] == "1"
    assert inputs(refusing).schema["properties"]["number"]["default"] == "Infinity"
    for function in (fetch, report, awkward, loose, search, refusing):
        json.dumps(inputs(function).schema, allow_nan=False)


def test_inputs_are_made_once_and_go_with_their_definition() -> None:
    definition = replace(fetch.definition, description="another")
    found = weakref.ref(inputs_of(definition))
    assert inputs_of(definition) is found()
    assert inputs_of(fetch.definition) is not found()
    gone = weakref.ref(definition)
    del definition
    gc.collect()
    assert gone() is None
    assert found() is None


pages = st.recursive(
    st.builds(Page, title=st.text(), rank=st.integers(1)),
    lambda inner: st.builds(Page, title=st.text(), next=inner),
    max_leaves=3,
)


def everything(  # noqa: PLR0917
    count: int, word: str, ratio: float, pages: list[Page], when: datetime, choice: int | str | None, data: bytes
) -> None: ...


EVERYTHING = codec_of(everything, "sync")


values = st.tuples(
    st.integers(),
    st.text(),
    st.floats(),
    st.lists(pages, max_size=3),
    st.datetimes(),
    st.none() | st.integers() | st.text(),
    st.binary(),
)


@given(values)
def test_what_is_dumped_converts_to_equal_arguments(values: tuple[Any, ...]) -> None:
    text = EVERYTHING.dump_arguments(EVERYTHING.bind(values, {}))
    found = inputs_of(EVERYTHING._definition).convert(json.loads(text))
    assert EVERYTHING.dump_arguments(found) == text
    if not isnan(found["ratio"]):
        assert found == EVERYTHING.bind(values, {})
