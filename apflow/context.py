"""The current run: `current()` and what a task's function can ask of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apflow.errors import OutsideRunError
from apflow.state import Progress, current_state

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine, Generator

    from apflow.governance.reporting import ReportUsage, Reserve
    from apflow.governance.view import BudgetView
    from apflow.state import RunState


def current() -> RunContext:
    """Return the run that this code belongs to.

    Raises:
        OutsideRunError: There is none.
    """
    state = current_state()
    if state is None:
        raise OutsideRunError("apflow.current()")
    return RunContext(state)


class RunContext:
    """What a task's function can know of its run and tell about it."""

    __slots__ = ("_state",)

    def __init__(self, state: RunState) -> None:
        self._state = state

    def __repr__(self) -> str:
        return f"<apflow.RunContext {self.name} {self.task_id} attempt {self.attempt}>"

    @property
    def task_id(self) -> str:
        """Id of the run, a row of `apflow_tasks`."""
        return self._state.id

    @property
    def name(self) -> str:
        """Name of the task."""
        return self._state.definition.name

    @property
    def attempt(self) -> int:
        """1 for the first try, counted over restarts."""
        return self._state.attempt

    @property
    def user(self) -> str | None:
        """Id of the user on whose behalf it runs."""
        return self._state.user

    @property
    def model(self) -> str | None:
        """The model that governance chose, else the argument named `model`, when the function has one."""
        meter = self._state.meter
        chosen = None if meter is None else meter.model
        model = chosen or self._state.arguments.get("model")
        return model if isinstance(model, str) else None

    @property
    def budget(self) -> BudgetView:
        """What the budgets above this run have left: `ctx.budget.remaining("tokens")`."""
        return self._state.runtime.budget_view(self._state)

    @property
    def report_usage(self) -> ReportUsage:
        """Count what a model has used in this run. See `apflow.report_usage`."""
        return self._state.runtime.usage_reporter(self._state)

    @property
    def reserve(self) -> Reserve:
        """Hold an amount for a block: `async with ctx.reserve(tokens=500)`. See `apflow.reserve`."""
        return self._state.runtime.reserver(self._state)

    @property
    def idempotency_key(self) -> str:
        """A word that stays the same over attempts and restarts of this run, to hand to other services.

        For a child run this needs a parent with `checkpoint=True`.
        """
        return self._state.id

    @property
    def cancelled(self) -> bool:
        """Whether the function should stop: cancelled, timed out, taken over or shut down."""
        stopped = self._state.stopped() is not None
        if stopped:
            self._state.stop_seen = True
        return stopped

    @property
    def restored(self) -> dict[str, Any] | None:
        """The state given to the latest `checkpoint()` of an earlier attempt or life of this run, or None."""
        return self._state.restored

    def checkpoint(self, state: dict[str, Any], step: str | None = None) -> Awaitable[None]:
        """Store `state`, so that `ctx.restored` has it when this run is retried or resumed.

        Await it. In a plain function it is stored when this returns, and there is nothing to await.

        Args:
            state: A JSON object. It replaces what an earlier call stored.
            step: A name for people.

        Raises:
            TypeError: `state` is not a dict.
            ValueError: It is not JSON.
            FencedError: Another process owns this run now.
            RunCancelledError: The run has to stop.
            RunEndedError: Its function has returned.
        """
        self._state.check_alive()
        return self._now_or_awaited(self._state.recorder.save_checkpoint(self._state, state, step))

    def progress(self, done: float, total: float, message: str = "") -> Awaitable[None]:
        """Tell how far the run is. Await it, except in a plain function.

        Args:
            done: What is done, from 0 to `total`.
            total: What there is to do, above 0.
            message: For people; it is kept by the handle of a run in this process, not in the database.

        Raises:
            ValueError: The numbers make no fraction.
            FencedError: Another process owns this run now.
            RunCancelledError: The run has to stop.
            RunEndedError: Its function has returned.
        """
        self._state.check_alive()
        if not (total > 0 and 0 <= done <= total):
            raise ValueError(f"progress needs 0 <= done <= total and total > 0, got {done} of {total}")
        told = self._state.progress = Progress(done, total, message)
        if self._state.listener is not None:
            self._state.listener.progressed(told)
        return self._now_or_awaited(self._state.recorder.save_progress(self._state, done / total))

    def _now_or_awaited(self, work: Coroutine[Any, Any, None]) -> Awaitable[None]:
        if self._state.definition.colour in ("async", "async_stream"):
            return work
        from apflow import portal

        portal.run_blocking(work)
        return _DONE


class _Done:
    """Something awaitable that is done already."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


_DONE = _Done()


def checkpoint(state: dict[str, Any], step: str | None = None) -> Awaitable[None]:
    """Store `state` for the current run. See `RunContext.checkpoint`."""
    return current().checkpoint(state, step)


def progress(done: float, total: float, message: str = "") -> Awaitable[None]:
    """Tell how far the current run is. See `RunContext.progress`."""
    return current().progress(done, total, message)
