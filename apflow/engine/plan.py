"""The dependency graph of one execution, in memory: what may run next, and what can never run any more."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: A dependency that is not there any more has ended, too.
ENDED = frozenset({"completed", "failed", "cancelled", "missing"})
NORMAL = 2


@dataclass(slots=True, eq=False)
class Node:
    """One task of the graph.

    Attributes:
        needs: Ids of the tasks that it depends on, and whether each has to complete.
        status: As its row says; changes here when it changes there.
        epoch: Of its row: how often it was begun.
        executor: Id of what it runs.
        waits: How many of its dependencies have not ended.
    """

    id: str
    position: int
    parent_id: str | None
    priority: int
    needs: tuple[tuple[str, bool], ...]
    status: str
    epoch: int
    root_id: str
    executor: str = ""
    waits: int = 0
    dependents: list[tuple[Node, bool]] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Whether it needs nothing more."""
        return self.status in ENDED


class Plan:
    """What of a graph is left to do.

    A node is ready when all its dependencies have ended and the required ones have completed. Among ready nodes the
    one with the smallest priority number goes first, then the one that was created first. All work over the life of
    a plan is linear in nodes and dependencies, but for the heap of ready nodes.

    Args:
        nodes: The graph. Dependencies that are not among them are taken to have completed.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.nodes = {node.id: node for node in nodes}
        self._order = sorted(self.nodes.values(), key=lambda node: node.position)
        self._ready: list[tuple[int, int, Node]] = []
        self.left = sum(not node.ended for node in self.nodes.values())
        self.dead: list[tuple[Node, Node]] = []
        for node in self.nodes.values():
            for needed, required in node.needs:
                other = self.nodes.get(needed)
                if other is None:
                    continue
                other.dependents.append((node, required))
                node.waits += not other.ended
        for node in self.nodes.values():
            self._consider(node)
        for node in self.nodes.values():
            if node.ended and node.status != "completed":
                self._condemn(node)

    def _consider(self, node: Node) -> None:
        if node.waits == 0 and not node.ended:
            heapq.heappush(self._ready, (node.priority, node.position, node))

    @property
    def ready(self) -> bool:
        """Whether something may run now."""
        self._drop_ended()
        return bool(self._ready)

    def pop(self) -> Node:
        """Return the most urgent ready node; it is ready no more."""
        self._drop_ended()
        return heapq.heappop(self._ready)[2]

    def next(self, node: Node, count: int) -> list[Node]:
        """Return nodes that are likely to run soon.

        Args:
            node: One that runs now.
            count: How many at most of those that are ready; as many more wait for `node`, at once or later, or were
                made after it.
        """
        ready = [one for _, _, one in self._ready[:count]]
        made_after = self._order[node.position + 1 : node.position + 1 + count]
        soon = dict.fromkeys((*ready, *self._waiting(node, count), *made_after))
        return [one for one in soon if one.status == "pending"][: 2 * count]

    @staticmethod
    def _waiting(node: Node, count: int) -> list[Node]:
        """Return at most `count` of the nodes that wait for this one, the nearest first."""
        found = dict.fromkeys((node,))
        edge = deque(found)
        while edge and len(found) <= count:
            for dependent, _ in edge.popleft().dependents[: count + 1 - len(found)]:
                if dependent not in found:
                    found[dependent] = None
                    edge.append(dependent)
        return list(found)[1:]

    def _drop_ended(self) -> None:
        while self._ready and self._ready[0][2].ended:
            heapq.heappop(self._ready)

    def end(self, node: Node, status: str) -> None:
        """Take note that a node has ended; what that makes impossible is in `dead` afterwards.

        Args:
            node: It.
            status: `completed`, `failed` or `cancelled`.
        """
        self.end_all((node,), status)

    def end_all(self, nodes: Iterable[Node], status: str) -> None:
        """Do what `end` does for several nodes that end together: none of them is dead because of another."""
        ended = [node for node in nodes if not node.ended]
        for node in ended:
            node.status = status
        self.left -= len(ended)
        for node in ended:
            self._release(node)
            if status != "completed":
                self._condemn(node)

    def _release(self, node: Node) -> None:
        for dependent, _ in node.dependents:
            dependent.waits -= 1
            self._consider(dependent)

    def _condemn(self, failed: Node) -> None:
        """Cancel what cannot run without a node that did not complete, and what cannot run without that."""
        causes = [failed]
        while causes:
            cause = causes.pop()
            for dependent, required in cause.dependents:
                if required and not dependent.ended:
                    dependent.status = "cancelled"
                    self.left -= 1
                    self.dead.append((dependent, cause))
                    self._release(dependent)
                    causes.append(dependent)

    def take_dead(self) -> list[tuple[Node, Node]]:
        """Return the nodes that were cancelled here since the last time, each with the one that it needed."""
        dead, self.dead = self.dead, []
        return dead
