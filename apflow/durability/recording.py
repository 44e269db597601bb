"""The record layer: what of a run is written, and when."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from apflow.durability import replay
from apflow.durability.claims import Claims, Joined, Replayed
from apflow.durability.rows import Rows
from apflow.durability.writing import RunWriter, error_columns
from apflow.errors import FencedError, RunCancelledError, RunEndedError, RunInterruptedError, StorageError
from apflow.state import _current
from apflow.storage.statements import Statements

if TYPE_CHECKING:
    from collections.abc import Callable

    from apflow.call import Call, CallNext
    from apflow.durability.ownership import LeaseKeeper
    from apflow.state import Memos, RunState
    from apflow.storage.store import Store, Tx

logger = logging.getLogger(__name__)

FRACTION_DIGITS = 2
STRAY_SECONDS = 0.005
#: Results that cannot tell what a model has used.
_PLAIN = frozenset({type(None), bool, int, float, str, list})


class Recorder:
    """Stores the runs of one runtime; its `layer` is the outermost of the onion.

    Args:
        store: The database.
        keeper: Keeps the leases of what runs here.
        lease_seconds: How long a lease lives without renewal.
        recovery_limit: Takeovers from dead owners without progress before a run is given up.
        release_holds: Given a transaction, a run and an epoch: ends what the run held in its lives up to that epoch.
    """

    def __init__(
        self,
        store: Store,
        keeper: LeaseKeeper,
        lease_seconds: float,
        recovery_limit: int,
        release_holds: Callable[[Tx, str, int], None],
    ) -> None:
        self.store = store
        self.release_holds = release_holds
        self.keeper = keeper
        self.lease_seconds = lease_seconds
        self.statements = Statements.of(store)
        self.rows = Rows(store, self.statements)
        self.writer = RunWriter(store, self.statements)
        self.claims = Claims(self, recovery_limit)
        self.settling = threading.Lock()

    @property
    def owner(self) -> str:
        """The name under which this runtime holds leases."""
        return self.keeper.owner

    # -- the layer -------------------------------------------------------------------------------------------

    async def layer(self, call: Call, call_next: CallNext) -> Any:
        """Replay a run that is finished; else store its start, hold its lease, and store how it ended."""
        if call.state.owned is call.state:
            return await self._owned(call, call_next)
        return await self._child(call, call_next)

    async def _owned(self, call: Call, call_next: CallNext) -> Any:
        state = call.state
        if state.meter is not None and (state.meter.wants_prices or state.parent is not None):
            await state.meter.prepare()
        if not state.stored:
            replayed = await self._open(state)
            if isinstance(replayed, Replayed):
                return state.definition.codec.load_result(replayed.text)
        self.keeper.hold(state)
        try:
            result = await self._run(call, call_next)
        except BaseException as error:
            await self._end_badly(state, error)
            raise
        finally:
            try:
                await _close_meter(state)
            finally:
                self.keeper.drop(state)
                if not state.settled:
                    raised = sys.exc_info()[1]
                    outcome = raised if isinstance(raised, Exception) else RunInterruptedError(state.id)
                    self._settle(state, None, outcome)
        return result

    async def _open(self, state: RunState) -> Replayed | Joined | None:
        """Store the start of a run; when that is cancelled after it was stored, hand the run back."""
        try:
            return await self.claims.open(state, wait=True)
        except asyncio.CancelledError:
            if state.stored:
                await self.writer.release(state)
            raise

    async def _run(self, call: Call, call_next: CallNext) -> Any:
        """Call the function and store its result.

        Raises:
            FencedError: Another process owns the run now.
        """
        state = call.state
        state.task, state.loop = asyncio.current_task(), asyncio.get_running_loop()
        if call.run_id != state.id or call.attempt != state.attempt:
            call = replace(call, run_id=state.id, attempt=state.attempt)
        if state.stopping is not None:
            raise asyncio.CancelledError
        token = _current.set(state)
        try:
            result = await call_next(call)
        finally:
            _current.reset(token)
            state.ended = True
        if state.cancel_sent:
            await _absorb(state)
        if type(result) not in _PLAIN and (type(result) is not dict or "token_usage" in result):
            state.runtime.count_returned(state, result)
        text = state.definition.codec.dump_result(result)
        try:
            overspent = await self.writer.end(state, "completed", result=text)
        except StorageError:
            # The work is done but not stored: who carries the run on later does this step again.
            state.stopping = state.stopping or "interrupted"
            raise
        finally:
            if state.owned is state and state.stored_as == "completed":
                self._settle(state, result, None)
        if overspent is not None:
            if state.owned is state:
                self._settle(state, None, overspent)
            raise overspent
        return result

    async def _end_badly(self, state: RunState, error: BaseException) -> None:
        """Store how a run ended that did not complete, and raise what its caller has to see instead of `error`."""
        if state.settled:
            return
        if state.cancel_sent and not isinstance(error, asyncio.CancelledError):
            await _absorb(state)
        reason = state.stopped()
        outcome = error
        if reason == "fenced":
            outcome = error if isinstance(error, FencedError) else FencedError(state.id)
        elif reason == "cancelled":
            outcome = RunCancelledError(state.id)
            await self.writer.end(state, "cancelled", error=outcome)
        elif isinstance(error, Exception) and reason != "interrupted":
            await self.writer.end(state, "failed", error=error)
        else:
            state.stopping = state.stopping or "interrupted"
            outcome = error if isinstance(error, StorageError) else RunInterruptedError(state.id)
            await self.writer.release(state)
        self._settle(state, None, outcome)
        ours = isinstance(error, Exception) or (isinstance(error, asyncio.CancelledError) and _was_ours(state))
        if ours and outcome is not error:
            raise outcome from error

    def _settle(self, state: RunState, result: Any, error: BaseException | None) -> None:
        """Tell everybody in this process who waits for the run."""
        with self.settling:
            state.settled = True
            waiters, state.waiters = state.waiters, []
        for waiter in waiters:
            if waiter.set_running_or_notify_cancel():
                if error is None:
                    waiter.set_result(result)
                else:
                    waiter.set_exception(error)

    def hand_back(self, state: RunState) -> None:
        """Interrupt a run from outside its onion, which never began or cannot go on."""
        self.keeper.drop(state)
        self.writer.release_blocking(state)
        self._settle(state, None, RunInterruptedError(state.id))

    # -- inline children -------------------------------------------------------------------------------------

    async def _child(self, call: Call, call_next: CallNext) -> Any:
        state = call.state
        memos, known = state.memos, state.memo_id
        if memos is not None and known is not None:
            if known in memos.completed:
                return state.definition.codec.load_result(memos.completed[known] or "null")
            await self._reopen(state, memos)
        state.started_at = self.store.timestamp(self.store.clock.now())
        siblings = state.parent.children if state.parent is not None else set()
        siblings.add(state)
        try:
            return await self._run(call, call_next)
        except Exception as error:
            await self._child_failed(state, error)
            raise
        except asyncio.CancelledError as error:
            if state.stopped() == "cancelled":
                # Refused when the run above it has ended: that has settled its children too.
                with contextlib.suppress(FencedError, RunEndedError):
                    await self.writer.end(state, "cancelled", error=RunCancelledError(state.id))
            state.stopping = state.stopping or "interrupted"
            raise error from None
        finally:
            siblings.discard(state)
            await _close_meter(state)

    async def _child_failed(self, state: RunState, error: Exception) -> None:
        if state.stored_as is not None:  # It is stored as failed already: what it has used did not fit.
            return
        reason = state.stopped()
        if reason == "interrupted" or (isinstance(error, RunCancelledError) and reason is not None):
            state.stopping = state.stopping or "interrupted"
        elif reason == "fenced":
            return
        else:
            await self.writer.end(state, "failed", error=error)

    async def _reopen(self, state: RunState, memos: Memos) -> None:
        """Continue a child of an earlier life where it stopped. One that failed has all its attempts again."""
        if state.id in memos.open:
            state.stored = True
            state.attempts_done, next_attempt_at, model = memos.open[state.id]
            if state.meter is not None:
                state.meter.keep_model(model)
            state.attempt = state.attempts_done + 1
            state.first_delay = self.claims.seconds_until(next_attempt_at)
        if state.id in memos.saved:
            state.saved = state.restored = await self.claims.saved_state(state.id)

    # -- what a run asks for -----------------------------------------------------------------------------------

    async def begin_attempt(self, state: RunState, attempt: int) -> None:
        """Forget which children were called; from the second attempt on, know which of them are finished."""
        if state.children:
            await self._end_strays(state)
        state.attempt = attempt
        state.counters = {}
        state.ended = False
        if attempt > 1:
            state.restored = state.saved
            if state.checkpoint:
                state.memos = await replay.load_memos(self.store, state)

    async def _end_strays(self, state: RunState) -> None:
        """Interrupt children that a failed attempt left running, and wait for them: the next one calls them again."""
        for child in list(state.children):
            child.stop("interrupted")
        while state.children:  # noqa: ASYNC110 - they end on other threads too
            await asyncio.sleep(STRAY_SECONDS)

    async def attempt_failed(self, state: RunState, attempt: int, error: Exception, delay: float) -> None:
        """Commit the failure together with the time of the next attempt."""
        now = self.store.clock.now()
        params = {
            "id": state.id,
            "epoch": state.epoch,
            "now": self.store.timestamp(now),
            "attempt_count": attempt,
            "next_attempt_at": self.store.timestamp(self.claims.after(now, delay)),
            **error_columns(error),
        }
        state.attempts_done = attempt
        if state.owned is state:
            sql = self.statements.attempt_owned
            if await self.writer.write(state, lambda tx: tx.execute(sql, params), single=True, ends=True) != 1:
                state.stop("fenced")
                raise FencedError(state.id)
        else:
            sql = self.statements.attempt_child
            await self.writer.early(
                state, lambda tx: self.writer.holds(tx, state) and tx.execute(sql, params) == 1, ends=True
            )

    async def save_checkpoint(
        self, state: RunState, data: dict[str, Any], step: str | None, *, replace: bool = False
    ) -> None:
        """Store the user's own state of the run; `replace` deletes what it has stored under the same `step` before."""
        from apflow.durability import checkpoint

        prepared = checkpoint.Checkpoint.of(state.id, data, step)

        def save(tx: Tx) -> bool:
            if not self.writer.holds(tx, state):
                return False
            checkpoint.save_in(tx, self.store, prepared, replace=replace)
            return True

        await self.writer.early(state, save)
        state.saved = json.loads(prepared.text)

    async def save_progress(self, state: RunState, fraction: float) -> None:
        """Store how far the run says it is, in hundredths."""
        params = {
            "id": state.id,
            "progress": round(fraction, FRACTION_DIGITS),
            "now": self.store.timestamp(self.store.clock.now()),
        }
        sql = "UPDATE apflow_tasks SET progress = :progress, updated_at = :now WHERE id = :id"
        await self.writer.early(state, lambda tx: self.writer.holds(tx, state) and tx.execute(sql, params) == 1)


async def _close_meter(state: RunState) -> None:
    """Store what is left of the run's usage, and let the meter go: it and its run refer to each other."""
    meter, state.meter, state.closed = state.meter, None, True
    if meter is not None and not meter.idle:
        try:
            await meter.close()
        except StorageError as error:  # How the run ended says more than this.
            logger.error("usage of run %s was not stored (%s)", state.id, type(error).__name__)  # noqa: TRY400


async def _absorb(state: RunState) -> None:
    """Take back a cancellation that was sent while the function was ending by itself."""
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        if not _was_ours(state):
            raise
    else:
        _was_ours(state)


def _was_ours(state: RunState) -> bool:
    """Take back the cancellation that `RunState.stop` sent; False when somebody else has cancelled the task too."""
    if not state.cancel_sent or state.task is None:
        return False
    state.cancel_sent = False
    return state.task.uncancel() == 0
