"""What callers over A2A asked for, and what came of it."""

from __future__ import annotations

import sqlalchemy as sa

from apflow.storage.migrations.steps import create_missing_table, ensure_index, refuse_downgrade

revision = "007"
down_revision = "006"


def upgrade() -> None:
    """Make the table."""
    create_missing_table(
        "apflow_a2a_tasks",
        sa.Column("id", sa.String(255), primary_key=True, nullable=False),
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("context_id", sa.String(255), nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("holder", sa.String(255), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    ensure_index("apflow_a2a_tasks", "owner", "updated_at")


def downgrade() -> None:
    """Refuse."""
    refuse_downgrade(revision)
