"""Accounts of runs that have used nothing yet. They have no row of their own: the run's row says what they allow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apflow.governance.accounts import Account, Line
from apflow.governance.amounts import MOST_TOKENS
from apflow.governance.books import Books
from apflow.governance.statuses import BudgetStatus

if TYPE_CHECKING:
    from apflow.options import Options
    from apflow.storage.store import Store, Tx

_UNTOUCHED = """
SELECT t.name, t.token_budget FROM apflow_tasks t WHERE t.id = :scope_id AND t.token_budget IS NOT NULL AND NOT EXISTS (
  SELECT 1 FROM apflow_budget_accounts a WHERE a.scope_id = :scope_id AND a.per = 'run' AND a.unit = 'tokens')"""


def needs_no_row(options: Options) -> bool:
    """Whether the account of a run's own budget can wait until something is used or held.

    So it is with `budget=50_000`: the row of the run has the number, and the budget has the task's name.
    """
    own = [one for one in options.budget if one.per == "run"]
    if len(own) != 1:
        return False
    only = own[0]
    return only.limits.keys() == {"tokens"} and only.limits["tokens"] <= MOST_TOKENS and not (only.name or only.window)


def untouched(tx: Tx, run_id: str) -> BudgetStatus | None:
    """Return the status of a run's budget without a row, or None."""
    row = tx.row(_UNTOUCHED, {"scope_id": run_id})
    if row is None:
        return None
    return BudgetStatus(
        name=row[0],
        per="run",
        scope_id=run_id,
        unit="tokens",
        window=None,
        tz="UTC",
        window_start=None,
        window_end=None,
        limit=int(row[1]),
        settled=0,
        reserved=0,
        overrun=0,
        left=int(row[1]),
        utilization=0.0,
        holds=(),
    )


def insert_untouched(tx: Tx, store: Store, run_id: str) -> None:
    """Give a run's budget without a row the row that it would have had with the first use."""
    row = tx.row(_UNTOUCHED, {"scope_id": run_id})
    if row is not None:
        account = Account(Line(row[0], "run", run_id, "tokens", None, "UTC", int(row[1])), None, None)
        Books(tx, store, ()).open({account.id: account}, store.clock.now())
