"""Results of nodes, for as long as something that has not begun needs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apflow.engine.loading import results_in

if TYPE_CHECKING:
    from collections.abc import Iterable

    from apflow.engine.plan import Node, Plan
    from apflow.storage.store import Store

#: Characters of JSON kept in memory; what is beyond is read from the database when it is needed.
KEPT = 16_000_000


class Results:
    """The results that one execution has at hand. They are in the database too, so it never needs to keep one."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._kept: dict[str, str | None] = {}
        self._size = 0
        self._wanted: dict[str, int] = {}
        for node in plan.nodes.values():
            if not node.ended:
                for needed, _ in node.needs:
                    self._wanted[needed] = self._wanted.get(needed, 0) + 1

    def keep(self, task_id: str, text: str | None) -> None:
        """Remember the result of a task that has completed, if somebody will need it and there is room."""
        size = len(text or "")
        if self._wanted.get(task_id) and task_id not in self._kept and self._size + size <= KEPT:
            self._kept[task_id] = text
            self._size += size

    def release(self, node: Node) -> None:
        """Let go of what only this node still needed; it has ended."""
        for needed, _ in node.needs:
            left = self._wanted.get(needed, 0) - 1
            if left > 0:
                self._wanted[needed] = left
                continue
            self._wanted.pop(needed, None)
            if needed in self._kept:
                self._size -= len(self._kept.pop(needed) or "")

    async def of(self, nodes: Iterable[Node], store: Store) -> dict[str, str | None]:
        """Return the results of all dependencies of these nodes that completed, as JSON text, by id."""
        found: dict[str, str | None] = {}
        missing: dict[str, None] = {}
        for node in nodes:
            for needed, _ in node.needs:
                if needed in self._kept:
                    found[needed] = self._kept[needed]
                elif self._has_completed(needed):
                    missing[needed] = None
        if missing:
            rows = await store.read(lambda tx: results_in(tx, list(missing)))
            for one, (status, text) in rows.items():
                if status == "completed":
                    found[one] = text
                    self.keep(one, text)
        return found

    def _has_completed(self, task_id: str) -> bool:
        """Whether a dependency has; one that is not in the plan has."""
        node = self._plan.nodes.get(task_id)
        return node is None or node.status == "completed"
