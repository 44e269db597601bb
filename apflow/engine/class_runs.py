"""Executor classes as tasks: one object for each attempt, restored, watched and cleaned up."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import inspect
import logging
from typing import TYPE_CHECKING, Any

from apflow.context import RunContext, current
from apflow.engine.settings import reveal
from apflow.errors import RunError, StorageError
from apflow.options import Options, TaskDefinition
from apflow.state import current_state

if TYPE_CHECKING:
    from apflow.engine.executable import ExecutableTask
    from apflow.engine.registry import Registered

logger = logging.getLogger(__name__)

#: How long an executor may take to clean up after it was cancelled.
CANCEL_SECONDS = 5.0


def definition_of(registered: Registered) -> TaskDefinition:
    """Return the task that runs the objects of a class. Its arguments are `inputs`, `params` and `model`."""
    kind = registered.kind

    async def execute(inputs: dict[str, Any], params: dict[str, Any], model: str | None = None) -> Any:
        return await _attempt(kind(**params), inputs if model is None else {**inputs, "model": model})

    execute.__qualname__ = kind.__qualname__
    return TaskDefinition(
        fn=execute,
        name=registered.id,
        named=True,
        origin=kind.__module__,
        location=_location(kind),
        colour="async",
        signature=inspect.signature(execute),
        takes_self=False,
        description=str(inspect.getattr_static(kind, "description", "")),
        tags=kind.tags,
        options=Options(),
    )


def _location(kind: type[ExecutableTask]) -> str:
    code = inspect.unwrap(kind.execute).__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


async def _attempt(executor: ExecutableTask, inputs: dict[str, Any]) -> Any:
    """Run one object from its restoration to its result."""
    context = current()
    keeper = _Keeper(executor, context) if executor.supports_checkpoint() else None
    if keeper is not None and context.restored is not None:
        await executor.resume_from_checkpoint(context.restored)
    try:
        async with keeper or contextlib.nullcontext():
            return await executor.execute(reveal(inputs))
    except asyncio.CancelledError:
        state = current_state()
        if state is not None and state.stopped() == "cancelled":
            await _clean_up(executor)
        raise


async def _clean_up(executor: ExecutableTask) -> None:
    try:
        async with asyncio.timeout(CANCEL_SECONDS):
            await executor.cancel()
    except Exception as error:  # noqa: BLE001 - the task is cancelled all the same
        logger.warning("executor %s failed to clean up after cancellation: %s", executor.id, type(error).__name__)


class _Keeper:
    """Stores what an executor wants to go on from, while its `execute` runs and when it has failed."""

    def __init__(self, executor: ExecutableTask, context: RunContext) -> None:
        self._executor, self._context = executor, context
        self._last = context.restored
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._watch())

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        if kind is not None:
            await self._save()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._executor.checkpoint_seconds)
            await self._save()

    async def _save(self) -> None:
        """Store the state if it has changed. What cannot be stored now may be stored next time."""
        try:
            state = self._executor.get_checkpoint()
            if state is not None and state != self._last:
                await self._context.checkpoint(state, step=self._executor.id)
                self._last = copy.deepcopy(state)  # it may be the very object that `execute` goes on changing
        except (RunError, StorageError) as error:
            logger.info("a checkpoint of %s was not stored: %s", self._executor.id, type(error).__name__)
        except Exception as error:  # noqa: BLE001 - the work goes on without it
            logger.warning("executor %s gave no checkpoint: %s", self._executor.id, type(error).__name__)


@functools.cache
def parameters_of(kind: type[ExecutableTask]) -> inspect.Signature:
    """Return what the constructor of a class takes."""
    return inspect.signature(kind)
