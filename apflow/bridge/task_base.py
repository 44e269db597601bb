"""What the modules that make, run and show tasks have in common: a direct call, checked and told as every door does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from apcore import ModuleAnnotations

from apflow.bridge.calling import take_calling
from apflow.bridge.refusals import refused
from apflow.bridge.schemas import JsonSchema
from apflow.bridge.task_access import Caller, user_of
from apflow.engine.manager import TaskManager
from apflow.engine.schema_check import check_by_schema

if TYPE_CHECKING:
    from collections.abc import Mapping

    from apcore import Context

    from apflow.runtime import Runtime
    from apflow.storage.store import Store


def closed_schema(word: str, schema: Mapping[str, Any]) -> JsonSchema:
    """Return the schema of the inputs of a module, which is called `word` in errors about them."""
    return JsonSchema(lambda: schema, lambda data: check_by_schema(word, schema, whole_numbers(schema, data)))


def open_schema(schema: Mapping[str, Any]) -> JsonSchema:
    """Return the schema of what a module of ours returns: nobody has to check that."""
    return JsonSchema(lambda: schema)


def hints(*, open_world: bool = False, **more: Any) -> ModuleAnnotations:
    """Return annotations of a module whose calls apcore's own timeout does not cut."""
    return ModuleAnnotations(open_world=open_world, extra={"resources": {"timeout": 0}}, **more)


class ManagementModule(ABC):
    """A module that is no run: it reads or changes tasks, at once.

    Args:
        store: Where the tasks are.
        manager: What executes them; None is one that is made when it is needed.
        runtime: Where they run; None is that of the manager.

    Attributes:
        word: What it is called in errors and in the log, without its namespace.
        checks_inputs: `execute` validates, so the pipeline does not have to.
    """

    word: ClassVar[str]
    description: ClassVar[str]
    input_schema: ClassVar[JsonSchema]
    output_schema: ClassVar[JsonSchema]
    annotations: ClassVar[ModuleAnnotations]
    checks_inputs = True
    version = "1.0.0"
    documentation: str | None = None
    streaming = False

    def __init__(self, store: Store, manager: TaskManager | None = None, runtime: Runtime | None = None) -> None:
        self._store = store
        self._manager = manager or TaskManager(store)
        self._runtime = runtime
        self.tags = ["apflow", self.word.partition(".")[0]]
        self.metadata: dict[str, Any] = {}
        self.examples: list[Any] = []

    @property
    def name(self) -> str:
        """What people call it."""
        return self.word.replace(".", " ").capitalize()

    @property
    def runtime(self) -> Runtime:
        """Where the tasks run."""
        return self._runtime or self._manager.runtime

    async def execute(self, inputs: dict[str, Any], context: Context[Any] | None = None) -> dict[str, Any]:
        """Do what the module does for the caller, and return a JSON object.

        Args:
            inputs: Fits `input_schema`.
            context: apcore's; with an identity, only what belongs to it is there.

        Raises:
            RefusedError: Whatever went wrong, as callers may know it.
        """
        take_calling(self)
        try:
            caller = Caller(user_of(context), context)
            schema = self.input_schema.model_json_schema()
            given = whole_numbers(schema, inputs)
            check_by_schema(self.word, schema, given)
            await self.runtime.ready()
            return await self._answer(given, caller)
        except Exception as error:  # noqa: BLE001 - callers see nothing of what may be in it
            found = refused(error, self.word)
        raise found  # out here it has no context, which would hold what was raised

    @abstractmethod
    async def _answer(self, given: dict[str, Any], caller: Caller) -> dict[str, Any]:
        """Return the output for inputs that fit the schema."""


def whole_numbers(schema: Mapping[str, Any], value: Any) -> Any:
    """Return a JSON value with integers for those floats that stand where the schema wants one, such as 3.0."""
    kind = schema.get("type")
    if isinstance(value, float):
        return int(value) if kind == "integer" and value.is_integer() else value
    if isinstance(value, dict):
        known = schema.get("properties", {})
        return {name: whole_numbers(known.get(name, {}), one) for name, one in value.items()}
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        return [whole_numbers(schema["items"], one) for one in value]
    return value
