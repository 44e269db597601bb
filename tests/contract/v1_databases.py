"""Databases as v1 left them: `@time`, `@json` and `@now` stand for what the database calls them."""

from __future__ import annotations

import re

TYPES = {
    "sqlite": {"@time": "DATETIME", "@json": "JSON", "@now": "CURRENT_TIMESTAMP"},
    "postgresql": {"@time": "timestamptz", "@json": "json", "@now": "now()"},
}

#: The columns of 0.11 and before, without has_copy.
TASKS_0_11 = """
  id VARCHAR(255) NOT NULL PRIMARY KEY, parent_id VARCHAR(255), user_id VARCHAR(255),
  name VARCHAR(100) NOT NULL, status VARCHAR(50), priority INTEGER, dependencies @json,
  inputs @json, params @json, result @json, error TEXT, schemas @json, progress NUMERIC(3, 2),
  created_at @time DEFAULT @now, started_at @time, updated_at @time DEFAULT @now, completed_at @time,
  has_children BOOLEAN, original_task_id VARCHAR(255)"""
TREE_0_13 = "task_tree_id VARCHAR(255), origin_type VARCHAR(50), has_references BOOLEAN"
SCHEDULE_0_14 = """
  schedule_type VARCHAR(20), schedule_expression VARCHAR(100), schedule_enabled BOOLEAN,
  schedule_start_at @time, schedule_end_at @time, next_run_at @time, last_run_at @time,
  max_runs INTEGER, run_count INTEGER"""
CLUSTER_0_18 = """
  lease_id VARCHAR(100), lease_expires_at @time, placement_constraints @json, attempt_id INTEGER,
  idempotency_key VARCHAR(255), last_assigned_node VARCHAR(100)"""

INDEXED_0_11 = "id parent_id user_id name status original_task_id"
INDEXED_LATER = "task_tree_id origin_type has_references schedule_type schedule_enabled next_run_at"


def _indexes(prefix: str, columns: str) -> str:
    return "".join(f"CREATE INDEX {prefix}_apflow_tasks_{c} ON apflow_tasks ({c});" for c in columns.split())


#: A database that 0.18 made.
BORN_0_18 = f"""
CREATE TABLE apflow_tasks ({TASKS_0_11}, {TREE_0_13}, {SCHEDULE_0_14}, {CLUSTER_0_18});
{_indexes("ix", INDEXED_0_11)}
{_indexes("ix", INDEXED_LATER)}
CREATE TABLE apflow_schema_migrations (
  id VARCHAR(100) NOT NULL PRIMARY KEY, description TEXT NOT NULL, apflow_version VARCHAR(50) NOT NULL,
  created_at @time DEFAULT @now, updated_at @time DEFAULT @now);
CREATE INDEX ix_apflow_schema_migrations_id ON apflow_schema_migrations (id);
CREATE TABLE apflow_distributed_nodes (
  node_id VARCHAR(100) NOT NULL PRIMARY KEY, executor_types @json NOT NULL, capabilities @json,
  status VARCHAR(20) NOT NULL, heartbeat_at @time NOT NULL, registered_at @time DEFAULT @now);
CREATE TABLE apflow_task_leases (
  task_id VARCHAR(100) NOT NULL PRIMARY KEY REFERENCES apflow_tasks (id),
  node_id VARCHAR(100) NOT NULL REFERENCES apflow_distributed_nodes (node_id),
  lease_token VARCHAR(100) NOT NULL, acquired_at @time DEFAULT @now, expires_at @time NOT NULL,
  attempt_id INTEGER);
CREATE UNIQUE INDEX ix_apflow_task_leases_lease_token ON apflow_task_leases (lease_token);
CREATE INDEX ix_apflow_task_leases_expires_at ON apflow_task_leases (expires_at);
CREATE TABLE apflow_execution_idempotency (
  task_id VARCHAR(100) NOT NULL, attempt_id INTEGER NOT NULL, idempotency_key VARCHAR(255) NOT NULL,
  result @json, status VARCHAR(20) NOT NULL, created_at @time DEFAULT @now,
  PRIMARY KEY (task_id, attempt_id));
CREATE UNIQUE INDEX ix_apflow_execution_idempotency_idempotency_key
  ON apflow_execution_idempotency (idempotency_key);
CREATE TABLE apflow_cluster_leader (
  leader_id VARCHAR(100) NOT NULL PRIMARY KEY,
  node_id VARCHAR(100) NOT NULL REFERENCES apflow_distributed_nodes (node_id),
  lease_token VARCHAR(100) NOT NULL, acquired_at @time DEFAULT @now, expires_at @time NOT NULL,
  UNIQUE (lease_token));
CREATE INDEX ix_apflow_cluster_leader_expires_at ON apflow_cluster_leader (expires_at);
CREATE TABLE apflow_task_events (
  event_id VARCHAR(100) NOT NULL PRIMARY KEY,
  task_id VARCHAR(100) NOT NULL REFERENCES apflow_tasks (id),
  event_type VARCHAR(50) NOT NULL, node_id VARCHAR(100), details @json, timestamp @time DEFAULT @now);
CREATE INDEX ix_apflow_task_events_task_id ON apflow_task_events (task_id);
CREATE INDEX ix_apflow_task_events_timestamp ON apflow_task_events (timestamp);
"""

#: A database that 0.11 made and nothing has migrated since.
BORN_0_11 = f"""
CREATE TABLE apflow_tasks ({TASKS_0_11}, has_copy BOOLEAN);
{_indexes("ix", INDEXED_0_11)}
"""

CLUSTER_MIGRATED = CLUSTER_0_18.replace("attempt_id INTEGER", "attempt_id INTEGER DEFAULT 0")
SCHEDULE_MIGRATED = SCHEDULE_0_14.replace("BOOLEAN", "BOOLEAN DEFAULT false").replace(
    "run_count INTEGER", "run_count INTEGER DEFAULT 0"
)

#: A PostgreSQL database that 0.11 made and 0.18 migrated, where something kept has_copy from being renamed.
MIGRATED_0_18 = f"""
CREATE TABLE apflow_tasks (
  {TASKS_0_11}, has_copy BOOLEAN, {CLUSTER_MIGRATED}, {SCHEDULE_MIGRATED}, {TREE_0_13});
{_indexes("ix", INDEXED_0_11)}
{_indexes("idx", INDEXED_LATER)}
CREATE TABLE apflow_schema_migrations (
  id VARCHAR(100) NOT NULL PRIMARY KEY, description TEXT NOT NULL, apflow_version VARCHAR(50) NOT NULL,
  created_at timestamp DEFAULT now(), updated_at timestamp DEFAULT now());
CREATE TABLE apflow_distributed_nodes (
  node_id VARCHAR(100) NOT NULL PRIMARY KEY, executor_types json NOT NULL, capabilities json DEFAULT '{{}}',
  status VARCHAR(20) NOT NULL, heartbeat_at timestamptz NOT NULL, registered_at timestamptz DEFAULT now());
CREATE INDEX idx_distributed_nodes_status ON apflow_distributed_nodes (status);
CREATE INDEX idx_distributed_nodes_heartbeat ON apflow_distributed_nodes (heartbeat_at);
CREATE TABLE apflow_task_leases (
  task_id VARCHAR(100) NOT NULL PRIMARY KEY REFERENCES apflow_tasks (id),
  node_id VARCHAR(100) NOT NULL REFERENCES apflow_distributed_nodes (node_id),
  lease_token VARCHAR(100) NOT NULL UNIQUE, acquired_at timestamptz DEFAULT now(),
  expires_at timestamptz NOT NULL, attempt_id INTEGER DEFAULT 0);
CREATE INDEX idx_task_leases_expires_at ON apflow_task_leases (expires_at);
CREATE INDEX idx_task_leases_node_id ON apflow_task_leases (node_id);
CREATE TABLE apflow_execution_idempotency (
  task_id VARCHAR(100) NOT NULL, attempt_id INTEGER NOT NULL, idempotency_key VARCHAR(255) NOT NULL UNIQUE,
  result json, status VARCHAR(20) NOT NULL, created_at timestamptz DEFAULT now(),
  PRIMARY KEY (task_id, attempt_id));
CREATE TABLE apflow_cluster_leader (
  leader_id VARCHAR(100) NOT NULL DEFAULT 'singleton' PRIMARY KEY,
  node_id VARCHAR(100) NOT NULL REFERENCES apflow_distributed_nodes (node_id),
  lease_token VARCHAR(100) NOT NULL UNIQUE, acquired_at timestamptz DEFAULT now(),
  expires_at timestamptz NOT NULL);
CREATE TABLE apflow_task_events (
  event_id VARCHAR(100) NOT NULL PRIMARY KEY,
  task_id VARCHAR(100) NOT NULL REFERENCES apflow_tasks (id) ON DELETE CASCADE,
  event_type VARCHAR(50) NOT NULL, node_id VARCHAR(100), details json DEFAULT '{{}}',
  timestamp timestamptz DEFAULT now());
CREATE INDEX idx_task_events_task_timestamp ON apflow_task_events (task_id, timestamp);
"""

BIRTHS = {
    "sqlite": {"born in 0.18": BORN_0_18, "born in 0.11": BORN_0_11},
    "postgresql": {"born in 0.18": BORN_0_18, "born in 0.11": BORN_0_11, "migrated to 0.18": MIGRATED_0_18},
}


def statements(template: str, dialect: str) -> list[str]:
    """Return the statements of a template in the words of a database."""
    text = re.sub("@[a-z]+", lambda word: TYPES[dialect][word.group()], template)
    return [statement for statement in text.split(";") if statement.strip()]
