"""Decisions: refusals in words, and the rows that say who was blocked, downgraded or warned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apflow.durability.replay import word
from apflow.errors import BudgetExhaustedError
from apflow.governance.amounts import public, shown

if TYPE_CHECKING:
    from apflow.governance.accounts import Account
    from apflow.governance.books import AccountRow
    from apflow.governance.entries import Admission, Who
    from apflow.storage.store import Store, Tx

_INSERT = """
INSERT INTO apflow_decisions (id, created_at, action, run_id, root_run_id, task, user_id, attempt, policy, account_id,
  budget, per, unit, hard_limit, settled, reserved, overrun, requested, model_from, model_to, reason)
VALUES (:id, :at, :action, :run_id, :root_run_id, :task, :user_id, :attempt, :policy, :account_id, :budget, :per,
  :unit, :hard_limit, :settled, :reserved, :overrun, :requested, :model_from, :model_to, :reason)
ON CONFLICT (id) DO NOTHING"""

_FOR = {"run": "each run", "user": "each user", "global": "all together"}


def exhausted(
    who: Who,
    account: Account,
    row: AccountRow,
    requested: int,
    *,
    policy: str | None = None,
    reason: str | None = None,
    model: str | None = None,
) -> BudgetExhaustedError:
    """Return the error of an account that does not allow more, with its numbers."""
    line, unit = account.line, account.line.unit
    left = 0 if row.overrun else row.room
    numbers = f"{shown(unit, row.settled)} are settled, {shown(unit, row.reserved)} held"
    if row.overrun:
        numbers += f", {shown(unit, row.overrun)} overrun"
    text = (
        f"the budget {line.name!r} allows {_FOR[line.per]} {shown(unit, row.limit)}: {numbers}, "
        f"{shown(unit, requested)} requested. "
    )
    if reason is not None:
        text += f"{reason} "
    if account.end is not None:
        text += f"The next window begins at {account.end.isoformat()}. "
    text += f"Raise the limit with runtime.budgets.set_limit({line.name!r}, ...), or use less."
    return BudgetExhaustedError(
        who.run_id,
        public(unit, left),
        message=text,
        scope=line.per,
        budget=line.name,
        unit=unit,
        limit=public(unit, row.limit),
        settled=public(unit, row.settled),
        reserved=public(unit, row.reserved),
        overrun=public(unit, row.overrun),
        requested=public(unit, requested),
        window_end=account.end,
        policy=policy,
        model=model,
    )


def write_down(tx: Tx, store: Store, admission: Admission, refusing: str | None) -> None:
    """Write down what was decided about an admission; twice is once.

    Args:
        tx: The transaction of the admission.
        store: Where it happens.
        admission: What was decided about.
        refusing: The account that refused it, if one did.
    """
    if refusing is not None:
        policy, reason = admission.verdict.refused_by or (None, str(admission.refusal))
        _insert(tx, store, admission, refusing, ("block", policy, reason, admission.asked, None))
    for note in admission.verdict.notes:
        assert admission.fullest is not None
        _insert(tx, store, admission, admission.fullest, note)


def _insert(
    tx: Tx,
    store: Store,
    admission: Admission,
    account_id: str,
    note: tuple[str, str | None, str, str | None, str | None],
) -> None:
    """Insert one decision. The runs of one tree are warned once by each policy about each account."""
    action, policy, reason, asked, given = note
    who, line, row = admission.who, admission.accounts[account_id].line, admission.rows[account_id]
    once = who.root_id if action == "notify" else admission.hold_id
    params: dict[str, Any] = {
        "id": word(once, account_id, action, policy or ""),
        "at": store.timestamp(admission.now),
        "action": action,
        "run_id": who.run_id,
        "root_run_id": who.root_id,
        "task": who.task,
        "user_id": who.user,
        "attempt": who.attempt,
        "policy": policy,
        "account_id": account_id,
        "budget": line.name,
        "per": line.per,
        "unit": line.unit,
        "hard_limit": row.limit,
        "settled": row.settled,
        "reserved": row.reserved,
        "overrun": row.overrun,
        "requested": admission.needs.of(line.unit),
        "model_from": asked,
        "model_to": given,
        "reason": reason,
    }
    if tx.execute(_INSERT, params) == 1 and action == "notify":
        admission.warnings.append(reason)


@dataclass(frozen=True, slots=True)
class Expiry:
    """A hold of a dead run that was released.

    Attributes:
        account_id: The account that has it back.
        run_id: The run that held it.
        row_id: The row that it was.
        amount: How much of it was left.
    """

    account_id: str
    run_id: str
    row_id: str
    amount: int


def write_down_expiry(tx: Tx, store: Store, expiry: Expiry) -> None:
    """Write down that a hold was released, in the transaction that has released it."""
    sql = "SELECT name, per, unit, hard_limit, settled, reserved, overrun FROM apflow_budget_accounts WHERE id = :id"
    row = tx.row(sql, {"id": expiry.account_id})
    if row is None:
        return
    params: dict[str, Any] = dict.fromkeys(("root_run_id", "task", "user_id", "attempt", "policy"))
    params |= dict.fromkeys(("model_from", "model_to"))
    params |= dict(zip(("budget", "per", "unit", "hard_limit", "settled", "reserved", "overrun"), row, strict=True))
    params |= {"id": word(expiry.row_id, "expire"), "at": store.timestamp(store.clock.now()), "action": "expire"}
    params |= {"run_id": expiry.run_id, "account_id": expiry.account_id, "requested": expiry.amount}
    params["reason"] = "the run that held this has no live lease any more, so it was released"
    tx.execute(_INSERT, params)
