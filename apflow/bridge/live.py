"""`runtime.registry`: a registry of apcore that has a task as soon as it is decorated."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from apcore import Registry

from apflow.bridge.module import TaskModule
from apflow.definition import watch
from apflow.errors import TaskDefinitionError

if TYPE_CHECKING:
    from apflow.options import TaskDefinition
    from apflow.runtime import Runtime

logger = logging.getLogger(__name__)


class LiveRegistry:
    """Keeps the registry of one runtime up to date.

    Args:
        runtime: Where the tasks run.

    Attributes:
        registry: What others read.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        # Who hears of a module may make a task.
        self._lock = threading.RLock()
        self._tasks: dict[str, TaskDefinition] = {}
        self.registry = Registry()
        with self._lock:
            for definition in watch(self):
                self.defined(definition)

    def defined(self, definition: TaskDefinition) -> None:
        """Put a task into the registry, in place of what stood there when it is the same one loaded again."""
        name = definition.name
        if name.startswith("_"):
            return
        with self._lock:
            known = self._tasks.get(name)
            if known is not None and known.origin != definition.origin:
                logger.warning(
                    "%s stands in two modules, %s and %s; the first one is in the registry. Give one another name=",
                    name, known.fn.__module__, definition.fn.__module__,
                )  # fmt: skip
                return
            # A version that `with_options` has made is for those who call it; but a class may tell of a method.
            if known is not None and known.fn is definition.fn and not self._changed(known, definition):
                return
            try:
                self._replace(known, definition)
            except Exception as error:  # noqa: BLE001 - whoever decorates a function must not see what is wrong here
                logger.warning("%s is not in the registry: %s", name, type(error).__qualname__)

    @staticmethod
    def _changed(known: TaskDefinition, definition: TaskDefinition) -> bool:
        return known.takes_self != definition.takes_self or known.version == definition.version

    def _replace(self, known: TaskDefinition | None, definition: TaskDefinition) -> None:
        name = definition.name
        if known is not None:
            del self._tasks[name]
            self.registry.unregister(name)
        if definition.takes_self or self.registry.has(name):
            return
        module = TaskModule(definition, self._runtime, definition.options)
        self._tasks[name] = definition
        self.registry.register(name, module)

    @staticmethod
    def describable(module: TaskModule) -> bool:
        """Whether a task can be shown to callers: its annotations have a form in JSON. Said once when not.

        One that cannot be shown yet may name a class that its module has not defined so far, so it is asked again.
        """
        if not module.describable:
            try:
                module.check()
            except Exception as error:  # noqa: BLE001 - a class may raise anything when it is asked for its schema
                if module.describable is None:
                    why = error if isinstance(error, TaskDefinitionError) else type(error).__qualname__
                    logger.warning("%s is not shown to callers: %s", module.executor.id, why)
                module.describable = False
            else:
                module.describable = True
        return module.describable


def registry_of(runtime: Runtime) -> Registry:
    """Return the registry of a runtime, made when it is first asked for."""
    kept: dict[str, Any] = vars(runtime)
    with _making:
        if "_live" not in kept:
            kept["_live"] = LiveRegistry(runtime)
        live: LiveRegistry = kept["_live"]
        return live.registry


_making = threading.Lock()
