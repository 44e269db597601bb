"""Decorated tasks as executors: from JSON inputs through the onion to JSON results."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import AsyncIterator, Iterator
from datetime import date, datetime
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, BaseModel, Field

from apflow import Runtime, current, task
from apflow.engine.executable import ExecutableTask
from apflow.engine.function_executor import executor_of
from apflow.errors import ExecutorNotFoundError, InvalidInputsError

SECRET = "s3cr3t-value"  # noqa: S105 - stands for what no text may show

pytestmark = pytest.mark.anyio


class Page(BaseModel):
    title: str
    seen: datetime


@task(tags=["web"])
async def fetch_pages(url: str, count: Annotated[int, Field(ge=1, le=9)] = 1, *, day: date | None = None) -> list[Page]:
    """Fetch pages.

    Args:
        url: Where from.
        count: How many.
    """
    seen = datetime(2026, 11, 22) if day is None else datetime(day.year, day.month, day.day)  # noqa: DTZ001
    return [Page(title=f"{url}{number}", seen=seen) for number in range(count)]


@task
def newest(pages: list[Page], *more: Page, **labels: str) -> Page | None:
    assert labels.keys() <= {"reader"}
    return max([*pages, *more], key=lambda page: page.seen, default=None)


@task
async def letters(word: str) -> AsyncIterator[str]:
    for letter in word:
        yield letter


@task
def days(first: date, count: int) -> Iterator[date]:
    for number in range(count):
        yield first.replace(day=first.day + number)


@task
def thread() -> str:
    return threading.current_thread().name


@task
async def gather(dependencies: dict[str, int], factor: int = 1) -> int:
    return factor * sum(dependencies.values())


@task
def everything(**given: Any) -> list[str]:
    return sorted(given)


def refuse(value: str) -> str:
    raise ValueError(value)


@task
def refusing(text: Annotated[str, AfterValidator(refuse)]) -> None: ...


@task
async def inner(number: int) -> int:
    return number + 1


@task(retry=2, name="tools.outer_step")
async def outer(number: int) -> dict[str, Any]:
    if current().attempt == 1:
        raise ConnectionError
    return {"sum": await executor_of(inner).execute({"number": number}), "parent": current().task_id}


async def test_coroutines_take_and_return_json() -> None:
    async with Runtime("sqlite:///:memory:"):
        result = await executor_of(fetch_pages).execute({"url": "a", "count": 2.0, "day": "2026-01-31"})
    assert result == [{"title": title, "seen": "2026-01-31T00:00:00"} for title in ("a0", "a1")]


async def test_plain_functions_run_on_a_thread_of_their_own() -> None:
    async with Runtime("sqlite:///:memory:"):
        page = {"title": "x", "seen": "2026-01-31T00:00:00"}
        later = {"title": "y", "seen": "2026-02-01T00:00:00"}
        result = await executor_of(newest).execute({"pages": [page], "more": [later], "reader": "ada"})
        assert result == later
        assert await executor_of(newest).execute({"pages": []}) is None
        assert await executor_of(thread).execute({}) == "apflow-body"


async def test_many_plain_functions_wait_at_the_same_time() -> None:
    together = threading.Barrier(50)

    @task
    def meet(number: int) -> int:
        together.wait(timeout=60)
        return number

    async with Runtime("sqlite:///:memory:"):
        executor = executor_of(meet)
        found = await asyncio.gather(*(executor.execute({"number": number}) for number in range(50)))
    assert found == list(range(50))


async def test_items_of_generators_are_collected() -> None:
    async with Runtime("sqlite:///:memory:"):
        assert await executor_of(letters).execute({"word": "abc"}) == ["a", "b", "c"]
        assert await executor_of(days).execute({"first": "2026-01-30", "count": 2}) == ["2026-01-30", "2026-01-31"]


async def test_dependencies_go_to_those_who_ask_for_them() -> None:
    results = {"one": 1, "two": 2}
    async with Runtime("sqlite:///:memory:"):
        assert await executor_of(gather).execute({"dependencies": results, "factor": 2}) == 6
        assert await executor_of(everything).execute({"dependencies": results, "a": 1}) == ["a", "dependencies"]
        assert await executor_of(inner).execute({"dependencies": results, "number": 1}) == 2
        with pytest.raises(InvalidInputsError, match=r"'dependencies\.two' should be an integer"):
            await executor_of(gather).execute({"dependencies": {"one": 1, "two": SECRET}})


async def test_each_execution_is_a_run_with_the_options_of_its_task(database_url: str) -> None:
    async with Runtime(database_url) as runtime:
        result = await executor_of(outer.with_options(user="ada")).execute({"number": 1})
        assert result["sum"] == 2
        (parent,) = await runtime.runs.list(name="tools.outer_step")
        (child,) = await runtime.runs.list(name="inner")
    assert (parent.id, parent.status, parent.attempt_count, parent.user_id) == (result["parent"], "completed", 2, "ada")
    assert (child.parent_id, child.status, child.inputs) == (parent.id, "completed", {"number": 1})


@pytest.mark.parametrize(
    ("inputs", "problems"),
    [
        ({}, ["'url' is missing"]),
        ({"url": "x", "urls": SECRET}, ["'urls' is unknown"]),
        ({"url": [SECRET], "count": 10}, ["'url' should be a string", "'count' should be at most 9"]),
        ({"url": "x", "count": SECRET, "day": SECRET}, ["'count' should be an integer", "'day' should be a date"]),
    ],
)
async def test_inputs_that_do_not_fit_start_nothing(inputs: dict[str, Any], problems: list[str]) -> None:
    async with Runtime("sqlite:///:memory:") as runtime:
        with pytest.raises(InvalidInputsError) as caught:
            await executor_of(fetch_pages).execute(inputs)
        assert await runtime.runs.count() == 0
    shown = "".join(traceback.format_exception(caught.value))
    assert all(problem in str(caught.value) for problem in problems)
    assert SECRET not in shown


async def test_a_validator_of_the_users_does_not_show_the_value_either() -> None:
    async with Runtime("sqlite:///:memory:"):
        with pytest.raises(InvalidInputsError, match="'text' was refused by its validator") as caught:
            await executor_of(refusing).execute({"text": SECRET})
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


async def test_errors_of_the_function_are_its_own() -> None:
    @task
    def fail(kind: str) -> None:
        raise LookupError(kind)

    async with Runtime("sqlite:///:memory:") as runtime:
        with pytest.raises(LookupError, match="planned"):
            await executor_of(fail).execute({"kind": "planned"})
        (run,) = await runtime.runs.list()
    assert run.status == "failed"


def test_what_an_executor_says_of_itself() -> None:
    executor = executor_of(fetch_pages)
    assert isinstance(executor, ExecutableTask)
    assert (executor.id, executor.name) == ("fetch_pages", "Fetch pages")
    assert executor_of(outer).name == "Tools outer step"
    assert (executor.description, executor.tags) == ("Fetch pages.", ("web",))
    assert executor_of(inner).tags == ()
    assert executor.get_input_schema()["properties"]["count"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 9,
        "default": 1,
        "description": "How many.",
    }
    executor.get_input_schema()["properties"].clear()
    assert executor.get_input_schema()["required"] == ["url"]
    assert "url" in executor.get_input_schema()["properties"]
    assert executor.get_output_schema()["items"] == {"$ref": "#/$defs/Page"}
    assert executor.supports_checkpoint() is False


def test_methods_are_no_executors() -> None:
    class Agent:
        @task
        async def ask(self, question: str) -> None: ...

    with pytest.raises(ExecutorNotFoundError, match="'ask' is a method"):
        executor_of(Agent.ask)
