"""Other names of modules, under the paths that the first design of apflow had: `apflow.core.execution.task_creator`."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

_HOMES = {
    "execution.task_creator": "apflow.engine.creator",
    "execution.task_manager": "apflow.engine.manager",
    "extensions.scanner": "apflow.engine.scanner",
    "interfaces.executable_task": "apflow.engine.executable",
    "storage.sqlalchemy.task_repository": "apflow.storage.repository",
}

for _path, _home in _HOMES.items():
    _folders = _path.split(".")[:-1]
    for _depth in range(len(_folders)):
        _name = ".".join([__name__, *_folders[: _depth + 1]])
        sys.modules.setdefault(_name, ModuleType(_name, "A folder of the first design."))
    sys.modules[f"{__name__}.{_path}"] = import_module(_home)
