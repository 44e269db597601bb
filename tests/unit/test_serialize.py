"""Arguments and results become JSON and come back the same, or are refused."""

from __future__ import annotations

import json
from collections import OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NewType, NoReturn, Optional, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    computed_field,
    field_serializer,
    field_validator,
    model_validator,
)
from typing_extensions import TypedDict

from apflow.errors import SerializationError
from tests.codecs import argument_codec, result_codec

SECRET = "hunter2"  # noqa: S105 - a value that no message may show


class Colour(Enum):
    RED = "red"
    DARK = ("not", "text")


class Level(IntEnum):
    LOW = 1


class Mood(StrEnum):
    GLAD = "glad"


class Page(BaseModel):
    url: str = Field(alias="URL")
    words: int = 0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def shout(self) -> str:
        return self.url.upper()


class LongPage(Page):
    chapters: int = 1


class Report(BaseModel):
    title: str
    pages: list[Page] = []
    score: float | None = None
    _touched: datetime = PrivateAttr(default_factory=datetime.now)


@dataclass
class Point:
    x: int
    y: float = 0.5


@dataclass
class NamedPoint(Point):
    label: str = ""


class Pair(NamedTuple):
    left: int
    right: str


@dataclass
class Partial:
    x: int
    kept: list[int] = field(default_factory=list, init=False)


class Options(TypedDict, total=False):
    depth: int
    blob: bytes


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


class Open(BaseModel, extra="allow"):
    a: int


class Hidden(BaseModel):
    shown: int
    hidden: int = Field(default=0, exclude=True)


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"


class Foreign:
    """A class that pydantic knows nothing of."""


T = TypeVar("T")
UserId = NewType("UserId", str)
BERLIN = datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin"))

KEPT: list[tuple[Any, Any]] = [
    (int, 10**400),
    (int | None, None),
    (Optional[str], "x"),  # noqa: UP045 - it is written so, too
    (str, "naïve\0 \N{GRINNING FACE} \u2028"),
    (bool, True),
    (float, -0.0),
    (float, float("-inf")),
    (int | float, 1),
    (int | float, 1.0),
    (None, None),
    (NoReturn, None),
    (UserId, "ada"),
    (Annotated[str, "the topic"], "tides"),
    (Annotated[int, Field(gt=0)], 3),
    (Literal["a", 1], 1),
    (Any, {"a": [1, 1.0, "1", True, None, {}], "b": 2**70}),
    (object, [[], "x"]),
    (T, {"free": 1}),
    (dict[str, Any], {"a": {"b": [1, 2.5]}, "big": 2**70}),
    (dict, {"a": 1}),
    (list, [1, "a"]),
    (dict[int, str], {1: "a", -2: "b"}),
    (dict[Mood, int], {Mood.GLAD: 1}),
    (defaultdict[str, int], defaultdict(int, {"a": 1})),
    (OrderedDict[str, int], OrderedDict(b=1, a=2)),
    (Mapping[str, int], {"a": 1}),
    (Sequence[int], [1, 2]),
    (Iterable[int], [1, 2]),
    (Collection[str], ["a"]),
    (deque[int], deque([1, 2])),
    (set[str], {"a", "b"}),
    (frozenset[frozenset[int]], frozenset({frozenset({1, 2}), frozenset()})),
    (tuple[int, ...], (1, 2)),
    (tuple[int, str], (1, "a")),
    (Pair, Pair(1, "a")),
    (bytes, b"\xff\x00"),
    (dict[bytes, bytes], {b"\xff": b"\xfe"}),
    (Options, {"depth": 1, "blob": b"\xff"}),
    (list[float], [1.5, float("nan"), float("inf")]),
    (datetime, BERLIN),
    (datetime, datetime(2026, 1, 1, 12, 0, 0, 123456)),  # noqa: DTZ001 - naive on purpose
    (date, date(2026, 1, 1)),
    (timedelta, timedelta(days=-3, microseconds=7)),
    (Decimal, Decimal("1.10")),
    (UUID, UUID(int=5)),
    (Path, Path("a/b")),
    (Colour, Colour.RED),
    (Level, Level.LOW),
    (Page, Page(URL="a", words=3)),
    (list[Page], [Page(URL="a"), Page(URL="b")]),
    (Report, Report(title="t", pages=[Page(URL="a")])),
    (Tree, Tree(value=1, children=[Tree(value=2)])),
    (Open, Open(a=1, b="extra")),  # type: ignore[call-arg]
    (Hidden, Hidden(shown=1)),
    (Point, Point(1, 2.0)),
    (NamedPoint | Point, NamedPoint(1, 2.0, "x")),
    (Partial, Partial(1)),
    (Cat | Dog, Dog()),
    (int | str, "1"),
    (int | str, 1),
]


@pytest.mark.parametrize(("annotation", "value"), KEPT, ids=map(str, range(len(KEPT))))
def test_values_come_back_the_same(annotation: Any, value: Any) -> None:
    result, argument = result_codec(annotation), argument_codec(annotation)
    back = result.load_result(result.dump_result(value))
    assert type(back) is type(value)
    assert back == value or str(back) == str(value)  # NaN, and the hour that a clock is put back
    arguments = argument.load_arguments(argument.dump_arguments({"value": value}))
    assert repr(arguments) == repr({"value": back})


@pytest.mark.parametrize(("annotation", "value"), KEPT, ids=map(str, range(len(KEPT))))
def test_what_is_stored_is_strict_json_in_utf8(annotation: Any, value: Any) -> None:
    def refuse(name: str) -> None:
        pytest.fail(name)

    json.loads(result_codec(annotation).dump_result(value).encode(), parse_constant=refuse)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def circle() -> Any:
    value: dict[str, Any] = {}
    value["again"] = [value]
    return value


class Vault(BaseModel):
    password: SecretStr


class Loose(BaseModel):
    values: list[Any]


class Lowered(BaseModel):
    name: str

    @field_validator("name")
    @classmethod
    def lower(cls, name: str) -> str:
        return name.lower()


class Failing(BaseModel):
    name: str

    @field_serializer("name")
    def fail(self, name: str) -> str:
        raise KeyError(name)


class Bare(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="constants")
    score: float


class Binary(BaseModel):
    blob: bytes


class Grown(BaseModel, extra="allow"):
    a: int

    @model_validator(mode="before")
    @classmethod
    def grow(cls, data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "b": 1}


class Explosive(BaseModel):
    name: str

    @field_validator("name")
    @classmethod
    def explode(cls, name: str) -> str:
        raise LookupError(name)


UNANNOTATED = "without an annotation only"
REFUSED: list[tuple[Any, Any, str, str, str]] = [
    # annotation, value, path, type name, a part of the hint
    (Any, (1, 2), "", "tuple", UNANNOTATED),
    (Any, {"a": {"b": [0, {1}]}}, '["a"]["b"][1]', "set", UNANNOTATED),
    (Any, {"x": {1: "a"}}, '["x"].keys()', "int", UNANNOTATED),
    (Any, {"x": {(1, 2): "a"}}, '["x"].keys()', "tuple", UNANNOTATED),
    (Any, [Mood.GLAD], "[0]", "Mood", UNANNOTATED),
    (Any, [Level.LOW], "[0]", "Level", UNANNOTATED),
    (Any, Mood.GLAD, "", "Mood", UNANNOTATED),
    (Any, Report(title=SECRET), "", "Report", UNANNOTATED),
    (Any, [float("nan")], "[0]", "float", "no NaN"),
    (Any, float("inf"), "", "float", "no NaN"),
    (Any, [10**5000], "[0]", "int", "too many digits"),
    (Any, ["\ud800"], "[0]", "str", "surrogate"),
    (Any, "\ud800", "", "str", "surrogate"),
    (Any, circle(), '["again"][0]', "dict", "contains itself"),
    (Any, OrderedDict(a=1), "", "OrderedDict", UNANNOTATED),
    (int, "5", "", "str", "the result is annotated int"),
    (int, True, "", "bool", "the result is annotated int"),
    (int, 10**5000, "", "int", "too many digits"),
    (int, Level.LOW, "", "Level", "plain int"),
    (str, Mood.GLAD, "", "Mood", "plain str"),
    (str | None, 5, "", "int", "the result is annotated None | str"),
    (str, "\ud800", "", "str", "surrogate"),
    (None, 5, "", "int", "the result is annotated None"),
    (float, 2**53 + 1, "", "int", "the result is annotated float"),
    (float, 10**400, "", "int", "the result is annotated float"),
    (float | str, float("nan"), "", "float", "no NaN"),
    (list[int], ["5"], "[0]", "str", "come back as int"),
    (list[int], [1, True], "[1]", "bool", "base class int"),
    (list[int], (1, 2), "", "tuple", "come back as list"),
    (dict[str, int], {"a": 1, "b": True}, '["b"]', "bool", "base class int"),
    (list[float], [0.5, 2**53 + 1], "[1]", "int", "come back as float"),
    (list[str], ["a", "\ud800"], "[1]", "str", "surrogate"),
    (dict[str, Any], {"x": (1,)}, '["x"]', "tuple", "come back as list"),
    (dict[str, Any], {"x": [{1, 2}]}, '["x"][0]', "set", "come back as list"),
    (dict[str, Any], {"x": {1: 2}}, '["x"].keys()', "int", "come back as str"),
    (dict[str, Any], {"x": Foreign()}, '["x"]', "Foreign", "no JSON form"),
    (dict[str, Any], {"x": b"\xff"}, '["x"]', "bytes", ""),
    (dict[str, Any], {"x" * 50: (1,)}, '["' + "x" * 40 + '..."]', "tuple", ""),
    (dict[float, int], {float("nan"): 1}, ".keys()", "float", ""),
    (dict[int | str, int], {1: 1, "1": 2}, ".keys()", "int", "come back as str"),
    (dict[str, object], circle(), '["again"][0]', "dict", "contains itself"),
    (list[Any], nested(5000), "[0]" * 66 + "[0...", "list", "too deeply"),
    (set[str], {Mood.GLAD}, "{...}", "Mood", "base class str"),
    (datetime | str, "2026-01-01T00:00:00", "", "str", "come back as datetime"),
    (Report, {"title": SECRET}, "", "dict", "come back as Report"),
    (Report, Point(1), "", "Point", "fit the annotation"),
    (Report, SECRET, "", "str", "fit the annotation"),
    (Page, LongPage(URL="a"), "", "LongPage", "base class Page"),
    (list[Page], [Page(URL="a"), LongPage(URL="b")], "[1]", "LongPage", "base class Page"),
    (Point, NamedPoint(1), "", "NamedPoint", "base class Point"),
    (Report, Report(title="t", score=float("nan")), ".score", "float", "no NaN"),
    (Bare, Bare(score=float("nan")), ".score", "float", "no NaN"),
    (Report, Report.model_construct(title=5), ".title", "int", "(string_type)"),
    (Report, Report.model_construct(title="t", pages=[Foreign()]), ".pages[0]", "Foreign", "(missing)"),
    (Report, Report.model_construct(pages=[]), "", "Report", "(missing)"),
    (Hidden, Hidden(shown=1, hidden=2), ".hidden", "int", "come back changed"),
    (Loose, Loose(values=[1, (2,)]), ".values[1]", "tuple", "come back as list"),
    (Vault, Vault(password=SecretStr(SECRET)), ".password", "SecretStr", "come back changed"),
    (Lowered, Lowered.model_construct(name="ADA"), ".name", "str", "come back changed"),
    (Failing, Failing(name=SECRET), "", "Failing", "serializer failed"),
    (Explosive, Explosive.model_construct(name=SECRET), "", "Explosive", "raised LookupError"),
    (Binary, Binary(blob=b"\xff"), ".blob", "bytes", "ser_json_bytes"),
    (Annotated[int, Field(gt=0)], -1, "", "int", "(greater_than)"),
    (Annotated[list[int], AfterValidator(lambda items: [*items, 0])], [1], "", "list", "come back changed"),
    (Annotated[set[int], AfterValidator(lambda items: {*items, 0})], {1}, "", "set", "come back changed"),
    (
        Annotated[dict[str, int], AfterValidator(lambda d: {**d, "z": 0})],
        {"a": 1},
        "",
        "dict",
        "come back changed",
    ),
    (Grown, Grown.model_construct(a=1), ".b", "NoneType", "come back as int"),
    (Colour, Colour.DARK, "", "Colour", ""),
    (Literal["a"], "b", "", "str", "(literal_error)"),
    (Iterable[int], (1,), "", "tuple", "come back as list"),
]


@pytest.mark.parametrize(
    ("annotation", "value", "path", "type_name", "hint"), REFUSED, ids=map(str, range(len(REFUSED)))
)
def test_what_would_not_come_back_the_same_is_refused(
    annotation: Any, value: Any, path: str, type_name: str, hint: str
) -> None:
    with pytest.raises(SerializationError) as caught:
        result_codec(annotation).dump_result(value)
    assert (caught.value.task, caught.value.path, caught.value.type_name) == (
        "produce",
        "result" + path,
        type_name,
    )
    assert hint in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    with pytest.raises(SerializationError) as caught:
        argument_codec(annotation).fingerprint({"value": value})
    assert caught.value.path == "arguments.value" + path
