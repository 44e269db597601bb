"""Sweeping: holds whose run has no live lease any more go back to their accounts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apflow.governance.books import Books, numbered, placeholders
from apflow.governance.decisions import Expiry, write_down_expiry
from apflow.storage.owners import is_gone
from apflow.storage.statements import Statements, lease_params

if TYPE_CHECKING:
    from collections.abc import Collection

    from apflow.storage.store import Store, Tx


def sweep(tx: Tx, store: Store, accounts: Collection[str] | None = None) -> int:
    """Release every hold whose run has ended, was taken over or lost its lease; return how many those were.

    A hold is a row that whoever deletes it takes off its account in the same transaction. So none is released
    twice, and what its run still settles later finds no hold: it is taken off what is left.

    Args:
        tx: A transaction for writing.
        store: Where it happens.
        accounts: Only holds on these; None is all.
    """
    dead = _dead(tx, store, accounts)
    if not dead:
        return 0
    books = Books(tx, store, {account for _, account in dead})
    ids = sorted(one for one, _ in dead)
    # Read again under the locks: somebody else may have released some of them meanwhile.
    rows = [
        row
        for row in books.read_holds(f"id IN ({placeholders(ids)})", numbered(ids))
        if row.account_id in books.accounts
    ]
    for hold_id, account in dead:
        if account not in books.accounts:  # It was deleted with its run.
            tx.execute("DELETE FROM apflow_budget_holds WHERE id = :id", {"id": hold_id})
    expired = [Expiry(row.account_id, row.run_id, row.id, row.amount) for row in rows]
    books.release(rows)
    books.save()
    for one in expired:
        write_down_expiry(tx, store, one)
    return len(rows)


def _dead(tx: Tx, store: Store, accounts: Collection[str] | None) -> list[tuple[str, str]]:
    """Return id and account of each hold that nobody keeps."""
    params = lease_params(store, 0)
    where = ""
    if accounts is not None:
        ids = sorted(accounts)
        where = f"WHERE h.account_id IN ({placeholders(ids)})"
        params |= numbered(ids)
    now = Statements.of(store).now
    sql = (
        "SELECT h.id, h.account_id, CASE WHEN t.status = 'in_progress' AND t.epoch = h.epoch "
        f"AND t.lease_expires_at >= {now} THEN 1 ELSE 0 END, t.owner "
        f"FROM apflow_budget_holds h LEFT JOIN apflow_tasks t ON t.id = h.owned_id {where}"
    )
    return [(one, account) for one, account, live, owner in tx.rows(sql, params) if not live or is_gone(owner)]
