"""From an executor's id to what runs: a decorated task, or a class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apflow.definition import describe, known
from apflow.engine.class_runs import ClassRuns
from apflow.engine.inputs import check_by_schema, inputs_of
from apflow.engine.registry import Registered, registered
from apflow.engine.scanner import ExtensionScanner
from apflow.engine.settings import marked, secret_names
from apflow.errors import DuplicateExecutorError, ExecutorNotFoundError, InvalidInputsError
from apflow.state import current_state

if TYPE_CHECKING:
    from collections.abc import Collection

    from apflow.engine.class_runs import Probe
    from apflow.options import TaskDefinition
    from apflow.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Executor:
    """What an id stands for in this process.

    Attributes:
        id: What task trees call it.
        definition: The task that runs it; of a class, one whose arguments are `inputs`, `params` and `model`.
        kind: The class, or None for a decorated task.
        runs: What there is to know about the class.
    """

    id: str
    definition: TaskDefinition
    kind: Registered | None = None
    runs: ClassRuns | None = None

    @property
    def takes_dependencies(self) -> bool:
        """Whether it gets the results of its dependencies under that name: classes do, functions that ask for them."""
        return self.runs is not None or inputs_of(self.definition).takes_dependencies

    def check(self, inputs: Mapping[str, Any], params: Mapping[str, Any], later: Collection[str] = ()) -> None:
        """Find out before anything runs whether it could.

        Args:
            inputs: Those of the task.
            params: Arguments of the class's constructor; a decorated task takes none.
            later: Names of inputs that are known only when the tasks it depends on have ended.

        Raises:
            InvalidInputsError: It could not; the text names fields.
        """
        if self.runs is None:
            if params:
                raise InvalidInputsError(f"{self.id} is a decorated task and takes no params; use inputs")
            inputs_of(self.definition).check(inputs, later=_taken(self.definition, later))
            return
        if "dependencies" not in later:
            self._refuse_dependencies(inputs)
        own = self._marked({name: value for name, value in inputs.items() if name != "dependencies"})
        probe = self.probe(params)
        check_by_schema(self.id, probe.schema, own, later=[*later, *secret_names(own)])

    def own(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the inputs that a task is stored with, ready for results to be filled in.

        What names a secret is found here, before that: a result of another task may not name one.

        Raises:
            InvalidInputsError: They are no object, have `dependencies`, or a secret where the class takes none.
        """
        if self.runs is None:
            return inputs
        self._refuse_dependencies(inputs)
        return self._marked(inputs)

    def _refuse_dependencies(self, inputs: Mapping[str, Any]) -> None:
        if not isinstance(inputs, Mapping):
            found = type(inputs).__name__
            raise InvalidInputsError(f"inputs of {self.id!r} have to be a JSON object, not {found}")
        if "dependencies" in inputs:
            raise InvalidInputsError(
                'inputs["dependencies"] is where the results of its dependencies go; use another name'
            )

    def _marked(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        assert self.runs is not None
        own, allowed = marked(inputs), self.runs.registered.kind.secret_inputs
        if allowed is not None and (wrong := [name for name in secret_names(own) if name not in allowed]):
            where = f"only {', '.join(allowed)} may" if allowed else "none may"
            raise InvalidInputsError(f"inputs of {self.id!r}: {', '.join(map(repr, wrong))} names a secret; {where}")
        return own

    def arguments(
        self, inputs: Mapping[str, Any], params: Mapping[str, Any], probe: Probe | None = None
    ) -> dict[str, Any]:
        """Return the arguments of `definition` for inputs that `own` returned, with results filled in.

        Args:
            inputs: The inputs.
            params: Arguments of the class's constructor.
            probe: What `self.probe(params)` returned.

        Raises:
            InvalidInputsError: They do not fit; the text names fields.
        """
        if self.runs is None:
            given = inputs_of(self.definition)
            if "dependencies" in inputs and not given.takes_dependencies:
                inputs = {name: value for name, value in inputs.items() if name != "dependencies"}
            return given.convert(inputs)
        probe = probe or self.probe(params)
        later = ["dependencies"] if "dependencies" in inputs else []
        found = secret_names({name: value for name, value in inputs.items() if name != "dependencies"})
        check_by_schema(self.id, probe.schema, inputs, later=[*later, *found])
        model = inputs.get("model")
        return {
            "inputs": dict(inputs),
            "params": dict(params),
            "model": model if isinstance(model, str) else None,
        }

    def probe(self, params: Mapping[str, Any]) -> Probe:
        """Return what answers questions about objects of the class that are made with `params`.

        Raises:
            InvalidInputsError: They do not fit its constructor.
        """
        assert self.runs is not None
        try:
            self.runs.signature.bind(**params)
        except TypeError as error:  # it names parameters, never values
            raise InvalidInputsError(f"params of executor {self.id} do not fit its constructor: {error}") from None
        return self.runs.probe(params)


def _taken(definition: TaskDefinition, later: Collection[str]) -> list[str]:
    """Return the names of `later` that the function gets: results only when it asks for them."""
    takes = inputs_of(definition).takes_dependencies
    return [name for name in later if takes or name != "dependencies"]


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
    runs = _runs_of(kind)
    return Executor(executor_id, runs.definition, kind, runs)


def known_here(executor_id: str) -> bool:
    """Whether this process has an executor with this id, without importing anything."""
    found = not executor_id.startswith("_") and bool(known(executor_id))
    return found or registered(executor_id) is not None or ExtensionScanner.find(executor_id) is not None


#: By executor: what is known about the class that was registered last.
_runs: dict[str, ClassRuns] = {}


def _runs_of(kind: Registered) -> ClassRuns:
    found = _runs.get(kind.id)
    if found is None or found.registered is not kind:
        found = _runs[kind.id] = ClassRuns(kind)
    return found


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
