"""v1 0.18: clusters."""

from __future__ import annotations

import sqlalchemy as sa

from apflow.storage.migrations.steps import (
    add_missing_columns,
    create_missing_table,
    drop_defaults,
    drop_index,
    drop_unique_constraint,
    ensure_index,
    refuse_downgrade,
)
from apflow.storage.migrations.v1_log import note

revision = "003"
down_revision = "002"


def upgrade() -> None:
    """Add six columns and five tables, and make those that v1's migration made like those of a new 0.18."""
    add_missing_columns(
        "apflow_tasks",
        sa.Column("lease_id", sa.String(100)),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True)),
        sa.Column("placement_constraints", sa.JSON),
        sa.Column("attempt_id", sa.Integer),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("last_assigned_node", sa.String(100)),
    )
    drop_defaults("apflow_tasks", "attempt_id")
    _nodes_and_leader()
    _leases()
    _idempotency()
    _events()
    note(revision)


def downgrade() -> None:
    """Refuse."""
    refuse_downgrade(revision)


def _time(name: str, *, filled: bool = False) -> sa.Column[object]:
    """Return a column: NOT NULL, or `filled` by the database when the row comes without it."""
    default = sa.func.now() if filled else None
    return sa.Column(name, sa.DateTime(timezone=True), nullable=filled, server_default=default)


def _node() -> sa.Column[str]:
    node = sa.ForeignKey("apflow_distributed_nodes.node_id")
    return sa.Column("node_id", sa.String(100), node, nullable=False)


def _nodes_and_leader() -> None:
    create_missing_table(
        "apflow_distributed_nodes",
        sa.Column("node_id", sa.String(100), primary_key=True),
        sa.Column("executor_types", sa.JSON, nullable=False),
        sa.Column("capabilities", sa.JSON),
        sa.Column("status", sa.String(20), nullable=False),
        _time("heartbeat_at"),
        _time("registered_at", filled=True),
    )
    drop_defaults("apflow_distributed_nodes", "capabilities", "status")
    drop_index("apflow_distributed_nodes", "idx_distributed_nodes_status")
    drop_index("apflow_distributed_nodes", "idx_distributed_nodes_heartbeat")
    create_missing_table(
        "apflow_cluster_leader",
        sa.Column("leader_id", sa.String(100), primary_key=True),
        _node(),
        sa.Column("lease_token", sa.String(100), nullable=False, unique=True),
        _time("acquired_at", filled=True),
        _time("expires_at"),
    )
    drop_defaults("apflow_cluster_leader", "leader_id")
    ensure_index("apflow_cluster_leader", "expires_at", formerly="idx_cluster_leader_expires_at")


def _leases() -> None:
    table = "apflow_task_leases"
    create_missing_table(
        table,
        sa.Column("task_id", sa.String(100), sa.ForeignKey("apflow_tasks.id"), primary_key=True),
        _node(),
        sa.Column("lease_token", sa.String(100), nullable=False),
        _time("acquired_at", filled=True),
        _time("expires_at"),
        sa.Column("attempt_id", sa.Integer),
    )
    drop_defaults(table, "attempt_id")
    drop_unique_constraint(table, "apflow_task_leases_lease_token_key")
    ensure_index(table, "lease_token", unique=True)
    ensure_index(table, "expires_at", formerly="idx_task_leases_expires_at")
    drop_index(table, "idx_task_leases_node_id")


def _idempotency() -> None:
    table = "apflow_execution_idempotency"
    create_missing_table(
        table,
        sa.Column("task_id", sa.String(100), primary_key=True),
        sa.Column("attempt_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("idempotency_key", sa.String(255), nullable=False),
        sa.Column("result", sa.JSON),
        sa.Column("status", sa.String(20), nullable=False),
        _time("created_at", filled=True),
    )
    drop_defaults(table, "attempt_id", "status")
    drop_unique_constraint(table, "apflow_execution_idempotency_idempotency_key_key")
    ensure_index(table, "idempotency_key", unique=True)


def _events() -> None:
    table = "apflow_task_events"
    create_missing_table(
        table,
        sa.Column("event_id", sa.String(100), primary_key=True),
        sa.Column("task_id", sa.String(100), sa.ForeignKey("apflow_tasks.id"), nullable=False),
        sa.Column("event_type", sa.String(50), nullable=False),
        sa.Column("node_id", sa.String(100)),
        sa.Column("details", sa.JSON),
        _time("timestamp", filled=True),
    )
    drop_defaults(table, "details")
    ensure_index(table, "task_id")
    ensure_index(table, "timestamp")
    drop_index(table, "idx_task_events_task_timestamp")
