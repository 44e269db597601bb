"""v1 up to 0.13: the task table with trees, origins and references."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from apflow.storage.migrations.steps import (
    add_missing_columns,
    create_missing_table,
    drop_index,
    ensure_index,
    has_column,
    is_postgresql,
    refuse_downgrade,
)
from apflow.storage.migrations.v1_log import note

revision = "001"
down_revision = None

# The roots know themselves; every other row takes what the nearest row above it has. A row whose parent is
# gone counts as a root.
BACKFILL = """
WITH RECURSIVE tree (id, root) AS (
  SELECT top.id, coalesce(top.task_tree_id, top.id) FROM apflow_tasks AS top
  WHERE NOT EXISTS (SELECT 1 FROM apflow_tasks AS parent WHERE parent.id = top.parent_id)
  UNION ALL
  SELECT child.id, coalesce(child.task_tree_id, tree.root)
  FROM apflow_tasks AS child JOIN tree ON child.parent_id = tree.id
)
UPDATE apflow_tasks SET task_tree_id = tree.root FROM tree
WHERE tree.id = apflow_tasks.id AND apflow_tasks.task_tree_id IS NULL"""


def upgrade() -> None:
    """Give any v1 database the tables and columns of 0.13."""
    _create_tables()
    if has_column("apflow_tasks", "has_copy") and not has_column("apflow_tasks", "has_references"):
        op.execute("ALTER TABLE apflow_tasks RENAME COLUMN has_copy TO has_references")
    add_missing_columns(
        "apflow_tasks",
        sa.Column("task_tree_id", sa.String(255)),
        sa.Column("origin_type", sa.String(50)),
        sa.Column("has_references", sa.Boolean),
    )
    for column in ("parent_id", "user_id", "name", "status", "original_task_id"):
        ensure_index("apflow_tasks", column)
    for column in ("task_tree_id", "origin_type", "has_references"):
        ensure_index("apflow_tasks", column, formerly=f"idx_apflow_tasks_{column}")
    op.execute(BACKFILL)
    note(revision)


def downgrade() -> None:
    """Refuse."""
    refuse_downgrade(revision)


def _create_tables() -> None:
    now = sa.func.now()
    create_missing_table(
        "apflow_tasks",
        sa.Column("id", sa.String(255), primary_key=True),
        sa.Column("parent_id", sa.String(255)),
        sa.Column("user_id", sa.String(255)),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("status", sa.String(50)),
        sa.Column("priority", sa.Integer),
        sa.Column("dependencies", sa.JSON),
        sa.Column("inputs", sa.JSON),
        sa.Column("params", sa.JSON),
        sa.Column("result", sa.JSON),
        sa.Column("error", sa.Text),
        sa.Column("schemas", sa.JSON),
        sa.Column("progress", sa.Numeric(3, 2)),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=now),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=now),
        sa.Column("completed_at", sa.DateTime(timezone=True)),
        sa.Column("has_children", sa.Boolean),
        sa.Column("original_task_id", sa.String(255)),
    )
    create_missing_table(
        "apflow_schema_migrations",
        sa.Column("id", sa.String(100), primary_key=True),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("apflow_version", sa.String(50), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=now),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=now),
    )
    if is_postgresql():  # v1's migrations made these two without a time zone, in the time zone of the session
        for column in ("created_at", "updated_at"):
            op.alter_column("apflow_schema_migrations", column, type_=sa.DateTime(timezone=True))
    # Both repeat a primary key.
    drop_index("apflow_tasks", "ix_apflow_tasks_id")
    drop_index("apflow_schema_migrations", "ix_apflow_schema_migrations_id")
