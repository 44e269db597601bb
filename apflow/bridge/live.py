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
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskDefinition] = {}
        self.registry = Registry()
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
                    "%s stands in %s and in %s; the first one is in the registry. Give one another name=",
                    name, known.origin, definition.origin,
                )  # fmt: skip
                return
            if known is not None:
                self.registry.unregister(name)
            self._tasks.pop(name, None)
            if definition.takes_self or self.registry.has(name):
                return
            self._tasks[name] = definition
            self.registry.register(name, TaskModule(definition, self._runtime, definition.options))

    @staticmethod
    def describable(module: TaskModule) -> bool:
        """Whether a task can be shown to callers: its annotations have a form in JSON. Said once when not."""
        if module.describable is None:
            try:
                module.check()
                module.describable = True
            except TaskDefinitionError as error:
                module.describable = False
                logger.warning("%s is not shown to callers: %s", module.executor.id, error)
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
