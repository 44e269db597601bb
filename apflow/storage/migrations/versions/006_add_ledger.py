"""The ledger: accounts, holds, usage events and decisions; and the model that governance chose for a run."""

from __future__ import annotations

import sqlalchemy as sa

from apflow.storage.migrations.steps import add_missing_columns, create_missing_table, ensure_index, refuse_downgrade

revision = "006"
down_revision = "005"


def upgrade() -> None:
    """Make the four tables, and add the column."""
    add_missing_columns("apflow_tasks", sa.Column("model", sa.String(255)))
    _accounts_and_holds()
    _events()
    _decisions()


def _accounts_and_holds() -> None:
    create_missing_table(
        "apflow_budget_accounts",
        sa.Column("id", sa.String(64), primary_key=True, nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("per", sa.String(10), nullable=False),
        sa.Column("scope_id", sa.String(255), nullable=False),
        sa.Column("unit", sa.String(10), nullable=False),
        sa.Column("period", sa.String(10)),
        sa.Column("tz", sa.String(64), nullable=False),
        sa.Column("window_start", sa.DateTime(timezone=True)),
        sa.Column("window_end", sa.DateTime(timezone=True)),
        sa.Column("hard_limit", sa.BigInteger, nullable=False),
        sa.Column("settled", sa.BigInteger, nullable=False),
        sa.Column("reserved", sa.BigInteger, nullable=False),
        sa.Column("overrun", sa.BigInteger, nullable=False),
        sa.Column("overridden", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("settled >= 0", name="ck_apflow_budget_accounts_settled"),
        sa.CheckConstraint("reserved >= 0", name="ck_apflow_budget_accounts_reserved"),
        sa.CheckConstraint("overrun >= 0", name="ck_apflow_budget_accounts_overrun"),
        rowid=False,
    )
    ensure_index("apflow_budget_accounts", "scope_id")
    create_missing_table(
        "apflow_budget_holds",
        sa.Column("id", sa.String(100), primary_key=True, nullable=False),
        sa.Column("hold_id", sa.String(64), nullable=False),
        sa.Column("account_id", sa.String(64), nullable=False),
        sa.Column("outer_id", sa.String(100)),
        sa.Column("run_id", sa.String(255), nullable=False),
        sa.Column("owned_id", sa.String(255), nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("granted", sa.BigInteger, nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("amount >= 0", name="ck_apflow_budget_holds_amount"),
    )
    ensure_index("apflow_budget_holds", "hold_id")
    ensure_index("apflow_budget_holds", "account_id")
    ensure_index("apflow_budget_holds", "owned_id")


def _events() -> None:
    create_missing_table(
        "apflow_usage_events",
        sa.Column("dedupe_key", sa.String(64), primary_key=True, nullable=False),
        sa.Column("run_id", sa.String(255), nullable=False),
        sa.Column("root_run_id", sa.String(255), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("task", sa.String(100), nullable=False),
        sa.Column("user_id", sa.String(255)),
        sa.Column("provider", sa.String(255)),
        sa.Column("model", sa.String(255)),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("total_tokens", sa.BigInteger, nullable=False),
        sa.Column("cache_read_tokens", sa.BigInteger, nullable=False),
        sa.Column("cache_write_tokens", sa.BigInteger, nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger, nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("cost_nusd", sa.BigInteger),
        sa.Column("unit_prices", sa.JSON),
        sa.Column("price_book", sa.String(100)),
        sa.Column("source", sa.String(10), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    ensure_index("apflow_usage_events", "run_id")
    ensure_index("apflow_usage_events", "created_at")


def _decisions() -> None:
    create_missing_table(
        "apflow_decisions",
        sa.Column("id", sa.String(64), primary_key=True, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("action", sa.String(10), nullable=False),
        sa.Column("run_id", sa.String(255), nullable=False),
        sa.Column("root_run_id", sa.String(255)),
        sa.Column("task", sa.String(100)),
        sa.Column("user_id", sa.String(255)),
        sa.Column("attempt", sa.Integer),
        sa.Column("policy", sa.String(100)),
        sa.Column("account_id", sa.String(64)),
        sa.Column("budget", sa.String(255)),
        sa.Column("per", sa.String(10)),
        sa.Column("unit", sa.String(10)),
        sa.Column("hard_limit", sa.BigInteger),
        sa.Column("settled", sa.BigInteger),
        sa.Column("reserved", sa.BigInteger),
        sa.Column("overrun", sa.BigInteger),
        sa.Column("requested", sa.BigInteger),
        sa.Column("model_from", sa.String(255)),
        sa.Column("model_to", sa.String(255)),
        sa.Column("reason", sa.Text, nullable=False),
    )
    ensure_index("apflow_decisions", "run_id")
    ensure_index("apflow_decisions", "created_at")


def downgrade() -> None:
    """Refuse."""
    refuse_downgrade(revision)
