"""The `self` of a task that is a method: how it is told from others, and made again elsewhere."""

from __future__ import annotations

import sys
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from apflow.errors import SerializationError, TaskDefinitionError
from apflow.storage.values import Typed
from apflow.storage.walk import encode

if TYPE_CHECKING:
    from apflow.options import TaskDefinition
    from apflow.storage.scalars import Place

_TYPE = "__apflow_type__"
_KEY = "__apflow_key__"
_OBJECT = "__apflow_object__"


class Stored(NamedTuple):
    """An instance as it is stored.

    Attributes:
        text: JSON text.
        canonical: The one text of all instances that are the same for the task.
        reusable: Whether instances that are the same can be told from others.
        restorable: Whether another process can make the instance again.
    """

    text: str
    canonical: str
    reusable: bool
    restorable: bool


class InstanceCarrier:
    """Carries the instances that the methods of one class get.

    One that pydantic can dump and load is stored with its class; its `__apflow_key__()`, when it has one,
    decides what it is the same as. One that has only the key is stored as the key, any other as the name of
    its class.
    """

    def __init__(self, definition: TaskDefinition, place: Place) -> None:
        self._fn = definition.fn
        self._place = place
        self._carriers: dict[type, Typed | None] = {}

    def dump(self, instance: object) -> Stored:
        """Return how `instance` is stored.

        Raises:
            SerializationError: Its `__apflow_key__()` returned something else than text.
        """
        kind = type(instance)
        place = f"{kind.__module__}:{kind.__qualname__}"
        name = encode_basestring(place)
        key = self._key(instance)
        keyed = None if key is None else f'{{"{_TYPE}":{name},"{_KEY}":{key}}}'
        if (typed := self._carrier(kind)) and (text := _dump(typed, instance)) is not None:
            canonical = keyed or f'{{"{_TYPE}":{name},"value":{typed.canonical(instance, text)}}}'
            restorable = self._find(place) is kind
            return Stored(f'{{"{_TYPE}":{name},"value":{text}}}', canonical, reusable=True, restorable=restorable)
        if keyed:
            return Stored(f'{{"{_KEY}":{key}}}', keyed, reusable=True, restorable=False)
        opaque = f'{{"{_OBJECT}":{encode_basestring(place.replace(":", "."))}}}'
        return Stored(opaque, opaque, reusable=False, restorable=False)

    def load(self, text: str) -> Any:
        """Return the instance that JSON text stands for.

        Only a class that is loaded already is looked up, and only one that has the task's function as a
        method.

        Raises:
            SerializationError: It was not stored whole, or its class is not there.
        """
        node = self._place.parse(text)
        stored = node if isinstance(node, dict) else {}
        if not isinstance(name := stored.get(_TYPE), str):
            what = "its `__apflow_key__()`" if _KEY in stored else "the name of its class"
            self._refuse(
                stored.get(_OBJECT, "an instance"),
                f"only {what} was, so it cannot be made again. Let its class be a dataclass or a pydantic "
                "model, make the task a function that takes what it needs, or call the method again",
            )
        kind = self._find(name)
        typed = None if kind is None else self._carrier(kind)
        if typed is None:
            self._refuse(
                name.replace(":", "."),
                "its class is not there under that name, as a dataclass or a model with this method. Import "
                "its module first; a class that was renamed or changed needs a new `version=` of its tasks",
            )
        return typed.load(encode(stored.get("value")))

    def _refuse(self, type_name: str, hint: str) -> NoReturn:
        raise SerializationError(self._place.task, self._place.path, type_name, hint)

    def _key(self, instance: object) -> str | None:
        method = getattr(type(instance), "__apflow_key__", None)
        if method is None:
            return None
        key = method(instance)
        if type(key) is not str:
            raise self._place.error(".__apflow_key__()", key, "it has to return a str")
        return encode_basestring(key)

    def _carrier(self, kind: type) -> Typed | None:
        if kind not in self._carriers:
            try:
                self._carriers[kind] = Typed(self._place, kind)
            except TaskDefinitionError:  # pydantic knows no form for the class, and it need not have one
                self._carriers[kind] = None
        return self._carriers[kind]

    def _find(self, name: str) -> type | None:
        module, _, path = name.partition(":")
        found: Any = sys.modules.get(module)
        for part in path.split("."):
            found = getattr(found, part, None)
        return found if isinstance(found, type) and self._is_method_of(found) else None

    def _is_method_of(self, kind: type) -> bool:
        for base in kind.__mro__:
            member = vars(base).get(self._fn.__name__)
            while member is not None:
                if member is self._fn or getattr(member, "fn", None) is self._fn:
                    return True
                member = getattr(member, "__wrapped__", None)
        return False


def _dump(typed: Typed, instance: object) -> str | None:
    try:
        return typed.dump(instance)
    except SerializationError:  # it holds more than its fields say; it may still have a key
        return None
