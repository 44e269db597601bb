"""Rows of tasks and of the ledger as tests need them, and a store that counts what is asked of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from apflow.storage.store import Dialect, Row, Store, Tx

T = TypeVar("T")
NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class Standing:
    """A clock that stands still until it is set."""

    def __init__(self, time: datetime = NOON) -> None:
        self.time = time

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None: ...


class CountingTx:
    """A transaction that counts queries and the rows that they return."""

    def __init__(self, tx: Tx, counts: Counting) -> None:
        self._tx, self._counts = tx, counts
        self.dialect: Dialect = tx.dialect

    def execute(self, sql: str, params: Mapping[str, Any] = {}) -> int:
        return self._tx.execute(sql, params)

    def rows(self, sql: str, params: Mapping[str, Any] = {}) -> list[Row]:
        found = self._tx.rows(sql, params)
        self._counts.queries += 1
        self._counts.rows += len(found)
        return found

    def row(self, sql: str, params: Mapping[str, Any] = {}) -> Row | None:
        found = self.rows(sql, params)
        return found[0] if found else None


class Counting:
    """A store that counts. `row` counts all the rows of its query, fetched or not."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.queries = self.rows = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def read(self, fn: Callable[[Tx], T]) -> T:
        return await self._store.read(lambda tx: fn(CountingTx(tx, self)))

    async def write(self, fn: Callable[[Tx], T], *, single: bool = False) -> T:
        return await self._store.write(lambda tx: fn(CountingTx(tx, self)), single=single)

    @property
    def as_store(self) -> Store:
        return cast("Store", self)


async def insert(store: Store, table: str, **values: Any) -> None:
    names = ", ".join(values)
    given = {name: store.timestamp(value) if isinstance(value, datetime) else value for name, value in values.items()}
    sql = f"INSERT INTO {table} ({names}) VALUES ({', '.join(f':{name}' for name in values)})"
    await store.write(lambda tx: tx.execute(sql, given))


async def one(store: Store, sql: str, **params: Any) -> Row:
    row = await store.read(lambda tx: tx.row(sql, params))
    assert row is not None
    return row


async def add_task(store: Store, task_id: str, **values: Any) -> None:
    base: dict[str, Any] = {"id": task_id, "name": "work", "status": "completed", "created_at": NOON}
    await insert(store, "apflow_tasks", **(base | values))


async def add_event(store: Store, key: str, run_id: str, **values: Any) -> None:
    """Add an event of no tokens that has no price, unless `values` say more."""
    base: dict[str, Any] = {"dedupe_key": key, "run_id": run_id, "root_run_id": run_id, "attempt": 1, "task": "work"}
    amounts = ("input", "output", "total", "cache_read", "cache_write", "reasoning")
    base |= {f"{name}_tokens": 0 for name in amounts} | {"requests": 1, "source": "reported", "created_at": NOON}
    await insert(store, "apflow_usage_events", **(base | values))


async def add_account(store: Store, account_id: str, **values: Any) -> None:
    """Add an account of 1,000 tokens per run without a window, unless `values` say otherwise."""
    base: dict[str, Any] = {"id": account_id, "name": "work", "per": "run", "scope_id": "r1", "unit": "tokens"}
    base |= {"tz": "UTC", "hard_limit": 1000, "settled": 0, "reserved": 0, "overrun": 0, "overridden": False}
    await insert(store, "apflow_budget_accounts", **(base | {"created_at": NOON} | values))


async def add_hold(store: Store, hold_id: str, account_id: str, run_id: str, amount: int, **values: Any) -> None:
    base: dict[str, Any] = {"id": hold_id, "hold_id": hold_id, "account_id": account_id, "run_id": run_id}
    base |= {"owned_id": run_id, "epoch": 1, "granted": amount, "amount": amount, "created_at": NOON}
    await insert(store, "apflow_budget_holds", **(base | values))


async def add_decision(store: Store, decision_id: str, **values: Any) -> None:
    base: dict[str, Any] = {"id": decision_id, "created_at": NOON, "action": "block", "run_id": "r1", "reason": "full"}
    await insert(store, "apflow_decisions", **(base | values))
