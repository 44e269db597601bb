"""Runs in the background: submitted ones, and interrupted ones that are taken over."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import logging
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from apflow import portal
from apflow.definition import known, place, standing_for
from apflow.durability.retry import BackoffStrategy, RetryPolicy
from apflow.errors import ApflowError, RunError, SerializationError, StorageError
from apflow.state import RunState
from apflow.storage.owners import is_gone

if TYPE_CHECKING:
    from apflow.call import Call, CallNext
    from apflow.durability.rows import RunRow
    from apflow.options import Options, TaskDefinition
    from apflow.run import Run
    from apflow.runtime import Runtime

logger = logging.getLogger(__name__)

#: How long interrupted runs get to hand themselves back, beyond what a plain function may take to notice.
HAND_BACK_SECONDS = 5.0
#: How often a recovery looks whether the one before it is over.
TURN_SECONDS = 0.01


class Slots:
    """How many background roots run at once, over all event loops."""

    def __init__(self, number: int) -> None:
        self._free = number
        self._waiting: deque[Future[None]] = deque()
        self._lock = threading.Lock()

    async def layer(self, call: Call, call_next: CallNext) -> Any:
        """Hold a slot while the rest of the onion runs."""
        await self.acquire()
        try:
            return await call_next(call)
        finally:
            self.release()

    async def acquire(self) -> None:
        """Wait for a slot and hold it."""
        with self._lock:
            if self._free > 0:
                self._free -= 1
                return
            turn: Future[None] = Future()
            self._waiting.append(turn)
        try:
            await asyncio.shield(asyncio.wrap_future(turn))
        except asyncio.CancelledError:
            with self._lock:
                given = turn not in self._waiting
                if not given:
                    self._waiting.remove(turn)
            if given:
                self.release()
            raise

    def try_acquire(self) -> bool:
        """Hold a slot if one is free now."""
        with self._lock:
            free = self._free > 0
            self._free -= free
        return free

    def release(self) -> None:
        """Give a slot back, from any thread."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set_result(None)
            else:
                self._free += 1


class Background:
    """What one runtime runs in the background."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.slots = Slots(runtime.concurrency)
        self._live: dict[str, tuple[RunState, Future[Any]]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._recovering = threading.Lock()
        self._unreadable: set[str] = set()
        self._looked = False
        self._drained = False

    def start(self, call: Call, loop: asyncio.AbstractEventLoop | None = None) -> Run[Any]:
        """Run a call whose row is stored already, and return its handle.

        Args:
            call: What to run.
            loop: Where the function of an async task runs; None is the loop of this thread.
        """
        from apflow.run import Run

        state = call.state
        outcome = self._runtime.recorder.claims.watch(state)
        assert outcome is not None
        self._runtime.keeper.hold(state)
        self._live[state.id] = (state, outcome)
        outcome.add_done_callback(lambda _: self._live.pop(state.id, None))
        work = self._guarded(call)
        if state.definition.colour in ("sync", "stream"):
            state.bodies = portal.OwnThread()
            loop = portal.portal.loop()
        here = portal.running_loop()
        state.loop = loop or here
        if loop is None or loop is here:
            assert here is not None
            task = here.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(lambda _: self._ended(state))
        else:
            portal.Spawned(loop, work, contextvars.copy_context())
        return Run(self._runtime, state.id, state.definition, state=state, outcome=outcome)

    def _ended(self, state: RunState) -> None:
        """Hand a run back whose task was cancelled before its first step, as `asyncio.run` does at its end."""
        if not state.settled:
            self._runtime.recorder.hand_back(state)

    def join(self, run_id: str, definition: TaskDefinition | None) -> Run[Any]:
        """Return a handle of a run that somebody runs, here or elsewhere."""
        from apflow.run import Run

        held = self._runtime.keeper.held.get(run_id)
        outcome = None if held is None else self._runtime.recorder.claims.watch(held)
        return Run(self._runtime, run_id, definition, state=held, outcome=outcome)

    async def _guarded(self, call: Call) -> None:
        """Send the call through the onion; its error belongs to whoever awaits the handle."""
        from apflow.submission import run_collected

        try:
            bounded = not call.state.nested and call.state.kind != "tree"
            await run_collected(call, self.slots.layer if bounded else None)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - see above
            logger.info("run %s of task %s ended with %s", call.state.id, call.task.name, type(error).__name__)

    # -- taking over -----------------------------------------------------------------------------------------

    def recover_from_thread(self) -> None:
        """Look whether anything can be taken over, and have the portal do it.

        The first look is for what others left: what this runtime has just handed back itself waits for the next one.
        """
        own, self._looked = self._looked, True
        rows = self._runtime.recorder.rows
        if any(self._takes(row, own=own) for row in rows.open_blocking(accepted_only=True)):
            portal.Spawned(portal.portal.loop(), self.recover(everything=False, own=own), contextvars.Context())

    async def recover(self, *, everything: bool, own: bool = True) -> list[Run[Any]]:
        """Take over what is interrupted and known here; with `own` also what this runtime has handed back."""
        while not self._recovering.acquire(blocking=False):  # it is released on another thread
            if self._runtime.closed:
                return []
            await asyncio.sleep(TURN_SECONDS)
        try:
            rows = await self._runtime.recorder.rows.open(accepted_only=not everything)
            taken = [await self._take_over(row) for row in rows if self._takes(row, own=own)]
        finally:
            self._recovering.release()
        return [run for run in taken if run is not None]

    async def rescue(self, row: RunRow) -> bool:
        """Carry an accepted run on that somebody here waits for; False when this process may not, or cannot."""
        unknown = row.id in self._unreadable or self.definition_of(row) is None
        if unknown or not row.accepted or self._runtime.closed:
            return False
        await self.recover(everything=False)
        return True

    def _takes(self, row: RunRow, *, own: bool) -> bool:
        """Whether nobody holds the run and this process knows its task."""
        if row.id in self._runtime.keeper.held or row.id in self._unreadable:
            return False
        if not own and row.owner == self._runtime.keeper.owner:
            return False
        return (row.interrupted or is_gone(row.owner)) and self.definition_of(row) is not None

    def definition_of(self, row: RunRow) -> TaskDefinition | None:
        """Return the task of a run, if this process has it: same name and origin, or same explicit name."""
        claimed = self._runtime.task_named(row.name)
        found = [
            definition
            for definition in (*known(row.name), *standing_for(row.name))
            if (claimed is None or place(claimed) == place(definition))
            and (definition.origin == row.origin or (definition.named and row.named))
            and definition.version == row.task_version
            and (definition.carries is None or definition.carries(row.inputs))
        ]
        # Where several functions of one module have the name, it has to be the very one.
        exact = [definition for definition in found if definition.fn.__qualname__ == row.qualname] or found
        return exact[0] if len(exact) == 1 else None

    async def _take_over(self, row: RunRow) -> Run[Any] | None:
        try:
            return await self.carry_on(row, new_allowance=False)
        except SerializationError as error:
            self._unreadable.add(row.id)
            logger.warning("run %s cannot be taken over: its arguments cannot be read (%s)", row.id, error.path)
        except (RunError, StorageError) as error:
            logger.warning("run %s was not taken over: %s", row.id, type(error).__name__)
        except Exception as error:  # noqa: BLE001 - one run that this process cannot carry on must not hold up the rest
            self._unreadable.add(row.id)
            logger.warning("run %s of task %s cannot be taken over here: %s", row.id, row.name, type(error).__name__)
        return None

    async def carry_on(self, row: RunRow, *, new_allowance: bool) -> Run[Any] | None:
        """Take a run over and run it here; None when somebody was faster.

        Raises:
            ApflowError: This process does not know its task.
        """
        from apflow.calls import as_call

        state = self._state_of(row)
        if not await self._runtime.recorder.claims.take(state, row, new_allowance=new_allowance):
            return None
        return self.start(as_call(state), self._loop_for_bodies())

    def _state_of(self, row: RunRow) -> RunState:
        from apflow.calls import govern
        from apflow.governance.stored import load_above

        definition = self.definition_of(row)
        if definition is None:
            raise ApflowError(
                f"run {row.id}: this process does not know task {row.name!r} of {row.origin} in version "
                f"{row.task_version!r}; import its module first, or give the task an explicit name="
            )
        self._runtime.claim_name(definition)
        state = RunState(
            definition,
            _options_of(definition.options, row),
            self._runtime,
            definition.codec.load_arguments(row.inputs),
            None,
            owned=True,
            user=row.user,
        )
        state.id, state.root_id, state.kind = row.id, row.root_id, row.kind
        state.inputs, state.checkpoint, state.taken_over = row.inputs, row.checkpoint, True
        state.run_key, state.key, state.fingerprint = row.run_key, row.key, row.fingerprint
        state.above = load_above(row.options)
        govern(state)
        return state

    def _loop_for_bodies(self) -> asyncio.AbstractEventLoop:
        home = self._runtime.home
        if home is not None and home.is_running():
            return home
        here = portal.running_loop()
        if here is not None and not portal.portal.is_current():
            return here
        return portal.worker.loop()

    # -- the end ---------------------------------------------------------------------------------------------

    async def drain(self, seconds: float) -> None:
        """Wait for what was submitted here, then hand back what is left. Doing it twice does no harm."""
        await asyncio.get_running_loop().run_in_executor(None, self._end_recovery)
        own = self._hand_back_taken_over()
        await _wait(own, seconds)
        await _wait(self._interrupt(), self._runtime.shutdown_seconds + HAND_BACK_SECONDS)

    def drain_blocking(self, seconds: float) -> None:
        """Do what `drain` does, from plain code. What needs the loop that this blocks is handed back at once."""
        self._end_recovery()
        blocked = portal.blocked_here()
        for state in list(self._runtime.keeper.held.values()):
            if state.loop in blocked:
                state.stop("interrupted")
                self._runtime.recorder.hand_back(state)
        concurrent.futures.wait(self._hand_back_taken_over(), seconds)
        concurrent.futures.wait(self._interrupt(), self._runtime.shutdown_seconds + HAND_BACK_SECONDS)

    def _end_recovery(self) -> None:
        """Let nothing more be taken over: what is being taken over now gets through and is then handed back."""
        if not self._drained:
            self._drained = self._recovering.acquire(timeout=HAND_BACK_SECONDS)

    def _hand_back_taken_over(self) -> list[Future[Any]]:
        own: list[Future[Any]] = []
        for state, outcome in list(self._live.values()):
            if state.taken_over:
                state.stop("interrupted")
            elif state.loop is None or not state.loop.is_closed():
                own.append(outcome)
        return own

    def _interrupt(self) -> list[Future[Any]]:
        """Interrupt whatever still runs here, called directly or in the background."""
        outcomes = []
        for state in list(self._runtime.keeper.held.values()):
            if state.loop is None or not state.loop.is_closed():
                outcome = self._runtime.recorder.claims.watch(state)
                state.stop("interrupted")
                if outcome is not None:
                    outcomes.append(outcome)
        return outcomes


async def _wait(outcomes: list[Future[Any]], seconds: float) -> None:
    waiting = [asyncio.wrap_future(outcome) for outcome in outcomes]
    for future in waiting:  # Its error belongs to whoever awaits the handle, also when it comes too late for us.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
    if waiting:
        await asyncio.wait(waiting, timeout=seconds)


def _options_of(options: Options, row: RunRow) -> Options:
    """Return the task's options with what the original call had changed."""
    from apflow.governance.stored import load_options

    stored = load_options(row.options)
    if stored.get("retry"):
        retry = dict(stored["retry"])
        retry["backoff_strategy"] = BackoffStrategy(retry["backoff_strategy"])
        former = options.retry
        stored["retry"] = RetryPolicy(**retry, retry_on=None if former is None else former.retry_on)
    return replace(options, user=row.user, overrides=frozenset(stored), **stored)
