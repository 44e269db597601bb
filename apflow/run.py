"""A handle of one run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from apflow import portal
from apflow.errors import DeadlockError, RunNotFoundError
from apflow.state import current_state

if TYPE_CHECKING:
    from collections.abc import Generator
    from concurrent.futures import Future

    from apflow.options import TaskDefinition
    from apflow.runtime import Runtime
    from apflow.state import Progress, RunState

R_co = TypeVar("R_co", covariant=True)


class Run(Generic[R_co]):
    """A run that was submitted, taken over or looked up: `await run`, or `run.result()` from plain code.

    Awaiting does not own it: when the waiter is cancelled, the run goes on.
    """

    __module__ = "apflow"

    def __init__(
        self,
        runtime: Runtime,
        run_id: str,
        definition: TaskDefinition | None,
        *,
        state: RunState | None = None,
        outcome: Future[Any] | None = None,
    ) -> None:
        self._runtime = runtime
        self._id = run_id
        self._definition = definition
        self._state = state
        self._local = outcome

    def __repr__(self) -> str:
        name = "" if self._definition is None else f" {self._definition.name}"
        return f"<apflow.Run{name} {self._id}>"

    @property
    def _outcome(self) -> Future[Any] | None:
        """The result in this process. A forked child has none: the run is its parent's."""
        return None if self._state is not None and self._state.forked() else self._local

    @property
    def id(self) -> str:
        """Id of the run, a row of `apflow_tasks`."""
        return self._id

    @property
    def status(self) -> str:
        """`in_progress`, `interrupted`, `completed`, `failed` or `cancelled`, as the database has it now.

        Raises:
            RunNotFoundError: It was deleted.
        """
        row = self._runtime.recorder.rows.get_blocking(self._id)
        if row is None:
            raise RunNotFoundError(self._id)
        return "interrupted" if row.interrupted else row.status

    @property
    def progress(self) -> Progress | None:
        """What the run told last with `apflow.progress`, when it runs in this process."""
        return None if self._state is None else self._state.progress

    def __await__(self) -> Generator[Any, None, R_co]:
        return self._result().__await__()

    async def _result(self) -> R_co:
        outcome = self._outcome
        if outcome is None:
            row = await self._runtime.recorder.claims.result(self._id, self._runtime.background.rescue)
            return cast("R_co", self._decoded(row.result or "null"))
        self._check_deadlock(inside=False)
        heard = asyncio.wrap_future(outcome)
        # Who waited may have left by then, and nobody may log what a task raised: neither asyncio nor its shield.
        heard.add_done_callback(_hear)
        await asyncio.wait([heard])
        return cast("R_co", heard.result())

    def _decoded(self, text: str) -> Any:
        if self._definition is None:
            import json

            return json.loads(text)
        return self._definition.codec.load_result(text)

    def result(self, timeout: float | None = None) -> R_co:
        """Wait for the run on this thread and return its result.

        Args:
            timeout: Seconds; None waits as long as it takes. The run goes on either way.

        Raises:
            TimeoutError: It took longer.
            DeadlockError: The run needs the event loop that this would block: write `await run`.
            RunFailedError: It failed in another process; in this one, its own exception.
            RunCancelledError: It was cancelled.
            RunInterruptedError: It was handed back before its end.
        """
        self._check_deadlock(inside=True)
        if self._outcome is not None:
            return cast("R_co", self._outcome.result(timeout))

        async def waited() -> R_co:
            async with asyncio.timeout(timeout):
                return await self._result()

        return portal.run_blocking(waited())

    def _check_deadlock(self, *, inside: bool) -> None:
        """Refuse to wait for a run whose loop is blocked by this very wait.

        Raises:
            DeadlockError: The text has the line to write instead.
        """
        state = self._state
        if state is None or self._outcome is None or self._outcome.done():
            return
        me = current_state()
        if me is not None and me.inside(self._id):
            raise DeadlockError(f"run {self._id} cannot wait for itself; return, and wait for it outside")
        here = portal.running_loop() if inside else None
        if state.loop is not None and (state.loop is here or state.loop in portal.blocked_loops.get()):
            raise DeadlockError(
                f"run {self._id} needs the event loop that this call blocks; write `await run` in a coroutine"
            )

    async def cancel(self) -> None:
        """Cancel the run and the runs it started. One that has ended stays as it is.

        The run may take a moment to stop; one in another process sees it with its next lease renewal.
        """
        await self._runtime.runs.cancel(self._id)


def _hear(outcome: asyncio.Future[Any]) -> None:
    """Take note of an error, so that asyncio does not report it as one that nobody has seen."""
    if not outcome.cancelled():
        outcome.exception()
