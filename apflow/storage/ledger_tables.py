"""The tables of the ledger as they are at the newest revision. Amounts are whole tokens, requests or nano-dollars."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - pydantic reads the annotations
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, CheckConstraint, Index, Integer, String, Text

from apflow.storage.column_types import UtcDateTime
from apflow.storage.table_base import Base, column, required


class BudgetAccountModel(Base, table=True):
    """What one budget allows one run, user or everybody in one window: a new window is a new row.

    Attributes:
        id: A hash over everything that identifies the account, its limit left out.
        hard_limit: `settled` plus `reserved` never pass it.
        settled: What was used.
        reserved: What unfinished attempts hold, the sum of their rows in `apflow_budget_holds`.
        overrun: What admitted attempts used and did not fit. While there is any, nothing is admitted.
        overridden: The limit was set at run time, so that what the code says no longer counts.
    """

    __tablename__ = "apflow_budget_accounts"
    __table_args__ = (
        CheckConstraint("settled >= 0", name="ck_apflow_budget_accounts_settled"),
        CheckConstraint("reserved >= 0", name="ck_apflow_budget_accounts_reserved"),
        CheckConstraint("overrun >= 0", name="ck_apflow_budget_accounts_overrun"),
        Index("ix_apflow_budget_accounts_scope_id", "scope_id"),
        {"sqlite_with_rowid": False},  # One tree less to write for each run with a budget of its own.
    )

    id: str = required(String(64), primary_key=True)
    name: str = required(String(255))
    per: str = required(String(10))
    scope_id: str = required(String(255))
    unit: str = required(String(10))
    period: str | None = column(String(10))
    tz: str = required(String(64))
    window_start: datetime | None = column(UtcDateTime())
    window_end: datetime | None = column(UtcDateTime())
    hard_limit: int = required(BigInteger)
    settled: int = required(BigInteger)
    reserved: int = required(BigInteger)
    overrun: int = required(BigInteger)
    overridden: bool = required(Boolean)
    created_at: datetime = required(UtcDateTime())


class BudgetHoldModel(Base, table=True):
    """What an attempt holds on one account and has not used. It ends with its run's lease or epoch; then it is swept.

    Attributes:
        hold_id: All rows of one reservation have the same.
        outer_id: The row of an enclosing run from which it was drawn; what is left goes back there.
        owned_id: The run whose lease keeps it, together with `epoch`.
        amount: What is left of it.
    """

    __tablename__ = "apflow_budget_holds"
    __table_args__ = (
        CheckConstraint("amount >= 0", name="ck_apflow_budget_holds_amount"),
        Index("ix_apflow_budget_holds_hold_id", "hold_id"),
        Index("ix_apflow_budget_holds_account_id", "account_id"),
        Index("ix_apflow_budget_holds_owned_id", "owned_id"),
    )

    id: str = required(String(100), primary_key=True)
    hold_id: str = required(String(64))
    account_id: str = required(String(64))
    outer_id: str | None = column(String(100))
    run_id: str = required(String(255))
    owned_id: str = required(String(255))
    epoch: int = required(Integer)
    granted: int = required(BigInteger)
    amount: int = required(BigInteger)
    created_at: datetime = required(UtcDateTime())


class UsageEventModel(Base, table=True):
    """Usage that was reported once; never changed.

    Attributes:
        dedupe_key: A hash of what names this usage within its tree of runs, or a random word.
        cost_nusd: Nano-dollars, rounded up; NULL when nobody knows the price of the model.
        unit_prices: USD per million tokens by class of tokens, as they were applied.
        source: `reported`, `returned` or `updated`.
    """

    __tablename__ = "apflow_usage_events"
    __table_args__ = (
        Index("ix_apflow_usage_events_run_id", "run_id"),
        Index("ix_apflow_usage_events_created_at", "created_at"),
    )

    dedupe_key: str = required(String(64), primary_key=True)
    run_id: str = required(String(255))
    root_run_id: str = required(String(255))
    attempt: int = required(Integer)
    task: str = required(String(100))
    user_id: str | None = column(String(255))
    provider: str | None = column(String(255))
    model: str | None = column(String(255))
    input_tokens: int = required(BigInteger)
    output_tokens: int = required(BigInteger)
    total_tokens: int = required(BigInteger)
    cache_read_tokens: int = required(BigInteger)
    cache_write_tokens: int = required(BigInteger)
    reasoning_tokens: int = required(BigInteger)
    requests: int = required(BigInteger)
    cost_nusd: int | None = column(BigInteger)
    unit_prices: dict[str, Any] | None = column(JSON(none_as_null=True))
    price_book: str | None = column(String(100))
    source: str = required(String(10))
    created_at: datetime = required(UtcDateTime())


class DecisionModel(Base, table=True):
    """Somebody was blocked, downgraded or warned, or a dead run's hold was swept: when, and why.

    Attributes:
        action: `block`, `downgrade`, `notify` or `expire`.
        hard_limit, settled, reserved, overrun: The account that decided, as it was then.
        requested: What the attempt wanted to hold.
    """

    __tablename__ = "apflow_decisions"
    __table_args__ = (
        Index("ix_apflow_decisions_run_id", "run_id"),
        Index("ix_apflow_decisions_created_at", "created_at"),
    )

    id: str = required(String(64), primary_key=True)
    created_at: datetime = required(UtcDateTime())
    action: str = required(String(10))
    run_id: str = required(String(255))
    root_run_id: str | None = column(String(255))
    task: str | None = column(String(100))
    user_id: str | None = column(String(255))
    attempt: int | None = column(Integer)
    policy: str | None = column(String(100))
    account_id: str | None = column(String(64))
    budget: str | None = column(String(255))
    per: str | None = column(String(10))
    unit: str | None = column(String(10))
    hard_limit: int | None = column(BigInteger)
    settled: int | None = column(BigInteger)
    reserved: int | None = column(BigInteger)
    overrun: int | None = column(BigInteger)
    requested: int | None = column(BigInteger)
    model_from: str | None = column(String(255))
    model_to: str | None = column(String(255))
    reason: str = required(Text)
