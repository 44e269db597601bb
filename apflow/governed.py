"""What a runtime has to do with governance: prices, reports, budgets, and the meters of its runs."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from apflow.governance.budgets import Budgets
    from apflow.governance.governor import Governor
    from apflow.governance.policy import CostPolicy
    from apflow.governance.prices import Prices
    from apflow.governance.reporting import ReportUsage, Reserve
    from apflow.governance.reports import UsageReports
    from apflow.governance.view import BudgetView
    from apflow.state import RunState
    from apflow.storage.store import Store, Tx


class Governed:
    """The part of `Runtime` that governs. Nothing of governance is imported before it is used."""

    if TYPE_CHECKING:
        store: Store

        async def ready(self) -> None:
            """Open the database at the first use."""

    def _govern(self, policies: Sequence[CostPolicy]) -> None:
        """Remember the policies that tasks refer to by name.

        Raises:
            ValueError: Two of them have the same name.
        """
        self._policies = tuple(policies)
        self._governor: Governor | None = None
        self._governing = threading.Lock()
        if self._policies:
            _ = self.governor

    @property
    def governor(self) -> Governor:
        """What governs the runs here; not for users."""
        if self._governor is None:
            from apflow.governance.governor import Governor

            with self._governing:
                if self._governor is None:
                    self._governor = Governor(self.store, self._policies)
        return self._governor

    @property
    def prices(self) -> Prices:
        """What models cost: `runtime.prices.set("my-model", input="0.50", output="2")`, in USD per million tokens."""
        return self.governor.prices

    @property
    def usage(self) -> UsageReports:
        """What was used: `await runtime.usage.by("model")`."""
        from apflow.governance.reports import UsageReports

        return UsageReports(self.store, self.ready)

    @property
    def budgets(self) -> Budgets:
        """What budgets have left, and their limits at run time: `await runtime.budgets.explain("user", "ada")`."""
        from apflow.governance.budgets import Budgets

        return Budgets(self.store, self.ready, self.governor.accounts.limits_changed)

    def budget_view(self, state: RunState) -> BudgetView:
        """Return what `ctx.budget` is."""
        from apflow.governance.view import BudgetView

        return BudgetView(state.meter)

    def usage_reporter(self, state: RunState) -> ReportUsage:
        """Return what `ctx.report_usage` is."""
        from apflow.governance.reporting import ReportUsage

        return ReportUsage(state)

    def reserver(self, state: RunState) -> Reserve:
        """Return what `ctx.reserve` is."""
        from apflow.governance.reporting import Reserve

        return Reserve(state)

    def count_returned(self, state: RunState, result: object) -> None:
        """Count the usage that a result tells of.

        Raises:
            ValueError: Its `token_usage` has a number that is none.
        """
        from apflow.governance.attach import meter_of
        from apflow.governance.usage import returned_usage

        usage = returned_usage(result)
        if usage is not None:
            meter = meter_of(state)
            meter.spending.returned(usage if usage.model else replace(usage, model=meter.asked_model()))

    def _release_holds(self, tx: Tx, run_id: str, epoch: int) -> None:
        """End what a run held in its lives up to `epoch`."""
        self.governor.ledger.release_owned(tx, run_id, epoch)

    def _sweep(self) -> None:
        """Release what dead runs hold, from the lease keeper's thread; with no holds, nothing is imported for it."""
        if self.store.read_blocking(lambda tx: tx.row("SELECT 1 FROM apflow_budget_holds LIMIT 1")) is not None:
            self.governor.sweep_blocking()
        if self._governor is not None:
            self._governor.refresh_blocking()

    def _finish_late(self, seconds: float) -> None:
        """Wait for usage that runs have reported after their end."""
        if self._governor is not None:
            self._governor.known.finish_late(seconds)

    def _forget_governing(self) -> None:
        """Begin anew in a forked child: other threads may have held these locks."""
        self._governing = threading.Lock()
        if self._governor is not None:
            self._governor.forget_after_fork()
