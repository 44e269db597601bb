"""Making task definitions, and knowing all that this process has made."""

from __future__ import annotations

import inspect
import threading
import weakref
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from apflow import naming
from apflow.errors import DuplicateTaskError
from apflow.functions import check_function, colour_of, first_parameter, signature_of, stands_in_class
from apflow.option_values import change, check_options
from apflow.options import Options, TaskDefinition

if TYPE_CHECKING:
    from collections.abc import Mapping

_ABOUT = frozenset({"description", "tags", "version"})

#: Tasks of apflow's own, and where they stand: loaded when one is first asked for.
TREE = "_task_tree"
_OWN = {TREE: "apflow.engine.tree_run"}
#: By name, then by place. Two places with one name are an error only where both are used.
_known: dict[str, dict[tuple[str, str, str], TaskDefinition]] = {}
#: Tasks that stand for executor classes, by name and place: a run of one is carried on, and nobody calls it by itself.
_standing: dict[str, dict[tuple[str, str], TaskDefinition]] = {}
#: Registries that list tasks as soon as they are made.
_watchers: weakref.WeakSet[Watcher] = weakref.WeakSet()
_watching = threading.Lock()


class Watcher(Protocol):
    """Who wants to know of each task that is made, or made anew. Called on the thread that made it."""

    def defined(self, definition: TaskDefinition) -> None: ...


def define(fn: object, name: str | None, given: Mapping[str, Any]) -> TaskDefinition:
    """Return the registered definition of a function with these options of `@apflow.task`.

    Args:
        fn: The function.
        name: What its task is called, or None for the function's own name.
        given: The other options by name; None stands for one that was left out.

    Raises:
        TaskDefinitionError: The function, the name or an option cannot make a task.
    """
    function = check_function(fn)
    task = naming.default_name(function) if name is None else naming.check_name(name)
    signature = signature_of(function)
    values = check_options(task, {option: value for option, value in given.items() if value is not None})
    about = {option: values.pop(option) for option in _ABOUT.intersection(values)}
    about.setdefault("description", _summary(function.__doc__))
    definition = TaskDefinition(
        fn=function,
        name=task,
        named=name is not None,
        origin=naming.origin(function),
        location=naming.location(function),
        colour=colour_of(function, signature),
        signature=signature,
        takes_self=stands_in_class(function) and first_parameter(signature) == "self",
        options=Options(**values),
        **about,
    )
    return register(definition)


def vary(definition: TaskDefinition, options: Options, given: Mapping[str, Any]) -> tuple[TaskDefinition, Options]:
    """Return a definition and its options with these values of `with_options` in place.

    A new name makes a definition of its own, as if it stood in the decorator.

    Raises:
        TaskDefinitionError: A value is not what its option takes.
    """
    values = check_options(definition.name, {option: value for option, value in given.items() if option != "name"})
    about = {option: values.pop(option) for option in _ABOUT.intersection(values)}
    if "name" in given:
        about |= {"name": naming.check_name(given["name"]), "named": True}
    if about:
        definition = replace(definition, **about)
    changed = change(options, values)
    if "name" in about:  # who finds it by its name, to serve it or to carry a run on, has nothing else to go by
        own = replace(changed, key=None, user=None, runtime=None, overrides=frozenset())
        definition = replace(definition, options=own)
    # Another name or version is what a stored run is found by, in this process or in another one.
    found_by = {"name", "version"} & about.keys()
    return (register(definition) if found_by else definition), changed


def as_method(definition: TaskDefinition) -> TaskDefinition:
    """Return the definition of a function of which its class has told that it is a method."""
    return register(replace(definition, takes_self=True))


def register(definition: TaskDefinition) -> TaskDefinition:
    """Make a definition known to this process and return it.

    It takes the place of one with the same name that stood in the same place: a cell of a notebook that was
    run again, a module that was loaded again.
    """
    there = _known.setdefault(definition.name, {})
    key = (*place(definition), definition.version)
    there.pop(key, None)  # the newest stands last
    there[key] = definition
    with _watching:
        watchers = list(_watchers)
    for watcher in watchers:
        watcher.defined(definition)
    return definition


def watch(watcher: Watcher) -> list[TaskDefinition]:
    """Have `watcher` told of each task that is made from now on, as long as it exists; return those made before."""
    with _watching:
        _watchers.add(watcher)
    return [definition for there in list(_known.values()) for definition in list(there.values())]


def known(name: str) -> list[TaskDefinition]:
    """Return what this process knows by this name: one definition for each place and version, the oldest first."""
    if name in _OWN and name not in _known:
        import_module(_OWN[name])
    return list(_known.get(name, {}).values())


def stand_for(definition: TaskDefinition) -> TaskDefinition:
    """Make known that this process can carry on runs of an executor class, by this definition, and return it."""
    _standing.setdefault(definition.name, {})[place(definition)] = definition
    return definition


def standing_for(name: str) -> list[TaskDefinition]:
    """Return the definitions that stand for executor classes of this id."""
    return list(_standing.get(name, {}).values())


def place(definition: TaskDefinition) -> tuple[str, str]:
    """Return where a definition stands: its origin, and the qualified name of its function."""
    return definition.origin, definition.fn.__qualname__


def check_unique(first: TaskDefinition, second: TaskDefinition) -> None:
    """Refuse two definitions of one name, unless the second is the first one loaded again.

    Raises:
        DuplicateTaskError: They stand in two places; the text names both.
    """
    again = place(first) == place(second) or (
        first.location == second.location and first.fn.__qualname__ == second.fn.__qualname__
    )
    if first.name == second.name and not again:
        raise DuplicateTaskError(
            f"two tasks of one runtime have the same name: {describe(first)} and {describe(second)}. "
            "Give one of them another name with @apflow.task(name=...)"
        )


def describe(definition: TaskDefinition) -> str:
    """Return a task's name and where it stands, for messages."""
    return f"{definition.name!r} ({definition.fn.__qualname__} in {definition.origin}, {definition.location})"


def _summary(docstring: str | None) -> str:
    """Return the first paragraph of a docstring, as one line."""
    paragraph = inspect.cleandoc(docstring or "").partition("\n\n")[0]
    return " ".join(paragraph.split())
