"""The tables as they are at the newest revision.

Migrations lead here one step at a time; `head_sqlite.sql` and `head_postgresql.sql` are generated from here.
Tests hold the three equal. The hot path does not import this module: it has plain SQL.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Numeric,
    String,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field

from apflow.storage.column_types import JsonValue, UtcDateTime, UtcTimestamp
from apflow.storage.ledger_tables import BudgetAccountModel, BudgetHoldModel, DecisionModel, UsageEventModel
from apflow.storage.table_base import Base, column, metadata, required

__all__ = [
    "A2aTaskModel",
    "BudgetAccountModel",
    "BudgetHoldModel",
    "ClusterLeaderModel",
    "DecisionModel",
    "DistributedNodeModel",
    "ExecutionIdempotencyModel",
    "SchemaMigrationModel",
    "TaskCheckpointModel",
    "TaskEventModel",
    "TaskLeaseModel",
    "TaskModel",
    "UsageEventModel",
    "metadata",
]


def _id() -> Any:
    return Field(default_factory=lambda: str(uuid.uuid4()), sa_column=Column(String(255), primary_key=True))


def _index(column: str, *, partial: bool, unique: bool = False) -> Index:
    """Index one column of `apflow_tasks`; a partial index costs nothing for rows without a value."""
    where = text(f"{column} IS NOT NULL") if partial else None
    name = f"ix_apflow_tasks_{column}"
    return Index(name, column, unique=unique, sqlite_where=where, postgresql_where=where)


_FULL = ("parent_id", "task_tree_id", "name", "status")
_PARTIAL = (
    "user_id",
    "original_task_id",
    "origin_type",
    "has_references",
    "schedule_type",
    "schedule_enabled",
    "next_run_at",
)


_SHOWN = (
    *("id", "name", "status", "inputs", "params", "schemas", "dependencies", "parent_id", "task_tree_id", "priority"),
    *("result", "error", "progress", "token_usage", "token_budget", "actual_cost_usd", "estimated_cost_usd"),
    *("cost_policy", "attempt_count", "max_attempts", "created_at", "started_at", "updated_at", "completed_at"),
    *("has_children", "origin_type", "original_task_id", "user_id", "model"),
)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return float(value) if isinstance(value, Decimal) else value


class TaskModel(Base, table=True):
    """One run. `status` is pending, in_progress, completed, failed or cancelled."""

    __tablename__ = "apflow_tasks"
    __table_args__ = (
        *(_index(name, partial=False) for name in _FULL),
        *(_index(name, partial=True) for name in _PARTIAL),
        _index("run_key", partial=True, unique=True),
    )

    id: str = _id()
    parent_id: str | None = column(String(255))
    task_tree_id: str | None = column(String(255))
    user_id: str | None = column(String(255))
    name: str = required(String(100))
    status: str | None = column(String(50), default="pending")
    priority: int | None = column(Integer, default=2)
    dependencies: list[Any] | None = column(JSON(none_as_null=True))
    inputs: dict[str, Any] | None = column(JSON(none_as_null=True))
    params: dict[str, Any] | None = column(JSON(none_as_null=True))
    result: Any = column(JsonValue())
    error: str | None = column(Text)
    schemas: dict[str, Any] | None = column(JSON(none_as_null=True))
    progress: Decimal | None = column(Numeric(3, 2), default=Decimal(0))
    created_at: datetime | None = column(UtcDateTime(), server_default=func.now())
    started_at: datetime | None = column(UtcDateTime())
    updated_at: datetime | None = column(UtcDateTime(), server_default=func.now())
    completed_at: datetime | None = column(UtcDateTime())
    has_children: bool | None = column(Boolean, default=False)
    original_task_id: str | None = column(String(255))
    origin_type: str | None = column(String(50))
    has_references: bool | None = column(Boolean)

    schedule_type: str | None = column(String(20))
    schedule_expression: str | None = column(String(100))
    schedule_enabled: bool | None = column(Boolean)
    schedule_start_at: datetime | None = column(UtcDateTime())
    schedule_end_at: datetime | None = column(UtcDateTime())
    next_run_at: datetime | None = column(UtcDateTime())
    last_run_at: datetime | None = column(UtcDateTime())
    max_runs: int | None = column(Integer)
    run_count: int | None = column(Integer)

    lease_id: str | None = column(String(100))
    lease_expires_at: datetime | None = column(UtcDateTime())
    placement_constraints: dict[str, Any] | None = column(JSON(none_as_null=True))
    attempt_id: int | None = column(Integer)
    idempotency_key: str | None = column(String(255))
    last_assigned_node: str | None = column(String(100))

    checkpoint_at: datetime | None = column(UtcTimestamp())
    resume_from: str | None = column(String(255))
    attempt_count: int | None = column(Integer, default=0, server_default=text("0"))
    max_attempts: int | None = column(Integer, default=3, server_default=text("3"))
    backoff_strategy: str | None = column(String(20), default="exponential", server_default="exponential")
    backoff_base_seconds: Decimal | None = column(Numeric(10, 2), default=Decimal(1), server_default=text("1.0"))
    token_usage: dict[str, int] | None = column(
        JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
    )
    token_budget: int | None = column(Integer)
    estimated_cost_usd: Decimal | None = column(Numeric(12, 6))
    actual_cost_usd: Decimal | None = column(Numeric(12, 6))
    cost_policy: str | None = column(String(100))

    kind: str | None = column(String(10))
    task_version: str | None = column(String(50))
    origin: str | None = column(String(500))
    named: bool | None = column(Boolean)
    accepted: bool | None = column(Boolean)
    owner: str | None = column(String(255))
    epoch: int | None = column(Integer)
    recoveries: int | None = column(Integer)
    recovered_at: datetime | None = column(UtcDateTime())
    run_key: str | None = column(String(64))
    fingerprint: str | None = column(String(64))
    checkpoint: bool | None = column(Boolean)
    options: dict[str, Any] | None = column(JSON(none_as_null=True))
    next_attempt_at: datetime | None = column(UtcDateTime())
    cancel_requested_at: datetime | None = column(UtcDateTime())
    error_info: dict[str, Any] | None = column(JSON(none_as_null=True))
    model: str | None = column(String(255))

    def to_dict(self) -> dict[str, Any]:
        """Return what callers want to know of it, ready for JSON: times in ISO format, Decimals as floats.

        Who holds it, and where its errors were raised, stays out.
        """
        return {name: _plain(getattr(self, name)) for name in _SHOWN}


class TaskCheckpointModel(Base, table=True):
    """A state that a run saved; it goes when its run is deleted."""

    __tablename__ = "task_checkpoints"

    id: str = _id()
    task_id: str = required(String(255), ForeignKey("apflow_tasks.id", ondelete="CASCADE"), index=True)
    checkpoint_data: str = required(Text)
    step_name: str | None = column(String(255))
    created_at: datetime | None = column(UtcTimestamp(), nullable=False, server_default=func.now())


class SchemaMigrationModel(Base, table=True):
    """What v1 noted about its own migrations."""

    __tablename__ = "apflow_schema_migrations"

    id: str = required(String(100), primary_key=True)
    description: str = required(Text)
    apflow_version: str = required(String(50))
    created_at: datetime | None = column(UtcDateTime(), server_default=func.now())
    updated_at: datetime | None = column(UtcDateTime(), server_default=func.now())


class DistributedNodeModel(Base, table=True):
    """A machine of a v1 cluster."""

    __tablename__ = "apflow_distributed_nodes"

    node_id: str = required(String(100), primary_key=True)
    executor_types: list[str] = required(JSON)
    capabilities: dict[str, Any] | None = column(JSON(none_as_null=True))
    status: str = required(String(20))
    heartbeat_at: datetime = required(UtcDateTime())
    registered_at: datetime | None = column(UtcDateTime(), server_default=func.now())


def _of_task(table: str) -> ForeignKey:
    return ForeignKey("apflow_tasks.id", name=f"{table}_task_id_fkey", ondelete="CASCADE")


class TaskLeaseModel(Base, table=True):
    """A lease of a v1 cluster; today's leases are columns of `apflow_tasks`."""

    __tablename__ = "apflow_task_leases"
    __table_args__ = (
        Index("ix_apflow_task_leases_lease_token", "lease_token", unique=True),
        Index("ix_apflow_task_leases_expires_at", "expires_at"),
    )

    task_id: str = required(String(100), _of_task("apflow_task_leases"), primary_key=True)
    node_id: str = required(String(100), ForeignKey("apflow_distributed_nodes.node_id"))
    lease_token: str = required(String(100))
    acquired_at: datetime | None = column(UtcDateTime(), server_default=func.now())
    expires_at: datetime = required(UtcDateTime())
    attempt_id: int | None = column(Integer)


class ExecutionIdempotencyModel(Base, table=True):
    """The result of one attempt in a v1 cluster."""

    __tablename__ = "apflow_execution_idempotency"
    __table_args__ = (Index("ix_apflow_execution_idempotency_idempotency_key", "idempotency_key", unique=True),)

    task_id: str = required(String(100), primary_key=True)
    attempt_id: int = required(Integer, primary_key=True, autoincrement=False)
    idempotency_key: str = required(String(255))
    result: Any = column(JSON(none_as_null=True))
    status: str = required(String(20))
    created_at: datetime | None = column(UtcDateTime(), server_default=func.now())


class ClusterLeaderModel(Base, table=True):
    """The leader of a v1 cluster: one row at most."""

    __tablename__ = "apflow_cluster_leader"
    __table_args__ = (Index("ix_apflow_cluster_leader_expires_at", "expires_at"),)

    leader_id: str = required(String(100), primary_key=True)
    node_id: str = required(String(100), ForeignKey("apflow_distributed_nodes.node_id"))
    lease_token: str = required(String(100), unique=True)
    acquired_at: datetime | None = column(UtcDateTime(), server_default=func.now())
    expires_at: datetime = required(UtcDateTime())


class TaskEventModel(Base, table=True):
    """Something that happened to a task in a v1 cluster."""

    __tablename__ = "apflow_task_events"
    __table_args__ = (
        Index("ix_apflow_task_events_task_id", "task_id"),
        Index("ix_apflow_task_events_timestamp", "timestamp"),
    )

    event_id: str = required(String(100), primary_key=True)
    task_id: str = required(String(100), _of_task("apflow_task_events"))
    event_type: str = required(String(50))
    node_id: str | None = column(String(100))
    details: dict[str, Any] | None = column(JSON(none_as_null=True))
    timestamp: datetime | None = column(UtcDateTime(), server_default=func.now())


class A2aTaskModel(Base, table=True):
    """What a caller asked for over A2A. The run of the same id, when there is one, is what came of it.

    Attributes:
        owner: Id of the caller; empty when nobody was asked who they are.
        state: As the protocol calls it, `working` for instance.
        updated_at: When it came into that state.
        holder: The process that answers for it, as `apflow_tasks.owner` names one.
        body: The task as the protocol's buffers have it.
    """

    __tablename__ = "apflow_a2a_tasks"
    __table_args__ = (Index("ix_apflow_a2a_tasks_owner_updated_at", "owner", "updated_at"),)

    id: str = required(String(255), primary_key=True)
    owner: str = required(String(255))
    context_id: str = required(String(255))
    state: str = required(String(20))
    updated_at: datetime = required(UtcDateTime())
    holder: str = required(String(255))
    body: bytes = required(LargeBinary)
