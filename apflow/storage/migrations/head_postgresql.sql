CREATE TABLE apflow_a2a_tasks (
  id VARCHAR(255) NOT NULL,
  owner VARCHAR(255) NOT NULL,
  context_id VARCHAR(255) NOT NULL,
  state VARCHAR(20) NOT NULL,
  updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
  holder VARCHAR(255) NOT NULL,
  body BYTEA NOT NULL,
  PRIMARY KEY (id)
);
CREATE INDEX ix_apflow_a2a_tasks_owner_updated_at ON apflow_a2a_tasks (owner, updated_at);
CREATE TABLE apflow_budget_accounts (
  id VARCHAR(64) NOT NULL,
  name VARCHAR(255) NOT NULL,
  per VARCHAR(10) NOT NULL,
  scope_id VARCHAR(255) NOT NULL,
  unit VARCHAR(10) NOT NULL,
  period VARCHAR(10),
  tz VARCHAR(64) NOT NULL,
  window_start TIMESTAMP WITH TIME ZONE,
  window_end TIMESTAMP WITH TIME ZONE,
  hard_limit BIGINT NOT NULL,
  settled BIGINT NOT NULL,
  reserved BIGINT NOT NULL,
  overrun BIGINT NOT NULL,
  overridden BOOLEAN NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE NOT NULL,
  PRIMARY KEY (id),
  CONSTRAINT ck_apflow_budget_accounts_settled CHECK (settled >= 0),
  CONSTRAINT ck_apflow_budget_accounts_reserved CHECK (reserved >= 0),
  CONSTRAINT ck_apflow_budget_accounts_overrun CHECK (overrun >= 0)
);
CREATE INDEX ix_apflow_budget_accounts_scope_id ON apflow_budget_accounts (scope_id);
CREATE TABLE apflow_budget_holds (
  id VARCHAR(100) NOT NULL,
  hold_id VARCHAR(64) NOT NULL,
  account_id VARCHAR(64) NOT NULL,
  outer_id VARCHAR(100),
  run_id VARCHAR(255) NOT NULL,
  owned_id VARCHAR(255) NOT NULL,
  epoch INTEGER NOT NULL,
  granted BIGINT NOT NULL,
  amount BIGINT NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE NOT NULL,
  PRIMARY KEY (id),
  CONSTRAINT ck_apflow_budget_holds_amount CHECK (amount >= 0)
);
CREATE INDEX ix_apflow_budget_holds_account_id ON apflow_budget_holds (account_id);
CREATE INDEX ix_apflow_budget_holds_hold_id ON apflow_budget_holds (hold_id);
CREATE INDEX ix_apflow_budget_holds_owned_id ON apflow_budget_holds (owned_id);
CREATE TABLE apflow_decisions (
  id VARCHAR(64) NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE NOT NULL,
  action VARCHAR(10) NOT NULL,
  run_id VARCHAR(255) NOT NULL,
  root_run_id VARCHAR(255),
  task VARCHAR(100),
  user_id VARCHAR(255),
  attempt INTEGER,
  policy VARCHAR(100),
  account_id VARCHAR(64),
  budget VARCHAR(255),
  per VARCHAR(10),
  unit VARCHAR(10),
  hard_limit BIGINT,
  settled BIGINT,
  reserved BIGINT,
  overrun BIGINT,
  requested BIGINT,
  model_from VARCHAR(255),
  model_to VARCHAR(255),
  reason TEXT NOT NULL,
  PRIMARY KEY (id)
);
CREATE INDEX ix_apflow_decisions_created_at ON apflow_decisions (created_at);
CREATE INDEX ix_apflow_decisions_run_id ON apflow_decisions (run_id);
CREATE TABLE apflow_distributed_nodes (
  node_id VARCHAR(100) NOT NULL,
  executor_types JSON NOT NULL,
  capabilities JSON,
  status VARCHAR(20) NOT NULL,
  heartbeat_at TIMESTAMP WITH TIME ZONE NOT NULL,
  registered_at TIMESTAMP WITH TIME ZONE DEFAULT now(),
  PRIMARY KEY (node_id)
);
CREATE TABLE apflow_execution_idempotency (
  task_id VARCHAR(100) NOT NULL,
  attempt_id INTEGER NOT NULL,
  idempotency_key VARCHAR(255) NOT NULL,
  result JSON,
  status VARCHAR(20) NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now(),
  PRIMARY KEY (task_id, attempt_id)
);
CREATE UNIQUE INDEX ix_apflow_execution_idempotency_idempotency_key ON apflow_execution_idempotency (idempotency_key);
CREATE TABLE apflow_schema_migrations (
  id VARCHAR(100) NOT NULL,
  description TEXT NOT NULL,
  apflow_version VARCHAR(50) NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now(),
  updated_at TIMESTAMP WITH TIME ZONE DEFAULT now(),
  PRIMARY KEY (id)
);
CREATE TABLE apflow_tasks (
  id VARCHAR(255) NOT NULL,
  parent_id VARCHAR(255),
  task_tree_id VARCHAR(255),
  user_id VARCHAR(255),
  name VARCHAR(100) NOT NULL,
  status VARCHAR(50),
  priority INTEGER,
  dependencies JSON,
  inputs JSON,
  params JSON,
  result JSON,
  error TEXT,
  schemas JSON,
  progress NUMERIC(3, 2),
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now(),
  started_at TIMESTAMP WITH TIME ZONE,
  updated_at TIMESTAMP WITH TIME ZONE DEFAULT now(),
  completed_at TIMESTAMP WITH TIME ZONE,
  has_children BOOLEAN,
  original_task_id VARCHAR(255),
  origin_type VARCHAR(50),
  has_references BOOLEAN,
  schedule_type VARCHAR(20),
  schedule_expression VARCHAR(100),
  schedule_enabled BOOLEAN,
  schedule_start_at TIMESTAMP WITH TIME ZONE,
  schedule_end_at TIMESTAMP WITH TIME ZONE,
  next_run_at TIMESTAMP WITH TIME ZONE,
  last_run_at TIMESTAMP WITH TIME ZONE,
  max_runs INTEGER,
  run_count INTEGER,
  lease_id VARCHAR(100),
  lease_expires_at TIMESTAMP WITH TIME ZONE,
  placement_constraints JSON,
  attempt_id INTEGER,
  idempotency_key VARCHAR(255),
  last_assigned_node VARCHAR(100),
  checkpoint_at TIMESTAMP WITH TIME ZONE,
  resume_from VARCHAR(255),
  attempt_count INTEGER DEFAULT 0,
  max_attempts INTEGER DEFAULT 3,
  backoff_strategy VARCHAR(20) DEFAULT 'exponential',
  backoff_base_seconds NUMERIC(10, 2) DEFAULT 1.0,
  token_usage JSONB,
  token_budget INTEGER,
  estimated_cost_usd NUMERIC(12, 6),
  actual_cost_usd NUMERIC(12, 6),
  cost_policy VARCHAR(100),
  kind VARCHAR(10),
  task_version VARCHAR(50),
  origin VARCHAR(500),
  named BOOLEAN,
  accepted BOOLEAN,
  owner VARCHAR(255),
  epoch INTEGER,
  recoveries INTEGER,
  recovered_at TIMESTAMP WITH TIME ZONE,
  run_key VARCHAR(64),
  fingerprint VARCHAR(64),
  checkpoint BOOLEAN,
  options JSON,
  next_attempt_at TIMESTAMP WITH TIME ZONE,
  cancel_requested_at TIMESTAMP WITH TIME ZONE,
  error_info JSON,
  model VARCHAR(255),
  PRIMARY KEY (id)
);
CREATE INDEX ix_apflow_tasks_has_references ON apflow_tasks (has_references) WHERE has_references IS NOT NULL;
CREATE INDEX ix_apflow_tasks_name ON apflow_tasks (name);
CREATE INDEX ix_apflow_tasks_next_run_at ON apflow_tasks (next_run_at) WHERE next_run_at IS NOT NULL;
CREATE INDEX ix_apflow_tasks_origin_type ON apflow_tasks (origin_type) WHERE origin_type IS NOT NULL;
CREATE INDEX ix_apflow_tasks_original_task_id ON apflow_tasks (original_task_id) WHERE original_task_id IS NOT NULL;
CREATE INDEX ix_apflow_tasks_parent_id ON apflow_tasks (parent_id);
CREATE UNIQUE INDEX ix_apflow_tasks_run_key ON apflow_tasks (run_key) WHERE run_key IS NOT NULL;
CREATE INDEX ix_apflow_tasks_schedule_enabled ON apflow_tasks (schedule_enabled) WHERE schedule_enabled IS NOT NULL;
CREATE INDEX ix_apflow_tasks_schedule_type ON apflow_tasks (schedule_type) WHERE schedule_type IS NOT NULL;
CREATE INDEX ix_apflow_tasks_status ON apflow_tasks (status);
CREATE INDEX ix_apflow_tasks_task_tree_id ON apflow_tasks (task_tree_id);
CREATE INDEX ix_apflow_tasks_user_id ON apflow_tasks (user_id) WHERE user_id IS NOT NULL;
CREATE TABLE apflow_usage_events (
  dedupe_key VARCHAR(64) NOT NULL,
  run_id VARCHAR(255) NOT NULL,
  root_run_id VARCHAR(255) NOT NULL,
  attempt INTEGER NOT NULL,
  task VARCHAR(100) NOT NULL,
  user_id VARCHAR(255),
  provider VARCHAR(255),
  model VARCHAR(255),
  input_tokens BIGINT NOT NULL,
  output_tokens BIGINT NOT NULL,
  total_tokens BIGINT NOT NULL,
  cache_read_tokens BIGINT NOT NULL,
  cache_write_tokens BIGINT NOT NULL,
  reasoning_tokens BIGINT NOT NULL,
  requests BIGINT NOT NULL,
  cost_nusd BIGINT,
  unit_prices JSON,
  price_book VARCHAR(100),
  source VARCHAR(10) NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE NOT NULL,
  PRIMARY KEY (dedupe_key)
);
CREATE INDEX ix_apflow_usage_events_created_at ON apflow_usage_events (created_at);
CREATE INDEX ix_apflow_usage_events_run_id ON apflow_usage_events (run_id);
CREATE TABLE apflow_cluster_leader (
  leader_id VARCHAR(100) NOT NULL,
  node_id VARCHAR(100) NOT NULL,
  lease_token VARCHAR(100) NOT NULL,
  acquired_at TIMESTAMP WITH TIME ZONE DEFAULT now(),
  expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
  PRIMARY KEY (leader_id),
  FOREIGN KEY(node_id) REFERENCES apflow_distributed_nodes (node_id),
  UNIQUE (lease_token)
);
CREATE INDEX ix_apflow_cluster_leader_expires_at ON apflow_cluster_leader (expires_at);
CREATE TABLE apflow_task_events (
  event_id VARCHAR(100) NOT NULL,
  task_id VARCHAR(100) NOT NULL,
  event_type VARCHAR(50) NOT NULL,
  node_id VARCHAR(100),
  details JSON,
  timestamp TIMESTAMP WITH TIME ZONE DEFAULT now(),
  PRIMARY KEY (event_id),
  CONSTRAINT apflow_task_events_task_id_fkey FOREIGN KEY(task_id) REFERENCES apflow_tasks (id) ON DELETE CASCADE
);
CREATE INDEX ix_apflow_task_events_task_id ON apflow_task_events (task_id);
CREATE INDEX ix_apflow_task_events_timestamp ON apflow_task_events (timestamp);
CREATE TABLE apflow_task_leases (
  task_id VARCHAR(100) NOT NULL,
  node_id VARCHAR(100) NOT NULL,
  lease_token VARCHAR(100) NOT NULL,
  acquired_at TIMESTAMP WITH TIME ZONE DEFAULT now(),
  expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
  attempt_id INTEGER,
  PRIMARY KEY (task_id),
  CONSTRAINT apflow_task_leases_task_id_fkey FOREIGN KEY(task_id) REFERENCES apflow_tasks (id) ON DELETE CASCADE,
  FOREIGN KEY(node_id) REFERENCES apflow_distributed_nodes (node_id)
);
CREATE INDEX ix_apflow_task_leases_expires_at ON apflow_task_leases (expires_at);
CREATE UNIQUE INDEX ix_apflow_task_leases_lease_token ON apflow_task_leases (lease_token);
CREATE TABLE task_checkpoints (
  id VARCHAR(255) NOT NULL,
  task_id VARCHAR(255) NOT NULL,
  checkpoint_data TEXT NOT NULL,
  step_name VARCHAR(255),
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  PRIMARY KEY (id),
  FOREIGN KEY(task_id) REFERENCES apflow_tasks (id) ON DELETE CASCADE
);
CREATE INDEX ix_task_checkpoints_task_id ON task_checkpoints (task_id);
CREATE TABLE apflow_alembic_version (
  version_num VARCHAR(32) NOT NULL,
  CONSTRAINT apflow_alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO apflow_alembic_version (version_num) VALUES ('007')
