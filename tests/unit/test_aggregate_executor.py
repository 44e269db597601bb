"""One result out of those of other tasks."""

from __future__ import annotations

import math
from typing import Any

import pytest

from apflow import InvalidInputsError
from apflow.executors.aggregate import AggregateResultsExecutor

pytestmark = pytest.mark.anyio

RESULTS = {
    "a": {"n": 1, "who": "ada", "deep": {"list": [{"x": 10}, {"x": 20}]}},
    "b": {"n": 2.5, "who": "bob", "deep": {"list": [{"x": 30}]}},
    "c": 7,
}


async def aggregate(**inputs: Any) -> dict[str, Any]:
    inputs.setdefault("dependencies", RESULTS)
    return await AggregateResultsExecutor().execute(inputs)


@pytest.mark.parametrize(
    ("inputs", "expected", "count", "missing"),
    [
        ({}, {"n": 2.5, "who": "bob", "deep": RESULTS["b"]["deep"], "c": 7}, 3, []),  # type: ignore[index]
        ({"source_task_ids": ["b", "a"], "path": "who"}, {"b": "bob", "a": "ada"}, 2, []),
        ({"source_task_ids": ["b", "a"]}, RESULTS["b"] | RESULTS["a"], 2, []),  # type: ignore[operator]
        ({"strategy": "list"}, list(RESULTS.values()), 3, []),
        ({"strategy": "list", "source_task_ids": ["c", "a", "c"], "path": ""}, [7, RESULTS["a"]], 2, []),
        ({"strategy": "list", "path": "deep.list.1.x"}, [20], 1, ["b", "c"]),
        ({"strategy": "sum", "path": "n"}, 3.5, 2, ["c"]),
        ({"strategy": "sum", "path": "deep.list.0.x"}, 40, 2, ["c"]),
        ({"strategy": "sum", "path": "nothing"}, 0, 0, ["a", "b", "c"]),
        ({"strategy": "mean", "path": "deep.list.0.x"}, 20.0, 2, ["c"]),
        ({"strategy": "mean", "path": "nothing"}, None, 0, ["a", "b", "c"]),
        ({"strategy": "count"}, 3, 3, []),
        ({"strategy": "count", "path": "who"}, 2, 2, ["c"]),
        ({"strategy": "first_success"}, RESULTS["a"], 3, []),
        ({"strategy": "first_success", "source_task_ids": ["c", "b"], "path": "n"}, 2.5, 1, ["c"]),
        ({"strategy": "first_success", "dependencies": {}}, None, 0, []),
        ({"strategy": "merge", "dependencies": {}}, {}, 0, []),
    ],
)
async def test_strategies(inputs: dict[str, Any], expected: Any, count: int, missing: list[str]) -> None:
    output = await aggregate(**inputs)
    assert output == {"aggregated_result": expected, "count": count, "missing": missing}
    assert type(output["aggregated_result"]) is type(expected)


async def test_a_large_sum_of_integers_is_exact_and_one_of_fractions_is_rounded_once() -> None:
    big = 10**30
    assert (await aggregate(strategy="sum", dependencies={"a": big, "b": 1}))["aggregated_result"] == big + 1
    tenths = {str(number): 0.1 for number in range(10)}
    assert (await aggregate(strategy="sum", dependencies=tenths))["aggregated_result"] == 1.0


async def test_a_null_is_a_value() -> None:
    output = await aggregate(strategy="first_success", dependencies={"a": None, "b": 1})
    assert output == {"aggregated_result": None, "count": 2, "missing": []}


@pytest.mark.parametrize(
    ("value", "kind"), [("7", "str"), (True, "bool"), (None, "NoneType"), ({"x": 1}, "dict"), ([1], "list")]
)
@pytest.mark.parametrize("strategy", ["sum", "mean"])
async def test_what_is_no_number_is_named_without_its_value(strategy: str, value: Any, kind: str) -> None:
    with pytest.raises(InvalidInputsError, match=f"'wrong' is no number, but {kind}"):
        await aggregate(strategy=strategy, dependencies={"right": 1, "wrong": value})


@pytest.mark.parametrize("strategy", ["sum", "mean"])
async def test_numbers_beyond_what_a_float_holds(strategy: str) -> None:
    with pytest.raises(InvalidInputsError, match="too large"):
        await aggregate(strategy=strategy, dependencies={"a": 1e308, "b": 1e308})
    with pytest.raises(InvalidInputsError, match="too large"):
        await aggregate(strategy="mean", dependencies={"a": 10**400})
    assert math.isfinite((await aggregate(strategy=strategy, dependencies={"a": 1e308}))["aggregated_result"])


@pytest.mark.parametrize(
    "path", ["deep.list.-1", "deep.list.\u0660", "deep.list.2", "who.0", "deep.list." + "9" * 5000, "."]
)
async def test_paths_to_nowhere(path: str) -> None:
    assert (await aggregate(source_task_ids=["a"], path=path, strategy="list"))["missing"] == ["a"]


async def test_a_source_that_is_no_dependency_is_an_error() -> None:
    with pytest.raises(InvalidInputsError, match="'nobody', 'else'"):
        await aggregate(source_task_ids=["a", "nobody", "else"], strategy="first_success")


@pytest.mark.parametrize(
    "inputs", [{"strategy": "median"}, {"source_task_ids": "a"}, {"source_task_ids": [1]}, {"path": 1}, {"sources": []}]
)
async def test_inputs_that_do_not_fit(inputs: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputsError, match=next(iter(inputs))):
        await aggregate(**inputs)


def test_its_schemas_allow_nothing_unknown_and_name_the_output() -> None:
    executor = AggregateResultsExecutor()
    assert executor.get_input_schema()["additionalProperties"] is False
    assert set(executor.get_output_schema()["required"]) == {"aggregated_result", "count", "missing"}
