"""What durable runs need: owners, epochs, keys, fingerprints; and indexes that cost less."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from apflow.storage.migrations.steps import (
    add_missing_columns,
    drop_index,
    ensure_index,
    is_postgresql,
    refuse_downgrade,
)

revision = "005"
down_revision = "004"

# Most rows have no value in these columns, so a full index on each of them triples the cost of an insert.
SPARSE = (
    "user_id",
    "original_task_id",
    "origin_type",
    "has_references",
    "schedule_type",
    "schedule_enabled",
    "next_run_at",
)


def upgrade() -> None:
    """Add the columns, make sparse indexes partial, and let a task's leases and events go with it."""
    add_missing_columns(
        "apflow_tasks",
        sa.Column("kind", sa.String(10)),
        sa.Column("task_version", sa.String(50)),
        sa.Column("origin", sa.String(500)),
        sa.Column("named", sa.Boolean),
        sa.Column("accepted", sa.Boolean),
        sa.Column("owner", sa.String(255)),
        sa.Column("epoch", sa.Integer),
        sa.Column("recoveries", sa.Integer),
        sa.Column("recovered_at", sa.DateTime(timezone=True)),
        sa.Column("run_key", sa.String(64)),
        sa.Column("fingerprint", sa.String(64)),
        sa.Column("checkpoint", sa.Boolean),
        sa.Column("options", sa.JSON),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True)),
        sa.Column("cancel_requested_at", sa.DateTime(timezone=True)),
        sa.Column("error_info", sa.JSON),
    )
    if not is_postgresql():
        _keep_results_as_text()
    for column in SPARSE:
        drop_index("apflow_tasks", f"ix_apflow_tasks_{column}")
        ensure_index("apflow_tasks", column, where=f"{column} IS NOT NULL")
    ensure_index("apflow_tasks", "run_key", unique=True, where="run_key IS NOT NULL")
    for table in ("apflow_task_leases", "apflow_task_events"):
        _delete_with_task(table)


def downgrade() -> None:
    """Refuse."""
    refuse_downgrade(revision)


def _keep_results_as_text() -> None:
    """Give `result` text affinity: in a column declared JSON, SQLite makes an integer of the text 1.0."""
    op.add_column("apflow_tasks", sa.Column("result_text", sa.Text))
    op.execute("UPDATE apflow_tasks SET result_text = CAST(result AS TEXT) WHERE result IS NOT NULL")
    op.execute("ALTER TABLE apflow_tasks DROP COLUMN result")
    op.execute("ALTER TABLE apflow_tasks RENAME COLUMN result_text TO result")


def _delete_with_task(table: str) -> None:
    name = f"{table}_task_id_fkey"
    names_as_postgresql = {"fk": "%(table_name)s_%(column_0_name)s_fkey"}
    with op.batch_alter_table(table, naming_convention=names_as_postgresql) as batch:
        batch.drop_constraint(name, type_="foreignkey")
        batch.create_foreign_key(name, "apflow_tasks", ["task_id"], ["id"], ondelete="CASCADE")
