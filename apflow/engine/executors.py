"""From an executor's id to what runs: a decorated task, or a class."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from apflow.definition import describe, known
from apflow.engine.class_runs import definition_of, parameters_of
from apflow.engine.inputs import check_by_schema, inputs_of
from apflow.engine.registry import Registered, registered
from apflow.engine.scanner import ExtensionScanner
from apflow.engine.settings import secret_names
from apflow.errors import DuplicateExecutorError, ExecutorNotFoundError, InvalidInputsError
from apflow.state import current_state

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from apflow.engine.executable import ExecutableTask
    from apflow.options import TaskDefinition
    from apflow.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Executor:
    """What an id stands for in this process.

    Attributes:
        id: What task trees call it.
        definition: The task that runs it; of a class, one whose arguments are `inputs`, `params` and `model`.
        kind: The class, or None for a decorated task.
    """

    id: str
    definition: TaskDefinition
    kind: Registered | None = None

    def check(self, inputs: Mapping[str, Any], params: Mapping[str, Any], later: Collection[str] = ()) -> None:
        """Find out before anything runs whether it could.

        Args:
            inputs: Those of the task.
            params: Arguments of the class's constructor; a decorated task takes none.
            later: Names of inputs that are known only when the tasks it depends on have ended.

        Raises:
            InvalidInputsError: It could not; the text names fields.
        """
        if self.kind is None:
            if params:
                raise InvalidInputsError(f"{self.id} is a decorated task and takes no params; use inputs")
            inputs_of(self.definition).check(inputs, later=_taken(self.definition, later))
            return
        self._bind(params)
        check_by_schema(self.id, _schema(self.kind.kind), inputs, later=[*later, *secret_names(inputs)])

    def arguments(self, inputs: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of `definition` for these inputs, whose references are filled in.

        Raises:
            InvalidInputsError: They do not fit; the text names fields.
        """
        if self.kind is None:
            given = inputs_of(self.definition)
            if "dependencies" in inputs and not given.takes_dependencies:
                inputs = {name: value for name, value in inputs.items() if name != "dependencies"}
            return given.convert(inputs)
        self._bind(params)
        later = ["dependencies"] if "dependencies" in inputs else []
        check_by_schema(self.id, _schema(self.kind.kind), inputs, later=[*later, *secret_names(inputs)])
        model = inputs.get("model")
        return {
            "inputs": dict(inputs),
            "params": dict(params),
            "model": model if isinstance(model, str) else None,
        }

    def _bind(self, params: Mapping[str, Any]) -> None:
        assert self.kind is not None
        try:
            parameters_of(self.kind.kind).bind(**params)
        except TypeError as error:  # it names parameters, never values
            raise InvalidInputsError(f"params of executor {self.id} do not fit its constructor: {error}") from None


def _taken(definition: TaskDefinition, later: Collection[str]) -> list[str]:
    """Return the names of `later` that the function gets: results only when it asks for them."""
    takes = inputs_of(definition).takes_dependencies
    return [name for name in later if takes or name != "dependencies"]


@lru_cache(maxsize=1000)
def _schema(kind: type[ExecutableTask]) -> dict[str, Any]:
    """Return the schema of the inputs of a class."""
    return bare(kind).get_input_schema()


def bare(kind: type[ExecutableTask]) -> ExecutableTask:
    """Return an object of a class to ask about it; one whose constructor wants arguments is not initialised."""
    try:
        return kind()
    except TypeError:
        return object.__new__(kind)


def find_executor(executor_id: str, runtime: Runtime | None = None) -> Executor:
    """Return the executor with this id: a decorated task, or a class that is imported or that the scanner finds.

    Args:
        executor_id: The id.
        runtime: Whose tasks go before others of the same name; None is that of the current run.

    Raises:
        ExecutorNotFoundError: There is none.
        DuplicateExecutorError: It stands for more than one; the text names the places.
    """
    state = current_state()
    runtime = runtime or (None if state is None else state.runtime)
    definition = _task(executor_id, runtime)
    kind = registered(executor_id)
    if kind is None and (found := ExtensionScanner.find(executor_id)) is not None:
        ExtensionScanner.load(found)
        kind = registered(executor_id)
    if definition is not None and kind is not None:
        raise DuplicateExecutorError(f"{describe(definition)} and the class {kind.place} have one executor id")
    if definition is not None:
        return Executor(executor_id, definition)
    if kind is None:
        raise ExecutorNotFoundError(
            f"no decorated task and no executor class has the id {executor_id!r}; import the module that has it, "
            "or have ExtensionScanner.scan_package look for it"
        )
    return Executor(executor_id, _definition_of(kind), kind)


def known_here(executor_id: str) -> bool:
    """Whether this process has an executor with this id, without importing anything."""
    found = not executor_id.startswith("_") and bool(known(executor_id))
    return found or registered(executor_id) is not None or ExtensionScanner.find(executor_id) is not None


_definition_of = lru_cache(maxsize=1000)(definition_of)


def _task(name: str, runtime: Runtime | None) -> TaskDefinition | None:
    """Return the decorated task of this name: what the runtime has used already, else the newest of one place."""
    if name.startswith("_"):
        return None
    claimed = None if runtime is None else runtime.task_named(name)
    if claimed is not None and claimed in known(name):
        return claimed
    found = known(name)
    if len({definition.origin for definition in found}) > 1:
        places = " and ".join(describe(definition) for definition in found)
        raise DuplicateExecutorError(f"{name!r} names several tasks: {places}. Give one another name=")
    return found[-1] if found else None
