"""What an execution of a task tree leaves behind when it ends before its nodes have."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from apflow.storage.owners import is_gone
from apflow.storage.statements import lease_params

if TYPE_CHECKING:
    from apflow.storage.statements import Statements
    from apflow.storage.store import Store, Tx

_LEFT = """
WITH RECURSIVE inside (id) AS (
  SELECT id FROM apflow_tasks WHERE id = :task
  UNION
  SELECT c.id FROM apflow_tasks c JOIN inside ON c.parent_id = inside.id WHERE c.kind = 'node' OR c.kind IS NULL
)
SELECT id, status, owner, CASE WHEN {free} THEN 1 ELSE 0 END FROM apflow_tasks
WHERE id IN (SELECT id FROM inside) AND COALESCE(status, 'pending') IN ('pending', 'in_progress') ORDER BY id{lock}"""

_END = """
UPDATE apflow_tasks SET status = 'cancelled', epoch = COALESCE(epoch, 0) + 1, lease_expires_at = NULL,
  error = :error, error_info = :error_info{json}, completed_at = :now, updated_at = :now WHERE id = :id"""


def end_left(tx: Tx, store: Store, statements: Statements, task_id: str) -> int:
    """Cancel a node and those inside it that have not ended and that nobody holds; return how many.

    Called when the run that executes them was cancelled or given up: nothing is left pending for ever.
    """
    postgres = tx.dialect == "postgresql"
    params = lease_params(store, 0)
    sql = _LEFT.format(free=statements.free, lock=" FOR UPDATE" if postgres else "")
    message = "the execution of its tree ended first"
    error = {
        "error": f"apflow.RunCancelledError: {message}",
        "error_info": json.dumps({"type": "apflow.RunCancelledError", "message": message}),
        "now": params["now"],
    }
    ended = 0
    for one, status, owner, free in tx.rows(sql, params | {"task": task_id}):
        if status != "in_progress" or free or is_gone(owner):
            ended += tx.execute(_END.format(json="::json" if postgres else ""), error | {"id": one})
    return ended
