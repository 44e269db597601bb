"""What a runtime shows to the outside: its registry of modules."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from apcore import Registry


class Exposed:
    """The part of a runtime that is made when somebody asks what can be called."""

    @property
    def registry(self) -> Registry:
        """The tasks of this process as modules of apcore, by their names; one that is decorated later is there too.

        Private tasks and methods are not. One whose annotations have no form in JSON is, but no door shows it.
        """
        live: Any = import_module("apflow.bridge.live")
        return cast("Registry", live.registry_of(self))

    def include_engine(self, namespace: str = "apflow") -> Registry:
        """Put the executors and the task modules of `create_apflow_registry` into `registry` too, and return it.

        Who can call them can make, run and delete tasks. Each caller only sees what is their own.

        Args:
            namespace: What their ids begin with: `apflow.task.create`, `apflow.rest_executor`.
        """
        setup: Any = import_module("apflow.bridge.registry_setup")
        return cast("Registry", setup.include_engine(self, namespace))
