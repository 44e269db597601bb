"""v1 0.14: schedules."""

from __future__ import annotations

import sqlalchemy as sa

from apflow.storage.migrations.steps import add_missing_columns, drop_defaults, ensure_index, refuse_downgrade
from apflow.storage.migrations.v1_log import note

revision = "002"
down_revision = "001"


def upgrade() -> None:
    """Add the nine columns of schedules."""
    add_missing_columns(
        "apflow_tasks",
        sa.Column("schedule_type", sa.String(20)),
        sa.Column("schedule_expression", sa.String(100)),
        sa.Column("schedule_enabled", sa.Boolean),
        sa.Column("schedule_start_at", sa.DateTime(timezone=True)),
        sa.Column("schedule_end_at", sa.DateTime(timezone=True)),
        sa.Column("next_run_at", sa.DateTime(timezone=True)),
        sa.Column("last_run_at", sa.DateTime(timezone=True)),
        sa.Column("max_runs", sa.Integer),
        sa.Column("run_count", sa.Integer),
    )
    drop_defaults("apflow_tasks", "schedule_enabled", "run_count")
    for column in ("schedule_type", "schedule_enabled", "next_run_at"):
        ensure_index("apflow_tasks", column, formerly=f"idx_apflow_tasks_{column}")
    note(revision)


def downgrade() -> None:
    """Refuse."""
    refuse_downgrade(revision)
