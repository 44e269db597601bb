"""Task graphs to measure, as lists of task dictionaries; the first task is the root of the tree."""

from __future__ import annotations

import random
from typing import Any

Tree = list[dict[str, Any]]

_WIDTH, _NEEDED = 20, 3


def chain(count: int) -> Tree:
    """Return nodes that need one another in a row; each takes the result of the one before."""
    return [_node(n, [n - 1] if n else []) for n in range(count)]


def fan_out(count: int) -> Tree:
    """Return nodes that all need the first one."""
    return [_node(n, [0] if n else []) for n in range(count)]


def layered(count: int) -> Tree:
    """Return layers of 20 nodes; each needs three of the layer above that were drawn by lot, always the same."""
    lot = random.Random(count)
    return [_node(n, _above(n, lot)) for n in range(count)]


def sleepers(executor: str, seconds: list[float]) -> Tree:
    """Return a first and a last node, and between them one for each of `seconds` that nothing else keeps waiting.

    Args:
        executor: What all of them run; takes the seconds that it sleeps.
        seconds: Of the first, of those in the middle, and of the last.
    """
    last = len(seconds) - 1
    needs = [[], *([0] for _ in seconds[1:-1]), list(range(1, last))]
    return [{**_node(n, needed), "name": executor, "inputs": {"seconds": seconds[n]}} for n, needed in enumerate(needs)]


def _above(n: int, lot: random.Random) -> list[int]:
    layer = n // _WIDTH
    return lot.sample(range((layer - 1) * _WIDTH, layer * _WIDTH), _NEEDED) if layer else []


def _node(n: int, needs: list[int]) -> dict[str, Any]:
    return {
        "id": f"node-{n}",
        "name": "noop",
        "parent_id": "node-0" if n else None,
        "inputs": {"n": {"$from": f"node-{needs[0]}"} if needs else n},
        "dependencies": [f"node-{needed}" for needed in needs],
    }
