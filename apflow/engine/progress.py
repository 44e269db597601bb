"""How far tasks are that have others inside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apflow.storage.conditions import NODE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from apflow.storage.store import Tx


def shares(parents: Mapping[str, str | None], completed: Iterable[str]) -> dict[str, float]:
    """Return the share of the subtree that has completed, 0 to 1, of each task that has others inside it.

    Args:
        parents: Each task of a tree, and the one that it is inside of.
        completed: Those that have completed. A task counts in its own subtree.
    """
    children: dict[str, list[str]] = {}
    for one, parent in parents.items():
        if parent is not None and parent in parents:
            children.setdefault(parent, []).append(one)
    order = [one for one, parent in parents.items() if parent is None or parent not in parents]
    for one in order:  # which grows while it is walked
        order.extend(children.get(one, ()))
    total = dict.fromkeys(parents, 1)
    done = dict.fromkeys(parents, 0) | dict.fromkeys(completed, 1)
    for one in reversed(order):
        parent = parents[one]
        if parent is not None and parent in parents:
            total[parent] += total[one]
            done[parent] += done[one]
    return {one: done[one] / total[one] for one in children}


def changed_shares(tx: Tx, tree_id: str) -> dict[str, float]:
    """Return the shares of a tree that its rows do not have yet, by id."""
    sql = f"SELECT id, parent_id, status, progress FROM apflow_tasks WHERE task_tree_id = :tree AND {NODE}"
    rows = tx.rows(sql, {"tree": tree_id})
    stored = {one: float(progress or 0) for one, _, _, progress in rows}
    parents = {one: parent for one, parent, _, _ in rows}
    found = shares(parents, [one for one, _, status, _ in rows if status == "completed"])
    return {one: share for one, share in found.items() if int(share * 100) != round(stored[one] * 100)}
