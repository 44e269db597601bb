"""Executor classes as modules of apcore."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from apflow.bridge.module import RunModule, annotations_of
from apflow.bridge.schemas import JsonSchema, as_object, is_object
from apflow.bridge.task_access import refuse_secrets
from apflow.bridge.task_base import whole_numbers
from apflow.definition import stand_for
from apflow.engine.class_runs import ClassRuns
from apflow.engine.executable import ExecutableTask
from apflow.engine.executors import Executor
from apflow.engine.registry import Registered
from apflow.engine.schema_check import check_by_schema
from apflow.engine.settings import marked, secret_names
from apflow.errors import ExecutorError
from apflow.options import Options
from apflow.runtime import runtime as runtime_of_a_call
from apflow.state import current_state

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from apcore import Context

    from apflow.bridge.calling import Calling
    from apflow.runtime import Runtime
    from apflow.storage.store import Tx

_RESULTS = "dependencies"
#: What is known of executors of apflow's own. Any other one may do anything anywhere.
_HINTS: Final[dict[str, dict[str, Any]]] = {
    "aggregate_results_executor": {"readonly": True, "idempotent": True, "open_world": False},
}


class ExecutableTaskModuleAdapter(RunModule):
    """An executor class as a module: a call is an accepted run of a new object, through the whole onion.

    The class need not be registered.

    Args:
        executor_class: A subclass of `ExecutableTask` that is made without arguments.
        executor_id: What the runs are called.
        executor_name: What people call it.
        executor_description: What it does; agents choose by this.
        input_schema: JSON schema of the inputs, an object.
        output_schema: JSON schema of what `execute` returns.
        tags: Words that group modules.
        dependencies: Packages that it needs.
        always_available: Whether a plain installation can run it.
        runtime: Where the runs are, or what returns that; None is the runtime that a call would use.

    Raises:
        TypeError: `executor_class` is no class, or no executor that can be made.
        ValueError: `executor_id` is empty.
    """

    def __init__(  # noqa: PLR0917 - these are the arguments that the design document gives it
        self,
        executor_class: type,
        executor_id: str,
        executor_name: str,
        executor_description: str,
        input_schema: dict[str, Any],
        output_schema: dict[str, Any],
        tags: Sequence[str],
        dependencies: Sequence[str],
        always_available: bool,  # noqa: FBT001 - as above
        *,
        runtime: Runtime | Callable[[], Runtime] | None = None,
    ) -> None:
        kind = _checked(executor_class, executor_id)
        super().__init__(
            _executor(kind, executor_id),
            runtime_of_a_call if runtime is None else runtime,
            Options(),
            description=executor_description or f"Runs the executor {executor_id}.",
            tags=tuple(tags) or ("executor",),
        )
        self.executor_class, self.executor_id, self.name = kind, executor_id, executor_name
        self._given, self._returned = dict(input_schema), dict(output_schema)
        self.input_schema = JsonSchema(lambda: self._given, self._check)
        self.output_schema = JsonSchema(lambda: as_object(self._returned))
        own = annotations_of(tuple(tags))
        about = {
            "executor_id": executor_id,
            "executor_type": str(getattr(kind, "type", "unknown")),
            "dependencies": list(dependencies),
            "always_available": always_available,
        }
        self.annotations = replace(own, **_HINTS.get(executor_id, {}), extra=own.extra | about)

    @property
    def wraps(self) -> bool:
        return not is_object(self._returned)

    async def execute(self, inputs: dict[str, Any], context: Context[Any] | None = None) -> dict[str, Any]:
        """Run the executor on behalf of the caller and return its result as a JSON object.

        Args:
            inputs: Fits `input_schema`.
            context: apcore's; its identity is the user of the run.

        Raises:
            TypeError: `inputs` is no dict.
            RefusedError: Whatever else went wrong, as callers may know it.
        """
        if not isinstance(inputs, dict):
            raise TypeError(f"inputs must be a dict that fits the input schema, not {type(inputs).__qualname__}")
        return await super().execute(inputs, context)

    def arguments(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        given = whole_numbers(self._given, dict(inputs))
        refuse_secrets(self.runtime, given)
        self._check(given)
        own = dict(given)
        # In a tree the results of other tasks stand here; an executor that says so takes them from its caller too.
        results = {_RESULTS: own.pop(_RESULTS)} if self._takes_results and _RESULTS in own else {}
        self.executor.arguments({**self.executor.own(own), **results}, {})
        model = given.get("model")
        return {"inputs": given, "params": {}, "model": model if isinstance(model, str) else None}

    @property
    def _takes_results(self) -> bool:
        return _RESULTS in self._given.get("properties", {})

    def _check(self, inputs: Mapping[str, Any]) -> None:
        whole = whole_numbers(self._given, inputs)
        secret = secret_names(marked(whole)) if isinstance(whole, dict) else []
        check_by_schema(self.executor_id, self._given, whole, later=secret)

    async def _run(self, inputs: dict[str, Any], context: Context[Any] | None, calling: Calling) -> dict[str, Any]:
        output = await super()._run(inputs, context, calling)
        if not isinstance(output, dict):
            raise ExecutorError(f"executor {self.executor_id!r} returned no object, as its output schema says it does")
        return output


def _checked(executor_class: object, executor_id: object) -> type[ExecutableTask]:
    if not isinstance(executor_class, type):
        raise TypeError(
            f"executor_class must be a class, got {type(executor_class).__qualname__}; give the class, not an object"
        )
    kind = executor_class.__qualname__
    if not issubclass(executor_class, ExecutableTask):
        raise TypeError(f"executor_class must be a subclass of ExecutableTask; derive {kind} of it")
    if inspect.isabstract(executor_class):
        missing = ", ".join(sorted(executor_class.__abstractmethods__))
        raise TypeError(f"executor_class must be one that can be made; write {missing} in {kind}")
    if not isinstance(executor_id, str) or not executor_id.strip():
        raise ValueError('executor_id must be a non-empty string; give what its runs are called, such as "my_executor"')
    return executor_class


def _executor(kind: type[ExecutableTask], executor_id: str) -> Executor:
    registered = Registered(executor_id, kind, f"{kind.__module__}.{kind.__qualname__}")
    runs = ClassRuns(registered)
    definition = stand_for(replace(runs.definition, fn=_called(runs)))
    return Executor(executor_id, definition, registered, runs)


def _called(runs: ClassRuns) -> Callable[..., Any]:
    """Return the function of runs that a caller began: its inputs are the caller's own, so secrets are found in them.

    That holds for a run that is carried on too, which begins with what was stored.
    """
    body = runs.definition.fn

    async def execute(inputs: dict[str, Any], params: dict[str, Any], model: str | None = None) -> Any:
        state = current_state()
        if state is not None and state.owned is state:
            state.at_end = _redaction(runs, state.id, {"inputs": inputs, "params": params, "model": model})
        own = {name: value for name, value in inputs.items() if name != _RESULTS}
        return await body(inputs | marked(own), params, model)

    execute.__qualname__ = body.__qualname__
    return execute


def _redaction(runs: ClassRuns, run_id: str, arguments: dict[str, Any]) -> Callable[[Tx, str], None] | None:
    """Return what masks passwords in the inputs of a run once it has completed."""
    inputs = arguments["inputs"]
    kept = runs.probe(arguments["params"]).redacted(inputs)
    if kept == inputs:
        return None
    text = json.dumps(arguments | {"inputs": kept}, ensure_ascii=False)

    def mask(tx: Tx, status: str) -> None:
        if status == "completed":
            cast = "::json" if tx.dialect == "postgresql" else ""
            tx.execute(f"UPDATE apflow_tasks SET inputs = :inputs{cast} WHERE id = :id", {"inputs": text, "id": run_id})

    return mask
