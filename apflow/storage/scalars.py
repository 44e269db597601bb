"""Text, numbers, booleans and None as JSON: what most calls are made of, so this is made for speed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from json import JSONDecoder
from json.encoder import encode_basestring
from math import inf, isfinite, nan
from typing import Any, NoReturn

from apflow.errors import SerializationError

_PATH_LENGTH = 200  # longest path below a place that an error shows, in characters

Writer = Callable[[Any], str]

_NO_NAN = "JSON has no NaN and no infinity. Annotate it `float`, or give its model `ser_json_inf_nan='strings'`"
_NO_TEXT = "it has half of a surrogate pair, which is no text. Pass bytes"
_NO_UTF8 = "it is no UTF-8 text. Give its class `ser_json_bytes='base64'` and `val_json_bytes='base64'`"
_NON_FINITE = {"NaN": nan, "Infinity": inf, "-Infinity": -inf}


@dataclass(frozen=True)
class Place:
    """Where a value belongs, for the errors about it.

    Attributes:
        task: Name of the task.
        path: `result` or `arguments.topic`.
        annotated: What in the code says its type, such as `parameter 'topic'`.
    """

    task: str
    path: str
    annotated: str

    def error(self, path: str, found: object, hint: str) -> SerializationError:
        """Return the error about the value `found` at `path` below this place. It does not show the value.

        Raise it `from None`: the error that led to it may show it.
        """
        if len(path) > _PATH_LENGTH:
            path = path[:_PATH_LENGTH] + "..."
        return SerializationError(self.task, self.path + path, type(found).__qualname__, hint)

    def parse(self, text: str) -> Any:
        """Return the JSON value that stored `text` stands for.

        Raises:
            SerializationError: It is no JSON.
        """
        try:
            return decode(text)
        except (ValueError, RecursionError):
            raise self.error("", text, "what was stored is no JSON, or nested too deeply") from None

    @property
    def stale(self) -> str:
        """Why a stored value is refused when it is read."""
        return (
            f"what was stored does not fit the annotation of {self.annotated}. Was it changed since? "
            "A changed function needs a new `version=`"
        )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


#: Parses JSON as its standard has it: without NaN and infinity.
decode = JSONDecoder(parse_constant=_refuse_constant).decode


def _write_str(value: str) -> str:
    text = encode_basestring(value)
    check_text(text)
    return text


def _write_float(value: float) -> str:
    if isfinite(value):
        return repr(value)
    return next(f'"{name}"' for name, number in _NON_FINITE.items() if repr(number) == repr(value))


def _write_finite(value: float) -> str:
    if not isfinite(value):
        raise ValueError
    return repr(value)


def _write_int_as_float(value: int) -> str:
    if (number := float(value)) != value:
        raise ValueError
    return repr(number)


_WRITERS: dict[type, Writer] = {
    str: _write_str,
    int: int.__repr__,
    float: _write_float,
    bool: {True: "true", False: "false"}.__getitem__,
    type(None): {None: "null"}.__getitem__,
}
SCALARS = frozenset(_WRITERS)
#: Writes what JSON itself knows. Each raises ValueError or OverflowError for a value that it does not.
JSON_WRITERS: dict[type, Writer] = _WRITERS | {float: _write_finite}


class Plain:
    """Carries the values of one place that are of one of `kinds`, which are among `SCALARS`."""

    def __init__(self, place: Place, kinds: frozenset[type]) -> None:
        self._place = place
        self._kinds = kinds
        self._writers = {kind: _WRITERS[kind] for kind in kinds}
        if float in kinds and str in kinds:  # "NaN" could be either
            self._writers[float] = _write_finite
        if float in kinds and int not in kinds:
            self._writers[int] = _write_int_as_float

    def dump(self, value: Any) -> str:
        """Return `value` as JSON text. An int given for a float becomes the equal float.

        Raises:
            SerializationError: It is of another class, or JSON cannot hold it.
        """
        try:
            return self._writers[type(value)](value)
        except (KeyError, ValueError, OverflowError):
            raise self._place.error("", value, reason(value) or self._wrong_type(value)) from None

    def canonical(self, value: Any, text: str) -> str:  # noqa: ARG002 - values of other kinds need it
        """Return `text`: a scalar has one form only."""
        return text

    def load(self, text: str) -> Any:
        """Return the value that JSON text stands for.

        Raises:
            SerializationError: It does not fit the annotation.
        """
        node = self._place.parse(text)
        kind = type(node)
        if kind in self._kinds:
            return node
        if float in self._kinds and kind is int:
            return float(node)
        if float in self._kinds and kind is str and node in _NON_FINITE:
            return _NON_FINITE[node]
        raise self._place.error("", node, self._place.stale)

    def _wrong_type(self, value: Any) -> str:
        what = self._place.annotated
        base = next((kind.__name__ for kind in self._kinds if isinstance(value, kind)), None)
        if base is not None and not isinstance(value, bool):
            return f"it would come back as a plain {base}. Convert it, or name its class for {what}"
        names = sorted("None" if kind is type(None) else kind.__name__ for kind in self._kinds)
        return f"{what} is annotated {' | '.join(names)}"


def check_text(text: str) -> None:
    """Raise UnicodeEncodeError for half of a surrogate pair, which no database takes."""
    if not text.isascii():
        text.encode()


def reason(value: object) -> str | None:
    """Return why JSON cannot hold a value of a type that it usually can, None when it can."""
    if isinstance(value, float) and not isfinite(value):
        return _NO_NAN
    try:
        if isinstance(value, str):
            value.encode()
        elif isinstance(value, bytes):
            value.decode()
        elif isinstance(value, int):
            int.__repr__(value)
    except UnicodeEncodeError:
        return _NO_TEXT
    except UnicodeDecodeError:
        return _NO_UTF8
    except ValueError:
        return "it has too many digits"
    return None
