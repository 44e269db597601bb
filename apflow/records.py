"""Rows of runs as a program reads them: the columns as attributes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from apflow.storage.statements import moment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run, as the database had it when it was read.

    Attributes:
        status: `in_progress`, `completed`, `failed` or `cancelled` (`pending` for rows of other making).
        interrupted: `in_progress`, and nobody holds it.
        inputs: The arguments as JSON has them.
        result: The result as JSON has it.
        error: Type and text of the error, for people; `error_info` has them apart, with the traceback.
        progress: 0 to 1.
        attempt_count: Attempts used up; of a run that has ended, all of them.
        epoch: Raised by each takeover; None for runs inside an owned one.
    """

    id: str
    parent_id: str | None
    task_tree_id: str | None
    user_id: str | None
    name: str
    kind: str | None
    status: str | None
    interrupted: bool
    inputs: Any
    params: Any
    result: Any
    error: str | None
    error_info: Any
    progress: Decimal | None
    priority: int | None
    attempt_count: int | None
    max_attempts: int | None
    next_attempt_at: datetime | None
    created_at: datetime | None
    started_at: datetime | None
    updated_at: datetime | None
    completed_at: datetime | None
    cancel_requested_at: datetime | None
    checkpoint_at: datetime | None
    checkpoint: bool | None
    task_version: str | None
    origin: str | None
    accepted: bool | None
    owner: str | None
    epoch: int | None
    lease_expires_at: datetime | None
    recoveries: int | None
    idempotency_key: str | None
    token_usage: dict[str, Any] | None
    estimated_cost_usd: Decimal | None
    actual_cost_usd: Decimal | None
    cost_policy: str | None
    token_budget: int | None
    model: str | None

    def __repr__(self) -> str:
        return f"<apflow.RunRecord {self.name} {self.id} {'interrupted' if self.interrupted else self.status}>"


@dataclass(frozen=True, slots=True)
class RunTree:
    """A run and the runs inside it, in the order in which they were made."""

    run: RunRecord
    children: tuple[RunTree, ...] = field(default=())

    def walk(self) -> Iterator[RunRecord]:
        """Yield this run and all below it, parents first."""
        waiting = [self]
        while waiting:
            tree = waiting.pop()
            yield tree.run
            waiting += reversed(tree.children)


COLUMNS = tuple(one.name for one in fields(RunRecord) if one.name != "interrupted")
_JSON = {"inputs", "params", "result", "error_info", "token_usage"}
_TIMES = {name for name in COLUMNS if name.endswith("_at")}
_DECIMALS = {"progress", "estimated_cost_usd", "actual_cost_usd"}
_FLAGS = {"checkpoint", "accepted"}


def record(row: tuple[Any, ...]) -> RunRecord:
    """Make a record of the values of `COLUMNS` and the flag `interrupted`."""
    values: dict[str, Any] = {}
    for name, value in zip(COLUMNS, row, strict=False):
        values[name] = None if value is None else _converted(name, value)
    return RunRecord(**values, interrupted=bool(row[-1]))


def _converted(name: str, value: Any) -> Any:
    if name in _JSON:
        return json.loads(value) if isinstance(value, str) else value
    if name in _TIMES:
        return moment(value)
    if name in _DECIMALS:
        return Decimal(str(value))
    return bool(value) if name in _FLAGS else value
