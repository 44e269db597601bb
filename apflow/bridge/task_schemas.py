"""JSON schemas of the modules that make, run and show tasks."""

from __future__ import annotations

from typing import Any, Final

_LONGEST = 255
_LARGEST = 2**31 - 1

_STATUSES: Final = ["pending", "in_progress", "completed", "failed", "cancelled"]
_TEXT: Final = {"type": "string", "minLength": 1, "maxLength": _LONGEST, "pattern": r"\S"}
_MOMENT: Final = {"type": ["string", "null"], "format": "date-time"}
_TOKENS: Final = {
    "type": ["object", "null"],
    "properties": {name: {"type": "integer"} for name in ("input", "output", "total")},
}
_ERROR: Final = {
    "type": ["object", "null"],
    "properties": {
        "code": {"type": "string"},
        "message": {"type": "string"},
        "details": {"type": "object"},
        "retryable": {"type": "boolean"},
        "reference": {"type": "string", "description": "What to ask the operator about."},
    },
    "description": "Why it has no result, once it has ended without one.",
}
_RESULT: Final = {"description": "What the task returned: any JSON value; null before it has completed."}


def _object(properties: dict[str, Any], *required: str, closed: bool = False) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "object", "properties": properties, "required": list(required)}
    return made | ({"additionalProperties": False} if closed else {})


_TASK: Final[dict[str, Any]] = {
    "name": {
        "type": "string",
        "description": "Task name/method identifier",
        "minLength": 1,
        "maxLength": 100,
        "pattern": r"\S",
    },
    "inputs": {"type": "object", "description": "Input parameters for executor.execute(inputs)"},
    "params": {"type": "object", "description": "Executor initialization parameters"},
    "parent_id": _TEXT | {"description": "Parent task ID for tree hierarchy (optional)"},
    "priority": {
        "type": "integer",
        "description": "Priority: 0=urgent, 1=high, 2=normal, 3=low",
        "minimum": 0,
        "maximum": 3,
        "default": 2,
    },
    "dependencies": {
        "type": "array",
        "items": _object({"id": _TEXT, "required": {"type": "boolean", "default": True}}, "id", closed=True),
        "description": "Task dependency list",
    },
    "token_budget": {
        "type": "integer",
        "description": "Maximum tokens allowed for this task",
        "minimum": 1,
        "maximum": _LARGEST,
    },
    "cost_policy": {"type": "string", "description": "Cost policy name to apply", "minLength": 1, "maxLength": 100},
    "max_attempts": {
        "type": "integer",
        "description": "How often it is tried at most; left out, as its own retry says, or once",
        "minimum": 1,
        "maximum": 100,
    },
    "backoff_strategy": {"type": "string", "enum": ["fixed", "exponential", "linear"]},
    "backoff_base_seconds": {"type": "number", "minimum": 0.1, "maximum": 3600},
    "id": _TEXT | {"description": "Id of the task; one is made up when it is left out"},
    "user_id": _TEXT | {"description": "Whose task it is; a caller who has an identity can only give their own"},
    "schemas": {
        "type": "object",
        "properties": {"method": {"type": "string", "description": "The executor, where the name is not its id"}},
    },
}

CREATE_INPUTS: Final = _object(
    _TASK
    | {
        "tasks": {
            "type": "array",
            "items": _object(_TASK, "name", closed=True),
            "minItems": 1,
            "maxItems": 1000,
            "description": "Several tasks at once, in place of name and all the rest; parent_id and dependencies may "
            "name each other's ids",
        }
    },
    closed=True,
)
_CREATED: Final = {
    "id": {"type": "string", "description": "Created task ID"},
    "name": {"type": "string"},
    "status": {"type": "string"},
    "created_at": {"type": "string", "format": "date-time"},
}
CREATE_OUTPUTS: Final = _object(
    _CREATED
    | {
        "tasks": {
            "type": "array",
            "items": _object(_CREATED | {"parent_id": {"type": ["string", "null"]}}, "id", "name", "status"),
            "description": "All that were created, each after the one that it is inside",
        }
    },
    "id",
    "name",
    "status",
)


def one_task(description: str, **more: Any) -> dict[str, Any]:
    """Return the schema of inputs that name one task."""
    return _object({"task_id": _TEXT | {"description": description}, **more}, "task_id", closed=True)


EXECUTE_OUTPUTS: Final = _object(
    {
        "task_id": {"type": "string"},
        "status": {"type": "string"},
        "result": _RESULT,
        "token_usage": _TOKENS,
        "error": _ERROR,
    },
    "task_id",
    "status",
)

LIST_INPUTS: Final = _object(
    {
        "status": {
            "type": "string",
            "enum": [*_STATUSES, "interrupted"],
            "description": "Filter by task status; interrupted are those in progress that nobody runs at the moment",
        },
        "name": {"type": "string", "description": "Filter by name"},
        "user_id": {"type": "string", "description": "Filter by user ID"},
        "limit": {
            "type": "integer",
            "description": "Maximum number of tasks to return",
            "minimum": 1,
            "maximum": 1000,
            "default": 50,
        },
        "offset": {
            "type": "integer",
            "description": "Number of tasks to skip",
            "minimum": 0,
            "maximum": _LARGEST,
            "default": 0,
        },
    },
    closed=True,
)
_LISTED: Final = {
    "id": {"type": "string"},
    "name": {"type": "string"},
    "status": {"type": "string"},
    "interrupted": {"type": "boolean"},
    "parent_id": {"type": ["string", "null"]},
    "created_at": _MOMENT,
    "completed_at": _MOMENT,
}
LIST_OUTPUTS: Final = _object(
    {
        "tasks": {"type": "array", "items": _object(_LISTED)},
        "total": {"type": "integer", "description": "How many there are without limit and offset"},
    },
    "tasks",
    "total",
)

GET_OUTPUTS: Final = _object(
    _LISTED
    | {
        "inputs": {"type": "object"},
        "result": _RESULT,
        "error": _ERROR,
        "token_usage": _TOKENS,
        "actual_cost_usd": {"type": ["number", "null"]},
        "progress": {"type": "number", "minimum": 0, "maximum": 1},
        "started_at": _MOMENT,
    },
    "id",
    "name",
    "status",
)

DELETE_INPUTS: Final = one_task(
    "ID of the task to delete",
    cascade={
        "type": "boolean",
        "default": False,
        "description": "Delete the tasks inside it too; what other tasks need stays in any case",
    },
)
DELETE_OUTPUTS: Final = _object({"task_id": {"type": "string"}, "deleted": {"type": "boolean"}}, "task_id", "deleted")

CANCEL_OUTPUTS: Final = _object({"task_id": {"type": "string"}, "status": {"type": "string"}}, "task_id", "status")

REPORT_INPUTS: Final = _object(
    {
        "by": {"type": "string", "enum": ["user", "task", "model", "day"], "default": "task"},
        "since": {"type": "string", "format": "date-time", "description": "The first moment that counts, with a zone"},
        "until": {"type": "string", "format": "date-time", "description": "The first moment that counts no more"},
    },
    closed=True,
)
_USED: Final = _object(
    {
        "key": {"type": ["string", "null"], "description": "The user, task, model or day; null of usage without one"},
        "cost_usd": {"type": "string", "description": "Decimal text, exact"},
        "unpriced_events": {"type": "integer", "description": "How many reports of usage have no price"},
        **{
            name: {"type": "integer"}
            for name in (
                *("runs", "requests", "input_tokens", "output_tokens", "total_tokens"),
                *("cache_read_tokens", "cache_write_tokens", "reasoning_tokens"),
            )
        },
    }
)
REPORT_OUTPUTS: Final = _object(
    {"group": {"type": "string"}, "rows": {"type": "array", "items": _USED}, "total": _USED}, "group", "rows", "total"
)
