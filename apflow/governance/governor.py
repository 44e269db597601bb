"""What governs the runs of one runtime: ledger, accounts, policies and prices."""

from __future__ import annotations

import asyncio
import functools
import threading
from typing import TYPE_CHECKING

from apflow.errors import TaskDefinitionError
from apflow.governance.accounts import Accounts
from apflow.governance.books import read_accounts
from apflow.governance.known import Known
from apflow.governance.ledger import Ledger
from apflow.governance.policy import PolicyEngine
from apflow.governance.prices import Prices
from apflow.governance.sweep import sweep

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from apflow.governance.budget import Budget
    from apflow.governance.policy import CostPolicy
    from apflow.storage.store import Store

#: How many accounts one query reads.
CHUNK = 500


class Governor:
    """Shared by the meters of all runs of one runtime.

    Args:
        store: The database.
        policies: What tasks refer to by name.

    Raises:
        ValueError: Two policies have the same name.
    """

    def __init__(self, store: Store, policies: Sequence[CostPolicy]) -> None:
        self.store = store
        self.ledger = Ledger(store)
        self.accounts = Accounts()
        self.engine = PolicyEngine()
        self.prices = Prices()
        self.known = Known()
        self.lock = threading.Lock()
        self._declared: dict[tuple[str, ...], tuple[int, str]] = {}
        for policy in policies:
            self.engine.register_policy(policy)

    def declare(self, task: str, budgets: Sequence[Budget]) -> None:
        """Remember the limits that a task declares for budgets which other tasks may share.

        Raises:
            TaskDefinitionError: Another task declares another limit for the same.
        """
        for one in budgets:
            for unit, limit in one.limits.items() if one.per != "run" else ():
                key = (one.name or task, one.per, unit, one.window or "", one.tz if one.window else "")
                known, other = self._declared.setdefault(key, (limit, task))
                if known != limit and other != task:
                    raise TaskDefinitionError(
                        f"tasks {other!r} and {task!r} give the budget {key[0]!r} per {one.per} two limits of {unit}; "
                        "give both the same limit, or one of the budgets another name"
                    )
                self._declared[key] = (limit, other)

    def forget_after_fork(self) -> None:
        """Make locks that no other thread can have held while forking."""
        self.lock = threading.Lock()
        self.known.forget_after_fork()
        self.accounts.forget_after_fork()
        self.prices.forget_after_fork()

    async def load_prices(self) -> None:
        """Load the price book, which takes up to a second the first time, without blocking the loop."""
        if not self.prices.loaded:
            await asyncio.to_thread(self.prices.load)

    async def sweep(self, accounts: Collection[str] | None = None) -> int:
        """Release the holds of dead runs and return how many those were."""
        return await self.store.write(lambda tx: sweep(tx, self.store, accounts))

    def refresh_blocking(self) -> None:
        """Learn what other processes have done to the accounts that runs here refer to."""
        live = self.accounts.live()
        for start in range(0, len(live), CHUNK):
            chunk = {account.id: account for account in live[start : start + CHUNK]}
            heard = {one: account.heard for one, account in chunk.items()}
            rows = self.store.read_blocking(functools.partial(read_accounts, ids=list(chunk)))
            self.known.refresh(rows, chunk, heard)

    def sweep_blocking(self) -> int:
        """Do what `sweep` does, from a thread without an event loop."""
        return self.store.write_blocking(lambda tx: sweep(tx, self.store))
