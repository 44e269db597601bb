"""What governs the runs of one runtime: ledger, accounts, policies and prices."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from apflow.governance.accounts import Accounts
from apflow.governance.ledger import Ledger
from apflow.governance.policy import PolicyEngine
from apflow.governance.prices import Prices
from apflow.governance.sweep import sweep

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from apflow.governance.policy import CostPolicy
    from apflow.storage.store import Store


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
        self.ledger = Ledger.of(store)
        self.accounts = Accounts()
        self.engine = PolicyEngine()
        self.prices = Prices()
        #: Guards what this process knows of accounts and holds.
        self.lock = threading.Lock()
        for policy in policies:
            self.engine.register_policy(policy)

    async def load_prices(self) -> None:
        """Load the price book, which takes up to a second the first time, without blocking the loop."""
        if not self.prices.loaded:
            await asyncio.to_thread(self.prices.load)

    async def sweep(self, accounts: Collection[str] | None = None) -> int:
        """Release the holds of dead runs and return how many those were."""
        return await self.store.write(lambda tx: sweep(tx, self.store, accounts))

    def sweep_blocking(self) -> int:
        """Do what `sweep` does, from a thread without an event loop."""
        return self.store.write_blocking(lambda tx: sweep(tx, self.store))
