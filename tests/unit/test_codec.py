"""What a task is called with and returns: bound, stored, loaded, fingerprinted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from pydantic import BaseModel
from pydantic_core import core_schema
from typing_extensions import TypedDict, Unpack

from apflow.errors import SerializationError, TaskDefinitionError
from apflow.storage.serialize import describe_error
from tests.codecs import argument_codec, codec_of, result_codec

if TYPE_CHECKING:
    from somewhere import Unknown  # type: ignore[import-not-found]


class Report(BaseModel):
    title: str
    tags: set[str] = set()


class More(TypedDict):
    depth: int


async def research(topic: str, model: str = "small", *, depth: int = 3) -> Report: ...  # type: ignore[empty-body]


def positional(a: int, b: int = 2, /, c: int = 3, *rest: int, d: int = 4, **others: str) -> None: ...


def defaulted(flag: str = None, *, limit: float = 5) -> None: ...  # type: ignore[assignment]  # noqa: RUF013


def unpacked(**options: Unpack[More]) -> None: ...


def loose(first, second=1): ...  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201


CALLS: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], dict[str, Any]]] = [
    (research, ("tides",), {}, {"topic": "tides", "model": "small", "depth": 3}),
    (research, (), {"depth": 1, "topic": "x"}, {"topic": "x", "model": "small", "depth": 1}),
    (positional, (1,), {}, {"a": 1, "b": 2, "c": 3, "rest": [], "d": 4, "others": {}}),
    (
        positional,
        (1, 5, 6, 7, 8),
        {"d": 9, "a": "x", "z": "y"},
        {"a": 1, "b": 5, "c": 6, "rest": [7, 8], "d": 9, "others": {"a": "x", "z": "y"}},
    ),
    (unpacked, (), {"depth": 4}, {"options": {"depth": 4}}),
    (loose, ([1],), {}, {"first": [1], "second": 1}),
]


@pytest.mark.parametrize(("fn", "args", "kwargs", "bound"), CALLS, ids=map(str, range(len(CALLS))))
def test_a_call_is_bound_stored_loaded_and_made_again(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], bound: dict[str, Any]
) -> None:
    codec = codec_of(fn)
    arguments = codec.bind(args, kwargs)
    assert list(arguments.items()) == list(bound.items())
    assert codec.load_arguments(codec.dump_arguments(arguments)) == bound
    again, named = codec.call_with(bound)
    assert codec.bind(again, named) == bound


def test_arguments_are_readable_json_with_a_member_for_each_parameter() -> None:
    codec = codec_of(research)
    assert codec.dump_arguments(codec.bind(("é",), {})) == '{"topic":"é","model":"small","depth":3}'


@pytest.mark.parametrize(
    ("fn", "args", "kwargs"),
    [
        (research, (), {}),
        (research, (1, 2, 3), {}),
        (research, ("x",), {"topic": "y"}),
        (research, ("x",), {"unknown": 1}),
        (positional, (), {"a": 1}),
    ],
    ids=["missing", "too many", "twice", "unknown", "positional only"],
)
def test_a_wrong_call_reads_as_pythons_own_error(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(TypeError) as own:
        fn(*args, **kwargs)
    with pytest.raises(TypeError) as ours:
        codec_of(fn).bind(args, kwargs)
    assert str(ours.value) == str(own.value)
    assert fn.__qualname__ in str(ours.value)


def test_defaults_are_the_functions_own_objects() -> None:
    marker: list[int] = []

    def fn(a: list[int] = marker, *, b: list[int] = marker) -> None: ...

    bound = codec_of(fn).bind((), {})
    assert bound["a"] is marker
    assert bound["b"] is marker


def test_a_default_of_none_allows_none() -> None:
    codec = codec_of(defaulted)
    bound = codec.bind((), {})
    assert codec.load_arguments(codec.dump_arguments(bound)) == {"flag": None, "limit": 5}


def test_an_int_for_a_float_is_the_same_argument_as_the_float() -> None:
    for codec in (argument_codec(float), argument_codec(float | None)):
        assert codec.fingerprint({"value": 1}) == codec.fingerprint({"value": 1.0})
        assert repr(codec.load_arguments(codec.dump_arguments({"value": 1}))) == "{'value': 1.0}"
    listed = argument_codec(list[float])
    assert listed.fingerprint({"value": [1]}) == listed.fingerprint({"value": [1.0]})


# Fingerprints


def test_a_fingerprint_is_128_bits_in_hexadecimal() -> None:
    assert int(codec_of(research).fingerprint({"topic": "x", "model": "y", "depth": 1}), 16) < 2**128


def test_a_default_that_is_spelled_out_changes_nothing() -> None:
    codec = codec_of(research)
    short, long = codec.bind(("x",), {}), codec.bind((), {"depth": 3, "model": "small", "topic": "x"})
    assert codec.fingerprint(short) == codec.fingerprint(long)


def test_different_types_with_the_same_text_differ() -> None:
    loose_codec = argument_codec(Any)
    values = [1, 1.0, "1", True, [1], {"1": 1}, None, "null", "true", [], {}, "", "[]"]
    assert len({loose_codec.fingerprint({"value": value}) for value in values}) == len(values)
    plain = argument_codec(int | float | str | bool | None)
    scalars = [value for value in values if not isinstance(value, (list, dict))]
    assert len({plain.fingerprint({"value": value}) for value in scalars}) == len(scalars)


def test_values_move_between_arguments_without_colliding() -> None:
    def fn(a: str, b: str) -> None: ...

    codec = codec_of(fn)
    calls = [("x", "y"), ("y", "x"), ('x","b":"y', ""), ("", 'x","b":"y'), ("xy", ""), ("", "xy")]
    assert len({codec.fingerprint(codec.bind(call, {})) for call in calls}) == len(calls)


@pytest.mark.parametrize("annotation", [Any, dict[str, Any], dict[str, dict[str, int]]], ids=str)
def test_the_order_of_a_dict_does_not_matter(annotation: Any) -> None:
    codec = argument_codec(annotation)
    one = codec.encode({"value": {"a": {"x": 1, "y": 2}, "b": {}}})
    two = codec.encode({"value": {"b": {}, "a": {"y": 2, "x": 1}}})
    assert one.fingerprint == two.fingerprint
    assert codec.load_arguments(two.text)["value"]["a"] == {"y": 2, "x": 1}


def test_the_order_of_lists_does_matter() -> None:
    for annotation in (Any, list[int], tuple[int, int] | list[int]):
        codec = argument_codec(annotation)
        assert codec.fingerprint({"value": [1, 2]}) != codec.fingerprint({"value": [2, 1]})


HASHED = """
from dataclasses import dataclass
from pydantic import BaseModel
from pydantic_core import core_schema
from tests.codecs import argument_codec

class Model(BaseModel):
    tags: set[str]
    by_name: dict[str, frozenset[str]]
    inner: "Model | None" = None

@dataclass(frozen=True)
class Leaf:
    names: frozenset[str]

words = {"red", "green", "blue", "white", "black"}
model = Model(tags=words, by_name={"all": frozenset(words)}, inner=Model(tags=words, by_name={}))
nested = {frozenset(words), frozenset({"one", "two", "three"}), frozenset()}
leaves = [Leaf(frozenset(words)), Leaf(frozenset({"one", "two"}))]
print(argument_codec(set[str]).fingerprint({"value": words}))
print(argument_codec(Model).fingerprint({"value": model}))
print(argument_codec(set[frozenset[str]]).fingerprint({"value": nested}))
print(argument_codec(set[Leaf]).fingerprint({"value": set(leaves)}))
print(argument_codec(dict[int, set[str]]).fingerprint({"value": {1: words, 2: words}}))
print(argument_codec(tuple[set[str], int]).fingerprint({"value": (words, 1)}))
print(argument_codec(dict[str, int]).fingerprint({"value": {word: len(word) for word in words}}))
"""


def test_fingerprints_are_the_same_in_every_process() -> None:
    seen = {
        subprocess.run(
            [sys.executable, "-c", HASHED],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4242")
    }
    assert len(seen) == 1
    lines = seen.pop().split()
    assert len(set(lines)) == len(lines) == 7


# Results


async def stream_of_reports() -> AsyncIterator[Report]:
    yield Report(title="a")


def stream_of_floats() -> Generator[float, int, str]:
    yield 1
    return ""


async def untyped_stream():  # type: ignore[no-untyped-def]  # noqa: ANN201
    yield 1


def bare_stream() -> Iterator:  # type: ignore[type-arg]
    yield 1


def test_the_items_of_a_generator_are_a_list() -> None:
    reports = [Report(title="a"), Report(title="b", tags={"x"})]
    codec = codec_of(stream_of_reports, "async_stream")
    assert codec.load_result(codec.dump_result(reports)) == reports
    with pytest.raises(SerializationError) as caught:
        codec.dump_result([reports[0], "no report"])
    assert caught.value.path == "result[1]"
    assert repr(codec_of(stream_of_floats, "stream").load_result("[1]")) == "[1.0]"


@pytest.mark.parametrize("fn", [untyped_stream, bare_stream])
def test_items_without_an_annotation_are_plain_json(fn: Callable[..., Any]) -> None:
    codec = codec_of(fn, "stream")
    assert codec.load_result(codec.dump_result([1, {"a": [None]}])) == [1, {"a": [None]}]
    with pytest.raises(SerializationError):
        codec.dump_result([(1,)])


@pytest.mark.parametrize(
    "annotation",
    [AsyncGenerator[int, None], Iterable[int], Annotated[AsyncIterator[int], "numbers"], Iterator[int]],
    ids=str,
)
def test_every_annotation_of_a_generator_is_understood(annotation: Any) -> None:
    assert result_codec(annotation, "async_stream").load_result("[1, 2]") == [1, 2]


def test_a_generator_that_is_annotated_as_something_else_is_refused() -> None:
    with pytest.raises(TaskDefinitionError, match=r"is a generator.*AsyncIterator\[...\]"):
        result_codec(list[int], "stream").dump_result([1])


# Annotations


def test_an_annotation_that_cannot_be_evaluated_names_its_parameter_and_function() -> None:
    async def fn(fine: int, wrong: Unknown) -> Unknown: ...

    codec = codec_of(fn)
    with pytest.raises(TaskDefinitionError, match=r"parameter 'wrong' of .*fn \(file.py:1\).*'Unknown' is not defined"):
        codec.dump_arguments({"fine": 1, "wrong": 2})
    with pytest.raises(TaskDefinitionError, match="of the result of"):
        codec.dump_result(1)


def test_an_unused_result_annotation_does_not_disturb_the_arguments() -> None:
    async def fn(fine: int) -> Unknown: ...

    assert codec_of(fn).dump_arguments({"fine": 1}) == '{"fine":1}'


def test_a_local_type_that_the_function_uses_is_found() -> None:
    @dataclass
    class Local:
        n: int

    async def fn(n: int) -> Local:
        return Local(n)

    codec = codec_of(fn)
    assert codec.load_result(codec.dump_result(Local(1))) == Local(1)


def test_a_local_type_that_is_not_there_yet_is_named() -> None:
    async def fn(n: int) -> Later:
        return Later()

    with pytest.raises(TaskDefinitionError, match="'Later' is not defined"):
        codec_of(fn).dump_result(1)

    class Later: ...


class Foreign: ...


class Unfinished(BaseModel):
    later: Unknown


@pytest.mark.parametrize("annotation", [Foreign, list[Foreign], Unfinished, list[Unfinished]], ids=str)
def test_an_annotation_without_a_json_form_names_its_parameter(annotation: Any) -> None:
    with pytest.raises(TaskDefinitionError, match="annotation of parameter 'value'"):
        argument_codec(annotation).dump_arguments({"value": 1})


# Loading what was stored


@pytest.mark.parametrize(
    ("text", "path", "hint"),
    [
        ("{", "arguments", "no JSON"),
        ('{"topic":NaN}', "arguments", "no JSON"),
        ("[1]", "arguments", "Was it changed since"),
        ('{"model":"x"}', "arguments", "Was it changed since"),
        ('{"topic":"x","gone":1}', "arguments", "Was it changed since"),
        ('{"topic":5}', "arguments.topic", "Was it changed since"),
    ],
)
def test_arguments_that_no_longer_fit_are_refused(text: str, path: str, hint: str) -> None:
    with pytest.raises(SerializationError, match=hint) as caught:
        codec_of(research).load_arguments(text)
    assert caught.value.path == path


def test_a_parameter_that_was_added_has_its_default() -> None:
    assert codec_of(research).load_arguments('{"topic":"x"}') == {"topic": "x", "model": "small", "depth": 3}


def test_a_result_that_no_longer_fits_names_where() -> None:
    with pytest.raises(SerializationError, match="Was it changed since") as caught:
        codec_of(research).load_result('{"title":"secret","tags":["a",5]}')
    assert (caught.value.path, caught.value.type_name) == ('result["tags"][1]', "int")
    assert "secret" not in str(caught.value)
    with pytest.raises(SerializationError, match="result is str"):
        codec_of(research).load_result("no json")
    with pytest.raises(SerializationError, match="result is int"):
        result_codec(bool).load_result("1")


def test_a_float_that_another_program_wrote_without_its_point_is_still_a_float() -> None:
    assert repr(result_codec(float).load_result("1")) == "1.0"


class Counted:
    """Counts how often pydantic asks for its form."""

    asked = 0

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> core_schema.CoreSchema:
        cls.asked += 1
        return core_schema.no_info_plain_validator_function(
            lambda value: cls(),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: None),
        )


def test_an_annotation_is_read_once_and_only_when_it_is_needed() -> None:
    def fn(n: int) -> Counted: ...  # type: ignore[empty-body]

    codec = codec_of(fn)
    codec.dump_arguments({"n": 1})
    assert Counted.asked == 0
    codec.dump_result(Counted())
    asked = Counted.asked
    assert asked > 0
    assert isinstance(codec.load_result(codec.dump_result(Counted())), Counted)
    assert Counted.asked == asked


class Matrix:
    """Compares like an array: the answer is no bool."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda value: cls(),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: 1),
        )

    def __eq__(self, other: object) -> bool:
        return [True, True]  # type: ignore[return-value]

    __hash__ = None  # type: ignore[assignment]


class Vague(Matrix):
    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value of an array is ambiguous")

    __hash__ = None


class Identity(Matrix):
    """Is equal to nothing but itself."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]


@pytest.mark.parametrize("kind", [Matrix, Vague, Identity])
def test_a_class_that_cannot_be_compared_is_taken_at_its_word(kind: type) -> None:
    codec = result_codec(kind)
    assert isinstance(codec.load_result(codec.dump_result(kind())), kind)


# Errors


class LostError(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


def caught(error: BaseException) -> BaseException:
    with pytest.raises(type(error)) as found:
        raise error
    return found.value


def test_an_error_is_described_by_type_message_and_traceback() -> None:
    described = describe_error(caught(ValueError("wrong")))
    assert described["type"] == "ValueError"
    assert described["message"] == "wrong"
    assert described["traceback"][0] == "Traceback (most recent call last):"
    assert described["traceback"][-1] == "ValueError: wrong"
    assert describe_error(json.JSONDecodeError("x", "", 0))["type"] == "json.decoder.JSONDecodeError"


def test_an_error_without_a_text_is_described_all_the_same() -> None:
    described = describe_error(caught(LostError()))
    assert described["type"].endswith("test_codec.LostError")
    assert "__str__ raised ZeroDivisionError" in described["message"]
    assert described["traceback"]


class BrokenError(Exception):
    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]
        raise ZeroDivisionError


def test_an_error_whose_traceback_cannot_be_told_is_described_all_the_same() -> None:
    described = describe_error(caught(BrokenError("why")))
    assert described["type"].endswith("BrokenError")
    assert described["message"] == "why"


def test_a_description_is_limited_in_size_and_storable_as_text() -> None:
    error: BaseException = ValueError("\0\ud800" + "x" * 100_000)
    for number in range(150):
        nested = caught(KeyError(number))
        nested.__cause__ = error
        error = nested
    described = describe_error(error)
    assert len(described["message"]) <= 10_000
    assert len(described["traceback"]) == 200
    assert max(map(len, described["traceback"])) <= 510
    assert any("lines left out" in line for line in described["traceback"])
    assert described["traceback"][-1] == "KeyError: 149"
    first = describe_error(caught(ValueError("\0\ud800")))
    assert first["message"] == "\\x00\\ud800"
    assert json.loads(json.dumps(described)) == described
