"""Circles among ids that point at each other, found in linear time and without recursion."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_MOST_SHOWN = 12


def cycles(edges: Mapping[str, Sequence[str]]) -> Iterator[list[str]]:
    """Yield the ids of a circle for each edge that closes one, found by a depth-first search.

    Nothing is yielded only when there is no circle. In each list every id points at the next, and the last at
    the first.

    Args:
        edges: What each id points at. Ids that are no keys point at nothing.
    """
    done: set[str] = set()
    for start in edges:
        if start in done:
            continue
        path: dict[str, None] = {start: None}
        waiting = [iter(edges[start])]
        while waiting:
            target = next(waiting[-1], None)
            if target is None:
                waiting.pop()
                done.add(path.popitem()[0])
            elif target in path:
                ids = list(path)
                yield ids[ids.index(target) :]
            elif target in edges and target not in done:
                path[target] = None
                waiting.append(iter(edges[target]))


def drawn(cycle: Sequence[str]) -> str:
    """Return a circle as text that ends where it begins; the middle of a long one is left out."""
    shown = [repr(task_id) for task_id in cycle]
    if len(shown) > _MOST_SHOWN:
        shown = [*shown[: _MOST_SHOWN - 2], f"... ({len(cycle)} tasks in all)", shown[-1]]
    return " -> ".join([*shown, repr(cycle[0])])
