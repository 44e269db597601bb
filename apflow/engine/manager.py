"""`TaskManager`: executes stored task trees, durably, governed and in parallel."""

from __future__ import annotations

import json
import weakref
from typing import TYPE_CHECKING, Any, Self

from apflow.calls import prepare
from apflow.definition import TREE
from apflow.durability.nodes import forget_failures
from apflow.durability.replay import new_run_id, word
from apflow.engine.cancelling import cancel_dependents
from apflow.engine.executors import known_here
from apflow.engine.loading import load_scope, results_in
from apflow.engine.tree_run import DEFINITION
from apflow.errors import ExecutorNotFoundError, FencedError, RunNotFoundError, TaskFrozenError
from apflow.options import Options
from apflow.runtime import Runtime, runtime_over
from apflow.storage.conditions import NODE
from apflow.submission import submit_call

if TYPE_CHECKING:
    from types import TracebackType

    from apflow.engine.tree import TaskTreeNode
    from apflow.run import Run
    from apflow.storage.store import Store, Tx


#: Who uses the runtimes that managers made, each until it is left.
_users: weakref.WeakKeyDictionary[Runtime, set[TaskManager]] = weakref.WeakKeyDictionary()


class TaskManager:
    """Executes the task trees of one database.

    A tree that was given to it is accepted: when this process dies, any process that has a runtime on the same
    database and knows its executors carries it on. What has completed never runs again.

    It uses the runtime of this process that has the same store, or makes one, which all managers of that store share;
    that one is closed when the last of them is left (`async with`, `aclose()`), or when the program ends. The store
    stays open.

    Args:
        store: What `create_session(url)` returns, or `runtime.store`.
        concurrency: How many nodes of one tree run at once, at least 1; the runtime bounds all trees together.

    Raises:
        ValueError: `concurrency` is less than 1.
    """

    def __init__(self, store: Store, *, concurrency: int = 100) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {concurrency}")
        self.store = store
        self.concurrency = concurrency
        self._own: Runtime | None = None

    @property
    def runtime(self) -> Runtime:
        """Where the tasks run."""
        found = runtime_over(self.store)
        if found is None:
            found = Runtime(self.store)
            _users[found] = set()
        if found in _users:
            _users[found].add(self)
            self._own = found
        return found

    async def __aenter__(self) -> Self:
        await self.runtime.ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Leave the runtime if a manager made it and this is the last one to leave: what still runs is handed back."""
        own, self._own = self._own, None
        if own is not None:
            _users[own].discard(self)
            if not _users[own]:
                await own.aclose()

    # -- executing -------------------------------------------------------------------------------------------

    async def execute_task(self, task_id: str) -> dict[str, Any]:
        """Execute a task, what is inside it, and what those depend on, and wait for the end.

        What has completed stays as it is; what failed or was cancelled earlier is tried again. When another process
        executes the task already, this waits for it. Cancelling the wait does not cancel the task: `cancel_task` does.

        Returns:
            `task_id`, `status` (`completed`, `failed` or `cancelled`), `result` (None unless completed), `error`
            (None when completed) and `token_usage` (`input`, `output`, `total` in tokens, or None).

        Raises:
            RunNotFoundError: There is no such task.
            TaskFrozenError: It is archived.
            ExecutorNotFoundError: This process does not know an executor that its tree still needs; nothing runs.
            RunCancelledError: The execution itself was cancelled.
            RunInterruptedError: It was handed back before its end, because the runtime was left.
            StorageError: The database failed; the tree is carried on later.
        """
        runtime = self.runtime
        await runtime.ready()
        if not await self.store.read(lambda tx: _is_settled(tx, task_id)):
            joined = await self._execute(runtime, task_id)
            while joined:  # that execution may not have known of what was created since
                joined = await self._execute(runtime, task_id, after_another=True)
        return await self.store.read(lambda tx: _outcome(tx, task_id))

    async def distribute_task_tree(self, tree: TaskTreeNode) -> TaskTreeNode:
        """Execute a tree and return it as it is afterwards. See `execute_task`."""
        from apflow.engine.tree import tree_of
        from apflow.storage.repository import TaskRepository

        await self.execute_task(tree.task.id)
        repository = TaskRepository(self.store)
        models = await repository.get_tree(tree.task.id)
        root = next(model for model in models if model.id == tree.task.id)
        return tree_of(root, models)

    async def _execute(self, runtime: Runtime, task_id: str, *, after_another: bool = False) -> bool:
        """Execute what is left, and wait for the end.

        Args:
            runtime: Where.
            task_id: The task.
            after_another: What failed or was cancelled stays so: another execution has just tried it.

        Returns:
            Whether somebody executed it already, and this has only waited.
        """
        nodes = await self.store.read(lambda tx: load_scope(tx, task_id))
        ended = () if after_another else ("failed", "cancelled")
        left = [node for node in nodes if not node.ended or node.status in ended]
        if not left:
            return False
        executors = sorted({node.executor for node in left if node.executor})
        if missing := [one for one in executors if not known_here(one)]:
            raise ExecutorNotFoundError(
                f"this process does not know {', '.join(map(repr, missing))}, which executing task {task_id} needs; "
                "import the modules that have them first"
            )
        arguments = {"task_id": task_id, "concurrency": self.concurrency, "executors": executors}
        call = prepare(DEFINITION, Options(runtime=runtime), arguments, owned=True)
        state = call.state
        # What failed is executed again, also by another attempt of the run around this: that has no memo of it.
        state.id, state.memo_id = new_run_id(), None
        state.kind, state.accepted = "tree", True
        state.root_id = next((node.root_id for node in nodes if node.id == task_id), task_id)
        # Two executions of one task at the same time are one; afterwards the key is free again.
        state.run_key, state.fingerprint = word(TREE, task_id, size=32), None
        tried = [node.id for node in left if node.ended]
        state.at_start = lambda tx: forget_failures(tx, self.store, tried)
        del nodes, left  # the execution has a graph of its own, and may take long
        run = await submit_call(call)
        try:
            await run
        except FencedError:  # this process stood still for longer than its lease: another one carries it on
            await runtime.background.join(run.id, DEFINITION)
        return not state.stored

    async def recover(self) -> list[Run[Any]]:
        """Carry on what dead processes left, as every runtime does by itself from time to time."""
        return await self.runtime.recover()

    # -- cancelling ------------------------------------------------------------------------------------------

    async def cancel_task(self, task_id: str) -> dict[str, Any]:
        """Cancel a task, what is inside it, and what cannot run without those.

        What has ended stays as it is. What runs in this process has stopped when this returns; another process sees it
        with its next lease renewal.

        Returns:
            `task_id`, and its `status` now.

        Raises:
            RunNotFoundError: There is no such task.
            TaskFrozenError: It is archived.
        """
        runtime = self.runtime
        await runtime.ready()
        await self.store.read(lambda tx: _tree_of(tx, task_id))
        await runtime.runs.cancel(task_id)
        now = self.store.timestamp(self.store.clock.now())
        await self.store.write(lambda tx: cancel_dependents(tx, task_id, now))
        outcome = await self.store.read(lambda tx: _outcome(tx, task_id))
        return {"task_id": task_id, "status": outcome["status"]}


def _tree_of(tx: Tx, task_id: str) -> str:
    """Return the tree that a task is in."""
    row = tx.row(f"SELECT task_tree_id, origin_type FROM apflow_tasks WHERE id = :id AND {NODE}", {"id": task_id})
    if row is None:
        raise RunNotFoundError(task_id)
    if row[1] == "archive":
        raise TaskFrozenError(f"task {task_id} is archived; copy it with TaskCreator.from_copy and execute the copy")
    return row[0] or task_id


def _is_settled(tx: Tx, task_id: str) -> bool:
    """Whether the task and all of its tree have completed."""
    params = {"tree": _tree_of(tx, task_id), "id": task_id}
    inside = "(task_tree_id = :tree OR id = :id)"
    sql = f"SELECT 1 FROM apflow_tasks WHERE {inside} AND COALESCE(status, '') <> 'completed' AND {NODE} LIMIT 1"
    return tx.row(sql, params) is None


def _outcome(tx: Tx, task_id: str) -> dict[str, Any]:
    columns = "CAST(token_usage AS TEXT), error"
    row = tx.row(f"SELECT {columns} FROM apflow_tasks WHERE id = :id", {"id": task_id})
    found = results_in(tx, [task_id]).get(task_id)
    if row is None or found is None:
        raise RunNotFoundError(task_id)
    status, text = found
    return {
        "task_id": task_id,
        "status": status,
        "result": json.loads(text) if text is not None and status == "completed" else None,
        "error": row[1],
        "token_usage": None if row[0] is None else json.loads(row[0]),
    }
