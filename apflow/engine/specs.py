"""One task dictionary, read and checked by itself; and the references that its inputs may hold."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from apflow.errors import InvalidInputsError

if TYPE_CHECKING:
    from collections.abc import Iterator

FROM = "$from"
SOURCES = "source_task_ids"  # an input that names tasks, as the one that aggregates takes it
MAX_DEPTH = 100  # levels of lists and objects in one value: readers of JSON recurse
_REFERENCE_KEYS = frozenset({FROM, "path", "default"})
_STRATEGIES = ("fixed", "exponential", "linear")
_LARGEST_INTEGER = 2**31 - 1
_LONGEST_INDEX = 9  # digits
_ROUNDING = Context(prec=60, rounding=ROUND_HALF_UP)  # as the databases round
_KEYS_SHOWN = 5
_KEY_LENGTH = 50
_AS_READ = (
    *("inputs", "params", "schemas", "parent_id", "task_tree_id", "user_id", "token_budget", "cost_policy"),
    *("max_attempts", "backoff_strategy", "backoff_base_seconds", "estimated_cost_usd"),
)


@dataclass(frozen=True, slots=True)
class Dependency:
    """A task that another one waits for.

    Attributes:
        id: The task that is waited for.
        required: Whether it has to complete; otherwise it only has to end.
    """

    id: str
    required: bool = True


@dataclass(frozen=True, slots=True)
class Reference:
    """A place in inputs where the result of another task belongs.

    Attributes:
        id: The task.
        path: Dotted names and, in lists, indexes from 0; empty for the whole result.
        default: What stands there when the result has no such place.
        has_default: Whether there is a default.
    """

    id: str
    path: str = ""
    default: Any = None
    has_default: bool = False


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What one task dictionary says, checked and detached from it.

    Attributes:
        place: Its index in the array.
        given_id: Whether it has an id of its own; else `id` was made up.
        broken: Fields that were refused; here they have the value of a field that is not given.
        references: Places in `inputs` that results belong to.
        later: Top-level names of `inputs` whose values are not known before the task runs.

    The other attributes are the fields of the dictionary.
    """

    place: int
    id: str
    given_id: bool
    broken: frozenset[str]
    name: str
    inputs: dict[str, Any] | None
    params: dict[str, Any] | None
    schemas: dict[str, Any] | None
    parent_id: str | None
    task_tree_id: str | None
    user_id: str | None
    dependencies: tuple[Dependency, ...]
    priority: int
    token_budget: int | None
    cost_policy: str | None
    max_attempts: int | None
    backoff_strategy: str | None
    backoff_base_seconds: Decimal | None
    estimated_cost_usd: Decimal | None
    references: tuple[Reference, ...]
    later: frozenset[str]

    @property
    def executor_id(self) -> str:
        """The executor that does the work: `schemas["method"]` where that is given, else the name."""
        return executor_id_of(self.name, self.schemas)

    @property
    def label(self) -> str:
        """What error texts call the task: its id, or its place when the id was made up."""
        return repr(self.id) if self.given_id else f"tasks[{self.place}]"


def executor_id_of(name: str, schemas: Mapping[str, Any] | None) -> str:
    """Return the id of the executor of a task with this name and these `schemas`."""
    method = (schemas or {}).get("method")
    return method if isinstance(method, str) and method else name


def read_task(task: object, place: int, report: Callable[[str], None]) -> TaskSpec | None:
    """Read one task dictionary, and report everything that is wrong with it alone.

    Args:
        task: The dictionary; it is not changed, and nothing in the result belongs to it.
        place: Its index in the array.
        report: Called with each problem.

    Returns:
        None when it is no dictionary at all.
    """
    if not isinstance(task, Mapping):
        report(f"is of type {type(task).__name__}, and a task is a dictionary")
        return None
    values, broken = read_fields(task, FIELDS, report)
    if task.get("name") is None:
        report("has no name")
        broken.add("name")
    inputs = values.get("inputs")
    found: tuple[Reference, ...] = ()
    try:
        found = tuple(references(inputs or {}))
    except InvalidInputsError as error:
        report(str(error))
        broken.add("inputs")
    later = {name for name, value in (inputs or {}).items() if found and any(references({name: value}))}
    dependencies = values.get("dependencies") or ()
    return TaskSpec(
        place=place,
        id=values.get("id") or str(uuid.uuid4()),
        given_id="id" in values,
        broken=frozenset(broken),
        name=values.get("name") or "",
        dependencies=dependencies,
        priority=values.get("priority", 2),
        references=found,
        later=frozenset(later | {"dependencies"} if dependencies else later),
        **{field: values.get(field) for field in _AS_READ},
    )


def read_fields(
    given: Mapping[Any, Any], fields: Mapping[str, Callable[[Any], Any]], report: Callable[[str], None]
) -> tuple[dict[str, Any], set[str]]:
    """Return the values of fields that are there and not None, and the names of those that were refused."""
    values: dict[str, Any] = {}
    broken: set[str] = set()
    unknown = [key for key in given if key not in fields]
    if unknown:
        shown = ", ".join(repr(key)[:_KEY_LENGTH] for key in unknown[:_KEYS_SHOWN])
        more = f" and {len(unknown) - _KEYS_SHOWN} more" if len(unknown) > _KEYS_SHOWN else ""
        report(f"has unknown keys {shown}{more}; allowed are {', '.join(fields)}")
    for field, read in fields.items():
        value = given.get(field)
        if value is None:
            continue
        try:
            values[field] = read(value)
        except ValueError as error:
            report(f"{field} {error}")
            broken.add(field)
    return values, broken


# -- references ----------------------------------------------------------------------------------------------


def is_reference(value: object) -> bool:
    """Tell whether a value in inputs stands for the result of a task: `{"$from": id}`, with `path` or `default`."""
    return isinstance(value, dict) and FROM in value and value.keys() <= _REFERENCE_KEYS


def references(inputs: Mapping[str, Any]) -> Iterator[Reference]:
    """Yield all references in the values of `inputs`, however deep.

    Raises:
        InvalidInputsError: One has no text as id or path; or all of `inputs` is one.
    """
    if is_reference(inputs):
        raise InvalidInputsError(f'inputs cannot be a reference as a whole; write {{"some_input": {{"{FROM}": ...}}}}')
    waiting: list[Any] = [inputs]
    while waiting:
        value = waiting.pop()
        for item in value.values() if isinstance(value, Mapping) else value:
            if is_reference(item):
                yield _reference(item)
            elif isinstance(item, dict | list):
                waiting.append(item)


def fill(inputs: Mapping[str, Any], lookup: Callable[[Reference], Any]) -> dict[str, Any]:
    """Return a new object with the references in `inputs` replaced by results, which are not searched themselves.

    Args:
        inputs: What the task was created with.
        lookup: Returns the whole result of the task that a reference names; raises LookupError when it has none.

    Raises:
        InvalidInputsError: A result has no such place, and the reference no default; the text names id and path.
    """
    return _replaced(inputs, lambda item: _resolved(_reference(item), lookup))


def renamed(inputs: Mapping[str, Any], ids: Mapping[str, str]) -> dict[str, Any]:
    """Return a new object in which references, and `source_task_ids`, name the values of `ids` in place of the keys."""

    def swap(item: dict[str, Any]) -> dict[str, Any]:
        return item | {FROM: ids.get(item[FROM], item[FROM])} if isinstance(item[FROM], str) else item

    changed = _replaced(inputs, swap)
    if isinstance(sources := changed.get(SOURCES), list):
        changed[SOURCES] = [ids.get(one, one) if isinstance(one, str) else one for one in sources]
    return changed


def _replaced(inputs: Mapping[str, Any], swap: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    waiting: list[tuple[Any, Any]] = [(inputs, whole)]
    while waiting:
        source, target = waiting.pop()
        for key, item in source.items() if isinstance(source, Mapping) else enumerate(source):
            if is_reference(item):
                target[key] = swap(item)
            elif type(item) is dict or type(item) is list:  # a marked name of a secret stays what it is
                target[key] = {} if type(item) is dict else [None] * len(item)
                waiting.append((item, target[key]))
            else:
                target[key] = item
    return whole


def _reference(value: dict[str, Any]) -> Reference:
    task_id, path = value[FROM], value.get("path", "")
    if not isinstance(task_id, str) or not isinstance(path, str):
        raise InvalidInputsError(f'a reference in inputs has "{FROM}" and "path" as text')
    return Reference(task_id, path, value.get("default"), "default" in value)


def _resolved(reference: Reference, lookup: Callable[[Reference], Any]) -> Any:
    try:
        value = lookup(reference)
        for step in reference.path.split(".") if reference.path else ():
            value = _inside(value, step)
    except LookupError:
        if reference.has_default:
            return reference.default
        where = f"has nothing at {reference.path!r}" if reference.path else "is not there"
        raise InvalidInputsError(
            f"the result of task {reference.id!r} {where}, and the reference to it has no default"
        ) from None
    return value


def _inside(value: Any, step: str) -> Any:
    if isinstance(value, dict):
        return value[step]
    if isinstance(value, list) and step.isascii() and step.isdecimal() and len(step) <= _LONGEST_INDEX:
        return value[int(step)]
    raise LookupError


# -- fields --------------------------------------------------------------------------------------------------


def exact_json(value: Any) -> Any:
    """Return a copy of `value`, made through JSON.

    Raises:
        ValueError: JSON does not carry exactly this value, or it is nested too deeply.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
        copy = json.loads(text)
        if copy == value and _depth(copy) <= MAX_DEPTH:
            return copy
    except (TypeError, ValueError, RecursionError):
        pass
    raise ValueError(
        "must be what JSON carries: dicts with text as keys, lists, text, finite numbers, bool, None, "
        f"at most {MAX_DEPTH} levels deep"
    )


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a dictionary, got a value of type {type(value).__name__}")
    copy: dict[str, Any] = exact_json(dict(value))
    return copy


def _schemas(value: Any) -> dict[str, Any]:
    schemas = _object(value)
    if schemas.get("method") is not None:
        try:
            _text(schemas["method"], longest=255)
        except ValueError as error:
            raise ValueError(f'has a "method" that {error}') from None
    return schemas


def _text(value: Any, longest: int) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value or len(value) > longest:
        raise ValueError(f"must be text of 1 to {longest} characters, not blank and without NUL")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("must be text, and has half of a surrogate pair") from None
    return str(value)


def _whole(value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"must be a whole number from {least} to {most}")
    return int(value)


def _decimal(value: Any, least: str, most: str, places: int) -> Decimal:
    number = Decimal("NaN")
    if isinstance(value, int | float | str | Decimal) and not isinstance(value, bool):
        with contextlib.suppress(InvalidOperation, ValueError):
            number = Decimal(str(value))
    if not number.is_finite() or not Decimal(least) <= number <= Decimal(most):
        raise ValueError(f"must be a number from {least} to {most}")
    return number.quantize(Decimal(1).scaleb(-places), context=_ROUNDING)


def _strategy(value: Any) -> str:
    if value not in _STRATEGIES:
        raise ValueError(f"must be one of {', '.join(_STRATEGIES)}")
    return str(value)


def _dependencies(value: Any) -> tuple[Dependency, ...]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
        raise ValueError('must be a list of ids, or of {"id": id, "required": true or false}')
    return tuple(_dependency(item, place) for place, item in enumerate(value))


def _dependency(item: Any, place: int) -> Dependency:
    given = item if isinstance(item, Mapping) else {"id": item}
    required = given.get("required", True)
    if not given.keys() <= {"id", "required"} or not isinstance(required, bool):
        raise ValueError(f'has at {place} something else than an id or {{"id": id, "required": true or false}}')
    try:
        return Dependency(_text(given.get("id"), longest=255), required)
    except ValueError as error:
        raise ValueError(f"has at {place} an id that {error}") from None


_id = partial(_text, longest=255)

#: How each field of a task dictionary is read; each raises ValueError about a value that it refuses.
FIELDS: Final[dict[str, Callable[[Any], Any]]] = {
    "id": _id,
    "name": partial(_text, longest=100),
    "inputs": _object,
    "params": _object,
    "parent_id": _id,
    "dependencies": _dependencies,
    "priority": partial(_whole, least=0, most=3),
    "token_budget": partial(_whole, least=1, most=_LARGEST_INTEGER),
    "cost_policy": partial(_text, longest=100),
    "max_attempts": partial(_whole, least=1, most=100),
    "backoff_strategy": _strategy,
    "backoff_base_seconds": partial(_decimal, least="0.1", most="3600", places=2),
    "estimated_cost_usd": partial(_decimal, least="0", most="999999.999999", places=6),
    "user_id": _id,
    "schemas": _schemas,
    "task_tree_id": _id,
}
