"""Rows of graph nodes: begun, given up before they began, and carried on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apflow.durability.rows import owned_params
from apflow.errors import FencedError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from apflow.durability.recording import Recorder
    from apflow.state import RunState
    from apflow.storage.store import Tx

#: Ids in one statement.
CHUNK = 500

_GIVE_UP = """
UPDATE apflow_tasks SET status = :status, error = :error, error_info = :error_info{json}, completed_at = :now,
  updated_at = :now, lease_expires_at = NULL, epoch = COALESCE(epoch, 0) + 1
WHERE id = :id AND (COALESCE(status, 'pending') = 'pending' OR (status = 'in_progress' AND epoch = :begun))"""

_FORGET = """
UPDATE apflow_tasks SET status = 'pending', result = NULL, error = NULL, error_info = NULL, completed_at = NULL,
  started_at = NULL, cancel_requested_at = NULL, next_attempt_at = NULL, lease_expires_at = NULL, progress = 0,
  attempt_count = 0, updated_at = :now WHERE status IN ('failed', 'cancelled') AND id IN ({ids})"""


async def begin(
    recorder: Recorder, tree: RunState, states: Sequence[RunState], again: Collection[str]
) -> list[RunState]:
    """Store that pending nodes run here now, together with their admissions, in one transaction.

    Args:
        recorder: Of the runtime that runs them.
        tree: The run of the tree, inside which theirs are.
        states: The runs of the nodes. One that is governed has to be alone.
        again: Ids of those that were begun before, so that what they finished then has to be known.

    Returns:
        Those that began; the others are pending no more.

    Raises:
        FencedError: Another process owns the run of the tree now.
        RunCancelledError: Somebody has cancelled the run of the tree.
    """
    for state in states:
        if state.meter is not None:
            await state.meter.prepare()
    began = await recorder.writer.begin_nodes(
        tree, [(one, owned_params(recorder.store, one, recorder.owner, recorder.lease_seconds)) for one in states]
    )
    for state in began:
        if state.id in again:
            await recorder.claims.load_earlier(state)
    return began


async def give_up(
    recorder: Recorder, tree: RunState, ends: Sequence[tuple[str, str, BaseException]], *, begun: int | None = None
) -> None:
    """End nodes that never began, in one transaction.

    Args:
        recorder: Of the runtime that runs the tree.
        tree: The run of the tree.
        ends: Id, status and error of each node; those that are pending no more stay as they are.
        begun: The epoch of a node that began, and that nobody holds; it is ended too.

    Raises:
        FencedError: Another process owns the run of the tree now; nothing was stored.
    """
    from apflow.durability.writing import error_columns

    store = recorder.store
    sql = _GIVE_UP.replace("{json}", "::json" if store.dialect == "postgresql" else "")
    now = store.timestamp(store.clock.now())
    known = {"now": now, "begun": -1 if begun is None else begun}
    params = [known | {"id": one, "status": status, **error_columns(error)} for one, status, error in ends]

    def fn(tx: Tx) -> bool:
        if not recorder.writer.holds(tx, tree):
            return False
        for each in params:
            tx.execute(sql, each)
        return True

    if not await store.write(fn):
        tree.stop("fenced")
        raise FencedError(tree.id)


async def forget_failures(recorder: Recorder, tree: RunState, ids: Sequence[str]) -> None:
    """Make pending again what failed or was cancelled, so that it is tried once more.

    Raises:
        FencedError: Another process owns the run of the tree now; nothing was stored.
    """
    now = recorder.store.timestamp(recorder.store.clock.now())

    def fn(tx: Tx) -> bool:
        if not recorder.writer.holds(tx, tree):
            return False
        for names, params in chunks(ids):
            tx.execute(_FORGET.format(ids=names), params | {"now": now})
        return True

    if not await recorder.store.write(fn):
        tree.stop("fenced")
        raise FencedError(tree.id)


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
