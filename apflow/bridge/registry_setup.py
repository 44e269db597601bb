"""The modules of apflow's own in a registry of apcore."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from apcore import Registry

from apflow.bridge.scanner_bridge import discover_executor_modules
from apflow.bridge.task_modules import (
    TaskCancelModule,
    TaskCreateModule,
    TaskDeleteModule,
    TaskExecuteModule,
    TaskGetModule,
    TaskListModule,
    UsageReportModule,
)
from apflow.engine.creator import TaskCreator
from apflow.engine.manager import TaskManager
from apflow.storage.repository import TaskRepository

if TYPE_CHECKING:
    from apflow.runtime import Runtime

logger = logging.getLogger(__name__)

NAMESPACE = "apflow"
_including = threading.Lock()


def create_apflow_registry(
    task_manager: TaskManager, task_creator: TaskCreator, task_repository: TaskRepository, namespace: str = NAMESPACE
) -> Registry:
    """Return a registry with the executors of apflow, and with what makes, runs, shows, cancels and deletes tasks.

    Who can call these modules can make, run and delete tasks. A caller with an identity only sees what is their own.

    Args:
        task_manager: What executes tasks; the modules run where it does.
        task_creator: What creates them.
        task_repository: The tasks that are there.
        namespace: What ids begin with: `apflow.rest_executor`, `apflow.task.create`, `apflow.usage.report`.

    Raises:
        apcore.InvalidInputError: The namespace cannot begin an id.
    """
    registry = Registry()
    for module_id, module in _modules(task_manager, task_creator, task_repository, namespace, None).items():
        registry.register(module_id, module)
    return registry


def include_engine(runtime: Runtime, namespace: str = NAMESPACE) -> Registry:
    """Put the same modules into the registry of a runtime, and return it. Those that are there already stay.

    Args:
        runtime: Where the tasks run.
        namespace: What ids begin with.
    """
    registry, store = runtime.registry, runtime.store
    with _including:
        modules = _modules(TaskManager(store), TaskCreator(store), TaskRepository(store), namespace, runtime)
        for module_id, module in modules.items():
            if not registry.has(module_id):
                registry.register(module_id, module)
            elif type(registry.get(module_id)) is not type(module):
                logger.warning("%s is a task of this process; apflow's own module of this name is left out", module_id)
    return registry


def _modules(
    manager: TaskManager, creator: TaskCreator, repository: TaskRepository, namespace: str, runtime: Runtime | None
) -> dict[str, Any]:
    tasks = [
        TaskCreateModule(creator, repository, manager=manager, runtime=runtime, namespace=namespace),
        TaskExecuteModule(manager, runtime=runtime, namespace=namespace),
        TaskListModule(repository, manager=manager, runtime=runtime),
        TaskGetModule(repository, manager=manager, runtime=runtime),
        TaskDeleteModule(repository, manager=manager, runtime=runtime),
        TaskCancelModule(manager, runtime=runtime),
        UsageReportModule(manager, runtime=runtime),
    ]
    executors = discover_executor_modules(runtime or (lambda: manager.runtime))
    found: dict[str, Any] = {f"{namespace}.{one.executor_id}": one for one in executors}
    return found | {f"{namespace}.{one.word}": one for one in tasks}
