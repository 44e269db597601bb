"""Random task trees out of the executors of `tests.crash.tree_flows`."""

from __future__ import annotations

import random
from typing import Any

WIDTH = 15

#: Executors of random trees, and what else such a node says.
KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("grow", {}),
    ("grow", {}),
    ("press", {}),
    ("branch", {}),
    ("stumble", {}),
    ("hesitate", {"max_attempts": 3, "backoff_strategy": "fixed", "backoff_base_seconds": 0.1}),
    ("spend", {"token_budget": 1000}),
    ("weigh", {"params": {"factor": 5}}),
    ("aggregate_results_executor", {"inputs": {"strategy": "count"}}),
)


def random_tree(seed: int, prefix: str, nodes: int = 200) -> list[dict[str, Any]]:
    """Return a layered graph; those with one seed are the same but for the prefix of the ids."""
    dice = random.Random(seed)
    failing = set(dice.sample(range(nodes // 10, nodes), nodes // 20))
    fatal = {one for one in failing if one > nodes * 3 // 4}  # earlier ones would leave little to run
    tree: list[dict[str, Any]] = [{"id": f"{prefix}-0", "name": "grow", "inputs": {"number": 1}}]
    for number in range(1, nodes):
        first = max(0, number - number % WIDTH - 2 * WIDTH)  # at most two layers back
        below = range(first, max(1, number - number % WIDTH))
        needs = sorted(dice.sample(below, min(len(below), dice.randint(1, 3))))
        name, more = ("wilt", {}) if number in failing else dice.choice(KINDS)
        tree.append(
            {
                "id": f"{prefix}-{number}",
                "name": name,
                "parent_id": f"{prefix}-{dice.randrange(number)}",
                "priority": dice.randrange(4),
                "dependencies": [
                    {"id": f"{prefix}-{one}", "required": one not in failing or one in fatal} for one in needs
                ],
                "inputs": {"number": _number(dice, number, f"{prefix}-{needs[0]}")},
                **more,
            }
        )
    return tree


def _number(dice: random.Random, number: int, needed: str) -> Any:
    """Return a number, or where the result of a dependency has one."""
    return number if dice.random() < 0.5 else {"$from": needed, "path": "value", "default": number}
