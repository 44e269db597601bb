"""One task dictionary, references in inputs, circles, and trees as objects."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apflow.cycles import cycles, drawn
from apflow.engine.specs import FIELDS, Dependency, Reference, TaskSpec, fill, is_reference, read_task, references
from apflow.engine.tree import TaskTreeNode, tree_of, trees_of
from apflow.errors import InvalidInputsError, TaskTreeError
from apflow.storage.tables import TaskModel
from apflow.storage.task_rows import models_of

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
FULL: dict[str, Any] = {
    "id": "a",
    "name": "work",
    "inputs": {"x": [1, 2.5, None, {"y": "ü"}]},
    "params": {"p": True},
    "parent_id": "p",
    "dependencies": ["b", {"id": "c", "required": False}, {"id": "d"}],
    "priority": 0,
    "token_budget": 1,
    "cost_policy": "thrifty",
    "max_attempts": 100,
    "backoff_strategy": "linear",
    "backoff_base_seconds": 0.1,
    "estimated_cost_usd": "0.25",
    "user_id": "ada",
    "schemas": {"method": "other", "type": "stdio"},
    "task_tree_id": "t",
}


def read(task: object) -> tuple[TaskSpec | None, list[str]]:
    found: list[str] = []
    return read_task(task, 0, found.append), found


def good(**fields: Any) -> TaskSpec:
    spec, found = read({"name": "work"} | fields)
    assert found == []
    assert spec is not None
    return spec


# -- fields --------------------------------------------------------------------------------------------------


def test_every_field_is_read() -> None:
    assert FULL.keys() == FIELDS.keys()
    spec = good(**FULL)
    assert (spec.id, spec.name, spec.executor_id, spec.parent_id, spec.task_tree_id) == ("a", "work", "other", "p", "t")
    assert (spec.inputs, spec.params, spec.schemas) == (FULL["inputs"], FULL["params"], FULL["schemas"])
    assert spec.dependencies == (Dependency("b"), Dependency("c", required=False), Dependency("d"))
    assert (spec.priority, spec.token_budget, spec.cost_policy, spec.user_id) == (0, 1, "thrifty", "ada")
    assert (spec.max_attempts, spec.backoff_strategy) == (100, "linear")
    assert (str(spec.backoff_base_seconds), str(spec.estimated_cost_usd)) == ("0.10", "0.250000")
    assert spec.broken == frozenset()


def test_what_is_left_out_or_none_has_its_default() -> None:
    for task in ({}, dict.fromkeys(FIELDS.keys() - {"name"})):
        spec = good(**task)
        assert (spec.executor_id, spec.priority, spec.dependencies) == ("work", 2, ())
        assert (spec.inputs, spec.params, spec.max_attempts, spec.estimated_cost_usd) == (None,) * 4
        assert len(spec.id) == 36
        assert spec.label == "tasks[0]"


def test_the_result_is_detached_from_the_dictionary() -> None:
    inputs = {"deep": [{"a": 1}]}
    spec, _ = read(MappingProxyType({"name": "work", "inputs": MappingProxyType(inputs)}))
    assert spec is not None
    assert spec.inputs == inputs
    inputs["deep"][0]["a"] = 2
    assert spec.inputs == {"deep": [{"a": 1}]}


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def refused(field: str, *values: Any) -> list[tuple[str, Any]]:
    return [(field, value) for value in values]


WRONG = [
    *refused("id", "", " ", "a\0", "i" * 256, 1, "\ud800"),
    *refused("name", "", "n" * 101, 5, ["work"]),
    *refused("parent_id", "", 7),
    *refused("user_id", "", "u" * 256),
    *refused("task_tree_id", "\t", {}),
    *refused("cost_policy", "", "c" * 101),
    *refused("priority", -1, 4, 1.0, "2", True),
    *refused("token_budget", 0, 2**31, 1.5, False),
    *refused("max_attempts", 0, 101, "3"),
    *refused("backoff_strategy", "EXPONENTIAL", 1, ["fixed"]),
    *refused("backoff_base_seconds", 0.09, 3600.1, float("nan"), True, "soon"),
    *refused("estimated_cost_usd", -0.1, 1_000_000, float("inf"), [], "1e999999999"),
    *refused("inputs", [], "x", {1: 2}, {"a": (1,)}, {"a": {1}}, {"a": float("nan")}),
    *refused("inputs", {"a": "\ud800"}, {"a": nested(101)}, {"a": nested(100_000)}, {"a": 10**5000}),
    *refused("params", 1, {"a": object()}),
    *refused("schemas", [], {"method": 1}, {"method": " "}),
    *refused("dependencies", "b", {"id": "b"}, [1], [None], [{"required": True}], [[]]),
    *refused("dependencies", [{"id": "b", "required": 1}], [{"id": "b", "type": "x"}], ["a\0"]),
    *refused("inputs", {"$from": "b"}, {"a": {"$from": 1}}, {"a": [{"$from": "b", "path": 1}]}),
]


@pytest.mark.parametrize(("field", "value"), WRONG, ids=[f"{field}-{place}" for place, (field, _) in enumerate(WRONG)])
def test_a_value_out_of_its_range_is_refused(field: str, value: Any) -> None:
    spec, found = read({"name": "work"} | {field: value})
    assert spec is not None
    assert field in spec.broken
    assert any(field in text for text in found)
    secret = value if isinstance(value, str) and len(value) > 1 else "nothing"
    assert secret not in "".join(found)


@pytest.mark.parametrize("value", [[], "a", None, 5], ids=repr)
def test_a_task_is_a_dictionary(value: object) -> None:
    spec, found = read(value)
    assert spec is None
    assert [text for text in found if "dictionary" in text]


def test_unknown_keys_are_named_with_those_that_are_allowed() -> None:
    _, found = read({"name": "work", "nmae": 1, 7: 2})
    assert "'nmae', 7" in found[0]
    assert "max_attempts" in found[0]
    _, found = read({"name": "work"} | {f"key{number}": 1 for number in range(1000)})
    assert "and 995 more" in found[0]


def test_a_name_is_required() -> None:
    for task in ({}, {"name": None}):
        spec, found = read(task)
        assert spec is not None
        assert spec.broken == {"name"}
        assert found == ["has no name"]


def test_inputs_may_be_a_hundred_levels_deep() -> None:
    assert good(inputs={"a": nested(99)}).inputs == {"a": nested(99)}


# -- references ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"$from": "a"}, True),
        ({"$from": "a", "path": "b"}, True),
        ({"$from": "a", "path": "b", "default": None}, True),
        ({"$from": "a", "other": 1}, False),
        ({"path": "b"}, False),
        ({}, False),
        ("$from", False),
    ],
    ids=str,
)
def test_a_reference_has_from_and_nothing_unknown(value: object, expected: bool) -> None:
    assert is_reference(value) is expected


def test_references_are_found_however_deep() -> None:
    inputs = {"a": {"$from": "x"}, "b": [[{"c": {"$from": "y", "path": "p.0", "default": None}}]], "d": {"from": "z"}}
    assert set(references(inputs)) == {Reference("x"), Reference("y", "p.0", None, has_default=True)}


def test_later_names_what_is_not_known_yet() -> None:
    inputs = {"a": [{"$from": "x"}], "b": {"c": {"$from": "x"}}, "d": 1}
    assert good(inputs=inputs, dependencies=["x"]).later == {"a", "b", "dependencies"}
    assert good(inputs={"d": 1}).later == frozenset()
    assert good(dependencies=["x"]).later == {"dependencies"}


RESULTS: Mapping[str, Any] = {"x": {"list": [{"n": 1}, 2], "0": "zero", "": "empty"}, "y": {"$from": "x"}, "z": None}


def looked_up(reference: Reference) -> Any:
    return RESULTS[reference.id]


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ({"$from": "x", "path": "list.0.n"}, 1),
        ({"$from": "x", "path": "list.1"}, 2),
        ({"$from": "x", "path": "0"}, "zero"),
        ({"$from": "x", "path": "list."}, "-"),
        ({"$from": "x", "path": ""}, RESULTS["x"]),
        ({"$from": "y"}, {"$from": "x"}),
        ({"$from": "z", "default": 5}, None),
        ({"$from": "nobody", "default": {"$from": "x"}}, {"$from": "x"}),
        *(
            ({"$from": "x", "path": path}, "-")
            for path in ("list.2", "list.-1", "list.²", "list.\u0661", "list.n", "0.0", "list.0.n.m")
        ),
        ({"$from": "x", "path": "list." + "1" * 5000}, "-"),
        ({"$from": "z", "path": "a"}, "-"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_results_take_the_place_of_references(reference: dict[str, Any], expected: Any) -> None:
    given_one = reference if "default" in reference else reference | {"default": "-"}
    inputs = {"a": [given_one, 7], "b": {"c": given_one}}
    before = repr(inputs)
    assert fill(inputs, looked_up) == {"a": [expected, 7], "b": {"c": expected}}
    assert repr(inputs) == before


@pytest.mark.parametrize(
    "reference", [{"$from": "x", "path": "secret.7"}, {"$from": "nobody"}, {"$from": "z", "path": "a"}], ids=str
)
def test_a_missing_place_without_default_is_an_error(reference: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputsError) as caught:
        fill({"a": reference}, looked_up)
    assert repr(reference["$from"]) in str(caught.value)
    assert repr(reference.get("path", "")) in str(caught.value) or "path" not in reference


# -- circles -------------------------------------------------------------------------------------------------

edges = st.integers(1, 7).flatmap(
    lambda size: st.dictionaries(
        st.sampled_from("abcdefg"[:size]), st.lists(st.sampled_from("abcdefgh"), max_size=4), max_size=size
    )
)


@given(edges)
def test_a_circle_is_found_if_there_is_one(graph: dict[str, list[str]]) -> None:
    found = list(cycles(graph))
    for circle in found:
        assert len(set(circle)) == len(circle)
        assert all(after in graph[one] for one, after in zip(circle, [*circle[1:], circle[0]], strict=True))
    left = {one: set(targets) & graph.keys() for one, targets in graph.items()}
    while free := [one for one, targets in left.items() if not targets]:
        left = {one: targets.difference(free) for one, targets in left.items() if one not in free}
    assert bool(found) == bool(left)


def test_a_long_circle_is_found_and_drawn_short() -> None:
    ring = {str(number): [str((number + 1) % 50_000)] for number in range(50_000)}
    (circle,) = cycles(ring)
    assert len(circle) == 50_000
    assert len(drawn(circle)) < 200
    assert drawn(["a", "b"]) == "'a' -> 'b' -> 'a'"


# -- trees ---------------------------------------------------------------------------------------------------


def task(task_id: str, parent: str | None = None, *, minute: int = 0, **values: Any) -> TaskModel:
    created = NOON + timedelta(minutes=minute)
    row = {"id": task_id, "parent_id": parent, "name": "work", "created_at": created, "status": "pending"} | values
    return models_of([row])[0]


def ids(tree: TaskTreeNode) -> list[str]:
    return [node.task.id for node in tree.walk()]


def test_objects_from_rows_are_what_the_constructor_makes() -> None:
    row = {"id": "a", "name": "work", "inputs": {"x": 1}, "priority": None}
    nothing: dict[str, Any] = dict.fromkeys(TaskModel.model_fields)
    made, other = models_of([row])[0], TaskModel(**(nothing | row))
    assert made.to_dict() == other.to_dict()
    assert made.model_dump() == other.model_dump()
    made.name = "play"
    assert (made.name, made.error) == ("play", None)


def test_trees_are_built_in_the_order_of_creation() -> None:
    models = [task("c", "a", minute=3), task("b", "a", minute=2), task("d", "b"), task("e"), task("a"), task("x", "q")]
    trees = trees_of(models)
    assert [ids(tree) for tree in trees] == [["a", "b", "d", "c"], ["e"], ["x"]]
    assert ids(tree_of(models[1], models)) == ["b", "d"]
    assert ids(tree_of(models[4], models[:3])) == ["a", "b", "d", "c"]
    assert repr(trees[0]) == "<TaskTreeNode 'a' with 2 children>"


def test_tasks_inside_each_other_make_no_tree() -> None:
    with pytest.raises(TaskTreeError, match="'a' -> 'b' -> 'a'") as caught:
        trees_of([task("a", "b"), task("b", "a"), task("c")])
    assert caught.value.ids == ("a", "b")
    assert ids(tree_of(task("a", "b"), [task("b", "a"), task("c", "b")])) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["completed", "failed", "cancelled", "pending"], "failed"),
        (["completed", "cancelled", "in_progress"], "cancelled"),
        (["completed", "completed"], "completed"),
        (["pending", None], "pending"),
        (["completed", "pending"], "in_progress"),
        (["in_progress"], "in_progress"),
    ],
    ids=str,
)
def test_the_status_of_a_tree(statuses: list[str | None], expected: str) -> None:
    models = [task(str(place), "0" if place else None, status=status) for place, status in enumerate(statuses)]
    assert trees_of(models)[0].status == expected


def test_the_progress_of_a_tree_is_a_mean() -> None:
    progress = [Decimal("0.50"), Decimal(1), None, Decimal("0.25")]
    models = [task(str(place), str(place - 1) if place else None, progress=one) for place, one in enumerate(progress)]
    assert trees_of(models)[0].progress == pytest.approx(1.75 / 4)


def test_a_tree_may_be_ten_thousand_levels_deep() -> None:
    tree = trees_of([task(str(place), str(place - 1) if place else None, minute=place) for place in range(10_000)])[0]
    assert ids(tree) == [str(place) for place in range(10_000)]
    assert (tree.progress, tree.status) == (0.0, "pending")
    shown, levels = tree.to_dict(), 1
    while shown["children"]:
        (shown,) = shown["children"]
        levels += 1
    assert (levels, shown["id"]) == (10_000, "9999")
