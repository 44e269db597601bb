"""How the arguments and results of a task become JSON, and come back as what they were."""

from __future__ import annotations

import traceback
from functools import cached_property
from hashlib import blake2b
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any, NamedTuple

from apflow.storage.annotations import parameter_annotation, result_annotation
from apflow.storage.binding import Unbinder, make_binder
from apflow.storage.instances import InstanceCarrier
from apflow.storage.scalars import Place, Plain
from apflow.storage.values import Carrier, carrier
from apflow.storage.walk import encode
from apflow.told import INTERNAL, told

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from apflow.options import TaskDefinition

_MESSAGE_LENGTH = 10_000
_TRACEBACK_LINES = 200
_LINE_LENGTH = 500


class Encoded(NamedTuple):
    """The arguments of one call as they are stored.

    Attributes:
        text: A JSON object with one member for each parameter.
        fingerprint: 32 hexadecimal digits, the same for the same arguments in every process.
        reusable: Whether the result may stand for that of another call with this fingerprint.
        restorable: Whether another process can make the arguments again.
    """

    text: str
    fingerprint: str
    reusable: bool
    restorable: bool


class Codec:
    """Carries the arguments and results of one task to JSON and back, through its annotations.

    What is stored comes back the same: of the same classes and equal. What would not is refused with
    `SerializationError` when it is dumped. Values without an annotation have to be what JSON itself knows.

    Annotations are evaluated when arguments, or a result, are first met: `TaskDefinitionError` tells then of
    one that cannot be evaluated or stored.
    """

    def __init__(self, definition: TaskDefinition) -> None:
        self._definition = definition
        self._bind = make_binder(definition.fn, definition.signature)
        self._unbind = Unbinder(definition.signature)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments by name, defaults applied; `*args` are one list, `**kwargs` one dict.

        Raises:
            TypeError: The function cannot be called so. It reads as Python's own.
        """
        return self._bind(*args, **kwargs)

    def call_with(self, arguments: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return the positional and the named arguments that call the function with what `bind` returned."""
        return self._unbind(arguments)

    def encode(self, arguments: Mapping[str, Any]) -> Encoded:
        """Return all that is stored of the arguments of one call.

        Raises:
            SerializationError: One of them would not come back the same.
        """
        if self._all_plain:
            text = self._write_plain(arguments)
            return Encoded(text, _digest(text), reusable=True, restorable=True)
        texts: list[str] = []
        canonical: list[str] = []
        stored = None
        if self._instance is not None:
            name, instances = self._instance
            stored = instances.dump(arguments[name])
            texts.append(_head(name) + stored.text)
            canonical.append(_head(name) + stored.canonical)
        for name, head, values in self._members:
            text = values.dump(value := arguments[name])
            texts.append(head + text)
            canonical.append(head + values.canonical(value, text))
        return Encoded(
            text=f"{{{','.join(texts)}}}",
            fingerprint=_digest(f"{{{','.join(canonical)}}}"),
            reusable=stored is None or stored.reusable,
            restorable=stored is None or stored.restorable,
        )

    def dump_arguments(self, arguments: Mapping[str, Any]) -> str:
        """Return a JSON object with one member for each parameter.

        Raises:
            SerializationError: An argument would not come back the same.
        """
        return self._write_plain(arguments) if self._all_plain else self.encode(arguments).text

    def fingerprint(self, arguments: Mapping[str, Any]) -> str:
        """Return 32 hexadecimal digits that are the same for the same arguments in every process.

        Neither the order of a dict or a set matters, nor whether a default was spelled out. BLAKE2b over
        JSON with sorted keys.

        Raises:
            SerializationError: An argument would not come back the same.
        """
        return _digest(self._write_plain(arguments)) if self._all_plain else self.encode(arguments).fingerprint

    def load_arguments(self, text: str) -> dict[str, Any]:
        """Return the arguments by name that `dump_arguments` made this text of.

        A parameter that the function got since then has its default.

        Raises:
            SerializationError: They do not fit the function any more, or an instance was not stored whole.
        """
        place = Place(self._definition.name, "arguments", "the parameters")
        nodes = place.parse(text)
        parameters = self._definition.signature.parameters
        if not isinstance(nodes, dict) or not nodes.keys() <= parameters.keys():
            raise place.error("", nodes, place.stale)
        arguments = {}
        for name, parameter in parameters.items():
            if name in nodes:
                arguments[name] = self._carriers[name].load(encode(nodes[name]))
            elif parameter.default is not parameter.empty:
                arguments[name] = parameter.default
            else:
                raise place.error("", nodes, place.stale)
        return arguments

    def check_result(self) -> None:
        """Find out now whether results can be stored, not after the function has done its work.

        Raises:
            TaskDefinitionError: The annotation of the result cannot be evaluated, or has no JSON form.
        """
        _ = self._result

    def dump_result(self, value: Any) -> str:
        """Return a result, or the list of a generator's items, as JSON text.

        Raises:
            SerializationError: It would not come back the same.
        """
        return self._result.dump(value)

    def load_result(self, text: str) -> Any:
        """Return the result that `dump_result` made this text of.

        Raises:
            SerializationError: It does not fit the annotation of the result any more.
        """
        return self._result.load(text)

    def reusable(self, arguments: Mapping[str, Any]) -> bool:
        """Tell whether the result of a call may stand for that of another one with the same fingerprint.

        Not for a method of an instance that cannot be told from others of its class.
        """
        return self._instance is None or self._instance[1].dump(arguments[self._instance[0]]).reusable

    def restorable(self, arguments: Mapping[str, Any]) -> bool:
        """Tell whether `load_arguments` can make the arguments again, which only an instance may prevent."""
        return self._instance is None or self._instance[1].dump(arguments[self._instance[0]]).restorable

    @cached_property
    def _members(self) -> list[tuple[str, str, Carrier]]:
        """Name, start of its member in JSON, and carrier of each parameter but `self`."""
        definition = self._definition
        parameters = list(definition.signature.parameters.values())[definition.takes_self :]
        return [
            (p.name, _head(p.name), carrier(self._place(p.name), parameter_annotation(definition, p)))
            for p in parameters
        ]

    @cached_property
    def _carriers(self) -> dict[str, Carrier | InstanceCarrier]:
        """The carrier of each parameter by name."""
        carriers: dict[str, Carrier | InstanceCarrier] = {name: values for name, _, values in self._members}
        return carriers if self._instance is None else carriers | {self._instance[0]: self._instance[1]}

    @cached_property
    def _instance(self) -> tuple[str, InstanceCarrier] | None:
        """Name and carrier of `self`."""
        if not self._definition.takes_self:
            return None
        name = next(iter(self._definition.signature.parameters))
        return name, InstanceCarrier(self._definition, self._place(name))

    def _write_plain(self, arguments: Mapping[str, Any]) -> str:
        members = [head + values.dump(arguments[name]) for name, head, values in self._members]
        return f"{{{','.join(members)}}}"

    @cached_property
    def _all_plain(self) -> bool:
        return self._instance is None and all(isinstance(values, Plain) for _, _, values in self._members)

    @cached_property
    def _result(self) -> Carrier:
        place = Place(self._definition.name, "result", "the result")
        return carrier(place, result_annotation(self._definition))

    def _place(self, parameter: str) -> Place:
        return Place(self._definition.name, f"arguments.{parameter}", f"parameter {parameter!r}")


def _head(name: str) -> str:
    return encode_basestring(name) + ":"


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()


def describe_error(error: BaseException, run_id: str | None = None) -> dict[str, Any]:
    """Return what is stored of an exception: `type` (qualified name), `message`, `traceback` (list of lines).

    Under `told` stands what remote callers may know of it, when that is more than nothing. The message has at most
    10,000 characters, the traceback at most 200 lines of 500; of a longer one the first and the last lines are kept.
    What no database takes as text (NUL, halves of surrogate pairs) is escaped.
    """
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        message = str(error)
    except Exception as failure:  # noqa: BLE001 - an error that cannot be told is still an error
        message = f"<its text cannot be read: __str__ raised {type(failure).__qualname__}>"
    try:
        lines = "".join(traceback.format_exception(error)).splitlines()
    except Exception:  # noqa: BLE001 - as above; the message is left
        lines = []
    if len(lines) > _TRACEBACK_LINES:
        head, tail = _TRACEBACK_LINES // 4, _TRACEBACK_LINES - _TRACEBACK_LINES // 4 - 1
        lines = [*lines[:head], f"... {len(lines) - head - tail} lines left out ...", *lines[-tail:]]
    described: dict[str, Any] = {
        "type": name,
        "message": _storable(message, _MESSAGE_LENGTH),
        "traceback": [_storable(line, _LINE_LENGTH) for line in lines],
    }
    public = told(error, run_id)
    if public.code != INTERNAL:
        described["told"] = public.as_json()
    return described


def _storable(text: str, length: int) -> str:
    if len(text) > length:
        text = text[: length - 3] + "..."
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
