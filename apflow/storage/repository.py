"""Rows of `apflow_tasks` as objects: made, read, listed, updated and deleted alike on both databases."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from apflow.errors import TaskFrozenError, TaskTreeError
from apflow.storage.circles import given, refuse_circles, refuse_unknown
from apflow.storage.conditions import (
    NODE,
    among,
    checked_id,
    chunks,
    filtered,
    ordered,
)
from apflow.storage.deletion import Deletion
from apflow.storage.dependents import dependents_of
from apflow.storage.task_rows import checked_text, models, selected, stored

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Unpack

    from apflow.storage.conditions import TaskFilters
    from apflow.storage.store import Row, Store, Tx
    from apflow.storage.tables import TaskModel

#: More rows than any database has.
_ALL = 1 << 62
_NOT_FROZEN = "(origin_type IS NULL OR origin_type <> 'archive')"
#: What a new task has unless it is told otherwise. None is "not said", where the database would fill something in.
_NEW: dict[str, Any] = {
    "kind": "node",
    "epoch": 0,
    "status": "pending",
    "priority": 2,
    "progress": 0,
    "has_children": False,
    "attempt_count": 0,
    "max_attempts": None,
    "backoff_strategy": None,
    "backoff_base_seconds": None,
}


class TaskRepository:
    """The tasks of one database: every run is one, and so is every node of a task tree.

    Args:
        store: What `create_session(url)` returns.

    Attributes:
        store: The same.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    # -- one task --------------------------------------------------------------------------------------------

    async def get_task_by_id(self, task_id: str) -> TaskModel | None:
        """Return the task, or None when there is none with this id.

        Raises:
            ValueError: `task_id` is no text that a database takes.
            StorageError: The database failed.
        """
        found = await self._query("WHERE id = :id", {"id": checked_text(task_id, "task_id")})
        return found[0] if found else None

    async def create_task(self, **columns: Any) -> TaskModel:
        """Store one more task and return it. `TaskCreator` makes trees, and looks at executors and inputs too.

        Args:
            columns: Its values, `name` at least; see `update_task`. Without an `id` it gets a new one, without a
                `task_tree_id` the tree of the task that it is inside, or one of its own. It is a node that waits to be
                begun: of kind `node`, status `pending` and priority 2, unless these are given.

        Raises:
            TaskTreeError: There is a task with this id, or none that `parent_id` or `dependencies` names; or the task
                would be inside itself, or depend on itself. `ids` names them.
            ValueError: A column is unknown or cannot hold the value; the text names the column.
            StorageError: Nothing was stored.
        """
        now = self.store.clock.now()
        values = _NEW | {"id": str(uuid.uuid4()), "name": None, "created_at": now, "updated_at": now} | columns
        checked_id("id", values["id"])
        if values.get("task_tree_id") is None:
            values["task_tree_id"] = None if values.get("parent_id") else values["id"]
        params = {name: stored(self.store, name, value) for name, value in values.items()}
        sql = (
            f"INSERT INTO apflow_tasks ({', '.join(params)}) VALUES ({', '.join(f':{name}' for name in params)}) "
            "ON CONFLICT (id) DO NOTHING"
        )
        inserted = False

        def insert(tx: Tx) -> Row | None:
            nonlocal inserted
            refuse_unknown(tx, params["id"], params)
            if params["task_tree_id"] is None:
                tree = tx.row("SELECT COALESCE(task_tree_id, id) FROM apflow_tasks WHERE id = :parent_id", params)
                params["task_tree_id"] = None if tree is None else tree[0]
            if tx.execute(sql, params) != 1 and not inserted:
                return None
            refuse_circles(tx, params["id"], params)
            inserted = True  # If the answer of the commit is lost, the row is found to be there.
            return tx.row(f"SELECT {selected()} FROM apflow_tasks WHERE id = :id", params)

        row = await self.store.write(insert)
        if row is None:
            raise TaskTreeError(f"there is a task {params['id']} already", [params["id"]])
        return models([row])[0]

    async def update_task(self, task_id: str, **columns: Any) -> bool:
        """Set columns of a task, and `updated_at` unless it is among them.

        Nothing asks here who owns the run: what runs tasks has statements of its own.

        Args:
            task_id: The task.
            columns: New values: dicts and lists for JSON, aware datetimes, Decimals. Decimals are rounded to what the
                column holds. None removes a value.

        Returns:
            Whether there is such a task.

        Raises:
            TaskFrozenError: It is archived.
            TaskTreeError: `parent_id` or `dependencies` names a task that is not there, or would put it inside itself
                or have it depend on itself, however indirectly. `ids` names them.
            ValueError: A column is unknown or is `id`, or cannot hold the value; the text names the column.
            StorageError: Nothing was stored.
        """
        if "id" in columns:
            raise ValueError("id cannot be changed")
        values = {"updated_at": self.store.clock.now()} | columns
        params = {name: stored(self.store, name, value) for name, value in values.items()}
        changes = ", ".join(f"{name} = :{name}" for name in params)
        params["task_id"] = checked_text(task_id, "task_id")
        new = {name: params[name] for name in columns}
        sql = f"UPDATE apflow_tasks SET {changes} WHERE id = :task_id AND {_NOT_FROZEN}"
        counts: list[int] = []

        def update(tx: Tx) -> None:
            refuse_unknown(tx, task_id, new)
            count = tx.execute(sql, params)
            if count:
                refuse_circles(tx, task_id, new)
            counts.append(count)

        await self.store.write(update, single=not given(new))
        # If the answer of the commit was lost, it was done again: of the two, the first has archived it.
        if any(counts):
            return True
        found = "SELECT 1 FROM apflow_tasks WHERE id = :task_id AND origin_type = 'archive'"
        if await self.store.read(lambda tx: tx.row(found, {"task_id": task_id})) is not None:
            raise TaskFrozenError(f"task {task_id} is archived and stays as it is; copy it to change the copy")
        return False

    async def delete_task(self, task_id: str, *, cascade: bool = False) -> int:
        """Delete a task with the runs of its own function, and return how many rows of tasks and runs that were.

        What was used stays in the reports.

        Args:
            task_id: The task.
            cascade: Delete the tasks inside it too, and all those that depend on one of these or link to it, and so
                on; archived ones as well.

        Raises:
            RunNotFoundError: There is no such task.
            RunActiveError: Something that would go is running. Cancel it first.
            TaskInUseError: Without `cascade`: other tasks are inside it, depend on it or link to it.
            TaskFrozenError: Without `cascade`: it is archived.
            ValueError: `task_id` is no text that a database takes.
            StorageError: Nothing was deleted.
        """
        return await self.store.write(Deletion(self.store, checked_text(task_id, "task_id"), cascade=cascade))

    # -- lists -----------------------------------------------------------------------------------------------

    async def list_tasks(
        self,
        *,
        order_by: str = "-created_at",
        limit: int | None = None,
        offset: int = 0,
        **filters: Unpack[TaskFilters],
    ) -> list[TaskModel]:
        """Return the tasks that are all of what is given, the newest first.

        Args:
            order_by: `created_at`, `updated_at`, `priority` or `name`, then `id`; with `-` before it the other way
                round. Tasks without a value there come last.
            limit: How many at most, at least 1; None is all.
            offset: How many to skip, at least 0.
            filters: See `TaskFilters`.

        Raises:
            ValueError: A value is out of its range.
            StorageError: The database failed.
        """
        if (limit is not None and limit < 1) or offset < 0:
            raise ValueError(f"limit must be at least 1 and offset at least 0, got {limit} and {offset}")
        conditions, params = filtered(self.store, filters)
        order = ordered(self.store.dialect, order_by)
        params |= {"limit": _ALL if limit is None else limit, "offset": offset}
        return await self._query(f"{conditions} {order} LIMIT :limit OFFSET :offset", params)

    async def count_tasks(self, **filters: Unpack[TaskFilters]) -> int:
        """Return how many tasks are all of what is given; see `TaskFilters`.

        Raises:
            ValueError: A value is out of its range.
            StorageError: The database failed.
        """
        conditions, params = filtered(self.store, filters)
        row = await self.store.read(lambda tx: tx.row(f"SELECT COUNT(*) FROM apflow_tasks {conditions}", params))
        return 0 if row is None else int(row[0])

    async def count_by_status(self, **filters: Unpack[TaskFilters]) -> dict[str, int]:
        """Return how many tasks that are all of what is given have each status; those that none has are left out.

        Raises:
            ValueError: A value is out of its range.
            StorageError: The database failed.
        """
        conditions, params = filtered(self.store, filters)
        sql = f"SELECT status, COUNT(*) FROM apflow_tasks {conditions} GROUP BY status ORDER BY status"
        rows = await self.store.read(lambda tx: tx.rows(sql, params))
        return {status: int(count) for status, count in rows if status is not None}

    async def get_tasks_by_ids(self, ids: Iterable[str]) -> dict[str, TaskModel]:
        """Return the tasks with these ids, in the order of the ids; those that do not exist are left out.

        Raises:
            ValueError: An id is no text that a database takes.
            StorageError: The database failed.
        """
        wanted = list(dict.fromkeys(checked_text(one, "ids") for one in ids))
        found = {task.id: task for task in models(await self.store.read(lambda tx: self._rows_of(tx, wanted)))}
        return {one: found[one] for one in wanted if one in found}

    # -- relatives -------------------------------------------------------------------------------------------

    async def get_children(self, task_id: str) -> list[TaskModel]:
        """Return the tasks directly inside this one, in the order in which they were given to apflow.

        Runs that its function started are not among them: `list_tasks(parent_id=...)` has both.

        Raises:
            ValueError: `task_id` is no text that a database takes.
            StorageError: The database failed.
        """
        params = {"id": checked_text(task_id, "task_id")}
        return await self._query(f"WHERE parent_id = :id AND {NODE} {self._by_age}", params)

    async def get_tree(self, task_id: str) -> list[TaskModel]:
        """Return all tasks of the tree that this one is in, in the order in which they were given to apflow.

        Returns:
            The tasks; none when there is no task with this id.

        Raises:
            ValueError: `task_id` is no text that a database takes.
            StorageError: The database failed.
        """
        params = {"id": checked_text(task_id, "task_id")}
        tree = "(SELECT COALESCE(task_tree_id, id) FROM apflow_tasks WHERE id = :id)"
        return await self._query(f"WHERE (task_tree_id = {tree} OR id = {tree}) AND {NODE} {self._by_age}", params)

    async def get_dependents(self, task_id: str) -> list[TaskModel]:
        """Return the tasks whose `dependencies` name this one: those of its own tree first, then by age.

        Raises:
            ValueError: `task_id` is no text that a database takes.
            StorageError: The database failed.
        """
        wanted = checked_text(task_id, "task_id")

        def dependents(tx: Tx) -> tuple[list[str], list[Row]]:
            ids = dependents_of(tx, wanted)
            return ids, self._rows_of(tx, ids)

        ids, rows = await self.store.read(dependents)
        found = {task.id: task for task in models(rows)}
        return [found[one] for one in ids if one in found]

    @property
    def _by_age(self) -> str:
        return ordered(self.store.dialect, "created_at")

    def _rows_of(self, tx: Tx, ids: Iterable[str]) -> list[Row]:
        sql = f"SELECT {selected()} FROM apflow_tasks WHERE {among(tx.dialect, 'id')}"
        return [row for chunk in chunks(tx.dialect, ids) for row in tx.rows(sql, {"chunk": chunk})]

    async def _query(self, tail: str, params: dict[str, Any]) -> list[TaskModel]:
        sql = f"SELECT {selected()} FROM apflow_tasks {tail}"
        return models(await self.store.read(lambda tx: tx.rows(sql, params)))
