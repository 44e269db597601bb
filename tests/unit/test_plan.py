"""The plan of a graph, against a model that looks at everything again after each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from apflow.engine.plan import ENDED, Node, Plan
from apflow.engine.progress import shares

Kind = Literal["required", "optional"]


@dataclass(frozen=True)
class Graph:
    """A graph whose nodes are numbered so that each depends on smaller numbers only.

    Attributes:
        needs: Of each node, the nodes that it depends on.
        parents: Of each node, the one that it is inside of.
        places: Of each node, when it was created.
        outcomes: Of each node, how it ends when it runs.
    """

    needs: list[dict[int, Kind]]
    parents: list[int | None]
    priorities: list[int]
    places: list[int]
    statuses: list[str]
    outcomes: list[str]

    def plan(self) -> Plan:
        """Return the plan, given its nodes in the order of their creation."""
        nodes = [
            Node(
                id=f"n{number}",
                position=self.places[number],
                parent_id=None if self.parents[number] is None else f"n{self.parents[number]}",
                priority=self.priorities[number],
                needs=tuple((f"n{one}", kind == "required") for one, kind in self.needs[number].items()),
                status=self.statuses[number],
                epoch=0,
                root_id="n0",
            )
            for number in range(len(self.needs))
        ]
        return Plan(sorted(nodes, key=lambda node: node.position))


@st.composite
def graphs(draw: st.DrawFn, *, begun: bool = True) -> Graph:
    size = draw(st.integers(1, 12))
    kinds: st.SearchStrategy[Kind] = st.sampled_from(["required", "required", "optional"])
    numbers = range(size)
    statuses = ["pending"] * 6 + ["completed", "failed", "cancelled", "in_progress"] if begun else ["pending"]
    return Graph(
        needs=[draw(st.dictionaries(st.integers(0, n - 1), kinds, max_size=3)) if n else {} for n in numbers],
        parents=[draw(st.none() | st.integers(0, n - 1)) if n else None for n in numbers],
        priorities=draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)),
        places=draw(st.permutations(numbers)),
        statuses=draw(st.lists(st.sampled_from(statuses), min_size=size, max_size=size)),
        outcomes=draw(
            st.lists(st.sampled_from(["completed", "completed", "failed", "cancelled"]), min_size=size, max_size=size)
        ),
    )


class Model:
    """What has to be true of a plan, worked out from the statuses alone."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.status = {f"n{n}": status for n, status in enumerate(graph.statuses)}
        self.running: list[str] = []
        self.started: list[str] = []
        self.killed: dict[str, str] = {}
        self.kill()

    def needs(self, one: str) -> dict[str, Kind]:
        return {f"n{needed}": kind for needed, kind in self.graph.needs[int(one[1:])].items()}

    def kill(self) -> None:
        """Cancel what needs something that did not complete, until nothing more changes."""
        while True:
            doomed = [
                (one, needed)
                for one, status in self.status.items()
                if status not in ENDED
                for needed, kind in self.needs(one).items()
                if kind == "required" and self.status[needed] in ("failed", "cancelled")
            ]
            if not doomed:
                return
            one, needed = doomed[0]
            self.status[one], self.killed[one] = "cancelled", needed

    def ready(self) -> list[str]:
        """Return what may run now, the most urgent first."""
        found = [
            one
            for one, status in self.status.items()
            if status not in ENDED
            and one not in self.running
            and all(self.status[needed] in ENDED for needed in self.needs(one))
        ]
        return sorted(found, key=lambda one: (self.graph.priorities[int(one[1:])], self.graph.places[int(one[1:])]))

    def end(self, one: str, status: str) -> None:
        self.running.remove(one)
        self.status[one] = status
        self.kill()

    def share(self, one: str) -> float:
        """Return how much of a node and what is inside it has completed."""
        inside = [one]
        for other in inside:
            inside += [
                f"n{n}" for n, parent in enumerate(self.graph.parents) if parent is not None and f"n{parent}" == other
            ]
        return sum(self.status[other] == "completed" for other in inside) / len(inside)


def compare(plan: Plan, model: Model) -> None:
    """Check everything that a plan tells."""
    assert {one: node.status for one, node in plan.nodes.items()} == model.status
    assert plan.left == sum(status not in ENDED for status in model.status.values())
    assert plan.ready == bool(model.ready())
    assert progress(plan) == {f"n{one}": model.share(f"n{one}") for one in model.graph.parents if one is not None}


def progress(plan: Plan) -> dict[str, float]:
    """Return how far the nodes are that have others inside them, by the statuses of a plan."""
    parents = {node.id: node.parent_id for node in plan.nodes.values()}
    return shares(parents, [node.id for node in plan.nodes.values() if node.status == "completed"])


def take_dead(plan: Plan, model: Model, told: set[str]) -> None:
    """Check what the plan tells of nodes that can never run."""
    for node, cause in plan.take_dead():
        assert node.id not in told
        assert model.needs(node.id)[cause.id] == "required"
        assert model.status[cause.id] in ("failed", "cancelled")
        told.add(node.id)
    assert told == model.killed.keys()


@given(graphs(), st.integers(1, 4), st.data())
def test_a_plan_does_what_the_model_says(graph: Graph, at_once: int, data: st.DataObject) -> None:
    plan, model = graph.plan(), Model(graph)
    told: set[str] = set()
    while True:
        take_dead(plan, model, told)
        while len(model.running) < at_once and plan.ready:
            expected = model.ready()[0]
            assert plan.pop().id == expected
            model.running.append(expected)
            model.started.append(expected)
        compare(plan, model)
        if not model.running:
            break
        ending = data.draw(st.sampled_from(model.running))
        status = graph.outcomes[int(ending[1:])]
        plan.end(plan.nodes[ending], status)
        model.end(ending, status)
    assert plan.left == 0
    assert len(set(model.started)) == len(model.started)
    assert set(model.status.values()) <= ENDED


@given(graphs(begun=False))
@settings(max_examples=50)
def test_what_is_dead_is_what_needs_something_that_did_not_complete(graph: Graph) -> None:
    plan = graph.plan()
    while plan.ready:
        node = plan.pop()
        plan.end(node, graph.outcomes[int(node.id[1:])])
    for number, needs in enumerate(graph.needs):
        lost = any(
            kind == "required" and plan.nodes[f"n{one}"].status in ("failed", "cancelled")
            for one, kind in needs.items()
        )
        assert plan.nodes[f"n{number}"].status == ("cancelled" if lost else graph.outcomes[number])


def node(one: str, position: int, *needs: tuple[str, bool], status: str = "pending", parent: str | None = None) -> Node:
    return Node(one, position, parent, 2, needs, status, 0, "a")


def test_a_node_that_has_ended_ends_once() -> None:
    first, second = node("a", 0), node("b", 1, ("a", True))
    plan = Plan([first, second])
    plan.end(first, "completed")
    plan.end(first, "failed")
    assert (first.status, plan.left, plan.take_dead()) == ("completed", 1, [])
    assert plan.pop() is second


def test_what_a_plan_does_not_have_counts_as_completed() -> None:
    plan = Plan([node("a", 0, ("elsewhere", True))])
    assert plan.ready


def test_a_node_that_was_ready_and_ended_elsewhere_is_not_popped() -> None:
    first, second = node("a", 0), node("b", 1)
    plan = Plan([first, second])
    plan.end(first, "cancelled")
    assert plan.pop() is second
    assert not plan.ready


def test_what_is_likely_to_run_soon() -> None:
    urgent = Node("c", 2, None, 0, (), "pending", 0, "a")
    nodes = [node("a", 0), node("b", 1, status="completed"), urgent, node("d", 3, ("a", True)), node("e", 4)]
    plan = Plan(nodes)
    assert {one.id for one in plan.next(nodes[0], 1)} == {"c", "d"}  # the ready one, and the one that waits for it
    assert {one.id for one in plan.next(urgent, 1)} == {"c", "d"}  # the ready one, and the next one by age
    assert {one.id for one in plan.next(nodes[0], 9)} == {"a", "c", "d", "e"}
    assert plan.next(nodes[0], 0) == []


def test_deep_trees_need_no_deep_stack() -> None:
    size = 5_000
    chain = [node(f"a{n}", n, (f"a{n - 1}", True), parent=f"a{n - 1}") for n in range(1, size)]
    plan = Plan([node("a0", 0), *chain])
    plan.end(plan.pop(), "failed")
    assert plan.left == 0
    assert len(plan.take_dead()) == size - 1
    assert set(progress(plan).values()) == {0.0}
