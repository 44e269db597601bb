"""What stands above a run: the limits of its own task and of the runs above it, and their accounts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apflow.governance.accounts import Line, is_current
from apflow.governance.untouched import needs_no_row

if TYPE_CHECKING:
    from datetime import datetime

    from apflow.governance.accounts import Account
    from apflow.state import RunState


class Standing:
    """The limits above one run.

    Args:
        state: The run.
        parent: The same of the run above it in this process.

    Attributes:
        rowless: Its own account can wait for a row until something is used or held.
    """

    def __init__(self, state: RunState, parent: Standing | None) -> None:
        self._state, self._parent = state, parent
        self._governor = state.runtime.governor
        self._above = () if state.above is None else state.above.lines
        self._lines: tuple[Line, ...] | None = None
        self._own: dict[str, Account] | None = None
        self._kept_above: dict[str, Account] = {}
        self.rowless = bool(state.options.budget) and needs_no_row(state.options)

    def above(self) -> tuple[Line, ...]:
        """Return every limit above this run but its own."""
        return self._above if self._parent is None else self._parent.lines()

    def lines(self) -> tuple[Line, ...]:
        """Return every limit above this run, its own included."""
        return (*self.above(), *self._own_lines())

    def _own_lines(self) -> tuple[Line, ...]:
        """Return the limits that the run's own task declares; only known once the run has its final id."""
        if self._lines is None:
            self._lines = own_lines(self._state)
        return self._lines

    def accounts_at(self, now: datetime) -> dict[str, Account]:
        """Return the accounts above this run in the windows that hold `now`, by id."""
        above = self._accounts_above(now)
        if not self._state.options.budget:
            return above
        own = self._own
        if own is None or not all(is_current(account, now) for account in own.values()):
            # Kept, because what is known of an account is forgotten with the last run that refers to it.
            own = self._own = self._own_accounts(now)
        return {**above, **own} if above else own

    def _own_accounts(self, now: datetime) -> dict[str, Account]:
        own = {}
        for line in self._own_lines():
            account = self._governor.accounts.at(line, now)
            own[account.id] = account
            if line.per == "run":
                account.lazy = self.rowless
        return own

    def limits(self) -> dict[str, int]:
        """Return what code in this process says about accounts; what a run brought from elsewhere may be outdated."""
        if not self._state.options.budget:
            return {} if self._parent is None else self._parent.limits()
        own = {one: line.limit for one, line in zip(self._own or {}, self._own_lines(), strict=False)}
        return own if self._parent is None else self._parent.limits() | own

    def _accounts_above(self, now: datetime) -> dict[str, Account]:
        if self._parent is not None:
            return self._parent.accounts_at(now)
        if self._above:
            found = (self._governor.accounts.at(line, now) for line in self._above)
            self._kept_above = {account.id: account for account in found}
        return self._kept_above

    def fresh(self) -> frozenset[str]:
        """Return the accounts that begin with this run."""
        return frozenset(one for one, account in (self._own or {}).items() if account.line.per == "run")

    def forget(self) -> None:
        """Forget what depends on the run's id: the run is one that exists already."""
        self._lines = self._own = None


def own_lines(state: RunState) -> tuple[Line, ...]:
    """Return the limits that the run's own task declares."""
    scopes = {"run": state.id, "user": state.user or "", "global": ""}
    return tuple(
        [
            Line(one.name or state.definition.name, one.per, scopes[one.per], unit, one.window, one.tz, limit)
            for one in state.options.budget
            for unit, limit in one.limits.items()
        ]
    )
