"""What callers over A2A get to see of results and errors, and JSON of the protocol's buffers."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from a2a.types.a2a_pb2 import Artifact, Message, Part, Role, Task, TaskState, TaskStatus, TaskStatusUpdateEvent
from a2a.utils.proto_utils import parse_lenient
from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from apflow.bridge.refusals import RefusedError

#: The artifact of a task.
RESULT = "result"
#: Begins the ids of messages that tell progress.
PROGRESS = "progress-"
#: From here on the numbers of the protocol's buffers cannot tell one integer from the next.
_UNSAFE = 2**53
#: Values in values, beyond which the protocol's buffers cannot be read back.
DEEPEST = 25
_TURNED_AWAY = {"forbidden": "REJECTED", "approval_denied": "REJECTED"}
_STATES = _TURNED_AWAY | {"approval_pending": "INPUT_REQUIRED", "cancelled": "CANCELED"}

ENDED = frozenset(
    {
        TaskState.TASK_STATE_COMPLETED,
        TaskState.TASK_STATE_FAILED,
        TaskState.TASK_STATE_CANCELED,
        TaskState.TASK_STATE_REJECTED,
    }
)


def to_json(message: Any) -> Any:
    """Return a message of the protocol as JSON has it, with whole numbers as integers: its buffers know floats only."""
    return whole(MessageToDict(message))


def whole(value: Any) -> Any:
    """Return JSON with `3` where it has `3.0`."""
    if isinstance(value, dict):
        return {name: whole(one) for name, one in value.items()}
    if isinstance(value, list):
        return [whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < _UNSAFE else value


# -- results -----------------------------------------------------------------------------------------------------


def artifact(parts: list[Part]) -> Artifact:
    """Return the artifact that has these parts."""
    return Artifact(artifact_id=RESULT, name=RESULT, parts=parts)


def result_parts(output: dict[str, Any], *, wraps: bool, streaming: bool) -> list[Part]:
    """Return what a module has returned: one part, or of a generator one for each item.

    Args:
        output: What the module returned.
        wraps: The result stands under `result`, because results of this module are no objects.
        streaming: The module is a generator.
    """
    if not wraps:
        return [data_part(output)]
    value = output["result"]
    if streaming and isinstance(value, list) and value:
        return [item_part(one) for one in value]
    return [item_part(value) if isinstance(value, str) else data_part(output)]


def item_part(value: Any) -> Part:
    """Return a text as text, an object as data, and anything else as data under `result`."""
    if isinstance(value, str):
        return Part(text=value)
    return data_part(value if isinstance(value, dict) else {"result": value})


def data_part(value: dict[str, Any]) -> Part:
    """Return an object as data; as JSON text when it has something that data cannot hold, such as a long integer."""
    if _fits(value):
        part = Part()
        parse_lenient(value, part.data)
        return part
    part = Part(text=json.dumps(value), media_type="application/json")
    part.metadata["mediaType"] = "application/json"
    return part


def _fits(value: Any, depth: int = 0) -> bool:
    if isinstance(value, dict):
        return depth < DEEPEST and all(_fits(one, depth + 1) for one in value.values())
    if isinstance(value, list):
        return depth < DEEPEST and all(_fits(one, depth + 1) for one in value)
    return isinstance(value, str | bool | float | None) or abs(value) < _UNSAFE


# -- states ------------------------------------------------------------------------------------------------------


def told_status(error: RefusedError, task: Task) -> TaskStatus:
    """Return the status of a task whose call was refused: the sentence as text, and everything as data."""
    state = TaskState.Value(f"TASK_STATE_{_STATES.get(error.told.code, 'FAILED')}")
    return status(state, agent_message(task, [Part(text=error.message), data_part(error.as_json())]))


def status(state: Any, message: Message | None = None, at: datetime | None = None) -> TaskStatus:
    """Return a status that a task has since `at`, or since now."""
    return TaskStatus(state=state, message=message, timestamp=at or datetime.now(UTC))


def agent_message(task: Task, parts: list[Part], prefix: str = "") -> Message:
    """Return a message of ours about a task."""
    return Message(
        message_id=f"{prefix}{uuid.uuid4()}",
        role=Role.ROLE_AGENT,
        parts=parts,
        task_id=task.id,
        context_id=task.context_id,
    )


def update(task: Task, new: TaskStatus) -> TaskStatusUpdateEvent:
    """Return the news that a task has another status."""
    return TaskStatusUpdateEvent(task_id=task.id, context_id=task.context_id, status=new)


def state_name(state: Any) -> str:
    """Return what the protocol calls a state, such as `input-required`."""
    return str(TaskState.Name(state)).removeprefix("TASK_STATE_").lower().replace("_", "-")
