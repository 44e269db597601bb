"""What goes into the ledger: attempts that want to start, usage, and what ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from apflow.governance.amounts import Amounts

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from apflow.errors import BudgetExhaustedError
    from apflow.governance.accounts import Account
    from apflow.governance.books import AccountRow
    from apflow.governance.prices import Price
    from apflow.governance.usage import Usage


class Who(NamedTuple):
    """The run on whose behalf something is written."""

    run_id: str
    root_id: str
    owned_id: str
    epoch: int
    task: str
    user: str | None
    attempt: int


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Hold:
    """One reservation as this process knows it.

    Attributes:
        id: Names it in the database.
        run_id: The run that made it.
        accounts: Where it has something, by account id.
        left: How much of that is left, as the database had it last.
        queued: How much of that was used and is not stored yet.
        outer: The reservation around it.
    """

    id: str
    run_id: str
    accounts: dict[str, Account]
    left: dict[str, int]
    outer: Hold | None
    queued: dict[str, int] = field(default_factory=dict)

    def available(self, account_id: str) -> int:
        """Return what may still be taken out of it."""
        return max(0, self.left.get(account_id, 0) - self.queued.get(account_id, 0))

    def chain(self) -> list[Hold]:
        """Return this one and those around it, the innermost first."""
        found: list[Hold] = []
        hold: Hold | None = self
        while hold is not None:
            found.append(hold)
            hold = hold.outer
        return found


@dataclass(slots=True)
class Verdict:
    """What policies say: why not, which model instead, and what to note.

    Attributes:
        refused_by: The policy that refuses, and its reason.
        notes: `(action, policy, reason, model asked for, model given)` of each decision.
    """

    refused_by: tuple[str, str] | None = None
    model: str | None = None
    notes: list[tuple[str, str, str, str | None, str | None]] = field(default_factory=list)


@dataclass(slots=True)
class Admission:
    """An attempt, or a block inside one, that wants to start.

    Attributes:
        accounts: Every account above it, by id.
        needs: What it wants to hold.
        outer: The reservation around it.
        judge: Asks the policies, given the fullest utilization; None has no policies.
        asked: The model that was asked for.
        chained: Whether some policy could give another one.
        model: The model that policies gave instead.
        warnings: What to log, once it is committed.
        refusal: Why it may not start, once `Ledger.admit` has decided.
        rows: The accounts as they were then.
        left: What it holds, by account.
        holds: What is left of the reservations around it, by reservation and account.
        limits: What the code says, by account, for those whose code is in this process.
        fullest: The account that the policies were asked about.
        fresh: Accounts that nobody can have used before: those of a run that starts in the same transaction.
        done: It was decided before, by a commit whose outcome may be unknown.
    """

    who: Who
    hold_id: str
    accounts: dict[str, Account]
    needs: Amounts
    outer: Hold | None
    judge: Callable[[float], Verdict] | None
    now: datetime
    asked: str | None = None
    chained: bool = False
    model: str | None = None
    refusal: BudgetExhaustedError | None = None
    verdict: Verdict = field(default_factory=Verdict)
    rows: dict[str, AccountRow] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    holds: dict[tuple[str, str], int] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    fullest: str | None = None
    fresh: frozenset[str] = frozenset()
    warnings: list[str] = field(default_factory=list)
    done: bool = False


@dataclass(slots=True)
class Event:
    """Usage that was reported and waits to be stored.

    Attributes:
        accounts: Every account above the run at that moment.
        hold: The innermost reservation at that moment.
        source: `reported`, `returned` or `updated`.
        price: What it cost; None when nobody knows.
        cost_nusd: The same in nano-dollars, rounded up.
        beyond: What of it no hold covered as far as this process knew, by account.
        covered: What of it holds covered: `(hold, account, amount)`.
    """

    dedupe_key: str
    who: Who
    usage: Usage
    accounts: dict[str, Account]
    hold: Hold | None
    at: datetime
    source: str
    price: Price | None = None
    cost_nusd: int | None = None
    beyond: dict[str, int] = field(default_factory=dict)
    covered: list[tuple[Hold, str, int]] = field(default_factory=list)

    @property
    def amounts(self) -> Amounts:
        """What it adds to each unit."""
        return Amounts(self.usage.total, self.cost_nusd or 0, self.usage.requests)


@dataclass(slots=True)
class Settlement:
    """What a run has used, and the reservations that end with it.

    Attributes:
        ending: Reservations to release, the innermost first.
        owned: `(run id, epoch)` of an owned run that ends: whatever it still holds is released.
        counted: The events that were not stored before, once `Ledger.settle` has run.
        overrun: What did not fit.
        rows: The accounts as they are then.
        left: What is left of each hold, by reservation and account.
    """

    events: list[Event]
    ending: list[Hold]
    owned: tuple[str, int] | None = None
    counted: list[Event] = field(default_factory=list)
    overrun: BudgetExhaustedError | None = None
    rows: dict[str, AccountRow] = field(default_factory=dict)
    left: dict[tuple[str, str], int] = field(default_factory=dict)
