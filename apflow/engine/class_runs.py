"""Executor classes as tasks: one object for each attempt, restored, watched and cleaned up."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import logging
from functools import cached_property
from typing import TYPE_CHECKING, Any

from apflow.context import current
from apflow.engine.settings import reveal
from apflow.errors import InvalidInputsError, RunError, StorageError, TaskDefinitionError
from apflow.options import Options, TaskDefinition
from apflow.state import current_state

if TYPE_CHECKING:
    from collections.abc import Mapping

    from apflow.engine.executable import ExecutableTask
    from apflow.engine.registry import Registered
    from apflow.state import RunState

logger = logging.getLogger(__name__)

#: How long an executor may take to clean up after it was cancelled.
CANCEL_SECONDS = 5.0


class ClassRuns:
    """What there is to know about a registered class. It goes when the class is registered anew.

    Attributes:
        registered: The class.
        definition: The task that runs its objects. Its arguments are `inputs`, `params` and `model`.
    """

    def __init__(self, registered: Registered) -> None:
        self.registered = registered
        self.definition = definition_of(registered)
        self._schema: Mapping[str, Any] | None = None

    @cached_property
    def signature(self) -> inspect.Signature:
        """What the constructor takes."""
        return inspect.signature(self.registered.kind)

    def probe(self, params: Mapping[str, Any]) -> Probe:
        """Return what answers questions about objects that are made with `params`."""
        return Probe(self, params)

    def schema(self, probe: Probe) -> Mapping[str, Any]:
        """Return the schema of inputs, kept for objects without params.

        Raises:
            InvalidInputsError: The class raised something.
            TaskDefinitionError: It has no schema that is an object.
        """
        if self._schema is not None and not probe.params:
            return self._schema
        try:
            schema: Any = probe.made.get_input_schema()
        except Exception as error:  # noqa: BLE001 - it is the user's
            raise InvalidInputsError(
                f"executor {self.registered.id} cannot be asked for its input schema ({type(error).__name__})"
            ) from None
        if not isinstance(schema, dict):
            raise TaskDefinitionError(f"the input schema of executor {self.registered.id!r} is no object")
        if not probe.params:
            self._schema = schema
        return schema


class Probe:
    """An object that is asked about inputs before any attempt, made only when it is needed."""

    def __init__(self, runs: ClassRuns, params: Mapping[str, Any]) -> None:
        self._runs, self.params = runs, params

    @cached_property
    def made(self) -> ExecutableTask:
        """The object. Raises whatever its constructor does."""
        return self._runs.registered.kind(**self.params)

    @property
    def schema(self) -> Mapping[str, Any]:
        """The schema of inputs; see `ClassRuns.schema`."""
        return self._runs.schema(self)

    def redacted(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return what may stay of `inputs`: when the class cannot say, none of their texts."""
        from apflow.engine.executable import ExecutableTask
        from apflow.engine.specs import exact_json

        if self._runs.registered.kind.redact is ExecutableTask.redact:
            return inputs
        try:
            kept = exact_json(self.made.redact(copy.deepcopy(inputs)))
            if isinstance(kept, dict):
                return kept
            found = type(kept).__name__
        except Exception as error:  # noqa: BLE001 - it is the user's
            found = type(error).__name__
        logger.warning(
            "executor %s did not redact inputs, so no text of them is kept: %s", self._runs.registered.id, found
        )
        masked: dict[str, Any] = _masked(inputs)
        return masked


def _masked(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _masked(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_masked(one) for one in value]
    return "***" if isinstance(value, str) else value


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
    context, state = current(), current_state()
    keeper = None
    if state is not None and executor.supports_checkpoint():
        keeper = _Keeper(executor, state, copy.deepcopy(context.restored))
        if context.restored is not None:
            await executor.resume_from_checkpoint(context.restored)
    try:
        async with keeper or contextlib.nullcontext():
            return await executor.execute(_for_one_attempt(inputs))
    except asyncio.CancelledError:
        if state is not None and state.stopped() == "cancelled":
            await _clean_up(executor)
        raise


def _for_one_attempt(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return inputs with secrets in place, which this attempt may change without another one seeing it."""
    given, state = reveal(inputs), current_state()
    if "dependencies" in given and state is not None and state.options.retry is not None:
        given["dependencies"] = copy.deepcopy(given["dependencies"])
    return given


async def _clean_up(executor: ExecutableTask) -> None:
    try:
        async with asyncio.timeout(CANCEL_SECONDS):
            await executor.cancel()
    except Exception as error:  # noqa: BLE001 - the task is cancelled all the same
        logger.warning("executor %s failed to clean up after cancellation: %s", executor.id, type(error).__name__)


class _Keeper:
    """Stores what an executor wants to go on from, while its `execute` runs and when it has failed."""

    def __init__(self, executor: ExecutableTask, run: RunState, last: dict[str, Any] | None) -> None:
        self._executor, self._run = executor, run
        self._last = last
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
            # It may be the very object that `execute` goes on changing, while it is being stored too.
            state = copy.deepcopy(self._executor.get_checkpoint())
            if state is not None and state != self._last:
                self._run.check_alive()
                await self._run.recorder.save_checkpoint(self._run, state, self._executor.id, replace=True)
                self._last = state
        except (RunError, StorageError) as error:
            logger.info("a checkpoint of %s was not stored: %s", self._executor.id, type(error).__name__)
        except Exception as error:  # noqa: BLE001 - the work goes on without it
            logger.warning("executor %s gave no checkpoint: %s", self._executor.id, type(error).__name__)
