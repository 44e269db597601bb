"""Modules that make, run, show, cancel and delete tasks, and one that tells what was used."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from apflow.bridge import task_schemas as schemas
from apflow.bridge.refusals import refusal
from apflow.bridge.task_access import (
    executors_to_run,
    find_all,
    is_node,
    refuse_forbidden,
    refuse_foreign_below,
    refuse_secrets,
    refuse_unknown,
)
from apflow.bridge.task_base import ManagementModule, closed_schema, hints, open_schema
from apflow.bridge.task_rows import ended, listed, shown
from apflow.engine.specs import executor_id_of
from apflow.errors import InvalidInputsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from apflow.bridge.task_access import Caller
    from apflow.engine.creator import TaskCreator
    from apflow.engine.manager import TaskManager
    from apflow.runtime import Runtime
    from apflow.storage.repository import TaskRepository


class TaskCreateModule(ManagementModule):
    """apcore Module: create a task, or several that hang together.

    Args:
        task_creator: What creates them.
        task_repository: The tasks that are there.
        manager: What executes them; None is one that is made when it is needed.
        runtime: Whose tasks and secrets count; None is that of the manager.
        namespace: What the ids of executors begin with, as an ACL names them.
    """

    word = "task.create"
    description = "Create a new task in the apflow task engine, or a tree of tasks. Nothing runs yet."
    input_schema = closed_schema(word, schemas.CREATE_INPUTS)
    output_schema = open_schema(schemas.CREATE_OUTPUTS)
    annotations = hints()

    def __init__(
        self,
        task_creator: TaskCreator,
        task_repository: TaskRepository,
        *,
        manager: TaskManager | None = None,
        runtime: Runtime | None = None,
        namespace: str = "apflow",
    ) -> None:
        super().__init__(task_repository.store, manager, runtime)
        self._creator = task_creator
        self._namespace = namespace

    async def _answer(self, given: dict[str, Any], caller: Caller) -> dict[str, Any]:
        if ("tasks" in given) == ("name" in given) or ("tasks" in given and len(given) > 1):
            raise InvalidInputsError(f"inputs of {self.word!r}: give either the name of one task, or tasks and no more")
        tasks = [_completed(task, caller.user) for task in given.get("tasks", [given])]
        refuse_secrets(self.runtime, tasks)
        inside = {task.get("id") for task in tasks}
        needed = [task["parent_id"] for task in tasks if "parent_id" in task]
        needed += [one["id"] for task in tasks for one in task.get("dependencies", ())]
        await refuse_unknown(self._store, [one for one in needed if one not in inside], caller.user, nodes=True)
        names = [executor_id_of(task["name"], task.get("schemas")) for task in tasks]
        await refuse_forbidden(caller.context, find_all(names, self.runtime).values(), self._namespace)
        trees = await self._creator.create_task_trees_from_array(tasks)
        made = [_created(node.task) for tree in trees for node in tree.walk()]
        first = {name: value for name, value in made[0].items() if name != "parent_id"}
        return first | {"tasks": made}


def _completed(task: Mapping[str, Any], user: str | None) -> dict[str, Any]:
    made = dict(task)
    if user is not None and made.setdefault("user_id", user) != user:
        raise refusal("forbidden", "you may not create tasks of another user")
    return made


def _created(task: Any) -> dict[str, Any]:
    created = task.created_at.isoformat()
    made = {"id": task.id, "name": task.name, "status": task.status, "created_at": created}
    return made | {"parent_id": task.parent_id}


class TaskExecuteModule(ManagementModule):
    """apcore Module: execute a task by ID and wait for its end. Who leaves meanwhile leaves it running.

    Args:
        task_manager: What executes it.
        runtime: Where it runs; None is that of the manager.
        namespace: What the ids of executors begin with, as an ACL names them.
    """

    word = "task.execute"
    description = (
        "Execute an existing task in the apflow task engine, with what is inside it and what it needs, and wait for "
        "its end. What failed before is tried again."
    )
    input_schema = closed_schema(word, schemas.one_task("ID of the task to execute"))
    output_schema = open_schema(schemas.EXECUTE_OUTPUTS)
    annotations = hints(open_world=True)

    def __init__(self, task_manager: TaskManager, *, runtime: Runtime | None = None, namespace: str = "apflow") -> None:
        super().__init__(task_manager.store, task_manager, runtime)
        self._namespace = namespace

    async def _answer(self, given: dict[str, Any], caller: Caller) -> dict[str, Any]:
        task_id = given["task_id"]
        if not await is_node(self._store, task_id, caller.user):
            raise refusal("conflict", "this task was begun when it was called; apflow.task.get tells how it stands")
        names = await executors_to_run(self._store, task_id, caller.user)
        await refuse_forbidden(caller.context, find_all(names, self.runtime).values(), self._namespace)
        await self._manager.execute_task(task_id)
        return await ended(self._store, task_id, caller.user)


class _RepositoryModule(ManagementModule):
    """A module about the tasks of a repository.

    Args:
        task_repository: The tasks.
        manager: What executes them; None is one that is made when it is needed.
        runtime: Where they run; None is that of the manager.
    """

    def __init__(
        self,
        task_repository: TaskRepository,
        *,
        manager: TaskManager | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        super().__init__(task_repository.store, manager, runtime)
        self._repository = task_repository


class TaskListModule(_RepositoryModule):
    """apcore Module: list tasks with optional filters: tasks of trees, and runs that were called from outside."""

    word = "task.list"
    description = "List tasks from the apflow task engine with optional filtering, the newest first."
    input_schema = closed_schema(word, schemas.LIST_INPUTS)
    output_schema = open_schema(schemas.LIST_OUTPUTS)
    annotations = hints(readonly=True, idempotent=True)

    async def _answer(self, given: dict[str, Any], caller: Caller) -> dict[str, Any]:
        return await listed(self._store, given, caller.user)


class TaskGetModule(_RepositoryModule):
    """apcore Module: get a specific task, or run, by ID."""

    word = "task.get"
    description = "Get detailed information about a specific task: how it stands, and its result or error."
    input_schema = closed_schema(word, schemas.one_task("ID of the task to retrieve"))
    output_schema = open_schema(schemas.GET_OUTPUTS)
    annotations = hints(readonly=True, idempotent=True)

    async def _answer(self, given: dict[str, Any], caller: Caller) -> dict[str, Any]:
        return await shown(self._store, given["task_id"], caller.user)


class TaskDeleteModule(_RepositoryModule):
    """apcore Module: delete a task, or run, by ID. What was used stays in the reports."""

    word = "task.delete"
    description = "Delete a task from the apflow task engine. What runs, and what other tasks need, is not deleted."
    input_schema = closed_schema(word, schemas.DELETE_INPUTS)
    output_schema = open_schema(schemas.DELETE_OUTPUTS)
    annotations = hints(destructive=True)

    async def _answer(self, given: dict[str, Any], caller: Caller) -> dict[str, Any]:
        task_id = given["task_id"]
        await refuse_unknown(self._store, [task_id], caller.user)
        if given.get("cascade"):
            await refuse_foreign_below(self._store, task_id, caller.user)
            await self.runtime.runs.delete(task_id)
        else:
            await self._repository.delete_task(task_id)
        return {"task_id": task_id, "deleted": True}


class TaskCancelModule(ManagementModule):
    """apcore Module: cancel a task or a run, with what is inside it and what cannot run without it.

    Args:
        task_manager: What executes it.
        runtime: Where it runs; None is that of the manager.
    """

    word = "task.cancel"
    description = "Cancel a task of the apflow task engine with all that is inside it. What has ended stays as it is."
    input_schema = closed_schema(word, schemas.one_task("ID of the task to cancel"))
    output_schema = open_schema(schemas.CANCEL_OUTPUTS)
    annotations = hints(destructive=True, idempotent=True)

    def __init__(self, task_manager: TaskManager, *, runtime: Runtime | None = None) -> None:
        super().__init__(task_manager.store, task_manager, runtime)

    async def _answer(self, given: dict[str, Any], caller: Caller) -> dict[str, Any]:
        task_id = given["task_id"]
        if await is_node(self._store, task_id, caller.user):
            await refuse_foreign_below(self._store, task_id, caller.user)
            await self._manager.cancel_task(task_id)
        else:
            await self.runtime.runs.cancel(task_id)
        found = await shown(self._store, task_id, caller.user)
        return {"task_id": task_id, "status": found["status"]}


class UsageReportModule(ManagementModule):
    """apcore Module: what was used, by user, task, model or day. A caller with an identity sees what was theirs.

    Args:
        task_manager: What executes the tasks.
        runtime: Where they run; None is that of the manager.
    """

    word = "usage.report"
    description = "Tell how many tokens and dollars were used, by user, task, model or day."
    input_schema = closed_schema(word, schemas.REPORT_INPUTS)
    output_schema = open_schema(schemas.REPORT_OUTPUTS)
    annotations = hints(readonly=True, idempotent=True)

    def __init__(self, task_manager: TaskManager, *, runtime: Runtime | None = None) -> None:
        super().__init__(task_manager.store, task_manager, runtime)

    async def _answer(self, given: dict[str, Any], caller: Caller) -> dict[str, Any]:
        since, until = (self._moment(given, name) for name in ("since", "until"))
        if since is not None and until is not None and until < since:
            raise InvalidInputsError(f"inputs of {self.word!r}: 'until' is before 'since'")
        table = await self.runtime.usage.by(given.get("by", "task"), since, until, user=caller.user)
        report: dict[str, Any] = json.loads(table.to_json())
        return report

    def _moment(self, given: Mapping[str, Any], name: str) -> datetime | None:
        if name not in given:
            return None
        try:
            found = datetime.fromisoformat(given[name])
            if found.utcoffset() is not None:
                return found.astimezone(UTC)
        except (ValueError, OverflowError):
            pass
        raise InvalidInputsError(
            f"inputs of {self.word!r}: {name!r} should be a time with a zone as text, such as 2026-01-31T18:30:00Z"
        )
