"""Executors as modules of apcore: a call of one is an accepted run that goes through the whole onion."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from apcore import ModuleAnnotations

from apflow.bridge.calling import take_calling
from apflow.bridge.refusals import refused
from apflow.bridge.schemas import JsonSchema, as_object, is_object
from apflow.calls import prepare
from apflow.engine.executors import Executor
from apflow.engine.inputs import inputs_of
from apflow.storage.scalars import decode
from apflow.submission import submit_call

if TYPE_CHECKING:
    from collections.abc import Mapping

    from apcore import Context

    from apflow.bridge.calling import Calling
    from apflow.options import Options, TaskDefinition
    from apflow.runtime import Runtime

#: apcore's timeout is off: the task has its own, which really stops it.
_NO_TIMEOUT = {"resources": {"timeout": 0}}


def annotations_of(tags: tuple[str, ...], *, streaming: bool) -> ModuleAnnotations:
    """Return what a module says about its calls to every caller, from words among its tags, and whether it streams."""
    return ModuleAnnotations(
        readonly="readonly" in tags,
        destructive="destructive" in tags,
        idempotent="idempotent" in tags,
        requires_approval="requires_approval" in tags,
        streaming=streaming,
        extra=dict(_NO_TIMEOUT),
    )


class RunModule:
    """A module whose calls are runs. What apcore asks for, and what doors ask for beyond that.

    Attributes:
        runtime: Where the runs are.
        streaming: It is a generator: doors may show its items as they come.
        checks_inputs: `execute` validates, so the pipeline does not have to.
    """

    checks_inputs = True
    version = "1.0.0"
    documentation: str | None = None

    def __init__(
        self, executor: Executor, runtime: Runtime, options: Options, *, description: str, tags: tuple[str, ...]
    ) -> None:
        definition = executor.definition
        self.runtime = runtime
        self.executor = executor
        self._options = options
        self.description = description
        self.tags = list(tags) or ["task"]
        self.streaming = executor.runs is None and definition.colour in ("stream", "async_stream")
        self.annotations = annotations_of(tags, streaming=self.streaming)
        self.metadata: dict[str, Any] = {}
        self.examples: list[Any] = []

    @property
    def wraps(self) -> bool:
        """Whether results stand under `result`, because they are no objects."""
        raise NotImplementedError

    def arguments(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the task is called with.

        Raises:
            InvalidInputsError: The inputs do not fit.
        """
        raise NotImplementedError

    async def execute(self, inputs: dict[str, Any], context: Context[Any] | None = None) -> dict[str, Any]:
        """Run the task on behalf of the caller and return its result as a JSON object.

        When the wait is cancelled the run is cancelled too, unless a door has said that it goes on.

        Args:
            inputs: Fits `input_schema`.
            context: apcore's; its identity is the user of the run.

        Raises:
            RefusedError: Whatever went wrong, as callers may know it.
        """
        calling = take_calling()
        try:
            return await self._run(inputs, context, calling)
        except Exception as error:  # noqa: BLE001 - a task may raise anything, and callers see none of it
            raise refused(error, self.executor.id, calling.run_id if calling.started else None) from None

    async def _run(self, inputs: dict[str, Any], context: Context[Any] | None, calling: Calling) -> dict[str, Any]:
        definition = self.executor.definition
        identity = None if context is None else context.identity
        options = replace(
            self._options,
            runtime=self.runtime,
            user=self._options.user if identity is None else identity.id,
            key=calling.key,
        )
        call = prepare(definition, options, self.arguments(inputs), owned=True)
        state = call.state
        state.accepted = True
        state.listener = calling.listener
        if calling.run_id is not None:
            state.id = state.root_id = calling.run_id
        run = await submit_call(call)
        calling.run_id, calling.started = run.id, True
        try:
            result = await run
        except asyncio.CancelledError:
            if not calling.detached:
                await asyncio.shield(self.runtime.runs.cancel(run.id))
            raise
        value = decode(definition.codec.dump_result(result))
        return {"result": value} if self.wraps else value


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
