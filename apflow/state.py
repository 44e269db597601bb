"""apflow's own record of a run in this process, and which run the running code belongs to."""

from __future__ import annotations

import os
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from apflow.errors import RunCancelledError, RunEndedError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import Future
    from datetime import datetime

    from apflow.governance.meter import Meter
    from apflow.governance.stored import Above
    from apflow.options import Options, TaskDefinition
    from apflow.runtime import Runtime
    from apflow.storage.serialize import Encoded
    from apflow.storage.store import Tx


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run says it is: `done` of `total`, and a message for people."""

    done: float
    total: float
    message: str = ""


@dataclass(slots=True)
class Memos:
    """What earlier lives of a run left in the database, by the id of the child run.

    Attributes:
        completed: Results as JSON text.
        open: `(attempts used up, time of the next one, model that governance gave)` of children that had not ended.
        saved: Children whose function has stored a state of its own.
    """

    completed: dict[str, str | None]
    open: dict[str, tuple[int, datetime | None, str | None]]
    saved: set[str]


class Listener(Protocol):
    """Who wants to hear of a run while it runs: a door to remote callers. Called on any thread."""

    def progressed(self, progress: Progress) -> None: ...

    def produced(self, item: Any) -> None: ...


class RunRecorder(Protocol):
    """What a run asks of the layer that stores it."""

    async def begin_attempt(self, state: RunState, attempt: int) -> None: ...

    async def attempt_failed(self, state: RunState, attempt: int, error: Exception, delay: float) -> None: ...

    async def save_checkpoint(
        self, state: RunState, data: dict[str, Any], step: str | None, *, replace: bool = False
    ) -> None: ...

    async def save_progress(self, state: RunState, fraction: float) -> None: ...


class RunState:
    """apflow's own record of one run in this process. Everything here is private to apflow.

    Attributes:
        owned: The nearest run above, or this one, that has a row with an owner and an epoch: the fence of its writes.
        stored: Whether the run has a row.
        at_start: Called with the transaction that inserts the run's row.
        at_end: Called with the transaction that stores the run's end, and its status.
        closed: Its end is stored, or was given up: what it still uses is stored by itself.
        counters: How often a child with a certain fingerprint was called in this attempt.
        holding: Something was reserved in its name or below it.
        id_given: A caller has chosen its id, so a row that has it already is another run.
        listener: Who hears of its progress, and of the items of a generator, in this process.
        kind: What its row is, when that does not follow from where it was called: `node` or `tree`.
        result: What was stored of its result, as JSON text; only of graph nodes.
        nested: It was started inside another run, which may be in no process now, or in another one.
        meter: What governs it; None when nothing does and it has used nothing.
        recoveries: How often it was taken over from processes that died, since the last progress.
        stopping: Why its function has to stop, once it has to.
    """

    # Defaults stand in the class: most runs change few of them, and each costs time in every call.
    above: Above | None = None
    accepted = False
    at_end: Callable[[Tx, str], None] | None = None
    at_start: Callable[[Tx], None] | None = None
    attempt = 1
    attempts_allowed_from = 0
    attempts_done = 0
    bodies: Any = None
    body_left_running = False
    body_told_to_stop = False
    cancel_sent = False
    closed = False
    encoded: Encoded | None = None
    ended = False
    epoch = 1
    fingerprint: str | None = None
    first_delay = 0.0
    holding = False
    id_given = False
    items_streamed = False
    key: str | None = None
    kind: str | None = None
    listener: Listener | None = None
    loop: asyncio.AbstractEventLoop | None = None
    memo_id: str | None = None
    memos: Memos | None = None
    meter: Meter | None = None
    nested = False
    progress: Progress | None = None
    recoveries = 0
    restored: dict[str, Any] | None = None
    result: str | None = None
    run_key: str | None = None
    saved: dict[str, Any] | None = None
    settled = False
    started_at: Any = None
    stop_seen = False
    stopping: str | None = None
    stored = False
    stored_as: str | None = None
    taken_over = False
    task: asyncio.Task[Any] | None = None

    def __init__(
        self,
        definition: TaskDefinition,
        options: Options,
        runtime: Runtime,
        arguments: Mapping[str, Any],
        parent: RunState | None,
        *,
        owned: bool,
        user: str | None,
    ) -> None:
        self.definition, self.options, self.runtime, self.arguments = definition, options, runtime, arguments
        self.parent, self.user, self.generation = parent, user, _generation
        self.id = self.root_id = self.inputs = ""
        self.checkpoint: bool = bool(options.checkpoint)
        if parent is None:
            self.owned = self
        else:
            self.nested = True
            self.owned = self if owned else parent.owned
            self.root_id = parent.root_id
            if options.checkpoint is None:
                self.checkpoint = parent.checkpoint
            if parent.memos is not None:
                self.memos = parent.memos
        self.counters: dict[str, Iterator[int]] = {}
        self.children: set[RunState] = set()
        if options.key is not None:
            self.key = options.key
        if self.owned is self:
            self.open_children: set[str] = set()
            self.waiters: list[Future[Any]] = []

    @property
    def recorder(self) -> RunRecorder:
        """What stores it."""
        return self.runtime.recorder

    async def begin_attempt(self, attempt: int) -> None:
        """Get ready for an attempt: no child has been called in it."""
        await self.recorder.begin_attempt(self, attempt)

    async def attempt_failed(self, attempt: int, error: Exception, delay: float) -> None:
        """Store that an attempt failed and that the next one begins in `delay` seconds."""
        await self.recorder.attempt_failed(self, attempt, error, delay)

    def stop(self, reason: str) -> None:
        """Make the function stop: a coroutine is cancelled, a plain function sees `ctx.cancelled`.

        Args:
            reason: `"cancelled"`, `"fenced"`, `"timeout"` or `"interrupted"`; the first one counts.
        """
        if self.stopping is None:
            self.stopping = reason
            if self.loop is not None and not self.loop.is_closed():
                self.loop.call_soon_threadsafe(self._cancel_function)

    def _cancel_function(self) -> None:
        """Cancel the task that runs the function, if it still does: afterwards that task is somebody else's."""
        if self.task is not None and not self.ended:
            self.cancel_sent = True
            self.task.cancel()

    def stopped(self) -> str | None:
        """Return why this run or one above it has to stop, or None."""
        state: RunState | None = self
        while state is not None:
            if state.stopping is not None:
                return state.stopping
            if state.body_told_to_stop:
                return "timeout"
            # A submitted run goes on without its parent.
            state = None if state.accepted else state.parent
        return None

    def forked(self) -> bool:
        """Whether this process is a forked child of the one that runs it."""
        return self.generation != _generation

    def inside(self, run_id: str) -> bool:
        """Whether this is that run, or part of it: then that one cannot end first."""
        state: RunState | None = self
        while state is not None:
            if state.id == run_id:
                return True
            # A submitted run may end after its parent; but who executes a tree waits for it.
            state = None if state.accepted and state.kind != "tree" else state.parent
        return False

    def check_alive(self) -> None:
        """Refuse new work for a run that has ended or has to stop.

        Raises:
            RunEndedError: Its function has returned.
            RunCancelledError: It was told to stop.
        """
        if self.ended:
            raise RunEndedError(self.id)
        reason = self.stopped()
        if reason is not None:
            self.stop_seen = True
            raise RunCancelledError(self.id, f"has to stop ({reason}); it cannot start anything more")


_current: ContextVar[RunState | None] = ContextVar("apflow_run", default=None)
_generation = 0


def _after_fork() -> None:
    """Forget the parent's run: it is not this process that runs it."""
    global _generation  # noqa: PLW0603 - one number for the process
    _generation += 1
    _current.set(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def current_state() -> RunState | None:
    """Return the run that this code belongs to, or None."""
    state = _current.get()
    if state is not None and state.generation != _generation:
        return None
    return state
