"""Random graphs, executed for real and compared with what has to be true of every execution."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import apflow
from tests.integration.tree_helpers import Bench, bench, column, ref


@dataclass(frozen=True)
class Graph:
    """A graph whose nodes are numbered so that each depends on smaller numbers only.

    Attributes:
        needs: Of each node, what it depends on and whether it has to complete.
        places: Of each node, its place in the array that it is created with.
        turns: Of each node, how often its function lets others go on.
    """

    needs: list[dict[int, bool]]
    parents: list[int]
    priorities: list[int]
    places: list[int]
    failing: list[bool]
    turns: list[int]

    def tasks(self) -> list[dict[str, Any]]:
        """Return the task dictionaries. Inside the root, which nothing depends on and which depends on nothing."""
        found: list[tuple[int, dict[str, Any]]] = [(-1, {"id": "root", "name": "tg_node", "priority": 3})]
        for number, needs in enumerate(self.needs):
            parent = self.parents[number]
            found.append(
                (
                    self.places[number],
                    {
                        "id": f"n{number}",
                        "name": "tg_node",
                        "parent_id": "root" if parent == number else f"n{parent}",
                        "priority": self.priorities[number],
                        "dependencies": [{"id": f"n{one}", "required": needed} for one, needed in needs.items()],
                        "inputs": {"given": [ref(f"n{one}", default="none") for one in needs]},
                    },
                )
            )
        return [one for _, one in sorted(found, key=lambda pair: pair[0])]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    size = draw(st.integers(1, 24))
    numbers = range(size)

    def each(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=size, max_size=size))

    return Graph(
        needs=[draw(st.dictionaries(st.integers(0, n - 1), st.booleans(), max_size=3)) if n else {} for n in numbers],
        parents=[draw(st.integers(0, n)) for n in numbers],
        priorities=each(st.integers(0, 3)),
        places=draw(st.permutations(numbers)),
        failing=each(st.sampled_from([False, False, False, True])),
        turns=each(st.integers(0, 3)),
    )


class Watch:
    """What was seen of one execution."""

    def __init__(self, graph: Graph, at_once: int) -> None:
        self.graph, self.at_once = graph, at_once
        self.healed = False
        self.started: list[str] = []
        self.ended: dict[str, str] = {}
        self.running = 0

    def begin(self, one: str) -> None:
        """Check that it may run, and that nothing more urgent was waiting."""
        self.running += 1
        assert self.running <= self.at_once
        for needed, required in self.needs(one).items():
            assert self.ended.get(needed) == "completed" if required else needed in self.settled()
        if self.at_once == 1:
            assert self.rank(one) == min(self.rank(other) for other in self.waiting())
        self.started.append(one)

    def end(self, one: str, status: str) -> None:
        self.running -= 1
        self.ended[one] = status

    def needs(self, one: str) -> dict[str, bool]:
        if one == "root":
            return {}
        return {f"n{needed}": required for needed, required in self.graph.needs[int(one[1:])].items()}

    def rank(self, one: str) -> tuple[int, int]:
        if one == "root":
            return (3, -1)
        return (self.graph.priorities[int(one[1:])], self.graph.places[int(one[1:])])

    def settled(self) -> dict[str, str]:
        """Return how everything ended that can no longer change."""
        found = dict(self.ended)
        for number in range(len(self.graph.needs)):  # dependencies have smaller numbers
            one = f"n{number}"
            lost = any(found.get(n) in ("failed", "cancelled") for n, required in self.needs(one).items() if required)
            if lost and one not in found:
                found[one] = "cancelled"
        return found

    def waiting(self) -> list[str]:
        settled = self.settled()
        every = ["root", *(f"n{n}" for n in range(len(self.graph.needs)))]
        return [
            one
            for one in every
            if one not in settled and one not in self.started and all(needed in settled for needed in self.needs(one))
        ]


watches: list[Watch] = []


@apflow.task(name="tg_node")
async def node(given: list[Any] | None = None, dependencies: dict[str, Any] | None = None) -> str:
    watch, here = watches[-1], apflow.current().task_id
    watch.begin(here)
    complete = {one: f"result of {one}" for one in watch.needs(here) if watch.ended.get(one) == "completed"}
    assert (dependencies or {}) == complete
    assert (given or []) == [complete.get(one, "none") for one in watch.needs(here)]
    fails = False
    if here != "root":
        for _ in range(watch.graph.turns[int(here[1:])]):
            await asyncio.sleep(0)
        fails = watch.graph.failing[int(here[1:])] and not watch.healed
    watch.end(here, "failed" if fails else "completed")
    if fails:
        raise ValueError(here)
    return f"result of {here}"


async def compare(made: Bench, watch: Watch) -> None:
    """Check what is stored after an execution."""
    expected = watch.settled()
    assert await made.statuses() == expected
    errors = await made.errors()
    for one, status in expected.items():
        needs = [need for need, required in watch.needs(one).items() if required and expected[need] != "completed"]
        if status == "cancelled":
            assert any(f"needs task {need}, which" in str(errors[one]) for need in needs)
        else:
            assert needs == []
            assert errors[one] == (f"ValueError: {one}" if status == "failed" else None)
    progress = {one: float(part) for one, part in (await column(made.store, "progress")).items()}
    assert progress["root"] == int(100 * sum(s == "completed" for s in expected.values()) / len(expected)) / 100


@given(graphs(), st.integers(1, 5))
@settings(max_examples=40)
def test_every_execution_keeps_to_the_graph(graph: Graph, at_once: int) -> None:
    async def execute(folder: str) -> None:
        async with bench(f"sqlite:///{Path(folder) / 'graph.db'}", at_once=at_once) as made:
            watches[:] = [Watch(graph, at_once)]
            tree = await made.creator.create_task_tree_from_array(graph.tasks())
            assert tree.task.id == "root"
            outcome = await made.manager.execute_task("root")
            assert outcome["status"] == "completed"
            assert len(set(watches[0].started)) == len(watches[0].started)
            await compare(made, watches[0])
            await again(made, graph, at_once)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(execute(folder))


async def again(made: Bench, graph: Graph, at_once: int) -> None:
    """Execute it a second time, when nothing fails any more: only what did not complete runs."""
    first, second = watches[-1], Watch(graph, at_once)
    second.healed = True
    second.ended = {one: status for one, status in first.ended.items() if status == "completed"}
    before = dict(second.ended)
    watches[:] = [second]
    await made.manager.execute_task("root")
    assert before.keys().isdisjoint(second.started)
    assert len(set(second.started)) == len(second.started)
    assert before.keys() | set(second.started) == {"root", *(f"n{n}" for n in range(len(graph.needs)))}
    await compare(made, second)
