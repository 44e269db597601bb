"""`runtime.budgets`: what the ledger says of a budget, limits changed at run time, and what was decided."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from apflow.errors import BudgetNotFoundError
from apflow.governance.accounts import fitting
from apflow.governance.amounts import nano, whole
from apflow.governance.books import numbered, placeholders
from apflow.governance.statuses import DECISION_COLUMNS, decision, statuses
from apflow.governance.untouched import insert_untouched, untouched
from apflow.storage.conditions import checked_id, created_between, where

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime
    from decimal import Decimal

    from apflow.governance.budget import BudgetScope
    from apflow.governance.statuses import BudgetStatus, Decision
    from apflow.storage.store import Row, Store, Tx

ACTIONS: Final = ("block", "downgrade", "notify", "expire")
_SCOPES: Final = {"run": "run", "task": "run", "user": "user", "global": "global"}

_CURRENT = "(window_end IS NULL OR window_end > :now)"


class Budgets:
    """The budgets of one database. Plain code calls these through `runtime.wait(...)`.

    Args:
        store: Where the ledger is.
        ready: Opens it.
        changed: Told the new limits, in tokens, requests or nano-dollars, by account id, once they are committed.
    """

    def __init__(
        self, store: Store, ready: Callable[[], Awaitable[None]], changed: Callable[[dict[str, int]], None]
    ) -> None:
        self._store = store
        self._ready = ready
        self._changed = changed

    async def explain(
        self, scope: str | BudgetScope, scope_id: str | None = None, *, history: bool = False
    ) -> list[BudgetStatus]:
        """Return what was used of the budgets of one run, one user or everybody, who holds what, and what is left.

        Args:
            scope: `"run"` (or `"task"`), `"user"` or `"global"`.
            scope_id: The id of the run or the user.
            history: Windows that are over, too.

        Returns:
            One status for each budget, unit and window, in the order of these. Empty before the first governed call.

        Raises:
            ValueError: The scope is unknown, or `scope_id` is missing.
            StorageError: The database failed.
        """
        conditions, params = self._scope(_per("scope", scope), scope_id)
        if not history:
            conditions.append(_CURRENT)
            params |= self._now()
        await self._ready()
        return await self._store.read(lambda tx: self._statuses(tx, where(conditions), params))

    @staticmethod
    def _statuses(tx: Tx, clause: str, params: dict[str, Any]) -> list[BudgetStatus]:
        found = statuses(tx, clause, params)
        if "scope_id" in params and (fresh := untouched(tx, params["scope_id"])) is not None:
            found.append(fresh)
        return found

    async def set_limit(
        self,
        name: str,
        *,
        per: str | BudgetScope = "run",
        scope_id: str | None = None,
        tokens: int | None = None,
        usd: str | Decimal | int | None = None,
        requests: int | None = None,
    ) -> list[BudgetStatus]:
        """Change limits while runs are going. From then on the limit in the code does not count for these accounts.

        What did not fit before and fits now is no overrun any more. A limit below what is settled and reserved takes
        nothing back; it only admits nothing more.

        Args:
            name: Of the budget; the task's name when the budget has none.
            per: `"run"` (or `"task"`), `"user"` or `"global"`.
            scope_id: The id of the run or the user.
            tokens: The new limit, at least 1.
            usd: The new limit, more than 0 dollars with at most 9 decimals.
            requests: The new limit, at least 1.

        Returns:
            What the changed accounts are now.

        Raises:
            ValueError: A value is out of its range, `scope_id` is missing, or there is no new limit.
            BudgetNotFoundError: A unit has no account, and nothing was changed. It is a LookupError.
            StorageError: Nothing was changed.
        """
        limits = _limits(tokens, usd, requests)
        whose = _per("per", per)
        conditions, params = self._scope(whose, scope_id)
        units = ", ".join(f"'{unit}'" for unit in limits)
        conditions += ["name = :name", f"unit IN ({units})", _CURRENT]
        params |= self._now() | {"name": checked_id("name", name)}

        def change(tx: Tx) -> tuple[dict[str, int], list[BudgetStatus]]:
            if whose == "run":
                insert_untouched(tx, self._store, params["scope_id"])
            found = _lock(tx, where(conditions), params)
            missing = limits.keys() - {row[1] for row in found}
            if missing:
                raise BudgetNotFoundError(name, whose, sorted(missing))
            return _resize(tx, found, limits)

        await self._ready()
        changed, now = await self._store.write(change)
        self._changed(changed)
        return now

    async def decisions(
        self,
        *,
        run_id: str | None = None,
        user: str | None = None,
        action: str | None = None,
        since: datetime | None = None,
        limit: int = 100,
    ) -> list[Decision]:
        """Return who was blocked, downgraded or warned, and whose holds were swept, the newest first.

        Args:
            run_id: Of this run itself.
            user: Of this user.
            action: One of `ACTIONS`.
            since: The first moment that counts; aware.
            limit: How many at most, at least 1.

        Raises:
            ValueError: A value is out of its range.
            StorageError: The database failed.
        """
        if action is not None and action not in ACTIONS:
            raise ValueError(f"action must be one of {', '.join(ACTIONS)}, got {action!r}")
        if limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        conditions, params = created_between(self._store, since, None, end_inside=False)
        for column, given, value in (("run_id", "run_id", run_id), ("user_id", "user", user)):
            if value is not None:
                conditions.append(f"{column} = :{column}")
                params[column] = checked_id(given, value)
        if action is not None:
            conditions.append("action = :action")
            params["action"] = action
        sql = (
            f"SELECT {', '.join(DECISION_COLUMNS)} FROM apflow_decisions {where(conditions)} "
            "ORDER BY created_at DESC, id DESC LIMIT :limit"
        )
        await self._ready()
        rows = await self._store.read(lambda tx: tx.rows(sql, params | {"limit": limit}))
        return [decision(row) for row in rows]

    def _now(self) -> dict[str, Any]:
        return {"now": self._store.timestamp(self._store.clock.now())}

    @staticmethod
    def _scope(per: str, scope_id: str | None) -> tuple[list[str], dict[str, Any]]:
        """Return the conditions on the scope of an account, and their parameters."""
        if per == "global":
            return ["per = 'global'"], {}
        return [f"per = '{per}'", "scope_id = :scope_id"], {"scope_id": checked_id("scope_id", scope_id)}


# -- arguments -----------------------------------------------------------------------------------------------


def _per(field: str, scope: object) -> str:
    """Return the value of the column `per` that a scope stands for."""
    value = scope.value if isinstance(scope, Enum) else scope
    if not isinstance(value, str) or value not in _SCOPES:
        raise ValueError(f"{field} must be one of {', '.join(_SCOPES)}, got {value!r}")
    return _SCOPES[value]


def _limits(tokens: object, usd: object, requests: object) -> dict[str, int]:
    limits: dict[str, int] = {}
    if tokens is not None:
        limits["tokens"] = whole(tokens, "tokens")
    if usd is not None:
        limits["usd"] = nano(usd, "usd")
    if requests is not None:
        limits["requests"] = whole(requests, "requests")
    if not limits:
        raise ValueError("a new limit is missing: tokens=, usd= or requests=")
    return limits


# -- accounts ------------------------------------------------------------------------------------------------


def _lock(tx: Tx, clause: str, params: dict[str, Any]) -> list[Row]:
    """Return id, unit, settled, reserved and overrun of accounts that nobody else changes before the end."""
    lock = " FOR NO KEY UPDATE" if tx.dialect == "postgresql" else ""
    sql = f"SELECT id, unit, settled, reserved, overrun FROM apflow_budget_accounts {clause} ORDER BY id{lock}"
    return tx.rows(sql, params)


def _resize(tx: Tx, rows: list[Row], limits: dict[str, int]) -> tuple[dict[str, int], list[BudgetStatus]]:
    """Set the limits of locked accounts, and settle what fits now of their overrun.

    Returns:
        The limits by account id, and what the accounts are now.
    """
    changed = {}
    for account, unit, settled, reserved, overrun in rows:
        limit = changed[account] = limits[unit]
        fits = fitting(limit, settled, reserved, overrun)
        values = {"hard_limit": limit, "overridden": True, "settled": settled + fits, "overrun": overrun - fits}
        tx.execute(
            "UPDATE apflow_budget_accounts SET hard_limit = :hard_limit, overridden = :overridden, "
            "settled = :settled, overrun = :overrun WHERE id = :id",
            values | {"id": account},
        )
    return changed, statuses(tx, f"WHERE a.id IN ({placeholders(changed)})", numbered(changed))
