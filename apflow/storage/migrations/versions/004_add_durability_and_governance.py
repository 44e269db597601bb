"""Durability and cost governance, as the design document has them."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from apflow.storage.migrations.steps import (
    add_missing_columns,
    create_missing_table,
    ensure_index,
    refuse_downgrade,
)

revision = "004"
down_revision = "003"


def upgrade() -> None:
    """Add eleven columns and the table of checkpoints."""
    add_missing_columns(
        "apflow_tasks",
        sa.Column("checkpoint_at", sa.TIMESTAMP(timezone=True)),
        sa.Column("resume_from", sa.String(255)),
        sa.Column("attempt_count", sa.Integer, server_default=sa.text("0")),
        sa.Column("max_attempts", sa.Integer, server_default=sa.text("3")),
        sa.Column("backoff_strategy", sa.String(20), server_default="exponential"),
        sa.Column("backoff_base_seconds", sa.Numeric(10, 2), server_default=sa.text("1.0")),
        sa.Column("token_usage", sa.JSON().with_variant(JSONB(), "postgresql")),
        sa.Column("token_budget", sa.Integer),
        sa.Column("estimated_cost_usd", sa.Numeric(12, 6)),
        sa.Column("actual_cost_usd", sa.Numeric(12, 6)),
        sa.Column("cost_policy", sa.String(100)),
    )
    create_missing_table(
        "task_checkpoints",
        sa.Column("id", sa.String(255), primary_key=True),
        sa.Column("task_id", sa.String(255), sa.ForeignKey("apflow_tasks.id", ondelete="CASCADE"), nullable=False),
        sa.Column("checkpoint_data", sa.Text, nullable=False),
        sa.Column("step_name", sa.String(255)),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
    )
    ensure_index("task_checkpoints", "task_id")


def downgrade() -> None:
    """Refuse."""
    refuse_downgrade(revision)
