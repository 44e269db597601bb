"""Which classes are executors. A class that is only found by the scanner is imported when it is first needed."""

from __future__ import annotations

import inspect
from abc import update_abstractmethods
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, overload

from apflow.engine.executable import ExecutableTask
from apflow.errors import DuplicateExecutorError, TaskDefinitionError
from apflow.naming import check_name

if TYPE_CHECKING:
    from collections.abc import Callable

E = TypeVar("E", bound=type[ExecutableTask])


@dataclass(frozen=True, slots=True)
class Registered:
    """An executor class and where it stands.

    Attributes:
        id: What task trees call it.
        kind: The class.
        place: Module and qualified name.
    """

    id: str
    kind: type[ExecutableTask]
    place: str


_registered: dict[str, Registered] = {}


@overload
def executor_register(cls: E, /) -> E: ...
@overload
def executor_register(*, id: str | None = None) -> Callable[[E], E]: ...
def executor_register(cls: E | None = None, /, *, id: str | None = None) -> E | Callable[[E], E]:  # noqa: A002
    """Make a subclass of `ExecutableTask` known by its id: `@executor_register` or `@executor_register(id="...")`.

    Args:
        cls: The class.
        id: Its id; None is the class's own attribute `id`.

    Raises:
        TaskDefinitionError: It is no such class, or its id is no text, or no legal one.
        DuplicateExecutorError: A class somewhere else has this id.
    """

    def register(kind: E) -> E:
        if not (isinstance(kind, type) and issubclass(kind, ExecutableTask)):
            raise TaskDefinitionError("@executor_register takes a subclass of ExecutableTask")
        if id is not None:
            setattr(kind, "id", check_name(id))  # noqa: B010 - mypy takes a property of the base for a method
            update_abstractmethods(kind)
        executor_id = _id_of(kind)
        place = f"{kind.__module__}.{kind.__qualname__}"
        if missing := sorted(kind.__abstractmethods__):
            raise TaskDefinitionError(f"executor {executor_id!r} ({place}) lacks {', '.join(missing)}")
        if not inspect.iscoroutinefunction(kind.execute):
            raise TaskDefinitionError(f"executor {executor_id!r} ({place}): write `async def execute`")
        known = _registered.get(executor_id)
        if known is not None and known.place != place:
            raise DuplicateExecutorError(f"two executors have the id {executor_id!r}: {known.place} and {place}")
        _registered[executor_id] = Registered(executor_id, kind, place)
        return kind

    return register if cls is None else register(cls)


def registered(executor_id: str) -> Registered | None:
    """Return the executor class with this id that this process has imported, or None."""
    return _registered.get(executor_id)


def all_registered() -> dict[str, Registered]:
    """Return the executor classes that this process has imported, by id."""
    return dict(_registered)


def _id_of(kind: type[ExecutableTask]) -> str:
    value = inspect.getattr_static(kind, "id")
    if not isinstance(value, str):
        raise TaskDefinitionError(
            f'{kind.__qualname__}: write its id as a class attribute, id = "...", or as @executor_register(id="...")'
        )
    return check_name(value)
