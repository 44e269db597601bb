"""Lazy public names of a package: importing it costs nothing until one of them is used."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class Exporter(ModuleType):
    """A package whose public names are imported on first use.

    A public name may also be that of a module in the package: `apflow.task` is the decorator out of
    `apflow/task.py`. When such a module is loaded, Python would put it in the place of the name; here the
    name stays what it is, and the module is reached with `from apflow.task import ...`.
    """

    _homes: Mapping[str, str]

    def __getattr__(self, name: str) -> Any:
        home = self._homes.get(name)
        if home is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self)
        value = getattr(import_module(home), name)
        vars(self)[name] = value
        return value

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in self._homes):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*vars(self), *self._homes})


def export_lazily(package: str, homes: Mapping[str, tuple[str, ...]]) -> None:
    """Give a package that is being imported its public names.

    Args:
        package: Its `__name__`.
        homes: The names that each module has, by the module's name within the package.
    """
    module = sys.modules[package]
    vars(module)["_homes"] = {name: f"{package}.{home}" for home, names in homes.items() for name in names}
    module.__class__ = Exporter
