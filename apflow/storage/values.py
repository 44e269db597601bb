"""One value under one annotation: to JSON text and back, the same as it was or not at all."""

from __future__ import annotations

from collections import abc
from types import GenericAlias, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Never,
    NewType,
    NoReturn,
    Protocol,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
)

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import to_json

from apflow.errors import TaskDefinitionError
from apflow.storage.scalars import JSON_WRITERS, SCALARS, Place, Plain, check_text, decode, reason
from apflow.storage.walk import Mismatch, difference, encode, encode_sorted, follow, locate, order_sets

if TYPE_CHECKING:
    from collections.abc import Callable

_CONFIG = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings")
_DEEP = "it contains itself, or is nested too deeply"
_NO_FORM = "it has no JSON form, contains itself, is nested too deeply, or its serializer failed"
_JSON_TYPES = "str, int, float, bool, None, and list or dict (with str keys) of these"


class Carrier(Protocol):
    """Carries the values of one place to JSON and back."""

    def dump(self, value: Any) -> str:
        """Return `value` as JSON text.

        Raises:
            SerializationError: It would not come back the same.
        """
        ...

    def canonical(self, value: Any, text: str) -> str:
        """Return the one JSON text of all equal values, given the `text` that `dump` made of this one."""
        ...

    def load(self, text: str) -> Any:
        """Return the value that JSON text stands for.

        Raises:
            SerializationError: It does not fit the annotation.
        """
        ...


class Json:
    """Carries what has no annotation: only what JSON itself knows."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def dump(self, value: Any) -> str:
        writer = JSON_WRITERS.get(type(value))
        try:
            if writer is not None:
                return writer(value)
            text = encode(value)
            check_text(text)
            mismatch = difference(value, decode(text))
        except (TypeError, ValueError, OverflowError, RecursionError):
            path, found = locate(value, _is_no_json)
            raise self._place.error(path, found, self._hint(found)) from None
        if mismatch is not None:
            raise self._place.error(mismatch.path, mismatch.value, self._hint(mismatch.value))
        return text

    def canonical(self, value: Any, text: str) -> str:
        return encode_sorted(value) if "{" in text else text

    def load(self, text: str) -> Any:
        return self._place.parse(text)

    def _hint(self, found: object) -> str:
        if type(found) in (dict, list):
            return _DEEP
        return reason(found) or f"without an annotation only {_JSON_TYPES} are. Annotate {self._place.annotated}"


class Typed:
    """Carries what an annotation describes, through pydantic.

    Whatever is dumped is loaded once and compared, so that a value of which the annotation would drop or
    change something is refused while its task is still there to tell.

    Raises:
        TaskDefinitionError: pydantic has no JSON form for the annotation.
    """

    def __init__(self, place: Place, annotation: Any) -> None:
        self._place = place
        try:
            self._adapter = _adapter(annotation)
        except Exception as error:
            because = str(error).partition("\n")[0].partition(". ")[0]
            raise TaskDefinitionError(
                f"task {place.task!r}: the annotation of {place.annotated} has no form in JSON: {because}"
            ) from error
        self._has_sets = _mentions_set(self._adapter.core_schema)

    def dump(self, value: Any) -> str:
        try:
            text = self._adapter.dump_json(value, by_alias=False, round_trip=True, warnings=False).decode()
        except Exception:  # noqa: BLE001 - a serializer of the user's may raise anything
            path, found = locate(value, _is_unknown)
            raise self._place.error(path, found, reason(found) or _NO_FORM) from None
        if "NaN" in text or "Infinity" in text:
            self._check_constants(value, text)
        misfit = f"it does not fit the annotation of {self._place.annotated}"
        back = self._load(text, misfit, lambda: value)
        try:
            mismatch = difference(value, back)
        except RecursionError:
            raise self._place.error("", value, _DEEP) from None
        if mismatch is not None:
            raise self._place.error(mismatch.path, mismatch.value, self._changed(mismatch))
        return text

    def canonical(self, value: Any, text: str) -> str:
        node = decode(text)
        return encode_sorted(order_sets(value, node) if self._has_sets else node)

    def load(self, text: str) -> Any:
        return self._load(text, self._place.stale, lambda: self._place.parse(text))

    def _load(self, text: str, misfit: str, shown: Callable[[], Any]) -> Any:
        """Load `text`. What does not fit is looked up in what `shown` returns: the value, or parsed JSON."""
        try:
            return self._adapter.validate_json(text, by_alias=False, by_name=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            path, found = follow(shown(), first["loc"])
            hint = reason(found) or f"{misfit} ({first['type']})"
            raise self._place.error(path, found, hint) from None
        except Exception as error:  # noqa: BLE001 - a validator of the user's may raise anything
            hint = f"{misfit} (its validation raised {type(error).__qualname__})"
            raise self._place.error("", shown(), hint) from None

    def _check_constants(self, value: Any, text: str) -> None:
        """Refuse what a class was configured to dump as a bare NaN or Infinity, which is no JSON."""
        try:
            decode(text)
        except ValueError:
            path, found = locate(value, lambda part: isinstance(part, float) and reason(part) is not None)
            raise self._place.error(path, found, reason(found) or _NO_FORM) from None

    def _changed(self, mismatch: Mismatch) -> str:
        if because := reason(mismatch.value):
            return because
        kind, back = type(mismatch.value), type(mismatch.back)
        where = f"the annotation of {self._place.annotated}"
        if kind is back:
            return f"it would come back changed, because of how {where} dumps or validates it"
        if issubclass(kind, back) and back is not object:
            return f"it would come back as its base class {back.__qualname__}. Name its own class in {where}"
        return f"it would come back as {back.__qualname__}. Say what it is in {where}"


def carrier(place: Place, annotation: Any) -> Carrier:
    """Return what carries the values of a place with this evaluated annotation.

    Raises:
        TaskDefinitionError: pydantic has no JSON form for the annotation.
    """
    annotation = _bare(annotation)
    if annotation is Any or annotation is object or _is_free(annotation):
        return Json(place)
    if annotation is NoReturn or annotation is Never:
        annotation = type(None)
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    kinds = [_bare(member) for member in members]
    if all(isinstance(kind, type) and kind in SCALARS for kind in kinds):
        return Plain(place, frozenset(kinds))
    return Typed(place, annotation)


def _is_free(annotation: Any) -> bool:
    return isinstance(annotation, TypeVar) and not annotation.__bound__ and not annotation.__constraints__


def _bare(annotation: Any) -> Any:
    """Take off a `NewType` and texts in `Annotated`, which say nothing; read an iterable as a list."""
    if isinstance(annotation, NewType):
        return _bare(annotation.__supertype__)
    origin = get_origin(annotation)
    if origin is Annotated and all(isinstance(note, str) for note in annotation.__metadata__):
        return _bare(annotation.__origin__)
    if origin is abc.Iterable or origin is abc.Collection:
        return GenericAlias(list, get_args(annotation))
    return annotation


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation, config=_CONFIG)
    except PydanticUserError as error:
        if error.code != "type-adapter-config-unused":
            raise
        # A class with a config of its own, or a TypedDict, which takes ours when it does not stand alone.
        adapter = TypeAdapter(cast("Any", NewType)("Value", annotation), config=_CONFIG)
    if not adapter.pydantic_complete:
        adapter.rebuild(raise_errors=True)
    return adapter


def _mentions_set(schema: Any) -> bool:
    if isinstance(schema, dict):
        return schema.get("type") in ("set", "frozenset") or any(map(_mentions_set, schema.values()))
    return isinstance(schema, (list, tuple)) and any(map(_mentions_set, schema))


def _is_no_json(value: Any) -> bool:
    if type(value) is list or type(value) is dict:
        return False
    writer = JSON_WRITERS.get(type(value))
    return writer is None or _fails(writer, value)


def _is_unknown(value: Any) -> bool:
    return _fails(to_json, value)


def _fails(write: Any, value: Any) -> bool:
    try:
        write(value)
    except Exception:  # noqa: BLE001 - whether, not why
        return True
    return False
