"""Trees of tasks from arrays of task dictionaries, and from trees that are there already."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any

from apflow.engine.tree import TaskTreeNode, tree_of, trees_of
from apflow.engine.validation import Problems, check_executors, place_forest, read_forest
from apflow.storage.conditions import among, chunks
from apflow.storage.statements import moment
from apflow.storage.task_rows import models_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from apflow.engine.specs import TaskSpec
    from apflow.engine.validation import Forest, Placement
    from apflow.storage.store import Dialect, Store, Tx
    from apflow.storage.tables import TaskModel

ROWS_AT_ONCE = 20  # more would be slower on SQLite, where each name of a parameter is looked up in a list
_CASTS = dict.fromkeys(("inputs", "params", "schemas", "dependencies", "result", "error_info"), "::json") | {
    "token_usage": "::jsonb"
}


class TaskCreator:
    """Makes trees of tasks in one database. What is wrong with a tree is said before anything is written.

    A task dictionary has `name` and may have `id`, `inputs`, `params`, `parent_id`, `dependencies`, `priority` (0
    urgent to 3 low), `token_budget`, `cost_policy`, `max_attempts`, `backoff_strategy`, `backoff_base_seconds`,
    `estimated_cost_usd`, `user_id`, `schemas` and `task_tree_id`. Its executor is `schemas["method"]` where given, else
    its name.

    Args:
        store: What `create_session(url)` returns.

    Attributes:
        store: The same.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    async def create_task_tree_from_array(self, tasks: Sequence[Mapping[str, Any]]) -> TaskTreeNode:
        """Do what `create_task_trees_from_array` does, and return the first tree.

        Raises:
            TaskTreeError: They make no trees; nothing was stored.
            StorageError: The database failed; nothing was stored.
        """
        return (await self.create_task_trees_from_array(tasks))[0]

    async def create_task_trees_from_array(self, tasks: Sequence[Mapping[str, Any]]) -> list[TaskTreeNode]:
        """Store all these tasks in one transaction.

        Args:
            tasks: Task dictionaries; they are not changed. A task whose `parent_id` names a task of the database goes
                into that tree; one without is the root of a tree.

        Returns:
            The trees in the order of their roots in the array; a task that went into an older tree counts as a root.

        Raises:
            TaskTreeError: They make no trees; the text tells what is wrong, `ids` which tasks it is about.
            StorageError: The database failed; nothing was stored.
        """
        problems = Problems()
        forest = read_forest(tasks, problems)
        check_executors(forest.specs.values(), problems)
        creation = _Creation(self.store, forest, problems)
        await self.store.write(creation.run)
        return trees_of(models_of(creation.rows))

    def build_task_tree_from_task_models(self, root: TaskModel, models: Iterable[TaskModel]) -> TaskTreeNode:
        """Return the tree below `root`, made of those of `models` that are inside it.

        Args:
            root: The top of the tree.
            models: In any order; the root may be among them.
        """
        return tree_of(root, models)

    def build_task_trees_from_task_models(self, models: Iterable[TaskModel]) -> list[TaskTreeNode]:
        """Return the trees that these tasks make, in the order of creation.

        Args:
            models: In any order. A task whose parent is not among them is the root of a tree.

        Raises:
            TaskTreeError: Some are inside each other.
        """
        return trees_of(models)

    async def from_copy(
        self,
        task_id: str,
        *,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        start: str | None = None,
    ) -> TaskTreeNode:
        """Copy a task and what is inside it as a new tree that has not run yet.

        Ids are new, in dependencies and in references of inputs too; dependencies on tasks outside keep pointing at
        them.

        Args:
            task_id: The task.
            overrides: By the id of a task that is copied: other `inputs`, `params`, `priority`, `token_budget`,
                `cost_policy`, `max_attempts` or `name`; None is that of a task that does not give it. Ids in inputs are
                those of the originals.
            start: The task to begin with: only it, what depends on it however indirectly, and what did not complete
                run again. Everything else is linked to the original. None runs all again.

        Raises:
            RunNotFoundError: There is no such task.
            TaskTreeError: `start` or an id of `overrides` is not in the tree or does not run again, an override does
                not fit, or an executor is not there; nothing was stored.
            StorageError: The database failed; nothing was stored.
        """
        from apflow.engine import origins

        return await origins.copied(self.store, task_id, overrides or {}, start)

    async def from_link(self, task_id: str) -> TaskTreeNode:
        """Make a new tree that refers to a completed task and what is inside it. Results are not stored twice.

        Raises:
            RunNotFoundError: There is no such task.
            TaskTreeError: Some of it has not completed; nothing was stored.
            StorageError: The database failed; nothing was stored.
        """
        from apflow.engine import origins

        return await origins.linked(self.store, task_id)

    async def from_archive(self, task_id: str) -> TaskTreeNode:
        """Make a frozen copy of a task that has ended and what is inside it, with results, errors, usage and times.

        Raises:
            RunNotFoundError: There is no such task.
            TaskTreeError: Some of it has not ended; nothing was stored.
            StorageError: The database failed; nothing was stored.
        """
        from apflow.engine import origins

        return await origins.archived(self.store, task_id)


class _Creation:
    """One forest on its way into the database. `run` may run again, after a commit whose answer was lost.

    Attributes:
        rows: What was stored.
    """

    def __init__(self, store: Store, forest: Forest, problems: Problems) -> None:
        self._forest = forest
        self._problems = problems
        self._now = store.clock.now()
        self._store = store
        self.rows: list[dict[str, Any]] = []

    def run(self, tx: Tx) -> None:
        """Store the forest, or raise TaskTreeError."""
        if self.rows and is_stored(tx, self.rows[0]):
            return
        problems = self._problems.copy()
        placed = place_forest(tx, self._forest, problems)
        problems.refuse()
        self.rows = [
            self._row(number, spec, placed[spec.id]) for number, spec in enumerate(self._forest.specs.values())
        ]
        for task_id in insert_nodes(tx, [_parameters(self._store, row) for row in self.rows]):
            problems.add("ids", f"{task_id!r}: the database has a task with this id already", task_id)
        problems.refuse()
        note(tx, "has_children", self._forest.parents)

    def _row(self, number: int, spec: TaskSpec, placement: Placement) -> dict[str, Any]:
        needs = [{"id": needed.id, "required": needed.required} for needed in spec.dependencies]
        created = self._now + timedelta(microseconds=number)
        return {
            "id": spec.id,
            "parent_id": spec.parent_id,
            "task_tree_id": placement.task_tree_id,
            "user_id": placement.user_id,
            "name": spec.name,
            "status": "pending",
            "priority": spec.priority,
            "dependencies": needs or None,
            "inputs": spec.inputs,
            "params": spec.params,
            "schemas": spec.schemas,
            "progress": Decimal("0.00"),
            "created_at": created,
            "updated_at": created,
            "has_children": spec.id in self._forest.children,
            "origin_type": "create",
            "attempt_count": 0,
            "max_attempts": spec.max_attempts,
            "backoff_strategy": spec.backoff_strategy,
            "backoff_base_seconds": spec.backoff_base_seconds,
            "token_budget": spec.token_budget,
            "cost_policy": spec.cost_policy,
            "estimated_cost_usd": spec.estimated_cost_usd,
            "kind": "node",
            "epoch": 0,
        }


def _parameters(store: Store, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of `TaskModel` as the driver takes them."""
    ready = dict(row)
    for column in ("inputs", "params", "schemas", "dependencies"):
        if row[column] is not None:
            ready[column] = json.dumps(row[column], ensure_ascii=False)
    for column in ("progress", "backoff_base_seconds", "estimated_cost_usd"):
        if row[column] is not None:
            ready[column] = str(row[column])
    ready["created_at"] = ready["updated_at"] = store.timestamp(row["created_at"])
    return ready


# -- rows of nodes -------------------------------------------------------------------------------------------


def insert_nodes(tx: Tx, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Insert rows, many at once.

    Args:
        tx: The transaction.
        rows: At least one, with values as the driver takes them: JSON as text. All have the same columns.

    Returns:
        The ids that the database has already, of the first rows where that happened. The transaction is of no use
        then.
    """
    columns = tuple(rows[0])
    for start in range(0, len(rows), ROWS_AT_ONCE):
        chunk = rows[start : start + ROWS_AT_ONCE]
        params = {f"{column}_{place}": row[column] for place, row in enumerate(chunk) for column in columns}
        stored = {task_id for (task_id,) in tx.rows(_insert(tx.dialect, columns, len(chunk)), params)}
        if len(stored) < len(chunk):
            return [row["id"] for row in chunk if row["id"] not in stored]
    return []


@cache
def _insert(dialect: Dialect, columns: tuple[str, ...], count: int) -> str:
    casts = _CASTS if dialect == "postgresql" else {}
    rows = (", ".join(f":{column}_{place}{casts.get(column, '')}" for column in columns) for place in range(count))
    values = ", ".join(f"({row})" for row in rows)
    return f"INSERT INTO apflow_tasks ({', '.join(columns)}) VALUES {values} ON CONFLICT DO NOTHING RETURNING id"


def note(tx: Tx, column: str, ids: Iterable[str]) -> None:
    """Set `has_children` or `has_references` of these tasks of the database."""
    sql = f"UPDATE apflow_tasks SET {column} = :yes WHERE {among(tx.dialect, 'id')} AND {column} IS NOT TRUE"
    for chunk in chunks(tx.dialect, ids):
        tx.execute(sql, {"yes": True, "chunk": chunk})


def is_stored(tx: Tx, row: Mapping[str, Any]) -> bool:
    """Whether this very row, and so all that was inserted with it, is in the database."""
    found = tx.row("SELECT created_at FROM apflow_tasks WHERE id = :id", {"id": row["id"]})
    return found is not None and moment(found[0]) == row["created_at"]
