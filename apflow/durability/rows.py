"""A run's row as recovery reads it, and the parameters that write one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apflow.storage.statements import Statements, lease_params, moment

if TYPE_CHECKING:
    from datetime import datetime

    from apflow.options import TaskDefinition
    from apflow.state import RunState
    from apflow.storage.store import Store, Tx

_COLUMNS = (
    "id, parent_id, task_tree_id, user_id, name, status, inputs, result, error, error_info, epoch, owner, "
    "lease_expires_at, attempt_count, max_attempts, next_attempt_at, recoveries, recovered_at, checkpoint_at, run_key, "
    "fingerprint, idempotency_key, checkpoint, options, origin, named, accepted, task_version, kind, "
    "cancel_requested_at, model"
)


#: What stands in these columns when nothing governs a run.
UNGOVERNED: dict[str, Any] = {"token_budget": None, "cost_policy": None, "estimated_cost_usd": None}

#: Characters of the column; of a longer text the end is kept.
LONGEST_ORIGIN = 500


@dataclass(frozen=True, slots=True)
class RunRow:
    """The columns that decide what can be done with a run."""

    id: str
    parent_id: str | None
    root_id: str
    user: str | None
    name: str
    status: str
    inputs: str
    result: str | None
    error: str | None
    error_info: str | None
    epoch: int | None
    owner: str | None
    lease_expires_at: datetime | None
    attempt_count: int
    max_attempts: int
    next_attempt_at: datetime | None
    recoveries: int
    recovered_at: datetime | None
    checkpoint_at: datetime | None
    run_key: str | None
    fingerprint: str | None
    key: str | None
    checkpoint: bool
    options: dict[str, Any]
    origin: str
    qualname: str
    named: bool
    accepted: bool
    task_version: str
    kind: str
    cancel_requested_at: datetime | None
    model: str | None
    free: bool

    @property
    def interrupted(self) -> bool:
        """Nobody holds it, and it has not ended."""
        return self.status == "in_progress" and self.free


def _row(values: tuple[Any, ...]) -> RunRow:
    found = dict(zip(_NAMES, values, strict=True))
    for name in ("lease_expires_at", "next_attempt_at", "recovered_at", "checkpoint_at", "cancel_requested_at"):
        found[name] = moment(found[name])
    for name in ("checkpoint", "named", "accepted", "free"):
        found[name] = bool(found[name])
    for name in ("attempt_count", "max_attempts", "recoveries"):
        found[name] = found[name] or 0
    found["origin"], _, found["qualname"] = (found["origin"] or "#").rpartition("#")
    found["root_id"] = found.pop("task_tree_id") or found["id"]
    found["user"] = found.pop("user_id")
    found["key"] = found.pop("idempotency_key")
    found["options"] = json.loads(found["options"]) if found["options"] else {}
    found["inputs"] = found["inputs"] or "{}"
    found["task_version"] = found["task_version"] or "1"
    found["kind"] = found["kind"] or "run"
    found["status"] = found["status"] or "pending"
    return RunRow(**found)


_NAMES = (*_COLUMNS.split(", "), "free")


class Rows:
    """Reads rows of runs from one store."""

    def __init__(self, store: Store, statements: Statements) -> None:
        self._store = store
        self._select = f"SELECT {_COLUMNS}, CASE WHEN {statements.free} THEN 1 ELSE 0 END FROM apflow_tasks "

    async def get(self, run_id: str) -> RunRow | None:
        """Return the run with this id."""
        return await self._store.read(lambda tx: self.get_in(tx, "id = :id", {"id": run_id}))

    def get_blocking(self, run_id: str) -> RunRow | None:
        """Do what `get` does on the calling thread."""
        return self._store.read_blocking(lambda tx: self.get_in(tx, "id = :id", {"id": run_id}))

    async def by_key(self, key: str) -> RunRow | None:
        """Return the run with this `run_key`."""
        return await self._store.read(lambda tx: self.get_in(tx, "run_key = :key", {"key": key}))

    async def open(self, *, accepted_only: bool) -> list[RunRow]:
        """Return the owned runs that are `in_progress`, the oldest first, held by somebody or not.

        Graph nodes are left out: they are carried on by the execution of their tree.
        """
        return await self._store.read(lambda tx: self._open_in(tx, accepted_only=accepted_only))

    def open_blocking(self, *, accepted_only: bool) -> list[RunRow]:
        """Do what `open` does on the calling thread."""
        return self._store.read_blocking(lambda tx: self._open_in(tx, accepted_only=accepted_only))

    def _open_in(self, tx: Tx, *, accepted_only: bool) -> list[RunRow]:
        where = "status = 'in_progress' AND epoch IS NOT NULL AND kind <> 'node'"
        where += " AND accepted = :yes" if accepted_only else ""
        sql = f"{self._select} WHERE {where} ORDER BY created_at, id"
        return [_row(row) for row in tx.rows(sql, lease_params(self._store, 0) | {"yes": True})]

    def get_in(self, tx: Tx, where: str, params: dict[str, Any]) -> RunRow | None:
        """Return the row that `where` names, inside an open transaction."""
        row = tx.row(f"{self._select} WHERE {where}", lease_params(self._store, 0) | params)
        return None if row is None else _row(row)


def origin_of(definition: TaskDefinition) -> str:
    """Return what the column `origin` has for runs of a task."""
    return f"{definition.origin}#{definition.fn.__qualname__}"[-LONGEST_ORIGIN:]


def owned_params(store: Store, state: RunState, owner: str, lease_seconds: float) -> dict[str, Any]:
    """Return the parameters that insert the row of an owned run."""
    params = lease_params(store, lease_seconds)
    definition, parent, retry = state.definition, state.parent, state.options.retry
    params.update(
        id=state.id,
        parent_id=None if parent is None else parent.id,
        task_tree_id=state.root_id,
        user_id=state.user,
        name=definition.name,
        inputs=state.inputs,
        max_attempts=attempts_per_allowance(state),
        kind=state.kind or ("run" if parent is None else "child"),
        task_version=definition.version,
        origin=origin_of(definition),
        named=definition.named,
        accepted=state.accepted,
        owner=owner,
        epoch=state.epoch,
        run_key=state.run_key,
        fingerprint=state.fingerprint,
        idempotency_key=state.key,
        checkpoint=state.checkpoint,
        options=stored_options(state),
        backoff_strategy=None if retry is None else retry.backoff_strategy.value,
        backoff_base_seconds=None if retry is None else retry.backoff_base_seconds,
    )
    params.update(UNGOVERNED if state.meter is None else state.meter.columns())
    return params


def child_params(store: Store, state: RunState, status: str) -> dict[str, Any]:
    """Return the parameters that insert or update the row of an inline child."""
    now = store.timestamp(store.clock.now())
    definition, owned, parent = state.definition, state.owned, state.parent
    return {
        "id": state.id,
        "parent_id": None if parent is None else parent.id,
        "task_tree_id": state.root_id,
        "user_id": state.user,
        "name": definition.name,
        "status": status,
        "inputs": state.inputs,
        "result": None,
        "error": None,
        "error_info": None,
        "progress": 0,
        "attempt_count": state.attempts_done,
        "max_attempts": attempts_per_allowance(state),
        "started_at": state.started_at or now,
        "completed_at": None,
        "task_version": definition.version,
        "checkpoint": state.checkpoint,
        "owned_id": owned.id,
        "epoch": owned.epoch,
        "now": now,
        **(UNGOVERNED if state.meter is None else state.meter.columns()),
    }


def attempts_per_allowance(state: RunState) -> int:
    """Return how many attempts the run may use up in all, earlier allowances included."""
    retry = state.options.retry
    return state.attempts_allowed_from + (1 if retry is None else retry.max_attempts)


def stored_options(state: RunState) -> str | None:
    """Return the durable options that this call changed, as JSON, so that another process keeps to them."""
    overrides = state.options.overrides
    if not overrides and state.meter is None:
        return None
    options = state.options
    stored: dict[str, Any] = {} if state.meter is None else state.meter.stored()
    if "timeout" in overrides:
        stored["timeout"] = options.timeout
    if "checkpoint" in overrides:
        stored["checkpoint"] = options.checkpoint
    if "retry" in overrides:
        retry = options.retry
        stored["retry"] = retry and {
            "max_attempts": retry.max_attempts,
            "backoff_strategy": retry.backoff_strategy.value,
            "backoff_base_seconds": retry.backoff_base_seconds,
            "backoff_max_seconds": retry.backoff_max_seconds,
            "jitter": retry.jitter,
        }
    return json.dumps(stored) if stored else None
