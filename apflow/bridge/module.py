"""Executors as modules of apcore: a call of one is an accepted run that goes through the whole onion."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from apcore import ModuleAnnotations

from apflow.bridge.calling import SafeListener, take_calling
from apflow.bridge.examples import examples_of
from apflow.bridge.ids import LONGEST_ID, can_be_id
from apflow.bridge.refusals import refusal, refused
from apflow.bridge.schemas import JsonSchema, as_object, is_object
from apflow.calls import prepare
from apflow.engine.executors import Executor
from apflow.engine.inputs import inputs_of
from apflow.errors import KeyConflictError
from apflow.storage.outlive import outlive
from apflow.storage.scalars import decode
from apflow.submission import submit_call

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from apcore import Context

    from apflow.bridge.calling import Calling
    from apflow.call import Call
    from apflow.options import Options, TaskDefinition
    from apflow.run import Run
    from apflow.runtime import Runtime

logger = logging.getLogger(__name__)

#: apcore's timeout is off: the task has its own, which really stops it.
_NO_TIMEOUT = {"resources": {"timeout": 0}}


def annotations_of(tags: tuple[str, ...]) -> ModuleAnnotations:
    """Return what a module says about its calls to every caller, from words among its tags.

    None says that it streams: apcore would merge the parts into one object, and items of generators are no objects.
    """
    return ModuleAnnotations(
        readonly="readonly" in tags,
        destructive="destructive" in tags,
        idempotent="idempotent" in tags,
        requires_approval="requires_approval" in tags,
        extra=dict(_NO_TIMEOUT),
    )


class RunModule(ABC):
    """A module whose calls are runs. What apcore asks for, and what doors ask for beyond that.

    Attributes:
        streaming: It is a generator: doors may show its items as they come.
        checks_inputs: `execute` validates, so the pipeline does not have to.
    """

    checks_inputs = True
    version = "1.0.0"
    documentation: str | None = None

    def __init__(
        self,
        executor: Executor,
        runtime: Runtime | Callable[[], Runtime],
        options: Options,
        *,
        description: str,
        tags: tuple[str, ...],
    ) -> None:
        definition = executor.definition
        self._where = runtime
        self.executor = executor
        self._options = options
        self.description = description
        self.tags = list(tags) or ["task"]
        self.streaming = executor.runs is None and definition.colour in ("stream", "async_stream")
        self.annotations = annotations_of(tags)
        self.metadata: dict[str, Any] = {}
        self.examples: list[Any] = []

    @property
    def runtime(self) -> Runtime:
        """Where the runs are."""
        return self._where() if callable(self._where) else self._where

    @property
    @abstractmethod
    def wraps(self) -> bool:
        """Whether results stand under `result`, because they are no objects."""

    @abstractmethod
    def arguments(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the task is called with.

        Raises:
            InvalidInputsError: The inputs do not fit.
        """

    async def execute(self, inputs: dict[str, Any], context: Context[Any] | None = None) -> dict[str, Any]:
        """Run the task on behalf of the caller and return its result as a JSON object.

        When the wait is cancelled the run is cancelled too, unless a door has said that it goes on.

        Args:
            inputs: Fits `input_schema`.
            context: apcore's; its identity is the user of the run.

        Raises:
            RefusedError: Whatever went wrong, as callers may know it.
        """
        calling = take_calling(self)
        try:
            return await self._run(inputs, context, calling)
        except Exception as error:  # noqa: BLE001 - a task may raise anything, and callers see none of it
            found = refused(error, self.executor.id, calling.run_id if calling.started else None)
        raise found  # out here it has no context, which would hold what was raised

    async def _run(self, inputs: dict[str, Any], context: Context[Any] | None, calling: Calling) -> dict[str, Any]:
        definition = self.executor.definition
        call = prepare(definition, self._options_for(context, calling), self.arguments(inputs), owned=True)
        state = call.state
        state.accepted = True
        if calling.listener is not None:
            state.listener = SafeListener(calling.listener)
        if calling.run_id is not None:
            state.id, state.memo_id, state.id_given = calling.run_id, None, True
            if state.parent is None:
                state.root_id = state.id
        try:
            result = await (await self._submitted(call, calling))
        except asyncio.CancelledError:
            # What others began, and this call has only joined, is theirs.
            if calling.started and state.stored and not calling.detached:
                await self._cancel(state.id)
            raise
        value = decode(definition.codec.dump_result(result))
        return {"result": value} if self.wraps else value

    def _options_for(self, context: Context[Any] | None, calling: Calling) -> Options:
        user, identity = self._options.user, None if context is None else context.identity
        if identity is not None:
            user = identity.id
            if not can_be_id(user):  # an empty one would be the runtime's own user
                raise refusal("forbidden", "the caller has no id that can be stored")
        for name, given in (("a key", calling.key), ("an id", calling.run_id)):
            if given is not None and not can_be_id(given):
                raise refusal("invalid_input", f"{name} is a text of 1 to {LONGEST_ID} characters, without NUL")
        return replace(self._options, runtime=self.runtime, user=user, key=calling.key)

    async def _submitted(self, call: Call, calling: Calling) -> Run[Any]:
        """Store and start the run; a caller who leaves meanwhile leaves a whole run behind, or none."""
        submitting = asyncio.ensure_future(submit_call(call))
        try:
            run = await outlive(submitting)
        except asyncio.CancelledError:
            if not submitting.cancelled() and submitting.exception() is None:
                calling.begin(submitting.result().id)
            raise
        except KeyConflictError as error:
            if error.run_id == calling.run_id:
                raise refusal("conflict", "there is a task with this id already") from None
            raise
        calling.begin(run.id)
        return run

    async def _cancel(self, run_id: str) -> None:
        """Cancel the run, also when the caller does not wait for that."""
        cancelling = asyncio.ensure_future(self.runtime.runs.cancel(run_id))
        cancelling.add_done_callback(_log_trouble)
        await asyncio.wait([cancelling])


def _log_trouble(cancelling: asyncio.Future[None]) -> None:
    if not cancelling.cancelled() and (error := cancelling.exception()) is not None:
        logger.warning("a run whose caller has left could not be cancelled: %s", type(error).__qualname__)


class TaskModule(RunModule):
    """A decorated task as a module.

    Args:
        definition: The task.
        runtime: Where it runs.
        options: What governs its calls.

    Attributes:
        describable: Whether its annotations have a form in JSON, once that is known.

    Raises:
        ExecutorNotFoundError: The task is a method, and JSON has no instance to call it on.
    """

    describable: bool | None = None

    def __init__(self, definition: TaskDefinition, runtime: Runtime, options: Options) -> None:
        executor = Executor(definition.name, definition)
        super().__init__(executor, runtime, options, description=definition.description, tags=definition.tags)
        self._inputs = inputs_of(definition)
        self.description = definition.description or f"Runs the task {definition.name}."
        self.examples = examples_of(definition)
        self.input_schema = JsonSchema(lambda: self._inputs.schema, self._inputs.check)
        self.output_schema = JsonSchema(lambda: as_object(self._inputs.output_schema))

    @property
    def wraps(self) -> bool:
        return not is_object(self._inputs.output_schema)

    def arguments(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return self._inputs.convert(inputs)

    def check(self) -> None:
        """Find out whether it can be described in JSON.

        Raises:
            TaskDefinitionError: An annotation has no form in JSON.
        """
        self.input_schema.model_json_schema()
        self.output_schema.model_json_schema()
