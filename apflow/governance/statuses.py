"""What `runtime.budgets` returns: the accounts, holds and decisions of the ledger, as programs read them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import UTC
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from apflow.governance.amounts import public
from apflow.storage.statements import moment

if TYPE_CHECKING:
    from datetime import datetime
    from decimal import Decimal

    from apflow.governance.amounts import Unit
    from apflow.storage.store import Row, Tx

_STATUS = """
SELECT a.id, a.name, a.per, a.scope_id, a.unit, a.period, a.tz, a.window_start, a.window_end,
  a.hard_limit, a.settled, a.reserved, a.overrun,
  h.run_id, task.name, h.amount, h.created_at, keeper.lease_expires_at
FROM apflow_budget_accounts a
LEFT JOIN apflow_budget_holds h ON h.account_id = a.id AND h.amount > 0
LEFT JOIN apflow_tasks task ON task.id = h.run_id
LEFT JOIN apflow_tasks keeper ON keeper.id = h.owned_id AND keeper.epoch = h.epoch AND keeper.status = 'in_progress'
"""


#: How many columns come before those of the hold.
_ACCOUNT: Final = 13


@dataclass(frozen=True, slots=True)
class HoldStatus:
    """What an unfinished attempt holds.

    Attributes:
        run_id: The run that holds it.
        task: Its name; None while the run has no row yet.
        amount: What is left of it, in the unit of the budget.
        since: When it was granted.
        until: When the lease that keeps it ends, unless it is renewed; None when nobody keeps it any more, and the next
            sweep gives it back.
    """

    run_id: str
    task: str | None
    amount: int | Decimal
    since: datetime
    until: datetime | None


@dataclass(frozen=True, slots=True)
class BudgetStatus:
    """One unit of one budget in one window. Amounts are tokens, requests, or dollars as Decimals.

    Attributes:
        name: The budget's.
        per: `"run"`, `"user"` or `"global"`.
        scope_id: The run or the user.
        unit: `"tokens"`, `"usd"` or `"requests"`.
        window: `"1h"`, `"1d"`, `"1w"`, `"1mo"`; None is for ever.
        tz: The time zone in which days begin.
        window_start: The first moment of it.
        window_end: The first moment after it.
        limit: What may be used.
        settled: What was used, as far as it fitted.
        reserved: What unfinished attempts hold.
        overrun: What was used and did not fit.
        left: What can still be reserved; 0 while there is any overrun.
        utilization: Settled, reserved and overrun over the limit: 0.0 to 1.0, or more.
        holds: Who holds what is reserved, the oldest first.
    """

    name: str
    per: str
    scope_id: str
    unit: str
    window: str | None
    tz: str
    window_start: datetime | None
    window_end: datetime | None
    limit: int | Decimal
    settled: int | Decimal
    reserved: int | Decimal
    overrun: int | Decimal
    left: int | Decimal
    utilization: float
    holds: tuple[HoldStatus, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """Somebody was blocked, downgraded or warned, or what a dead run held was swept.

    Attributes:
        action: One of `ACTIONS`.
        user_id: The user of the run.
        budget: Name of the budget that decided.
        hard_limit, settled, reserved, overrun: Its account as it was then: tokens, requests, or dollars as Decimals.
        requested: What the attempt wanted to hold.
        reason: One sentence for people.
    """

    id: str
    created_at: datetime
    action: str
    run_id: str
    root_run_id: str | None
    task: str | None
    user_id: str | None
    attempt: int | None
    policy: str | None
    account_id: str | None
    budget: str | None
    per: str | None
    unit: str | None
    hard_limit: int | Decimal | None
    settled: int | Decimal | None
    reserved: int | Decimal | None
    overrun: int | Decimal | None
    requested: int | Decimal | None
    model_from: str | None
    model_to: str | None
    reason: str


DECISION_COLUMNS: Final = tuple(one.name for one in fields(Decision))
_AMOUNTS: Final = ("hard_limit", "settled", "reserved", "overrun", "requested")


def statuses(tx: Tx, clause: str, params: dict[str, Any]) -> list[BudgetStatus]:
    """Return the accounts that a clause on `a` selects, with their holds, in one query."""
    rows = tx.rows(f"{_STATUS} {clause} ORDER BY a.id, h.created_at, h.id", params)
    found = [_status(list(of_one)) for _, of_one in groupby(rows, key=itemgetter(0))]
    return sorted(found, key=_order)


def _order(one: BudgetStatus) -> tuple[str, ...]:
    return one.name, one.unit, one.scope_id, one.window or "", one.tz, str(one.window_start or "")


def _status(rows: list[Row]) -> BudgetStatus:
    """Make the status of one account of its rows: one for each hold, and one without when there is none."""
    _, name, per, scope_id, unit, window, tz, start, end, limit, settled, reserved, overrun = rows[0][:_ACCOUNT]
    left = 0 if overrun else max(0, limit - settled - reserved)
    return BudgetStatus(
        name=name,
        per=per,
        scope_id=scope_id,
        unit=unit,
        window=window,
        tz=tz,
        window_start=_time(start),
        window_end=_time(end),
        limit=public(unit, limit),
        settled=public(unit, settled),
        reserved=public(unit, reserved),
        overrun=public(unit, overrun),
        left=public(unit, left),
        utilization=(settled + reserved + overrun) / limit,
        holds=tuple(_hold(unit, row[_ACCOUNT:]) for row in rows if row[_ACCOUNT] is not None),
    )


def _hold(unit: Unit, row: Row) -> HoldStatus:
    run_id, task, amount, since, until = row
    begun = _time(since)
    assert begun is not None
    return HoldStatus(run_id, task, public(unit, amount), begun, _time(until))


def decision(row: Row) -> Decision:
    """Make a decision of the values of `DECISION_COLUMNS`."""
    values = dict(zip(DECISION_COLUMNS, row, strict=True))
    values["created_at"] = _time(values["created_at"])
    for name in _AMOUNTS:
        if values[name] is not None:
            values[name] = public(values["unit"], values[name])
    return Decision(**values)


def _time(value: Any) -> datetime | None:
    time = moment(value)
    return time and time.astimezone(UTC)
