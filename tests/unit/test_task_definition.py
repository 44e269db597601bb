"""What `@apflow.task` makes of a function: its name, its kind, and what it refuses."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apflow import AsyncStreamTask, AsyncTask, StreamTask, SyncTask, TaskDefinitionError, task
from apflow.naming import snake_case

LEGAL = ["a", "fetch", "fetch_2", "pages.fetch", "a.b.c9_", "x.system.y", "task.core", "a" * 100]
ILLEGAL = [
    "",
    ".",
    "a.",
    ".a",
    "a..b",
    "9a",
    "a.9",
    "Fetch",
    "fetch-2",
    "fetch page",
    "größe",
    "a" * 101,
    "fetch\n",
]
RESERVED = ["system", "internal.x", "core", "apcore.y", "plugin", "schema", "acl", "ephemeral.z"]


def named(name: str) -> FunctionType:
    """Return a plain function with this name."""

    def made() -> None: ...

    made.__name__ = made.__qualname__ = name
    assert isinstance(made, FunctionType)
    return made


def from_source(source: str, **module: Any) -> Callable[..., Any]:
    """Return the function `made` from this source, as if it stood in such a module."""
    exec(compile(source, "<test>", "exec", dont_inherit=True), module)  # noqa: S102 - tests write the source
    made: Callable[..., Any] = module["made"]
    return made


# Names


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("fetch", "fetch"),
        ("fetchPage", "fetch_page"),
        ("FetchPage", "fetch_page"),
        ("HTTPFetch2Pages", "http_fetch2_pages"),
        ("v2Final", "v2_final"),
        ("parse_URL", "parse_url"),
        ("_helper", "_helper"),
        ("__Helper", "__helper"),
    ],
)
def test_a_task_is_called_as_its_function_in_snake_case(function: str, expected: str) -> None:
    assert task(named(function)).name == expected


@given(st.from_regex(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", fullmatch=True))
def test_snake_case_stays_as_it_is(name: str) -> None:
    assert snake_case(name) == name


@given(st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,30}", fullmatch=True))
def test_every_plain_name_becomes_legal_or_is_reserved(name: str) -> None:
    made = snake_case(name)
    assert made.replace("_", "") == name.lower().replace("_", "")
    if made not in RESERVED:
        assert task(named(name)).name == made


@pytest.mark.parametrize("name", [*LEGAL, "_hidden", "__hidden.part"])
def test_a_given_name_is_kept(name: str) -> None:
    assert task(name=name)(named("f")).name == name


@pytest.mark.parametrize("name", ILLEGAL)
def test_an_illegal_name_is_refused_with_the_rule(name: str) -> None:
    with pytest.raises(TaskDefinitionError, match="lower-case letters, digits and underscores"):
        task(name=name)(named("f"))


@pytest.mark.parametrize("name", RESERVED)
def test_a_reserved_first_segment_is_refused(name: str) -> None:
    with pytest.raises(TaskDefinitionError, match="reserved"):
        task(name=name)(named("f"))


def test_apcore_takes_every_name_that_we_take() -> None:
    apcore = importlib.import_module("apcore")
    for name in LEGAL:
        apcore.Registry().register(name, object())
    for name in RESERVED:
        if not name.startswith("ephemeral"):
            with pytest.raises(apcore.ModuleError):
                apcore.Registry().register(name, object())


@pytest.mark.parametrize("name", ["system", "größe", "_", "x" * 101])
def test_a_function_whose_name_cannot_be_a_tasks_needs_another(name: str) -> None:
    with pytest.raises(TaskDefinitionError, match=r"Give another one with name="):
        task(named(name))
    assert task(name="another")(named(name)).name == "another"


def test_a_lambda_needs_a_name() -> None:
    with pytest.raises(TaskDefinitionError, match=r"name=\.\.\."):
        task(lambda x: x)
    assert task(name="square")(lambda x: x * x).fn(3) == 9


def test_a_name_has_to_be_a_string() -> None:
    with pytest.raises(TaskDefinitionError, match="name takes a string, not int"):
        task(name=7)(named("f"))  # type: ignore[call-overload]


def test_methods_and_nested_functions_have_their_own_names() -> None:
    class Agent:
        @task
        def plan_trip(self) -> None: ...

    assert Agent.plan_trip.name == "plan_trip"


# What a task says about itself


@task(tags=["web", "io"], version="3")
async def research(topic: str, *, depth: int = 1) -> str:
    """Look a topic up,
    and say what was found.

    The rest is for people.
    """
    return topic * depth


def test_what_a_task_says_about_itself() -> None:
    assert (research.name, research.version, research.tags) == ("research", "3", ("web", "io"))
    assert research.description == "Look a topic up, and say what was found."
    assert repr(research) == "<apflow.AsyncTask research>"
    assert repr(AsyncTask) == "<class 'apflow.AsyncTask'>"


def test_what_was_left_out() -> None:
    bare = task(named("bare"))
    assert (bare.version, bare.tags, bare.description) == ("1", (), "")
    assert not bare.definition.named
    assert task(description="Does it.")(named("f")).description == "Does it."
    assert task(name="given")(named("f")).definition.named


def test_a_task_looks_like_its_function() -> None:
    assert research.__name__ == "research"
    assert research.__qualname__ == "research"
    assert research.__module__ == __name__
    assert research.__doc__ == research.fn.__doc__
    assert research.__wrapped__ is research.fn
    assert str(inspect.signature(research)) == "(topic: 'str', *, depth: 'int' = 1) -> 'str'"


def test_frameworks_see_that_it_has_to_be_awaited() -> None:
    import asyncio

    assert asyncio.iscoroutinefunction(research)
    assert not asyncio.iscoroutinefunction(task(named("plain")))


@pytest.mark.anyio
async def test_the_bare_function_is_there() -> None:
    assert await research.fn("a", depth=2) == "aa"


def test_it_knows_where_its_function_stands() -> None:
    _, line = inspect.getsourcelines(research.fn)
    assert research.definition.location == f"{__file__}:{line}"


# The four kinds


async def one(x: int) -> int:
    return x


def two(x: int) -> int:
    return x


async def three(x: int) -> AsyncIterator[int]:
    yield x


def four(x: int) -> Iterator[int]:
    yield x


@pytest.mark.parametrize(
    ("function", "kind", "colour"),
    [
        (one, AsyncTask, "async"),
        (two, SyncTask, "sync"),
        (three, AsyncStreamTask, "async_stream"),
        (four, StreamTask, "stream"),
    ],
)
def test_the_kind_is_that_of_the_function(function: Any, kind: type[Any], colour: str) -> None:
    assert type(task(function)) is kind
    assert type(task(retry=2)(function)) is kind
    assert task(function).definition.colour == colour


def passing_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize("function", [one, three, four])
def test_a_plain_function_around_another_kind_is_refused(function: Any) -> None:
    with pytest.raises(TaskDefinitionError, match="below the other decorator"):
        task(passing_on(function))


def test_a_context_manager_is_refused() -> None:
    with pytest.raises(TaskDefinitionError, match="nobody can tell what calling it gives"):
        task(contextmanager(four))


def test_a_function_around_its_like_is_taken_with_the_signature_within() -> None:
    made = task(passing_on(two))
    assert type(made) is SyncTask
    assert list(made.definition.signature.parameters) == ["x"]

    @task
    @functools.wraps(three)
    async def collected(x: int) -> list[int]:
        return [item async for item in three(x)]

    assert type(collected) is AsyncTask


def returns(annotation: Any, *, coroutine: bool) -> Callable[[], Any]:
    async def later() -> Any: ...

    def now() -> Any: ...

    made = later if coroutine else now
    made.__annotations__["return"] = annotation
    return made


UNSTORABLE = [Iterator[int], Generator[int, None, None], AsyncIterator[int], AsyncGenerator[int, None]]


@pytest.mark.parametrize("coroutine", [True, False])
@pytest.mark.parametrize(
    "annotation",
    [*UNSTORABLE, Iterator, "Iterator[int]", "typing.AsyncIterator[int]", "'Generator'"],
    ids=str,
)
def test_a_function_that_returns_an_iterator_is_refused(annotation: Any, coroutine: bool) -> None:
    with pytest.raises(TaskDefinitionError, match=r"which cannot be stored\. Write a generator"):
        task(returns(annotation, coroutine=coroutine))


@pytest.mark.parametrize("annotation", [Awaitable[int], Coroutine[Any, Any, int], "Awaitable[int]"])
def test_a_function_that_returns_something_to_await_is_refused(annotation: Any) -> None:
    with pytest.raises(TaskDefinitionError, match="async def"):
        task(returns(annotation, coroutine=False))


def test_an_annotation_that_is_there_for_checkers_only_counts_by_its_name() -> None:
    source = "def made() -> 'Iterator[int]': ..."
    with pytest.raises(TaskDefinitionError, match="returns Iterator"):
        task(from_source(source, __name__="m"))


def test_a_class_of_the_user_may_be_called_as_one_of_ours() -> None:
    class Generator:
        pass

    source = "def made() -> 'Generator': ..."
    assert type(task(from_source(source, __name__="m", Generator=Generator))) is SyncTask


@pytest.mark.parametrize("annotation", [list[int], int | None, None, "no.such[thing]", inspect.Signature.empty])
def test_other_annotations_are_not_looked_at(annotation: Any) -> None:
    assert type(task(returns(annotation, coroutine=False))) is SyncTask


# What cannot be a task


class Thing:
    def __call__(self) -> None: ...

    def method(self) -> None: ...

    @classmethod
    def class_method(cls) -> None: ...


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (Thing, "the class Thing. Decorate its methods"),
        (Thing(), "an object of class Thing. Decorate its __call__"),
        (Thing().method, "a method of an object. Decorate Thing.method in its class"),
        (Thing.__dict__["class_method"], "a class method cannot be a task"),
        (len, "the built-in len, whose signature is unknown"),
        (str.upper, "the built-in upper"),
        (functools.partial(one, 1), "a functools.partial"),
        (json, "a value of type module"),
        (3, "a value of type int"),
        ("name", "a string. Options have names"),
    ],
)
def test_only_functions_can_be_tasks(what: Any, reason: str) -> None:
    with pytest.raises(TaskDefinitionError) as caught:
        task(what)
    assert reason in str(caught.value)


def test_a_task_is_not_decorated_again() -> None:
    with pytest.raises(TaskDefinitionError, match="is a task already"):
        task(retry=2)(research)
    with pytest.raises(TaskDefinitionError, match="is a task already"):
        task(staticmethod(research))


def test_arguments_of_unknown_type_are_refused() -> None:
    with pytest.raises(TaskDefinitionError, match=r"takes \*args of unknown type"):
        task(from_source("def made(*args): ...", __name__="m"))
    with pytest.raises(TaskDefinitionError, match=r"takes \*\*options of unknown type"):
        task(from_source("def made(x: int, **options): ...", __name__="m"))


def test_a_signature_that_cannot_be_read_is_refused() -> None:
    function = named("broken")
    function.__signature__ = "nonsense"  # type: ignore[attr-defined]
    with pytest.raises(TaskDefinitionError, match="no signature that can be read"):
        task(function)


@pytest.mark.parametrize(
    "signature",
    [
        "()",
        "(x)",
        "(x, /, y)",
        "(*, x)",
        "(x=[])",
        "(*args: int)",
        "(x, *args: str, y: int = 1, **more: object)",
    ],
)
def test_every_other_signature_is_taken(signature: str) -> None:
    made = task(from_source(f"def made{signature}: ...", __name__="m"))
    assert str(made.definition.signature) == signature


def test_annotations_are_not_evaluated() -> None:
    made = task(from_source("def made(x: 'no_such.Thing') -> 'nor.This': ...", __name__="m"))
    assert made.definition.signature.parameters["x"].annotation == "no_such.Thing"
