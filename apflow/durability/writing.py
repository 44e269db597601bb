"""What is written of a run: how it ends, and whatever has to be there before."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from typing import TYPE_CHECKING, Any, TypeVar

from apflow.durability.checkpoint import delete_in
from apflow.durability.leftovers import end_left
from apflow.durability.rows import child_params
from apflow.errors import FencedError, RunCancelledError, RunEndedError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from apflow.errors import RunError
    from apflow.state import RunState
    from apflow.storage.statements import Statements
    from apflow.storage.store import Store, Tx

T = TypeVar("T")

logger = logging.getLogger(__name__)

_NOT_HANDED_BACK = "run %s was not handed back (%s); its lease runs out"
_EXISTS = "SELECT 1 FROM apflow_tasks WHERE id = :id"
_JUDGED = ("status", "completed", "progress", "error", "error_info")
_NO_ERROR: dict[str, str | None] = {"error": None, "error_info": None}


class RunWriter:
    """Writes runs to one store. Every write is fenced on the epoch of the owned run, and may be done twice."""

    def __init__(self, store: Store, statements: Statements) -> None:
        self._store = store
        self._statements = statements

    # -- starts ----------------------------------------------------------------------------------------------

    async def start(self, state: RunState, params: dict[str, Any], *, admit: bool) -> bool:
        """Insert the row of an owned run, and those that are missing above it; False when it has one already.

        Args:
            state: The run.
            params: What the row holds.
            admit: Its first attempt begins at once, so whether its budgets admit it is decided in the same commit.

        Raises:
            FencedError: Another process owns the run above it now; nothing was stored.
            RunCancelledError: Somebody has cancelled the run above it; nothing was stored.
        """
        missing = self._missing(state)
        parent = state.parent
        meter = state.meter if admit else None
        admission = None if meter is None else meter.propose()
        outcomes: list[bool | str] = []

        def fn(tx: Tx) -> bool | str:
            refused = parent is not None and (self._why_not(tx, parent.owned) or not self._store_missing(tx, state))
            inserted = refused if isinstance(refused, str) else self._insert(tx, params)
            if inserted is True and meter is not None and admission is not None:
                meter.admit_in(tx, admission)
            if inserted is True and state.at_start is not None:
                state.at_start(tx)
            outcomes.append(inserted)
            return inserted

        try:
            inserted = await self._store.write(fn, single=parent is None and meter is None and state.at_start is None)
        except asyncio.CancelledError as cancelled:  # It says so only after the write has ended, well or badly.
            state.stored = cancelled.__cause__ is None and outcomes[-1:] == [True]
            if state.stored and meter is not None:
                meter.proposed(admission)
            raise
        if isinstance(inserted, str) and parent is not None:
            parent.owned.stop(inserted)
            raise RunCancelledError(parent.owned.id) if inserted == "cancelled" else FencedError(parent.owned.id)
        self._mark_stored(missing)
        state.stored = bool(inserted)
        if meter is not None:
            meter.proposed(admission if inserted else None)
        return state.stored

    async def begin_nodes(self, tree: RunState, nodes: Sequence[tuple[RunState, dict[str, Any]]]) -> list[RunState]:
        """Begin pending graph nodes in one transaction, with their admissions, and return those that began.

        Raises:
            FencedError: Another process owns the run of the tree now; nothing was stored.
            RunCancelledError: Somebody has cancelled the run of the tree; nothing was stored.
        """
        admissions = {state.id: state.meter.propose() for state, _ in nodes if state.meter is not None}
        began: list[RunState] = []

        def fn(tx: Tx) -> str | None:
            refused = self._why_not(tx, tree)
            began[:] = [] if refused else [state for state, params in nodes if self._insert(tx, params)]
            for state in began:
                if state.meter is not None:
                    state.meter.admit_in(tx, admissions[state.id])
            return refused

        try:
            refused = await self._store.write(fn)
        except asyncio.CancelledError as cancelled:  # It says so only after the write has ended, well or badly.
            for state in began if cancelled.__cause__ is None else ():
                await self.release(state)
            raise
        if refused is not None:
            tree.stop(refused)
            raise RunCancelledError(tree.id) if refused == "cancelled" else FencedError(tree.id)
        stored = {state.id for state in began}
        for state, _ in nodes:
            state.stored = state.id in stored
            if state.meter is not None:
                state.meter.proposed(admissions[state.id] if state.stored else None)
        return began

    def _why_not(self, tx: Tx, owned: RunState) -> str | None:
        """Return why a run may not start another one, or None; what it says stays so until the commit."""
        lock = " FOR SHARE" if tx.dialect == "postgresql" else ""
        sql = f"SELECT epoch, status, cancel_requested_at FROM apflow_tasks WHERE id = :id{lock}"
        row = tx.row(sql, {"id": owned.id})
        if row is None or (row[0], row[1]) != (owned.epoch, "in_progress"):
            return "fenced"
        return None if row[2] is None else "cancelled"

    def _insert(self, tx: Tx, params: dict[str, Any]) -> bool:
        """Insert an owned run, or begin a graph node, whose row is there already."""
        statements = self._statements
        if tx.execute(statements.begin_node if params["kind"] == "node" else statements.insert_owned, params) == 1:
            params["inserted"] = True
            return True
        row = tx.row("SELECT owner, epoch, started_at FROM apflow_tasks WHERE id = :id", params)
        if row is None or "inserted" not in params:
            return False
        return (row[0], row[1]) == (params["owner"], params["epoch"]) and row[2] == params["now"]

    async def accept(self, run_id: str) -> None:
        """Make a running run one that is carried on without its caller: somebody has submitted it too."""
        sql = "UPDATE apflow_tasks SET accepted = :yes WHERE id = :id AND status = 'in_progress'"
        await self._store.write(lambda tx: tx.execute(sql, {"id": run_id, "yes": True}), single=True)

    # -- ends ------------------------------------------------------------------------------------------------

    async def end(
        self, state: RunState, status: str, *, result: str | None = None, error: BaseException | None = None
    ) -> Exception | None:
        """Store the end of a run, fenced.

        Returns:
            Why a run that was to be completed is stored as failed, its result kept: what it has used did not fit.

        Raises:
            FencedError: Another process owns it, or the run above it, now; nothing was stored.
            RunEndedError: The run above it has ended; nothing was stored.
            StorageError: It could not be stored.
        """
        if state.owned is state:
            params: dict[str, Any] = {
                "id": state.id,
                "epoch": state.epoch,
                "now": self._store.timestamp(self._store.clock.now()),
                "status": status,
            }
            missing = []
            fn = functools.partial(self._end_owned_in, state, params)
            more = state.open_children or state.at_end or state.kind == "tree" or state.saved is not None
            single = not (more or self._announced(state))
        else:
            params = child_params(self._store, state, status)
            params["completed_at"] = params["now"]
            missing = self._missing(state)
            fn = functools.partial(self._end_child_in, state, params)
            single = not missing and state.saved is None
        params["result"] = result
        params["completed"] = status == "completed"
        params["progress"] = int(params["completed"])
        params["attempt_count"] = state.attempt if status in ("completed", "failed") else state.attempts_done
        params |= error_columns(error, state.id)
        try:
            if not await self.write(state, fn, single=single, ends=True):
                raise self._refused(state)
        except asyncio.CancelledError as cancelled:  # It says so only after the write has ended, well or badly.
            if cancelled.__cause__ is None:
                state.stored, state.stored_as = True, params["status"]
            raise
        state.stored, state.stored_as = True, params["status"]
        if state.kind == "node":
            state.result = result
        self._mark_stored(missing)
        state.owned.open_children.discard(state.id)
        return None if params["status"] == status else self._overspent(state)

    @staticmethod
    def _overspent(state: RunState) -> Exception | None:
        return None if state.meter is None else state.meter.failure

    def _judge(self, state: RunState, params: dict[str, Any]) -> None:
        """Make a failure of a completion whose usage does not fit, in the transaction that has just settled it."""
        if state.meter is None:
            return
        # The transaction may be tried again, and find another answer.
        params.update(params.setdefault("wanted", {name: params[name] for name in _JUDGED}))
        if params["status"] == "completed" and (failure := self._overspent(state)) is not None:
            params.update(error_columns(failure), status="failed", completed=False, progress=0)

    async def write(self, state: RunState, fn: Callable[[Tx], T], *, single: bool = False, ends: bool = False) -> T:
        """Run a write of a run, together with the settlement of what it has used; `ends` when an attempt has ended."""
        if state.meter is None or state.meter.idle:
            return await self._store.write(fn, single=single)
        return await state.meter.write(fn, single=single, ends=ends)

    def _announced(self, state: RunState) -> bool:
        """Whether another process may be waiting for this run."""
        return self._store.dialect == "postgresql" and (state.accepted or state.run_key is not None)

    def _end_owned_in(self, state: RunState, params: dict[str, Any], tx: Tx) -> bool:
        self._judge(state, params)
        if tx.execute(self._statements.end_owned, params) != 1 and not self._ended_already(tx, params):
            return False
        if state.open_children:
            self._end_leftovers(state, params, tx)
        if state.at_end is not None:
            state.at_end(tx, params["status"])
        if state.kind == "tree":  # Its key only keeps it from being executed twice at the same time.
            tx.execute("UPDATE apflow_tasks SET run_key = NULL WHERE id = :id", params)
            if params["status"] != "completed":
                end_left(tx, self._store, self._statements, state.arguments["task_id"])
        if state.saved is not None and params["status"] == "completed":
            delete_in(tx, state.id)
        if self._announced(state):
            tx.row("SELECT pg_notify('apflow_runs', :id)", params)
        return True

    def _end_leftovers(self, state: RunState, params: dict[str, Any], tx: Tx) -> None:
        """End inline children that had a row and never came back: nobody else will."""
        message = json.dumps({"type": "apflow.RunEndedError", "message": "the run above it ended first"})
        cast = "::json" if tx.dialect == "postgresql" else ""
        for child in sorted(state.open_children):
            tx.execute(
                "UPDATE apflow_tasks SET status = :status, error = :error, "
                f"error_info = :error_info{cast}, completed_at = :now, updated_at = :now "
                "WHERE id = :id AND status = 'in_progress' AND epoch IS NULL",
                {
                    "id": child,
                    "now": params["now"],
                    "status": "cancelled" if params["status"] == "cancelled" else "failed",
                    "error": "apflow.RunEndedError: the run above it ended first",
                    "error_info": message,
                },
            )

    def _end_child_in(self, state: RunState, params: dict[str, Any], tx: Tx) -> bool:
        self._judge(state, params)
        if not self._store_missing(tx, state):
            return False
        if not self._upsert_child(tx, params):
            # An older call of the same child, left behind by a failed attempt, may have completed it meanwhile.
            row = tx.row("SELECT status FROM apflow_tasks WHERE id = :id", params)
            return row is not None and row[0] == "completed" and self.holds(tx, state)
        if state.saved is not None and params["status"] == "completed":
            delete_in(tx, state.id)
        return True

    def _upsert_child(self, tx: Tx, params: dict[str, Any]) -> bool:
        """Write the row of an inline child, unless this process no longer owns the run above it."""
        fence = self._statements.fence
        if fence is not None and tx.row(fence, params) is None:
            return False
        return tx.execute(self._statements.upsert_child, params) == 1

    def _ended_already(self, tx: Tx, params: dict[str, Any]) -> bool:
        """Whether this very write was done before: its commit succeeded and the answer got lost."""
        row = tx.row("SELECT status, epoch, completed_at FROM apflow_tasks WHERE id = :id", params)
        if row is None or row[0] != params["status"]:
            return False
        return row[2] == params["now"] and (row[1] is None or row[1] == params["epoch"])

    async def release(self, state: RunState) -> None:
        """Hand an interrupted run back: whoever wants it may take it at once."""
        try:
            await self.write(state, self._release_in(state), single=True, ends=True)
        except StorageError as error:
            logger.warning(_NOT_HANDED_BACK, state.id, type(error).__name__)

    def release_blocking(self, state: RunState) -> None:
        """Do what `release` does on the calling thread."""
        try:
            release = self._release_in(state)
            if state.meter is None:
                self._store.write_blocking(release)
            else:
                state.meter.write_blocking(release)
        except StorageError as error:
            logger.warning(_NOT_HANDED_BACK, state.id, type(error).__name__)

    def _release_in(self, state: RunState) -> Callable[[Tx], int]:
        now = self._store.timestamp(self._store.clock.now())
        params = {"id": state.id, "epoch": state.epoch, "now": now}
        return lambda tx: tx.execute(self._statements.release, params)

    # -- rows that are needed before their run ends ------------------------------------------------------------

    def _missing(self, state: RunState) -> list[RunState]:
        """Return the runs above this one that have no row yet, the outermost first."""
        missing: list[RunState] = []
        above = state.parent
        while above is not None and not above.stored:
            missing.append(above)
            above = above.parent
        return missing[::-1]

    def _store_missing(self, tx: Tx, state: RunState, *, itself: bool = False) -> bool:
        """Insert the `in_progress` rows of runs above (and of the run itself); False when fenced."""
        for above in [*self._missing(state), *([state] if itself and not state.stored else [])]:
            params = child_params(self._store, above, "in_progress")
            if not self._upsert_child(tx, params) and tx.row(_EXISTS, params) is None:
                return False
        return True

    async def early(self, state: RunState, write: Callable[[Tx], bool], *, ends: bool = False) -> None:
        """Run `write` in a transaction that also makes sure of the rows of the run and of those above it.

        Args:
            state: The run.
            write: False when the run is somebody else's now.
            ends: An attempt has ended, so what it has used and held is settled too.

        Raises:
            FencedError: Another process owns the run now; nothing was stored.
            RunEndedError: The run above it has ended; nothing was stored.
        """

        def fn(tx: Tx) -> bool:
            return self._store_missing(tx, state, itself=True) and write(tx)

        missing = [*self._missing(state), state]
        if not await (self.write(state, fn, ends=True) if ends else self._store.write(fn)):
            raise self._refused(state)
        self._mark_stored(missing)

    def ours(self, state: RunState) -> Callable[[Tx], bool]:
        """Return what keeps a run ours until the commit; of a child, it makes sure of the rows above it first."""
        if state.owned is state:
            return lambda tx: self.holds(tx, state)
        return lambda tx: self._store_missing(tx, state) and self.holds(tx, state)

    def rows_of(self, state: RunState) -> Callable[[Tx], bool]:
        """Return what makes sure of the rows of the run and of those above it, and keeps them ours until the commit."""
        return lambda tx: self._store_missing(tx, state, itself=True) and self.holds(tx, state)

    def rows_stored(self, state: RunState) -> None:
        """Take note that what `rows_of` returned is committed."""
        if not state.owned.settled and state.owned.stopping != "fenced":
            self._mark_stored([*self._missing(state), state])

    @staticmethod
    def _refused(state: RunState) -> RunError:
        """Return why the fence let nothing through, and stop what is left of the run."""
        owned = state.owned
        if owned is not state and owned.settled and owned.stopping != "fenced":
            return RunEndedError(owned.id)
        owned.stop("fenced")
        return FencedError(state.id)

    @staticmethod
    def _mark_stored(states: list[RunState]) -> None:
        for state in states:
            if state.owned is not state and not state.stored:
                state.stored = True
                state.owned.open_children.add(state.id)

    def holds(self, tx: Tx, state: RunState) -> bool:
        """Whether this process still owns the run, or the owned one above it; keeps it so until the commit."""
        lock = ""
        if tx.dialect == "postgresql":
            # The row itself is updated next: two that share it first would wait for each other.
            lock = " FOR NO KEY UPDATE" if state.owned is state else " FOR SHARE"
        params = {"id": state.owned.id, "epoch": state.owned.epoch}
        sql = f"SELECT 1 FROM apflow_tasks WHERE id = :id AND epoch = :epoch AND status = 'in_progress'{lock}"
        return tx.row(sql, params) is not None


def error_columns(error: BaseException | None, run_id: str | None = None) -> dict[str, str | None]:
    """Return the columns `error`, for people, and `error_info`, for programs, of what has ended this run."""
    if error is None:
        return _NO_ERROR
    from apflow.storage.serialize import describe_error

    described = describe_error(error, run_id)
    return {"error": f"{described['type']}: {described['message']}", "error_info": json.dumps(described)}
