"""JSON inputs of executors: checked, and for decorated tasks converted to the types that their functions take."""

from __future__ import annotations

import inspect
import json
import re
from collections import abc
from collections.abc import Mapping
from functools import cache, cached_property
from itertools import takewhile
from textwrap import dedent
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Never, NewType, NoReturn, NotRequired, cast, get_args, get_origin

from apflow.engine.problems import NOT_JSON, Problem, as_text, invalid, not_json, of_detail, steps, unknown
from apflow.engine.schema_check import check_by_schema
from apflow.errors import ExecutorNotFoundError, InvalidInputsError, TaskDefinitionError
from apflow.storage.annotations import parameter_annotation, result_annotation
from apflow.storage.scalars import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from pydantic import TypeAdapter
    from pydantic.json_schema import GenerateJsonSchema

    from apflow.options import TaskDefinition

__all__ = ["TaskInputs", "check_by_schema", "inputs_of"]

_NON_FINITE = frozenset({"NaN", "Infinity", "-Infinity"})
_ARGS = re.compile(r"(?:Args|Arguments|Parameters):\s*")
_ARGUMENT = re.compile(r"\*{0,2}(\w+)\s*(?:\(.*?\))?\s*:\s*(.*)")


class TaskInputs:
    """The inputs of a decorated task, as its annotations, defaults and docstring describe them.

    What is given for a parameter has to be the JSON form of what its annotation says: `"3"` is no int, while
    `3.0` is one, and a date is a string. `*args` are given as a list by the name of that parameter; whatever has the
    name of no parameter belongs to `**kwargs`. Annotations are evaluated when they are first needed.

    Raises:
        ExecutorNotFoundError: The task is a method, and JSON has no instance to call it on.
    """

    def __init__(self, definition: TaskDefinition) -> None:
        if definition.takes_self:
            raise ExecutorNotFoundError(
                f"task {definition.name!r} is a method, so it is no executor: inputs are JSON and hold no instance to "
                "call it on. Make it a function outside of the class, or a static method"
            )
        self._definition = definition
        self._parameters = list(definition.signature.parameters.values())
        self._names = frozenset(p.name for p in self._parameters if p.kind is not p.VAR_KEYWORD)
        self._defaults = {p.name: p.default for p in self._parameters if p.default is not p.empty}
        self._more = next((p.name for p in self._parameters if p.kind is p.VAR_POSITIONAL), None)
        self._others = next((p.name for p in self._parameters if p.kind is p.VAR_KEYWORD), None)

    def convert(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments by name, as `Codec.bind` would, converted to the annotated types, defaults applied.

        Raises:
            InvalidInputsError: They do not fit; the message names each field and what is wrong with it.
            TaskDefinitionError: An annotation cannot be evaluated, or has no form in JSON.
        """
        arguments = self._defaults | self._read(inputs, frozenset())
        if self._more is not None:
            arguments.setdefault(self._more, [])
        return arguments

    def check(self, inputs: Mapping[str, Any], *, later: Collection[str] = ()) -> None:
        """Find out whether `convert` would take these inputs.

        Args:
            inputs: What is known by now.
            later: Names of inputs that will be there when it runs, with values that nobody knows yet.

        Raises:
            InvalidInputsError: They do not fit; the message names each field and what is wrong with it.
            TaskDefinitionError: An annotation cannot be evaluated, or has no form in JSON.
        """
        self._read(inputs, frozenset(later))

    @cached_property
    def takes_dependencies(self) -> bool:
        """Whether results of other tasks can be given as `dependencies`: to that parameter, or inside `**kwargs`.

        Keyword arguments that are annotated as something else than an object cannot hold them.
        """
        if self._others is None or self._known is not None:
            return "dependencies" in (self._known or ())
        return (
            "dependencies" in self._names or not self._validated({self._others: {"dependencies": {}}}, self._names)[1]
        )

    @cached_property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of the inputs: an object, with descriptions from the docstring's `Args:` section."""
        found = self._adapter.json_schema(by_alias=False, schema_generator=_generator(), mode="validation")
        properties = found.get("properties", {})
        texts = argument_texts(self._definition.fn.__doc__)
        for name, part in properties.items():
            if name in texts:
                part.setdefault("description", texts[name])
            if name in self._defaults:
                part.update(self._default_of(name))
        required = found.get("required", [])
        additional: Any = False
        if self._others is not None:
            required = [name for name in required if name != self._others]
            more = _resolved(properties.pop(self._others), found.get("$defs", {}))
            properties |= more.get("properties", {})
            required += more.get("required", [])
            additional = False if self._known is not None else more.get("additionalProperties", True)
        schema = {"type": "object", "properties": properties, "additionalProperties": additional}
        return schema | ({"required": required} if required else {}) | _definitions(found)

    @cached_property
    def output_schema(self) -> dict[str, Any]:
        """The JSON schema of the result; for a generator that of the list of its items; `{}` allows anything.

        Raises:
            TaskDefinitionError: The annotation cannot be evaluated, or has no form in JSON.
        """
        annotation = _listed(result_annotation(self._definition))
        if annotation is NoReturn or annotation is Never:
            annotation = type(None)
        self._definition.codec.check_result()
        adapter = _adapter_of({"result": annotation})
        found = adapter.json_schema(by_alias=False, schema_generator=_generator(), mode="serialization")
        return cast("dict[str, Any]", found["properties"]["result"]) | _definitions(found)

    # -- reading ---------------------------------------------------------------------------------------------

    def _read(self, inputs: Mapping[str, Any], later: frozenset[str]) -> dict[str, Any]:
        """Return the values of the parameters that were given, by name."""
        name = self._definition.name
        if type(inputs) is not dict and not isinstance(inputs, Mapping):
            raise InvalidInputsError(f"inputs of {name!r} have to be a JSON object, not {type(inputs).__qualname__}")
        known = self._known
        extra: list[object] = []
        if known is not None and not (inputs.keys() <= known and later <= known):
            extra = [given for given in dict.fromkeys((*inputs, *later)) if given not in known]
        values, problems = self._validated(self._by_parameter(inputs, later), later)
        if extra or problems:
            raise invalid(name, [*unknown(extra, known or ()), *problems])
        return values

    def _by_parameter(self, inputs: Mapping[str, Any], later: frozenset[str]) -> dict[str, Any]:
        """Return what is known of the inputs, with what belongs to `**kwargs` under the name of that parameter."""
        given = {name: value for name, value in inputs.items() if name not in later} if later else dict(inputs)
        if self._others is None:
            return given
        others = {name: given.pop(name) for name in inputs if name in given and name not in self._names}
        return {**given, self._others: others}

    def _validated(self, data: dict[str, Any], later: Collection[str]) -> tuple[dict[str, Any], list[Problem]]:
        """Return the values of the parameters, or what is wrong with them."""
        try:
            text = as_text(data)
        except NOT_JSON:
            return {}, not_json(data if self._others is None else data.pop(self._others) | data)
        values, details = self._attempt(text)
        if details and (mended := _mended(text, details)):
            values, details = self._attempt(mended)
        if not details:
            return values, []
        return values, [found for detail in details if (found := self._problem(data, detail, later)) is not None]

    def _problem(self, data: dict[str, Any], detail: Mapping[str, Any], later: Collection[str]) -> Problem | None:
        """Return what is wrong, as seen from the inputs; None when it will be right at run time."""
        value, location = data, detail["loc"]
        if self._others is not None and location[:1] == (self._others,):
            value, location = data[self._others], location[1:]
        if detail["type"] == "missing" and len(location) == 1 and location[0] in later:
            return None
        return of_detail(value, detail, location)

    def _attempt(self, text: str) -> tuple[dict[str, Any], Sequence[Mapping[str, Any]]]:
        """Return the values, or what pydantic says about them."""
        validate = self._validate
        try:
            return validate(text, strict=True, by_alias=True, by_name=True), ()
        except Exception as error:  # noqa: BLE001 - a validator of the user's may raise anything
            return {}, _details(error)

    # -- built once ------------------------------------------------------------------------------------------

    @cached_property
    def _annotations(self) -> dict[str, Any]:
        return {p.name: _listed(parameter_annotation(self._definition, p)) for p in self._parameters}

    @cached_property
    def _known(self) -> frozenset[str] | None:
        """The names that an input may have; None when it may have any."""
        if self._others is None:
            return self._names
        from typing_extensions import is_typeddict

        found = self._annotations[self._others]
        kind = get_origin(found) or found
        return self._names | kind.__required_keys__ | kind.__optional_keys__ if is_typeddict(kind) else None

    @cached_property
    def _adapter(self) -> TypeAdapter[dict[str, Any]]:
        optional = {*self._defaults, self._more}
        fields = {n: NotRequired[found] if n in optional else found for n, found in self._annotations.items()}
        try:
            return _adapter_of(fields)
        except Exception as error:
            self._blame()
            raise TaskDefinitionError(
                f"task {self._definition.name!r}: the annotations of its parameters have no form in JSON together"
            ) from error

    def _blame(self) -> None:
        """Raise the error about the parameter whose annotation has no form in JSON."""
        from apflow.storage.values import carrier

        for name, annotation in self._annotations.items():
            carrier(Place(self._definition.name, f"arguments.{name}", f"parameter {name!r}"), annotation)

    @cached_property
    def _validate(self) -> Callable[..., dict[str, Any]]:
        return self._adapter.validator.validate_json

    def _default_of(self, name: str) -> dict[str, Any]:
        """Return the default of a parameter for the schema, nothing when JSON cannot say it."""
        try:
            text = self._adapter.dump_json({name: self._defaults[name]}, by_alias=False, warnings=False)
            return {"default": json.loads(text)[name]}
        except Exception:  # noqa: BLE001 - a serializer of the user's may raise anything
            return {}


def inputs_of(definition: TaskDefinition) -> TaskInputs:
    """Return the inputs of a task, made once for each definition.

    Raises:
        ExecutorNotFoundError: The task is a method.
    """
    kept = vars(definition)  # as cached properties are: they go when the definition goes
    found: TaskInputs | None = kept.get("_inputs")
    return found or cast("TaskInputs", kept.setdefault("_inputs", TaskInputs(definition)))


# -- parts of TaskInputs -------------------------------------------------------------------------------------


def argument_texts(docstring: str | None) -> dict[str, str]:
    """Return what the `Args:` section of a docstring in Google's style says of each parameter, on one line."""
    lines = iter(inspect.cleandoc(docstring or "").splitlines())
    if not any(_ARGS.fullmatch(line) for line in lines):
        return {}
    section = takewhile(lambda line: not line or line[0].isspace(), lines)
    texts: dict[str, str] = {}
    name = ""
    for line in dedent("\n".join(section)).splitlines():
        if found := _ARGUMENT.fullmatch(line):
            name, texts[found[1]] = found[1], found[2]
        elif name and line.strip():
            texts[name] = f"{texts[name]} {line.strip()}".strip()
    return texts


def _details(error: Exception) -> Sequence[Mapping[str, Any]]:
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return cast("Sequence[Mapping[str, Any]]", error.errors(include_url=False))
    return [{"type": "raised", "loc": (), "input": None, "ctx": {"error": type(error).__qualname__}}]


def _mended(text: str, details: Iterable[Mapping[str, Any]]) -> str | None:
    """Return JSON text in which 3.0 is an int and "NaN" a float wherever that was asked for, None if it was not."""
    data = json.loads(text)
    changed = False
    for detail in details:
        value = detail["input"]
        better: float | None = None
        if type(value) is float and value.is_integer():
            better = int(value)
        elif detail["type"] == "float_type" and type(value) is str and value in _NON_FINITE:
            better = float(value)
        found = [] if better is None else steps(data, detail["loc"])
        if found:
            inner = data
            for step in found[:-1]:
                inner = inner[step]
            if inner[found[-1]] == value:
                inner[found[-1]], changed = better, True
    return json.dumps(data) if changed else None


def _listed(annotation: Any) -> Any:
    """Return a list where an annotation says that anything will do that can be iterated over."""
    if get_origin(annotation) in (abc.Iterable, abc.Collection):
        return GenericAlias(list, get_args(annotation))
    return annotation


def _adapter_of(fields: Mapping[str, Any]) -> TypeAdapter[dict[str, Any]]:
    """Return what reads and describes an object with these members, which unlike a model's may have any name."""
    from pydantic import ConfigDict, TypeAdapter
    from typing_extensions import TypedDict

    config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings")
    kind = cast("Any", TypedDict)("Inputs", dict(fields))
    # A TypedDict takes a config from outside only when it does not stand alone.
    adapter: TypeAdapter[dict[str, Any]] = TypeAdapter(cast("Any", NewType)("Given", kind), config=config)
    if not adapter.pydantic_complete:
        adapter.rebuild(raise_errors=True)
    return adapter


@cache
def _generator() -> type[GenerateJsonSchema]:
    """Return a generator of schemas that says only what helps: no titles made of names, no warnings."""
    from pydantic.json_schema import GenerateJsonSchema

    class Generator(GenerateJsonSchema):
        def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - as its base has it
            return False

        def emit_warning(self, kind: Any, detail: str) -> None:
            pass  # A default that JSON cannot say is left out.

        def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:  # noqa: ARG002
            return {}  # What has no schema is still validated.

    return Generator


def _resolved(part: dict[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    reference = part.get("$ref")
    return part if reference is None else cast("dict[str, Any]", definitions[reference.removeprefix("#/$defs/")])


def _definitions(found: Mapping[str, Any]) -> dict[str, Any]:
    return {"$defs": found["$defs"]} if "$defs" in found else {}
