"""The run that executes a task tree: recorded and carried on like any other."""

from __future__ import annotations

import json
from dataclasses import replace

from apflow.definition import TREE, define, register
from apflow.engine.execution import Execution
from apflow.engine.executors import known_here
from apflow.state import current_state


async def _task_tree(
    task_id: str,
    concurrency: int,
    executors: list[str],  # noqa: ARG001 - read by `_carries`
) -> dict[str, int]:
    """Execute a task, what is inside it, and what those depend on; return how many ended in which status.

    Args:
        task_id: The task.
        concurrency: How many nodes run at once.
        executors: What they name; only a process that knows all of them carries this run on.
    """
    state = current_state()
    assert state is not None
    return await Execution(state, task_id, concurrency).run()


def _carries(inputs: str) -> bool:
    return all(known_here(one) for one in json.loads(inputs).get("executors", ()))


DEFINITION = register(replace(define(_task_tree, TREE, {}), carries=_carries))
