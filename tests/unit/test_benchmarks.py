"""The bench judges as the design says, and lets no failing side stop the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.door_rows import DOOR_EXPERIMENTS, DOOR_ROWS
from tests.benchmarks.graph_rows import graph_experiments, graph_rows
from tests.benchmarks.graphs import Tree, chain, fan_out, layered, sleepers
from tests.benchmarks.measure import Experiment, Outcome, run
from tests.benchmarks.rows import EXPERIMENTS, ROWS
from tests.benchmarks.sides import Crew, Missing, NotMeasuredError, Sample, Side, Worker
from tests.benchmarks.verdict import Row, judge


class Scripted:
    """A side whose measurements are given, and that notes when it had its turn."""

    def __init__(self, name: str, turns: list[str]) -> None:
        self.name = name
        self.turns = turns

    def measure(self, scenario: str, count: int) -> Sample:
        self.turns.append(f"{self.name}:{scenario}:{count}")
        return Sample(1.0, 1.0)

    def close(self) -> None:
        pass


class Member(Worker):
    """A worker whose answers are given."""

    def __init__(self, name: str, turns: list[str], *, fails: bool = False) -> None:
        super().__init__("python", "nothing", log=Path("log"))
        self.name = name
        self.turns = turns
        self.fails = fails

    def ask(self, scenario: str, count: int) -> None:
        self.turns.append(f"{self.name} asked:{scenario}:{count}")

    def answer(self) -> Sample:
        self.turns.append(f"{self.name} answered")
        if self.fails:
            raise NotMeasuredError("it failed")
        return Sample(1.0, 1.0)


def samples(*seconds: float) -> Outcome:
    return [Sample(value, value) for value in seconds]


def row(**options: object) -> Row:
    return Row(what="it", against="that", experiment="e", ours="us", reference="them", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("compare", "limit", "ours", "figure", "holds"),
    [
        ("costs", 3.0, 0.3, 3.0, True),
        ("costs", 3.0, 0.31, 3.1, False),
        ("faster", 10.0, 0.01, 10.0, True),
        ("faster", 10.0, 0.02, 5.0, False),
        ("adds", 0.06, 0.15, 0.05, True),
        ("adds", 0.06, 0.17, 0.07, False),
        ("faster", None, 0.02, 5.0, None),
    ],
)
def test_a_figure_is_held_against_its_bound(
    compare: str, limit: float | None, ours: float, figure: float, holds: bool | None
) -> None:
    verdict = judge(row(compare=compare, limit=limit), {"us": samples(ours), "them": samples(0.1)})
    assert verdict.figure == pytest.approx(figure)
    assert verdict.holds is holds


def test_repeats_are_compared_with_their_neighbours() -> None:
    # The machine was ten times slower in the second half; each side alone has another median then.
    outcomes = {"us": samples(1, 10, 10), "them": samples(2, 2, 20)}
    verdict = judge(row(compare="costs", limit=1), outcomes)
    assert (verdict.ours, verdict.reference, verdict.figure) == (10, 2, 0.5)


def test_a_rate_alone_can_keep_the_promise() -> None:
    promise = row(limit=25, or_rate=5000, unit="per second")
    assert judge(promise, {"us": samples(1 / 6000), "them": "no DBOS here"}).holds is True
    assert judge(promise, {"us": samples(1 / 4000), "them": samples(1 / 100)}).holds is True
    assert judge(promise, {"us": samples(1 / 4000), "them": samples(1 / 1000)}).holds is False
    assert judge(promise, {"us": samples(1 / 4000), "them": "no DBOS here"}).holds is None


def test_what_was_not_measured_says_why() -> None:
    verdict = judge(row(limit=10), {"us": samples(1), "them": "no DBOS here"})
    assert (verdict.figure, verdict.holds, verdict.reason) == (None, None, "no DBOS here")


def test_sides_take_turns_in_both_orders_after_a_warm_up() -> None:
    turns: list[str] = []
    sides: dict[str, Side] = {"a": Scripted("a", turns), "b": Scripted("b", turns)}
    experiment = Experiment(scenario="s", counts={"a": 9, "b": 7}, repeats=(3, 1))
    outcomes = run(experiment, sides, quick=False)
    assert turns == ["a:s:5", "b:s:5", "a:s:9", "b:s:7", "b:s:7", "a:s:9", "a:s:9", "b:s:7"]
    assert outcomes == {"a": samples(1, 1, 1), "b": samples(1, 1, 1)}


def test_a_missing_side_leaves_the_others_measured() -> None:
    sides: dict[str, Side] = {"a": Scripted("a", []), "b": Missing("not here")}
    experiment = Experiment(scenario="s", counts={"a": 1, "b": 1}, repeats=(3, 2))
    assert run(experiment, sides, quick=True) == {"a": samples(1, 1), "b": "not here"}


@pytest.mark.parametrize("quick", [False, True])
def test_every_row_has_its_experiment(*, quick: bool) -> None:
    experiments = EXPERIMENTS | DOOR_EXPERIMENTS | graph_experiments(quick=quick)
    for line in (*ROWS, *DOOR_ROWS, *graph_rows(quick=quick)):
        assert {line.ours, line.reference} <= set(experiments[line.experiment].counts)


def test_parts_of_one_repeat_are_compared() -> None:
    outcome: Outcome = [Sample(9, 9, {"a": 6, "b": 2}), Sample(9, 9, {"a": 8, "b": 4}), Sample(9, 9, {"a": 1, "b": 1})]
    verdict = judge(row(compare="costs", part="a", reference_part="b", limit=2), {"us": outcome, "them": outcome})
    assert (verdict.ours, verdict.reference, verdict.figure, verdict.holds) == (6, 2, 2, True)


@pytest.mark.parametrize(
    ("tree", "edges"),
    [
        (chain(4), [[], [0], [1], [2]]),
        (fan_out(4), [[], [0], [0], [0]]),
        (sleepers("nap", [0.1] * 5), [[], [0], [0], [0], [1, 2, 3]]),
    ],
)
def test_graphs_have_the_edges_of_their_shape(tree: Tree, edges: list[list[int]]) -> None:
    assert [node["dependencies"] for node in tree] == [[f"node-{n}" for n in needed] for needed in edges]


def test_a_layer_needs_only_the_one_above() -> None:
    tree = layered(65)
    layers = {node["id"]: place // 20 for place, node in enumerate(tree)}
    for node in tree[20:]:
        assert {layers[needed] for needed in node["dependencies"]} == {layers[node["id"]] - 1}
        assert len(set(node["dependencies"])) == 3
    assert layered(65) == tree


def test_a_crew_works_at_the_same_time() -> None:
    turns: list[str] = []
    Crew([Member("a", turns), Member("b", turns)]).measure("s", 9)
    assert turns == ["a asked:s:5", "b asked:s:5", "a answered", "b answered"]


def test_a_crew_is_not_measured_without_one_of_it() -> None:
    with pytest.raises(NotMeasuredError, match="it failed"):
        Crew([Member("a", []), Member("b", [], fails=True)]).measure("s", 9)
