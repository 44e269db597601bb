"""`runtime.runs`: queries over the runs in the database, and what can be done with them."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from apflow.errors import RunActiveError, RunCancelledError, RunNotFoundError
from apflow.records import COLUMNS, RunTree, record
from apflow.state import current_state
from apflow.storage.conditions import NODE, by_code_points
from apflow.storage.deletion import OF_RUNS, Deletion
from apflow.storage.dependents import entries
from apflow.storage.owners import is_gone
from apflow.storage.statements import lease_params

if TYPE_CHECKING:
    import builtins

    from apflow.durability.rows import RunRow
    from apflow.records import RunRecord
    from apflow.run import Run
    from apflow.runtime import Runtime
    from apflow.storage.store import Tx

ENDED = ("completed", "failed", "cancelled")
STATUSES = ("pending", "in_progress", "interrupted", *ENDED)

#: Inline children have none; nor have the rows of version 1, which are runs of their own.
_EPOCH = "COALESCE(epoch, CASE WHEN kind IS NULL THEN 0 END)"

#: Begins a statement about the run `:id` and all that is inside it.
BELOW = """
WITH RECURSIVE below (id) AS (
  SELECT id FROM apflow_tasks WHERE id = :id
  UNION
  SELECT c.id FROM apflow_tasks c JOIN below ON c.parent_id = below.id
)"""


class Runs:
    """The runs of one database. Plain code calls these through `runtime.wait(...)`."""

    __module__ = "apflow"

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._store = runtime.store
        self._free = runtime.recorder.statements.free

    # -- queries ---------------------------------------------------------------------------------------------

    async def get(self, run_id: str) -> RunRecord | None:
        """Return a run, or None when there is none with this id."""
        found = await self._query("WHERE id = :id", {"id": run_id})
        return found[0] if found else None

    async def list(
        self,
        *,
        status: str | None = None,
        name: str | None = None,
        user: str | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> builtins.list[RunRecord]:
        """Return runs, the newest first.

        Args:
            status: One of `STATUSES`; `"interrupted"` are those `in_progress` that nobody holds.
            name: Name of the task.
            user: Id of the user.
            limit: How many at most, at least 1.
            offset: How many to skip, at least 0.

        Raises:
            ValueError: A value is out of its range.
        """
        if limit < 1 or offset < 0:
            raise ValueError(f"limit must be at least 1 and offset at least 0, got {limit} and {offset}")
        where, params = self._where(status, name, user)
        tail = f"{where} ORDER BY created_at DESC, id DESC LIMIT :limit OFFSET :offset"
        return await self._query(tail, params | {"limit": limit, "offset": offset})

    async def count(self, *, status: str | None = None, name: str | None = None, user: str | None = None) -> int:
        """Return how many runs there are. See `list`.

        Raises:
            ValueError: The status is unknown.
        """
        await self._runtime.ready()
        where, params = self._where(status, name, user)
        row = await self._store.read(lambda tx: tx.row(f"SELECT COUNT(*) FROM apflow_tasks {where}", params))
        return 0 if row is None else int(row[0])

    async def tree(self, run_id: str) -> RunTree:
        """Return a run with the runs inside it.

        Raises:
            RunNotFoundError: There is none with this id.
        """
        rows = await self._query("WHERE id IN (SELECT id FROM below) ORDER BY created_at, id", {"id": run_id}, BELOW)
        children: dict[str | None, list[RunRecord]] = {}
        for row in rows:
            children.setdefault(row.parent_id, []).append(row)
        for row in rows:
            if row.id == run_id:
                return _grown(row, children)
        raise RunNotFoundError(run_id)

    def _where(self, status: str | None, name: str | None, user: str | None) -> tuple[str, dict[str, Any]]:
        if status is not None and status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, got {status!r}")
        parts, params = [], lease_params(self._store, 0)
        if status == "interrupted":
            parts.append(f"epoch IS NOT NULL AND {self._free}")
        elif status is not None:
            parts.append("status = :status")
        if name is not None:
            parts.append("name = :name")
        if user is not None:
            parts.append("user_id = :user")
        params |= {"status": status, "name": name, "user": user}
        return ("WHERE " + " AND ".join(parts) if parts else ""), params

    async def _query(self, tail: str, params: dict[str, Any], head: str = "") -> builtins.list[RunRecord]:
        await self._runtime.ready()
        free = f"CASE WHEN epoch IS NOT NULL AND {self._free} THEN 1 ELSE 0 END"
        sql = f"{head} SELECT {', '.join(COLUMNS)}, {free} FROM apflow_tasks {tail}"
        known = lease_params(self._store, 0) | params
        return [record(row) for row in await self._store.read(lambda tx: tx.rows(sql, known))]

    # -- actions ---------------------------------------------------------------------------------------------

    async def cancel(self, run_id: str) -> None:
        """Cancel a run and the runs inside it; those that have ended stay as they are.

        What runs in this process has stopped when this returns, unless it is the caller itself; other processes
        see it with their next lease renewal.

        Raises:
            RunNotFoundError: There is none with this id.
        """
        await self._runtime.ready()
        ids = await self._store.write(lambda tx: self._cancel_in(tx, run_id))
        held = self._runtime.keeper.held
        states = [held[one] for one in ids if one in held]
        me = current_state()
        waiting = []
        for state in states:
            outcome = self._runtime.recorder.claims.watch(state)
            state.stop("cancelled")
            if outcome is not None and (me is None or me.owned is not state):
                waiting.append(asyncio.wrap_future(outcome))
        if waiting:
            await asyncio.gather(*waiting, return_exceptions=True)

    def _cancel_in(self, tx: Tx, run_id: str) -> builtins.list[str]:
        """Mark what runs, end what nobody holds; return the ids of what runs."""
        from apflow.durability.leftovers import end_left
        from apflow.durability.writing import error_columns

        params = lease_params(self._store, 0) | {"id": run_id}
        # Nobody ends or takes over one of them until what is said here is committed.
        lock, cast = (" FOR UPDATE", "::json") if tx.dialect == "postgresql" else ("", "")
        sql = (
            f"{BELOW} SELECT id, parent_id, status, {_EPOCH}, owner, CASE WHEN {self._free} THEN 1 ELSE 0 END, kind, "
            "CAST(inputs AS TEXT) FROM apflow_tasks WHERE id IN (SELECT id FROM below) "
            f"ORDER BY id{by_code_points(tx.dialect)}{lock}"
        )
        rows = {row[0]: row for row in tx.rows(sql, params)}
        if run_id not in rows:
            raise RunNotFoundError(run_id)
        top = _owned_above(rows, run_id)
        if top is None and rows[run_id][2] not in ENDED:
            raise RunActiveError(run_id, "is part of another run; cancel that one")
        running = []
        for one, row in rows.items():
            if row[2] in ENDED:
                continue
            owned = _owned_above(rows, one)
            if owned is not None and owned[2] == "in_progress" and not owned[5] and not is_gone(owned[4]):
                running.append(one)
            else:
                tx.execute(
                    f"UPDATE apflow_tasks SET status = 'cancelled', epoch = {_EPOCH} + 1, lease_expires_at = NULL, "
                    "run_key = CASE WHEN kind = 'tree' THEN NULL ELSE run_key END, "
                    f"error = :error, error_info = :error_info{cast}, completed_at = :now, updated_at = :now "
                    "WHERE id = :id",
                    params | {"id": one, **error_columns(RunCancelledError(one))},
                )
                if row[6] == "tree":
                    task_id = json.loads(row[7])["task_id"]
                    end_left(tx, self._store, self._runtime.recorder.statements, task_id)
        for one in running:
            tx.execute("UPDATE apflow_tasks SET cancel_requested_at = :now WHERE id = :id", params | {"id": one})
        return running

    async def resume(self, run_id: str) -> Run[Any]:
        """Carry an interrupted or failed run on in this process, with a new allowance of attempts.

        Returns:
            The handle; of a run that is running or completed, a handle to wait with.

        Raises:
            RunNotFoundError: There is none with this id.
            RunActiveError: It is a run inside another one; resume that. Or it is a task of a tree.
            RunCancelledError: It was cancelled.
            ApflowError: This process does not know its task.
        """
        await self._runtime.ready()
        background = self._runtime.background
        while True:
            row = await self._row(run_id)
            if row.epoch is None:
                raise RunActiveError(run_id, f"is part of run {row.root_id}; resume that one")
            if row.kind == "node":
                raise RunActiveError(run_id, "is a task of a tree; TaskManager.execute_task carries it on")
            if row.status == "cancelled":
                raise RunCancelledError(run_id)
            if row.status == "completed" or not (row.status == "failed" or row.interrupted or is_gone(row.owner)):
                return background.join(run_id, background.definition_of(row))
            run = await background.carry_on(row, new_allowance=True)
            if run is not None:
                return run

    async def _row(self, run_id: str) -> RunRow:
        row = await self._runtime.recorder.rows.get(run_id)
        if row is None:
            raise RunNotFoundError(run_id)
        return row

    async def delete(self, run_id: str) -> int:
        """Delete a run with everything inside it, and return how many rows that were.

        What was used stays in the reports. A task of a tree goes with the tasks inside it, and only when nothing that
        stays needs one of them; `TaskRepository.delete_task` with `cascade=True` deletes what needs them too.

        Raises:
            RunNotFoundError: There is none with this id.
            RunActiveError: Something of it is running.
            TaskFrozenError: A task that would go is archived.
            TaskInUseError: A task that would stay depends on one that would go, or links to it.
        """
        await self._runtime.ready()
        if await self._store.read(
            lambda tx: tx.row(f"SELECT 1 FROM apflow_tasks WHERE id = :id AND {NODE}", {"id": run_id})
        ):
            return await self._store.write(Deletion(self._store, run_id, cascade=False, whole=True))
        return await self._store.write(lambda tx: self._delete_in(tx, run_id))

    def _delete_in(self, tx: Tx, run_id: str) -> int:
        params = lease_params(self._store, 0) | {"id": run_id}
        rows = tx.rows(
            f"{BELOW} SELECT status, epoch, owner, CASE WHEN {self._free} THEN 1 ELSE 0 END "
            "FROM apflow_tasks WHERE id IN (SELECT id FROM below)",
            params,
        )
        if not rows:
            raise RunNotFoundError(run_id)
        if any(row[0] == "in_progress" and row[1] is not None and not row[3] and not is_gone(row[2]) for row in rows):
            raise RunActiveError(run_id, "is running, or something inside it is; cancel it first")
        for table, column, where in OF_RUNS:
            tx.execute(f"{BELOW} DELETE FROM {table} WHERE {column} IN (SELECT id FROM below){where}", params)
        return len(rows)

    async def prune(self, older_than: datetime | timedelta) -> int:
        """Delete finished trees. See `Runtime.prune`.

        Trees stay when a task of another tree links to one of theirs, or depends on one and has not ended.

        Raises:
            ValueError: The span is negative, or the moment has no time zone.
        """
        if isinstance(older_than, timedelta):
            if older_than < timedelta(0):
                raise ValueError(f"older_than must not be negative, got {older_than}")
            older_than = self._store.clock.now() - older_than
        if older_than.tzinfo is None:
            raise ValueError("older_than needs a time zone, for example datetime.now(UTC)")
        before = {"before": self._store.timestamp(older_than.astimezone(UTC))}
        return await self._store.write(lambda tx: _prune_in(tx, before))


def _prune_in(tx: Tx, params: dict[str, Any]) -> int:
    """Delete the trees whose root ended before then, in which nothing is left to end and which nobody needs."""
    tree = "COALESCE(r.task_tree_id, r.id)"
    join, needed = entries(tx.dialect, "d")
    trees = (
        f"SELECT {tree} FROM apflow_tasks r WHERE r.parent_id IS NULL AND r.completed_at < :before "
        "AND r.status IN ('completed', 'failed', 'cancelled') AND (r.kind IS NULL OR r.kind <> 'tree') "
        "AND (r.origin_type IS NULL OR r.origin_type <> 'archive') "
        f"AND NOT EXISTS (SELECT 1 FROM apflow_tasks c WHERE c.task_tree_id = {tree} "
        "AND c.status IN ('pending', 'in_progress')) "
        # What a link in another tree refers to is that one's result.
        "AND NOT EXISTS (SELECT 1 FROM apflow_tasks l JOIN apflow_tasks o ON o.id = l.original_task_id "
        f"WHERE l.origin_type = 'link' AND o.task_tree_id = {tree} AND l.task_tree_id <> {tree}) "
        # What a task has yet to read is that one's too.
        f"AND {tree} NOT IN (SELECT COALESCE(o.task_tree_id, o.id) FROM apflow_tasks o WHERE o.id IN "
        f"(SELECT {needed} FROM apflow_tasks d {join} WHERE {NODE} AND d.dependencies IS NOT NULL "
        "AND COALESCE(d.status, 'pending') IN ('pending', 'in_progress')))"
    )
    if tx.dialect == "postgresql":  # Who begins to depend on one of them meanwhile waits, and finds it gone.
        order = f"ORDER BY id{by_code_points(tx.dialect)} FOR UPDATE"
        tx.row(
            f"SELECT COUNT(*) FROM (SELECT id FROM apflow_tasks WHERE task_tree_id IN ({trees}) {order}) locked", params
        )
    for table, column, where in OF_RUNS[:-1]:
        ids = f"SELECT id FROM apflow_tasks WHERE task_tree_id IN ({trees})"
        tx.execute(f"DELETE FROM {table} WHERE {column} IN ({ids}){where}", params)
    tx.execute(
        "DELETE FROM apflow_a2a_tasks WHERE updated_at < :before AND state IN ('completed', 'failed', 'canceled', "
        "'rejected') AND NOT EXISTS (SELECT 1 FROM apflow_tasks r WHERE r.id = apflow_a2a_tasks.id)",
        params,
    )
    return tx.execute(f"DELETE FROM apflow_tasks WHERE task_tree_id IN ({trees})", params)


def _grown(root: RunRecord, children: dict[str | None, list[RunRecord]]) -> RunTree:
    """Return the tree below a run, made from the leaves upwards: it may be deeper than Python's stack."""
    inside: dict[str, list[RunRecord]] = {}
    order = [root]
    for row in order:  # which grows while it is walked
        # Another program may have put a run inside itself; it is shown once.
        inside[row.id] = [child for child in children.get(row.id, ()) if child.id != root.id]
        order += inside[row.id]
    made: dict[str, RunTree] = {}
    for row in reversed(order):
        made[row.id] = RunTree(row, tuple(made.pop(child.id) for child in inside[row.id]))
    return made[root.id]


def _owned_above(rows: dict[str, tuple[Any, ...]], run_id: str) -> tuple[Any, ...] | None:
    """Return the row of the nearest owned run, this one or above it, as far as `rows` go."""
    row: tuple[Any, ...] | None = rows.get(run_id)
    while row is not None and row[3] is None:
        row = rows.get(row[1])
    return row
