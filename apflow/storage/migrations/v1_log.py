"""What v1 noted about its own migrations, under three kinds of names."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

#: By revision: the class name that 0.18 wrote, the file name that later releases wrote, the declared alias.
NAMES = {
    "001": ("AddTaskTreeFields", "001_add_task_tree_fields", "add_task_tree_fields"),
    "002": ("AddSchedulingFields", "002_add_scheduling_fields", "add_scheduling_fields"),
    "003": ("AddDistributedSupport", "003_add_distributed_support", "add_distributed_support"),
}

_LOG = sa.table(
    "apflow_schema_migrations",
    sa.column("id", sa.String),
    sa.column("description", sa.Text),
    sa.column("apflow_version", sa.String),
)


def note(revision: str) -> None:
    """Note that the step of v1 was taken, unless v1 has noted it itself under any of its names.

    A process of v1 that still uses the database reads this and does not take the step again.
    """
    names = NAMES[revision]
    noted = sa.select(sa.func.count()).select_from(_LOG).where(_LOG.c.id.in_(names))
    if op.get_bind().execute(noted).scalar_one() == 0:
        row = {"id": names[0], "description": f"Alembic revision {revision}", "apflow_version": "0.18.2"}
        op.get_bind().execute(_LOG.insert().values(row))
