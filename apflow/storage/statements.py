"""The statements of the hot path, written once: `:name` parameters, and three fragments that differ.

`{now}` and `{lease}` are the database's clock on PostgreSQL (unless the runtime has a clock of its own) and
parameters elsewhere; `{json}` is a cast that PostgreSQL needs where it cannot infer the type.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apflow.storage.store import Dialect, Store

#: Columns of an inserted row and their values: parameters, fragments and constants.
OWNED_VALUES = {
    "id": ":id",
    "parent_id": ":parent_id",
    "task_tree_id": ":task_tree_id",
    "user_id": ":user_id",
    "name": ":name",
    "status": "'in_progress'",
    "inputs": ":inputs{json}",
    "progress": "0",
    "attempt_count": "0",
    "max_attempts": ":max_attempts",
    "created_at": ":now",
    "started_at": ":now",
    "updated_at": ":now",
    "lease_expires_at": "{lease}",
    "kind": ":kind",
    "task_version": ":task_version",
    "origin": ":origin",
    "named": ":named",
    "accepted": ":accepted",
    "owner": ":owner",
    "epoch": ":epoch",
    "recoveries": "0",
    "run_key": ":run_key",
    "fingerprint": ":fingerprint",
    "idempotency_key": ":idempotency_key",
    "checkpoint": ":checkpoint",
    "options": ":options{json}",
    "backoff_strategy": ":backoff_strategy",
    "backoff_base_seconds": ":backoff_base_seconds",
    "token_budget": ":token_budget",
    "cost_policy": ":cost_policy",
    "estimated_cost_usd": ":estimated_cost_usd",
}
CHILD_VALUES = {
    "id": ":id",
    "parent_id": ":parent_id",
    "task_tree_id": ":task_tree_id",
    "user_id": ":user_id",
    "name": ":name",
    "status": ":status",
    "inputs": ":inputs{json}",
    "result": ":result{json}",
    "error": ":error",
    "error_info": ":error_info{json}",
    "progress": ":progress",
    "attempt_count": ":attempt_count",
    "max_attempts": ":max_attempts",
    "created_at": ":started_at",
    "started_at": ":started_at",
    "updated_at": ":now",
    "completed_at": ":completed_at",
    "kind": "'child'",
    "backoff_strategy": "NULL",
    "backoff_base_seconds": "NULL",
    "task_version": ":task_version",
    "checkpoint": ":checkpoint",
    "token_budget": ":token_budget",
    "cost_policy": ":cost_policy",
    "estimated_cost_usd": ":estimated_cost_usd",
}

FENCE = "SELECT 1 FROM apflow_tasks WHERE id = :owned_id AND epoch = :epoch AND status = 'in_progress'"

#: A run that is `in_progress` and nobody holds.
FREE = "status = 'in_progress' AND (lease_expires_at IS NULL OR lease_expires_at < {now})"


_INSERT_OWNED = f"""
INSERT INTO apflow_tasks ({", ".join(OWNED_VALUES)}) VALUES ({", ".join(OWNED_VALUES.values())})
ON CONFLICT DO NOTHING"""

#: What a node's row was created with is not overwritten by what its task says, which may say something else the next
#: time; but the tokens that it may use are what others go by. Rows of version 1 have no kind, and may have no status.
_BEGIN_NODE = """
UPDATE apflow_tasks SET status = 'in_progress', owner = :owner, epoch = :epoch, lease_expires_at = {lease},
  started_at = :now, updated_at = :now, recoveries = 0, recovered_at = NULL,
  attempt_count = 0, kind = 'node', task_version = :task_version, origin = :origin, named = :named,
  accepted = :accepted, checkpoint = :checkpoint, options = :options{json},
  token_budget = COALESCE(token_budget, :token_budget),
  estimated_cost_usd = COALESCE(estimated_cost_usd, :estimated_cost_usd)
WHERE id = :id AND COALESCE(status, 'pending') = 'pending' AND COALESCE(epoch, 0) = :epoch - 1
  AND (updated_at IS NULL OR updated_at = :seen)"""

_UPSERT_CHILD_TAIL = """
ON CONFLICT (id) DO UPDATE SET status = excluded.status, result = excluded.result, error = excluded.error,
  error_info = excluded.error_info, attempt_count = excluded.attempt_count,
  updated_at = excluded.updated_at, completed_at = excluded.completed_at, next_attempt_at = NULL,
  progress = CASE WHEN excluded.status = 'completed' THEN 1 ELSE apflow_tasks.progress END
WHERE apflow_tasks.status <> 'completed'"""

#: SQLite has the whole database locked, so the fence is a query of its own: a subquery on the table that is
#: written would be copied to a temporary one first.
_UPSERT_CHILD_SQLITE = f"""
INSERT INTO apflow_tasks ({", ".join(CHILD_VALUES)})
VALUES ({", ".join(CHILD_VALUES.values())}){_UPSERT_CHILD_TAIL}"""

_UPSERT_CHILD_POSTGRES = f"""
WITH fence AS ({FENCE} FOR SHARE)
INSERT INTO apflow_tasks ({", ".join(CHILD_VALUES)})
SELECT {", ".join(CHILD_VALUES.values())} FROM fence{_UPSERT_CHILD_TAIL}"""

_END_OWNED = """
UPDATE apflow_tasks SET status = :status, result = :result{json}, error = :error, error_info = :error_info{json},
  progress = CASE WHEN :completed THEN 1 ELSE progress END, attempt_count = :attempt_count,
  completed_at = :now, updated_at = :now,
  lease_expires_at = NULL, next_attempt_at = NULL
WHERE id = :id AND epoch = :epoch AND status = 'in_progress'"""

_RELEASE = """
UPDATE apflow_tasks SET lease_expires_at = NULL, updated_at = :now
WHERE id = :id AND epoch = :epoch AND status = 'in_progress'"""

_CLAIM = """
UPDATE apflow_tasks SET accepted = :accepted,
  max_attempts = CASE WHEN kind = 'node' THEN max_attempts ELSE :max_attempts END,
  status = 'in_progress', epoch = COALESCE(epoch, 0) + 1, owner = :owner, lease_expires_at = {lease},
  recoveries = :recoveries, recovered_at = :recovered_at, updated_at = :now, completed_at = NULL,
  error = NULL, error_info = NULL,
  cancel_requested_at = CASE WHEN status = 'in_progress' THEN cancel_requested_at END
WHERE id = :id AND COALESCE(epoch, 0) = :seen_epoch AND status = :seen_status
  AND (status <> 'in_progress' OR lease_expires_at IS NULL OR lease_expires_at < {now} OR owner = :dead_owner)"""

_ATTEMPT_OWNED = """
UPDATE apflow_tasks SET attempt_count = :attempt_count, next_attempt_at = :next_attempt_at, error = :error,
  error_info = :error_info{json}, updated_at = :now
WHERE id = :id AND epoch = :epoch AND status = 'in_progress'"""

_ATTEMPT_CHILD = """
UPDATE apflow_tasks SET attempt_count = :attempt_count, next_attempt_at = :next_attempt_at, error = :error,
  error_info = :error_info{json}, updated_at = :now
WHERE id = :id AND status = 'in_progress'"""

#: Children of a run down to those that are completed or have an owner of their own.
SUBTREE = """
WITH RECURSIVE sub (id, status, epoch) AS (
  SELECT id, status, epoch FROM apflow_tasks WHERE parent_id = :id AND kind = 'child'
  UNION ALL
  SELECT c.id, c.status, c.epoch FROM apflow_tasks c JOIN sub ON c.parent_id = sub.id
  WHERE sub.status <> 'completed' AND sub.epoch IS NULL AND c.kind = 'child'
)"""

MEMOS = (
    SUBTREE
    + """
SELECT t.id, t.status, t.result, t.attempt_count, t.next_attempt_at, t.checkpoint_at, t.model FROM apflow_tasks t
JOIN sub ON sub.id = t.id WHERE t.epoch IS NULL"""
)


@dataclass(frozen=True)
class Statements:
    """The hot statements of one database."""

    dialect: Dialect
    insert_owned: str
    begin_node: str
    fence: str | None
    upsert_child: str
    end_owned: str
    release: str
    claim: str
    attempt_owned: str
    attempt_child: str
    free: str
    now: str
    lease: str

    @classmethod
    def of(cls, store: Store) -> Statements:
        """Return the statements for the kind and the clock of `store`."""
        postgres = store.dialect == "postgresql"
        now = "clock_timestamp()" if store.database_clock else ":now"
        lease = "clock_timestamp() + make_interval(secs => :lease_seconds)" if store.database_clock else ":lease"
        texts = {
            "insert_owned": _INSERT_OWNED,
            "begin_node": _BEGIN_NODE,
            "upsert_child": _UPSERT_CHILD_POSTGRES if postgres else _UPSERT_CHILD_SQLITE,
            "end_owned": _END_OWNED,
            "release": _RELEASE,
            "claim": _CLAIM,
            "attempt_owned": _ATTEMPT_OWNED,
            "attempt_child": _ATTEMPT_CHILD,
            "free": FREE,
            "now": now,
            "lease": lease,
        }
        json = "::json" if postgres else ""
        filled = {
            name: text.replace("{now}", now).replace("{lease}", lease).replace("{json}", json)
            for name, text in texts.items()
        }
        return cls(dialect=store.dialect, fence=None if postgres else FENCE, **filled)


def lease_params(store: Store, lease_seconds: float) -> dict[str, Any]:
    """Return the parameters of `{now}` and `{lease}`."""
    now = store.clock.now()
    return {
        "now": store.timestamp(now),
        "lease": store.timestamp(now + timedelta(seconds=lease_seconds)),
        "lease_seconds": lease_seconds,
    }


def moment(value: Any) -> datetime | None:
    """Return a column that holds a time, as an aware datetime."""
    if value is None or isinstance(value, datetime):
        return value
    return datetime.fromisoformat(value).replace(tzinfo=UTC)
