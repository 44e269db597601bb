"""Getting hold of a run: insert it, join it, or take it over."""

from __future__ import annotations

import asyncio
import functools
import json
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from apflow.durability import checkpoint, replay
from apflow.durability.rows import attempts_per_allowance, owned_params
from apflow.errors import (
    DeadlockError,
    FencedError,
    KeyConflictError,
    RecoveryLimitError,
    RunCancelledError,
    RunFailedError,
    RunInterruptedError,
    RunNotFoundError,
)
from apflow.storage.owners import is_gone
from apflow.storage.statements import lease_params
from apflow.told import read_told

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from apflow.durability.recording import Recorder
    from apflow.durability.rows import RunRow
    from apflow.state import RunState
    from apflow.storage.store import Tx

#: A waiter looks at the row at least this often, in case a notification got lost or the owner died.
LOOK_SECONDS = 1.0
_LONG_AGO = datetime(1, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Replayed:
    """The run is finished: its result as JSON text."""

    text: str


@dataclass(frozen=True, slots=True)
class Joined:
    """The run is running, here or elsewhere, and the caller did not want to wait for it."""

    run_id: str


class Claims:
    """Decides who runs a run. Part of the recorder."""

    def __init__(self, recorder: Recorder, recovery_limit: int) -> None:
        self._recorder = recorder
        self._store = recorder.store
        self._recovery_limit = recovery_limit

    # -- a call ----------------------------------------------------------------------------------------------

    async def open(self, state: RunState, *, wait: bool) -> Replayed | Joined | None:
        """Store the start of a run, or find the one that is there already.

        Returns:
            None when the run is ours and its function has to run; `Replayed` when it is finished; `Joined` when
            somebody runs it and `wait` is False.

        Raises:
            KeyConflictError: The key was used with other arguments, or the id that was given is that of another run.
            DeadlockError: A run calls itself with its own key.
            RunCancelledError: The run was cancelled.
            RunFailedError: We waited for it, and it failed in another process.
        """
        params = owned_params(self._store, state, self._recorder.owner, self._recorder.lease_seconds)
        while True:
            if await self._recorder.writer.start(state, params, admit=wait):
                return None
            row = await self._existing(state)
            if row is None:
                continue
            outcome: Any = await self._settle_with(state, row, wait=wait)
            if outcome is not _TRY_AGAIN:
                return cast("Replayed | Joined | None", outcome)

    async def _existing(self, state: RunState) -> RunRow | None:
        found = None if state.run_key is None else await self._recorder.rows.by_key(state.run_key)
        return found or await self._recorder.rows.get(state.id)

    async def _settle_with(self, state: RunState, row: RunRow, *, wait: bool) -> Any:
        """Decide about a run that exists. Returns what `open` returns, or `_TRY_AGAIN`."""
        if state.id_given and (state.run_key is None or state.run_key != row.run_key):
            raise KeyConflictError(row.id, "there is a run with this id already; choose another id, or none")
        if row.fingerprint is not None and state.fingerprint is not None and row.fingerprint != state.fingerprint:
            raise KeyConflictError(row.id, "this key was used before with other arguments; choose another key")
        if row.status == "completed":
            state.id = row.id
            return Replayed(row.result or "null")
        if row.status == "cancelled":
            raise RunCancelledError(row.id)
        if row.status == "failed" or row.interrupted or is_gone(row.owner):
            return None if await self.take(state, row, new_allowance=True) else _TRY_AGAIN
        if not wait:
            state.id = row.id
            return Joined(row.id)
        if state.parent is not None and state.parent.inside(row.id):
            raise DeadlockError(f"run {row.id} calls itself with its own key; use another key, or none, inside it")
        ended = await self.wait_for_end(row.id)
        if ended is None or ended.status == "in_progress":
            return _TRY_AGAIN
        if ended.status == "failed":
            raise failed_elsewhere(ended)
        return _TRY_AGAIN

    # -- taking over -----------------------------------------------------------------------------------------

    async def take(self, state: RunState, row: RunRow, *, new_allowance: bool) -> bool:
        """Take a run over that nobody holds, and load what its earlier lives left; False when somebody was faster.

        Raises:
            RecoveryLimitError: It took its processes down too often; it is stored as failed.
            RunCancelledError: Somebody had cancelled it; it is stored as cancelled.
        """
        held = self._recorder.keeper.held.get(row.id)
        if held is not None and held.epoch > (row.epoch or 0):
            return False
        before = state.id, state.root_id, state.epoch, state.stored
        state.id, state.root_id, state.stored = row.id, row.root_id, True
        state.accepted = state.accepted or row.accepted
        state.nested = state.nested or row.parent_id is not None
        state.epoch = (row.epoch or 0) + 1
        state.attempts_done, state.attempt = row.attempt_count, row.attempt_count + 1
        per_allowance = attempts_per_allowance(state) - state.attempts_allowed_from
        state.attempts_allowed_from = row.attempt_count if new_allowance else max(0, row.max_attempts - per_allowance)
        recoveries, recovered_at = await self._recoveries(row)
        params = lease_params(self._store, self._recorder.lease_seconds) | {
            "id": row.id,
            "owner": self._recorder.owner,
            "accepted": state.accepted,
            "max_attempts": attempts_per_allowance(state),
            "recoveries": recoveries,
            "recovered_at": None if recovered_at is None else self._store.timestamp(recovered_at),
            "seen_epoch": row.epoch or 0,
            "seen_status": row.status,
            "dead_owner": row.owner if is_gone(row.owner) else None,
            "epoch": state.epoch,
        }
        if not await self._store.write(functools.partial(self._claim_in, params)):
            state.id, state.root_id, state.epoch, state.stored = before
            return False
        try:
            await self._load(state, row, new_allowance=new_allowance)
            if row.status == "in_progress" and row.cancel_requested_at is not None:
                await self._cancel(state)
            state.recoveries = recoveries
            if recoveries > self._limit_of(state):
                await self._give_up(state, recoveries)
        except BaseException:
            await self._recorder.writer.release(state)
            raise
        return True

    def _claim_in(self, params: dict[str, Any], tx: Tx) -> bool:
        if tx.execute(self._recorder.statements.claim, params) == 1:
            params["claimed"] = True
            # What the earlier lives held goes with the epoch that held it.
            self._recorder.release_holds(tx, params["id"], params["epoch"] - 1)
            return True
        # Done before by this very claim, or by another one of this runtime? A clock may stand still between them.
        row = tx.row("SELECT owner, epoch, updated_at FROM apflow_tasks WHERE id = :id", params)
        return "claimed" in params and row == (params["owner"], params["epoch"], params["now"])

    async def _recoveries(self, row: RunRow) -> tuple[int, datetime | None]:
        """Count takeovers from dead owners since the last progress. An orderly hand-back leaves no lease."""
        if row.status != "in_progress" or row.lease_expires_at is None:
            return (row.recoveries if row.status == "in_progress" else 0), row.recovered_at
        now = self._store.clock.now()
        if row.recovered_at is None or await self._progressed(row):
            return 1, now
        return row.recoveries + 1, now

    def _limit_of(self, state: RunState) -> int:
        """Return how many recoveries a run may have. A tree outlives a node that kills its processes."""
        return 2 * self._recovery_limit + 2 if state.kind == "tree" else self._recovery_limit

    async def _progressed(self, row: RunRow) -> bool:
        since = {"root": row.root_id, "id": row.id, "since": self._store.timestamp(row.recovered_at or _LONG_AGO)}
        sql = (
            "SELECT 1 FROM apflow_tasks WHERE (task_tree_id = :root AND id <> :id AND completed_at > :since "
            "AND (status = 'completed' OR (status = 'failed' AND kind = 'node'))) "
            "OR (id = :id AND checkpoint_at > :since) LIMIT 1"
        )
        return await self._store.read(lambda tx: tx.row(sql, since)) is not None

    async def _cancel(self, state: RunState) -> None:
        """End a run whose former owner did not live to see that it was cancelled."""
        error = RunCancelledError(state.id)
        await self._recorder.writer.end(state, "cancelled", error=error)
        raise error

    async def _give_up(self, state: RunState, recoveries: int) -> None:
        error = RecoveryLimitError(
            state.id,
            f"its process died {recoveries} times without any progress, so it is not tried again; "
            "find out what kills it, then call runs.resume()",
        )
        await self._recorder.writer.end(state, "failed", error=error)
        raise error

    async def _load(self, state: RunState, row: RunRow, *, new_allowance: bool) -> None:
        """Read what the new life has to know, once the takeover is committed."""
        await self.load_earlier(state, saved=row.checkpoint_at is not None)
        if state.meter is not None:
            state.meter.keep_model(row.model)
        if not new_allowance:
            state.first_delay = self.seconds_until(row.next_attempt_at)

    async def load_earlier(self, state: RunState, *, saved: bool = True) -> None:
        """Read what earlier lives of a run finished, and the state that they stored if they have `saved` one."""
        memos = await replay.load_memos(self._store, state)
        state.open_children = set(memos.open)
        if state.checkpoint:
            state.memos = memos
        if saved:
            state.saved = state.restored = await self.saved_state(state.id)

    async def saved_state(self, run_id: str) -> dict[str, Any] | None:
        """Return the latest state that the run's function stored itself."""
        return await self._store.read(lambda tx: checkpoint.load_in(tx, run_id, ignore_retry=True))

    # -- waiting ---------------------------------------------------------------------------------------------

    async def wait_for_end(self, run_id: str) -> RunRow | None:
        """Return the run's row once it has ended, or once nobody holds it any more; None when it was deleted."""
        seen: Any = None
        try:
            while True:
                local = self._recorder.keeper.held.get(run_id)
                if local is not None:
                    await self._local_end(local)
                seen = await self._store.changed(run_id, seen, LOOK_SECONDS)
                row = await self._recorder.rows.get(run_id)
                if row is None or row.status != "in_progress" or row.interrupted or is_gone(row.owner):
                    return row
        finally:
            self._store.unwatch(run_id, seen)

    async def _local_end(self, state: RunState) -> None:
        """Wait for a run of this process.

        Raises:
            Exception: What it raised.
        """
        waiter = self.watch(state)
        if waiter is None:
            await asyncio.sleep(0)
            return
        try:
            await asyncio.wrap_future(waiter)
        except (RunInterruptedError, FencedError):  # somebody else carries it on
            return

    def watch(self, state: RunState) -> Future[Any] | None:
        """Return a future of the run's result, or None when it has ended."""
        with self._recorder.settling:
            if state.settled:
                return None
            waiter: Future[Any] = Future()
            state.waiters.append(waiter)
            return waiter

    async def result(self, run_id: str, rescue: Callable[[RunRow], Awaitable[bool]]) -> RunRow:
        """Wait for a run and return its row once it completed.

        Args:
            run_id: The run.
            rescue: Asked when nobody holds it any more; True when somebody carries it on.

        Raises:
            RunFailedError: It failed in another process; in this process, its own exception.
            RunCancelledError: It was cancelled.
            RunInterruptedError: Nobody holds it and it has not ended.
            RunNotFoundError: There is none.
        """
        while True:
            row = await self.wait_for_end(run_id)
            if row is None:
                raise RunNotFoundError(run_id)
            if row.status == "completed":
                return row
            if row.status == "failed":
                raise failed_elsewhere(row)
            if row.status == "cancelled":
                raise RunCancelledError(run_id)
            if not await rescue(row):
                raise RunInterruptedError(run_id)

    # -- time ------------------------------------------------------------------------------------------------

    def seconds_until(self, moment: datetime | None) -> float:
        """Return the seconds from now to `moment`, at least 0."""
        return 0.0 if moment is None else max(0.0, (moment - self._store.clock.now()).total_seconds())

    @staticmethod
    def after(moment: datetime, seconds: float) -> datetime:
        """Return the moment `seconds` later."""
        return moment + timedelta(seconds=seconds)


def failed_elsewhere(row: RunRow) -> RunFailedError:
    """Return the error of a run that failed in another process or in an earlier life."""
    info = json.loads(row.error_info) if row.error_info else {}
    return RunFailedError(row.id, info.get("type", "Exception"), info.get("message", row.error or ""), read_told(info))


_TRY_AGAIN: Any = object()
