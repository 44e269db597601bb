"""What this process knows of accounts and holds, less what it was told and has not stored yet."""

from __future__ import annotations

import concurrent.futures
import threading
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from apflow.governance.books import AccountRow
from apflow.governance.decisions import exhausted
from apflow.governance.entries import Hold

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Future

    from apflow.errors import BudgetExhaustedError
    from apflow.governance.accounts import Account
    from apflow.governance.entries import Admission, Event, Settlement


class Known:
    """Shared by the meters of one runtime. The database decides; this is for answers that must not wait for it."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.lock = threading.Lock()
        self._holds: WeakValueDictionary[str, Hold] = WeakValueDictionary()
        self._late: set[Future[None]] = set()

    def granted(self, admission: Admission) -> Hold | None:
        """Learn from an admission that is committed, and return the reservation that it made."""
        with self.lock:
            _hear(admission.rows, admission.accounts)
            self._learn_holds(admission.holds)
            if not admission.left:
                return None
            accounts = {one: admission.accounts[one] for one in admission.left}
            hold = Hold(admission.hold_id, admission.who.run_id, accounts, dict(admission.left), admission.outer)
            self._holds[hold.id] = hold
            return hold

    def refresh(
        self, rows: Mapping[str, AccountRow], accounts: Mapping[str, Account], heard: Mapping[str, int]
    ) -> None:
        """Learn from accounts that were just read, but for those that a commit of this process has told of meanwhile.

        Args:
            rows: What was read.
            accounts: By id.
            heard: What their `heard` was before that.
        """
        with self.lock:
            _learn(rows, {one: account for one, account in accounts.items() if account.heard == heard[one]})

    def judge(self, event: Event) -> BudgetExhaustedError | None:
        """Take usage off what is known to be held or left; return the error of an account that has too little.

        What somebody else holds may come back at any moment, so an amount that only such holds keep from fitting is
        left to the database.
        """
        error = None
        chain = () if event.hold is None else event.hold.chain()
        with self.lock:
            for one, account in event.accounts.items():
                amount = rest = event.amounts.of(account.line.unit)
                for hold in chain:
                    for held, other in hold.accounts.items():
                        if rest and other.line == account.line and (taken := min(rest, hold.available(held))):
                            hold.queued[held] = hold.queued.get(held, 0) + taken
                            event.covered.append((hold, held, taken))
                            rest -= taken
                own = sum(hold.left.get(one, 0) for hold in chain)
                if rest and rest > account.left + max(0, account.reserved - own) and error is None:
                    error = exhausted(event.who, account, _row_of(account), amount, model=event.usage.model)
                account.unflushed += rest
                event.beyond[one] = rest
        return error

    def settled(self, settlement: Settlement) -> None:
        """Learn from a settlement that is committed."""
        with self.lock:
            for event in settlement.events:
                for one, amount in event.beyond.items():
                    event.accounts[one].unflushed -= amount
                for hold, one, amount in event.covered:
                    hold.queued[one] -= amount
            accounts = {one: account for event in settlement.events for one, account in event.accounts.items()}
            accounts |= {one: account for hold in settlement.ending for one, account in hold.accounts.items()}
            _hear(settlement.rows, accounts)
            self._learn_holds(settlement.left)

    def _learn_holds(self, left: Mapping[tuple[str, str], int]) -> None:
        for (hold_id, account_id), amount in left.items():
            hold = self._holds.get(hold_id)
            if hold is not None:
                hold.left[account_id] = amount

    # -- usage that came after the end -----------------------------------------------------------------------

    def await_late(self, future: Future[None]) -> None:
        """Remember usage that is being stored although its run has ended."""
        self._late.add(future)
        future.add_done_callback(self._late.discard)

    def finish_late(self, seconds: float) -> None:
        """Wait until such usage is stored."""
        concurrent.futures.wait(list(self._late), timeout=seconds)

    def forget_after_fork(self) -> None:
        """Begin anew: other threads may have held the lock, and what was to be stored is the parent's business."""
        self._begin()


def _row_of(account: Account) -> AccountRow:
    """Return the account as it will be once everything that was reported here is stored."""
    row = AccountRow(account.limit, account.settled, account.reserved, account.overrun, overridden=False)
    fits = min(row.room, account.unflushed)
    row.settled, row.overrun = row.settled + fits, row.overrun + account.unflushed - fits
    return row


def _learn(rows: Mapping[str, AccountRow], accounts: Mapping[str, Account]) -> None:
    for one, row in rows.items():
        account = accounts.get(one)
        if account is not None:
            account.limit, account.settled = row.limit, row.settled
            account.reserved, account.overrun = row.reserved, row.overrun


def _hear(rows: Mapping[str, AccountRow], accounts: Mapping[str, Account]) -> None:
    """Learn from a commit of this process: what was read before it is old."""
    _learn(rows, accounts)
    for one in rows.keys() & accounts.keys():
        accounts[one].heard += 1
