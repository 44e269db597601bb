"""`ctx.budget`: what is left above the current run, as this process knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apflow.governance.amounts import UNITS, Unit, public

if TYPE_CHECKING:
    from decimal import Decimal

    from apflow.governance.accounts import Account
    from apflow.governance.meter import Meter


class BudgetView:
    """What the budgets above a run have left: the least of each unit, when it was last heard of."""

    __module__ = "apflow"
    __slots__ = ("_meter",)

    def __init__(self, meter: Meter | None) -> None:
        self._meter = meter

    def __repr__(self) -> str:
        left = ", ".join(f"{unit}: {self.remaining(unit)} left" for unit in UNITS if self._accounts(unit))
        return f"<apflow.BudgetView {left or 'no budget'}>"

    def remaining(self, unit: Unit = "tokens") -> int | Decimal | None:
        """Return what this run may still use, holds of its own included; None without a budget in this unit.

        Args:
            unit: `"tokens"`, `"usd"` (a Decimal) or `"requests"`.

        Raises:
            ValueError: There is no such unit.
        """
        left = [max(0, account.left + self._held(account)) for account in self._accounts(unit)]
        return public(unit, min(left)) if left else None

    def utilization(self, unit: Unit = "tokens") -> float:
        """Return used and held amounts over the limit of the fullest budget: 0.0 to 1.0, more after an overrun.

        Raises:
            ValueError: There is no such unit.
        """
        accounts = self._accounts(unit)
        return max((1 - (account.left + self._held(account)) / account.limit for account in accounts), default=0.0)

    def _accounts(self, unit: Unit) -> list[Account]:
        if unit not in UNITS:
            raise ValueError(f"unit must be one of {', '.join(UNITS)}, got {unit!r}")
        if self._meter is None:
            return []
        now = self._meter.governor.store.clock.now()
        return [account for account in self._meter.accounts_at(now).values() if account.line.unit == unit]

    def _held(self, account: Account) -> int:
        assert self._meter is not None
        innermost = self._meter.innermost()
        chain = () if innermost is None else innermost.chain()
        return sum(hold.available(account.id) for hold in chain)
