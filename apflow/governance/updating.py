"""Adding usage to a task that runs nowhere here: the row, the events and every token budget above it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from apflow.governance.accounts import Account, Line
from apflow.governance.entries import Event, Settlement, Who

if TYPE_CHECKING:
    from apflow.governance.ledger import Ledger
    from apflow.governance.usage import Usage
    from apflow.storage.store import Store, Tx
    from apflow.storage.tables import TaskModel

_ABOVE = """
WITH RECURSIVE above (id, parent_id, name, token_budget) AS (
  SELECT id, parent_id, name, token_budget FROM apflow_tasks WHERE id = :id
  UNION
  SELECT t.id, t.parent_id, t.name, t.token_budget FROM apflow_tasks t JOIN above ON t.id = above.parent_id
)
SELECT above.id, above.name, above.token_budget, a.id, a.name, a.hard_limit FROM above
LEFT JOIN apflow_budget_accounts a
  ON a.per = 'run' AND a.unit = 'tokens' AND a.scope_id = above.id AND (a.window_end IS NULL OR a.window_end > :now)
WHERE above.token_budget IS NOT NULL OR a.id IS NOT NULL"""


async def add_usage(store: Store, ledger: Ledger, task: TaskModel, usage: Usage) -> None:
    """Store usage of a task, and settle it on the token budgets of the task and of those above it."""
    now = store.clock.now()
    root = task.task_tree_id or task.id
    who = Who(task.id, root, task.id, task.epoch or 0, task.name, task.user_id, max(1, task.attempt_count or 0))
    key = os.urandom(16).hex()

    def write(tx: Tx) -> None:
        lock = " FOR NO KEY UPDATE" if tx.dialect == "postgresql" else ""
        tx.row(f"SELECT 1 FROM apflow_tasks WHERE id = :id{lock}", {"id": task.id})
        accounts = {account.id: account for account in _accounts(tx, {"id": task.id, "now": store.timestamp(now)})}
        event = Event(key, who, usage, accounts, None, now, "updated")
        ledger.settle(tx, Settlement([event], []))
        ledger.keep_row_in_step(tx, task.id)

    await store.write(write)


def _accounts(tx: Tx, params: dict[str, Any]) -> list[Account]:
    found = []
    for scope_id, task_name, token_budget, account_id, name, limit in tx.rows(_ABOVE, params):
        line = Line(name or task_name, "run", scope_id, "tokens", None, "UTC", int(limit or token_budget))
        account = Account(line, None, None)
        account.id = account_id or account.id  # That of a window has another one.
        found.append(account)
    return found
