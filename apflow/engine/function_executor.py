"""Decorated tasks as executors."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from apflow import portal
from apflow.engine.executable import ExecutableTask
from apflow.engine.inputs import inputs_of
from apflow.storage.scalars import decode

if TYPE_CHECKING:
    from apflow.kinds import Task


class FunctionExecutor(ExecutableTask):
    """A decorated task as an executor: its name is the id, its annotations and docstring make the schemas.

    Args:
        task: The task, with the options that its runs shall have.

    Raises:
        ExecutorNotFoundError: It is a method, and JSON has no instance to call it on.
    """

    def __init__(self, task: Task[..., Any]) -> None:
        self._task = task
        self._inputs = inputs_of(task.definition)
        self.tags = task.tags  # type: ignore[misc]  # elsewhere a class has its own, here a task

    @property
    def id(self) -> str:
        return self._task.name

    @property
    def name(self) -> str:
        words = self.id.replace("_", " ").replace(".", " ").strip()
        return words[:1].upper() + words[1:]

    @property
    def description(self) -> str:
        return self._task.description

    def get_input_schema(self) -> dict[str, Any]:
        return deepcopy(self._inputs.schema)

    def get_output_schema(self) -> dict[str, Any]:
        return deepcopy(self._inputs.output_schema)

    async def execute(self, inputs: dict[str, Any]) -> Any:
        """Run the task, as a run of its own or a child of the current one, and return its result as JSON data.

        A plain function runs on a thread of its own. The items of a generator are returned as a list.

        Args:
            inputs: Fits `get_input_schema()`. `dependencies` may be there also when the function does not take it.

        Raises:
            InvalidInputsError: They do not fit; the message names each field and what is wrong with it.
            Exception: Whatever the task raised.
        """
        from apflow.calls import prepare
        from apflow.submission import run_collected

        if "dependencies" in inputs and not self._inputs.takes_dependencies:
            inputs = {name: value for name, value in inputs.items() if name != "dependencies"}
        definition = self._task.definition
        call = prepare(definition, self._task.options, self._inputs.convert(inputs))
        call.state.bodies = portal.OwnThread()
        await call.state.runtime.ready()
        result = await run_collected(call, None)
        return decode(definition.codec.dump_result(result))


def executor_of(task: Task[..., Any]) -> FunctionExecutor:
    """Return the executor that a decorated task is."""
    return FunctionExecutor(task)
