"""How a database gets from one revision to the next: Alembic, without an .ini file.

Revisions 001 to 003 give the schema of v1, whichever way the database was born: what is there is looked up
in the database itself and only what is missing is added. So it does not matter which of its migrations v1
noted in `apflow_schema_migrations`, or under which of their three kinds of names (`v1_log`). 004 adds
durability and governance, 005 what durable runs need.

v1 could give the task table another name (`APFLOW_TASK_TABLE_NAME`). That is gone: the table is
`apflow_tasks`. Rename yours before the upgrade if it has another name.

Most databases never see this package: `apflow.storage.schema` makes fresh ones from `head_sqlite.sql` and
`head_postgresql.sql`, which `python -m apflow.storage.migrations.generate` writes.
"""
