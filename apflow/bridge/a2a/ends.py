"""How tasks of A2A end whose call is made by nobody here: as their runs have ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from a2a.types.a2a_pb2 import TaskState

from apflow.bridge.a2a.parts import artifact, result_parts, status, told_status
from apflow.bridge.refusals import RefusedError
from apflow.told import Told, read_told

if TYPE_CHECKING:
    from a2a.types.a2a_pb2 import Task

    from apflow.bridge.door import Door
    from apflow.records import RunRecord

_CANCELLED = Told("cancelled", "the task was cancelled")
_ORPHANED = Told("interrupted", "the server stopped before the task began", retryable=True)


def bring_up(door: Door, task: Task, run: RunRecord) -> bool:
    """Bring a task up to date, and return whether it has ended.

    Args:
        door: Where its module is.
        task: Changed.
        run: Its run.
    """
    if run.status == "completed":
        _complete(door, task, run)
    elif run.status in ("failed", "cancelled"):
        told = _CANCELLED if run.status == "cancelled" else read_told(run.error_info)
        ended = told_status(RefusedError(told, reference=run.id, run_id=run.id), task)
        if run.completed_at is not None:
            ended.timestamp.FromDatetime(run.completed_at)
        task.status.CopyFrom(ended)
    else:
        if task.status.state == TaskState.TASK_STATE_SUBMITTED:
            task.status.CopyFrom(status(TaskState.TASK_STATE_WORKING, at=run.started_at))
        return False
    return True


def _complete(door: Door, task: Task, run: RunRecord) -> None:
    module = door.module(skill_of(task) or run.name)
    wraps = module.wraps if hasattr(module, "wraps") else not isinstance(run.result, dict)
    output = {"result": run.result} if wraps else run.result
    del task.artifacts[:]
    streaming = bool(getattr(module, "streaming", False))
    task.artifacts.append(artifact(result_parts(output, wraps=wraps, streaming=streaming)))
    task.status.CopyFrom(status(TaskState.TASK_STATE_COMPLETED, at=run.completed_at))


def orphaned(task: Task) -> None:
    """End a task that has no run, and whose process is gone."""
    task.status.CopyFrom(told_status(RefusedError(_ORPHANED, reference=task.id), task))


def skill_of(task: Task) -> str | None:
    """Return the id of the module that a task was sent to, when it named one that was there."""
    return str(task.metadata["skillId"]) if "skillId" in task.metadata else None
