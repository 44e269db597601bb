"""Trees of tasks as objects."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from apflow.cycles import cycles, drawn
from apflow.errors import TaskTreeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from apflow.storage.tables import TaskModel


@dataclass(slots=True, eq=False, repr=False)
class TaskTreeNode:
    """A task and the tasks inside it. A tree may be thousands of levels deep: nothing here recurses.

    Attributes:
        task: The row, as it was when it was read or written.
        children: What is directly inside, in the order of creation.
    """

    task: TaskModel
    children: list[TaskTreeNode] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<TaskTreeNode {self.task.id!r} with {len(self.children)} children>"

    def walk(self) -> Iterator[TaskTreeNode]:
        """Yield this node and all below it, each before its children, in the order of creation."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += reversed(node.children)

    @property
    def progress(self) -> float:
        """The mean of the progress of this node and all below it, 0 to 1."""
        parts = [float(node.task.progress or 0) for node in self.walk()]
        return sum(parts) / len(parts)

    @property
    def status(self) -> str:
        """What the whole subtree is.

        `failed` when any of it failed, else `cancelled` when any of it was; `completed` or `pending` when all of it
        is, and `in_progress` otherwise.
        """
        found = Counter(node.task.status or "pending" for node in self.walk())
        for decisive in ("failed", "cancelled"):
            if decisive in found:
                return decisive
        return next(iter(found)) if len(found) == 1 else "in_progress"

    def to_dict(self) -> dict[str, Any]:
        """Return the columns of the task as JSON has them, and under `children` the same of what is inside."""
        whole = self.task.to_dict() | {"children": []}
        waiting = [(self, whole)]
        while waiting:
            node, shown = waiting.pop()
            for child in node.children:
                below = child.task.to_dict() | {"children": []}
                shown["children"].append(below)
                waiting.append((child, below))
        return whole


def tree_of(root: TaskModel, models: Iterable[TaskModel]) -> TaskTreeNode:
    """Return the tree below `root`, made of those of `models` that are inside it.

    Args:
        root: The top of the tree; its own parent is not looked at.
        models: In any order; the root may be among them.
    """
    nodes = _nodes([*models, root])
    return _linked(nodes, [nodes[root.id]])[0]


def trees_of(models: Iterable[TaskModel]) -> list[TaskTreeNode]:
    """Return the trees that these tasks make, in the order of creation.

    Args:
        models: In any order. A task whose parent is not among them is the root of a tree.

    Raises:
        TaskTreeError: Some are inside each other.
    """
    nodes = _nodes(models)
    roots = [node for node in nodes.values() if node.task.parent_id not in nodes]
    trees = _linked(nodes, roots)
    for circle in cycles({key: [node.task.parent_id or ""] for key, node in nodes.items()}):
        raise TaskTreeError(f"these tasks are inside each other: {drawn(circle)}", circle)
    return trees


def _nodes(models: Iterable[TaskModel]) -> dict[str, TaskTreeNode]:
    """Return a node for each task by its id, in the order of creation."""
    by_id = {model.id: model for model in models}
    ordered = sorted(by_id.values(), key=lambda model: (model.created_at is not None, model.created_at or 0, model.id))
    return {model.id: TaskTreeNode(model) for model in ordered}


def _linked(nodes: dict[str, TaskTreeNode], roots: list[TaskTreeNode]) -> list[TaskTreeNode]:
    """Put each node into its parent, and return the roots."""
    tops = {node.task.id for node in roots}
    for key, node in nodes.items():
        parent = nodes.get(node.task.parent_id or "")
        if parent is not None and key not in tops:
            parent.children.append(node)
    return roots
