"""Rows of graph nodes: begun, given up before they began, and carried on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apflow.durability.rows import owned_params
from apflow.errors import FencedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from apflow.durability.recording import Recorder
    from apflow.state import RunState
    from apflow.storage.store import Store, Tx

#: Ids in one statement.
CHUNK = 500

_GIVE_UP = """
UPDATE apflow_tasks SET status = :status, error = :error, error_info = :error_info{json}, completed_at = :now,
  updated_at = :now, lease_expires_at = NULL, epoch = COALESCE(epoch, 0) + 1
WHERE id = :id AND (COALESCE(status, 'pending') = 'pending' OR (status = 'in_progress' AND epoch = :begun))"""

_FORGET = """
UPDATE apflow_tasks SET status = 'pending', result = NULL, error = NULL, error_info = NULL, completed_at = NULL,
  started_at = NULL, cancel_requested_at = NULL, next_attempt_at = NULL, lease_expires_at = NULL, progress = 0,
  attempt_count = 0, updated_at = :now WHERE status IN ('failed', 'cancelled') AND id IN ({ids})
  AND (origin_type IS NULL OR origin_type <> 'archive')"""


async def begin(
    recorder: Recorder, tree: RunState, states: Sequence[RunState], seen: Mapping[str, Any]
) -> list[RunState]:
    """Store that pending nodes run here now, together with their admissions, in one transaction.

    Args:
        recorder: Of the runtime that runs them.
        tree: The run of the tree, inside which theirs are.
        states: The runs of the nodes. One that is governed has to be alone.
        seen: Of each row, by id, the `updated_at` that it had when what it runs was read.

    Returns:
        Those that began; the others are pending no more, or were changed since they were read.

    Raises:
        FencedError: Another process owns the run of the tree now.
        RunCancelledError: Somebody has cancelled the run of the tree.
    """
    for state in states:
        if state.meter is not None:
            await state.meter.prepare()
    owner, lease = recorder.owner, recorder.lease_seconds
    params = [(one, owned_params(recorder.store, one, owner, lease) | {"seen": seen[one.id]}) for one in states]
    return await recorder.writer.begin_nodes(tree, params)


async def give_up(
    recorder: Recorder, tree: RunState, ends: Sequence[tuple[str, str, BaseException]], *, begun: int | None = None
) -> set[str]:
    """End nodes that never began, in one transaction.

    Args:
        recorder: Of the runtime that runs the tree.
        tree: The run of the tree.
        ends: Id, status and error of each node; those that are pending no more stay as they are.
        begun: The epoch of a node that began, and that nobody holds; it is ended too.

    Returns:
        The ids of those that were ended.

    Raises:
        FencedError: Another process owns the run of the tree now; nothing was stored.
    """
    from apflow.durability.writing import error_columns

    store = recorder.store
    sql = _GIVE_UP.replace("{json}", "::json" if store.dialect == "postgresql" else "")
    now = store.timestamp(store.clock.now())
    known = {"now": now, "begun": -1 if begun is None else begun}
    params = [known | {"id": one, "status": status, **error_columns(error)} for one, status, error in ends]

    def fn(tx: Tx) -> set[str] | None:
        if not recorder.writer.holds(tx, tree):
            return None
        return {each["id"] for each in params if tx.execute(sql, each) or _ended_so(tx, each)}

    ended = await store.write(fn)
    if ended is None:
        tree.stop("fenced")
        raise FencedError(tree.id)
    return ended


def _ended_so(tx: Tx, params: Mapping[str, Any]) -> bool:
    """Whether this very write was done before: its commit succeeded and the answer got lost."""
    row = tx.row("SELECT status, completed_at FROM apflow_tasks WHERE id = :id", params)
    return row == (params["status"], params["now"])


def forget_failures(tx: Tx, store: Store, ids: Sequence[str]) -> None:
    """Make pending again what of these nodes failed or was cancelled, so that it is tried once more."""
    now = store.timestamp(store.clock.now())
    for names, params in chunks(ids):
        tx.execute(_FORGET.format(ids=names), params | {"now": now})


async def save_progress(recorder: Recorder, tree: RunState, shares: Mapping[str, float]) -> None:
    """Store how far the nodes are that have others inside them, 0 to 1; 1 only when all is done."""
    now = recorder.store.timestamp(recorder.store.clock.now())
    sql = "UPDATE apflow_tasks SET progress = :progress, updated_at = :now WHERE id = :id"
    params = [{"id": one, "progress": int(share * 100) / 100, "now": now} for one, share in shares.items()]

    def fn(tx: Tx) -> None:
        if recorder.writer.holds(tx, tree):
            for each in params:
                tx.execute(sql, each)

    await recorder.store.write(fn)


def chunks(ids: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return the ids in pieces: the names of their parameters for `IN (...)`, and the parameters."""
    pieces = [ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK)]
    return [
        (", ".join(f":i{number}" for number in range(len(piece))), {f"i{n}": one for n, one in enumerate(piece)})
        for piece in pieces
    ]
