"""Deleting a task: what goes with it, and who needs it and therefore keeps it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from apflow.errors import RunActiveError, RunNotFoundError, TaskFrozenError, TaskInUseError
from apflow.storage.conditions import NODE, among, by_code_points, chunks, ordered
from apflow.storage.dependents import all_dependents, dependents_of
from apflow.storage.owners import is_gone
from apflow.storage.statements import Statements, lease_params

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from apflow.storage.store import Store, Tx

#: What goes with a run. Usage events and decisions stay: they say what was spent, and why something was not.
OF_RUNS = (
    ("task_checkpoints", "task_id", ""),
    ("apflow_budget_accounts", "scope_id", " AND per = 'run'"),
    ("apflow_a2a_tasks", "id", ""),
    ("apflow_tasks", "id", ""),
)
#: Ids that a message names; the error has them all.
_NAMED = 10


class _Task(NamedTuple):
    """A task that goes, or that is in the way."""

    id: str
    parent_id: str | None
    original_task_id: str | None
    kind: str


class Deletion:
    """Deletes one task in a transaction, which may run twice: the second time it returns what the first one did.

    On PostgreSQL everything that goes is locked before it is judged, so nobody begins it meanwhile. So are the tasks
    above it and those that it was made from: of two that delete their last children, the second one sees the first.

    Args:
        store: Where the task is.
        task_id: The task.
        cascade: Delete what is inside it too, and whatever depends on one of these or links to it.
        whole: Without `cascade`: delete the tasks inside it too, unless one that stays needs one of these.
    """

    def __init__(self, store: Store, task_id: str, *, cascade: bool, whole: bool = False) -> None:
        self._store = store
        self._task_id = task_id
        self._cascade = cascade
        self._whole = whole
        self._deleted: int | None = None

    def __call__(self, tx: Tx) -> int:
        """Delete it and return how many tasks and runs went; notes about executions of the tree go uncounted.

        Raises:
            RunNotFoundError: There is no such task.
            TaskFrozenError: It is archived, or something inside it that would go.
            TaskInUseError: Others need it, or something inside it that would go.
            RunActiveError: Something that would go is running.
        """
        going, nodes_below = self._settled(tx)
        if not going:
            if self._deleted is None:
                raise RunNotFoundError(self._task_id)
            return self._deleted
        if not self._cascade:
            self._refuse_frozen(tx, going)
            self._refuse_needed(tx, going, nodes_below)
        self._refuse_active(tx, going)
        for table, column, more in OF_RUNS:
            _each(tx, f"DELETE FROM {table} WHERE {among(tx.dialect, column)}{more}", sorted(going))
        _tell_those_left(tx, going)
        self._deleted = sum(one.kind != "tree" for one in going.values())
        return self._deleted

    # -- what goes -------------------------------------------------------------------------------------------

    def _settled(self, tx: Tx) -> tuple[dict[str, _Task], list[str]]:
        """Return what goes, locked, and the nodes inside it that do not go."""
        found = self._search(tx)
        if tx.dialect == "sqlite":  # It has one writer.
            return found
        locked: set[str] = set()
        while missing := _touched(found[0]) - locked:
            order = f"ORDER BY id{by_code_points(tx.dialect)} FOR UPDATE"
            for chunk in chunks(tx.dialect, sorted(missing)):
                tx.rows(f"SELECT 1 FROM apflow_tasks WHERE {among(tx.dialect, 'id')} {order}", {"chunk": chunk})
            locked |= missing
            found = self._search(tx)
        return found

    def _search(self, tx: Tx) -> tuple[dict[str, _Task], list[str]]:
        going = {one.id: one for one in _found(tx, "id", [self._task_id])}
        kept: list[str] = []
        needs = all_dependents(tx) if self._cascade and going else {}
        newest = list(going)
        while newest:
            reached = list(_found(tx, "parent_id", newest))
            reached += _found(tx, "task_tree_id", newest, " AND kind = 'tree'")
            if self._cascade:
                reached += _found(tx, "original_task_id", newest, " AND origin_type = 'link'")
                reached += _found(tx, "id", [one for needed in newest for one in needs.get(needed, ())])
            elif not self._whole:
                kept += [one.id for one in reached if one.kind == "node"]
                reached = [one for one in reached if one.kind != "node"]
            added = {one.id: one for one in reached if one.id not in going}
            going |= added
            newest = list(added)
        return going, kept

    # -- what keeps it ---------------------------------------------------------------------------------------

    def _refuse_frozen(self, tx: Tx, going: Iterable[str]) -> None:
        sql = f"SELECT id FROM apflow_tasks WHERE {among(tx.dialect, 'id')} AND origin_type = 'archive' ORDER BY id"
        for chunk in chunks(tx.dialect, sorted(going)):
            if (row := tx.row(sql, {"chunk": chunk})) is not None:
                raise TaskFrozenError(
                    f"task {row[0]} is archived; TaskRepository(store).delete_task({self._task_id!r}, cascade=True) "
                    "deletes it"
                )

    def _refuse_needed(self, tx: Tx, going: dict[str, _Task], nodes_below: list[str]) -> None:
        nodes = [one.id for one in going.values() if one.kind == "node"]
        links = _found(tx, "original_task_id", nodes, " AND origin_type = 'link'")
        blockers = [*nodes_below, *_dependents(tx, nodes), *(one.id for one in links)]
        ids = [one for one in dict.fromkeys(blockers) if one not in going]
        if ids:
            more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
            raise TaskInUseError(
                f"task {self._task_id} is needed by {', '.join(ids[:_NAMED])}{more}, which are inside it, depend on it "
                "or link to it, or to what is inside it; delete these first, or all of them with "
                f"TaskRepository(store).delete_task({self._task_id!r}, cascade=True)",
                ids,
            )

    def _refuse_active(self, tx: Tx, going: Iterable[str]) -> None:
        free = Statements.of(self._store).free
        sql = (
            f"SELECT id, owner FROM apflow_tasks WHERE {among(tx.dialect, 'id')} "
            f"AND status = 'in_progress' AND epoch IS NOT NULL AND NOT ({free})"
        )
        for chunk in chunks(tx.dialect, sorted(going)):
            for run_id, owner in tx.rows(sql, lease_params(self._store, 0) | {"chunk": chunk}):
                if not is_gone(owner):
                    raise RunActiveError(run_id, "is running, so nothing was deleted; cancel it first")


# -- statements ----------------------------------------------------------------------------------------------


def _tell_those_left(tx: Tx, gone: dict[str, _Task]) -> None:
    """Take the marks off tasks that have no children, or are referred to by nobody, any more."""
    for mark, column, more in (
        ("has_children", "parent_id", f" AND {NODE}"),
        ("has_references", "original_task_id", ""),
    ):
        others = {getattr(one, column) for one in gone.values()} - gone.keys() - {None}
        left = f"SELECT 1 FROM apflow_tasks c WHERE c.{column} = apflow_tasks.id{more}"
        _each(
            tx,
            f"UPDATE apflow_tasks SET {mark} = false WHERE {among(tx.dialect, 'id')} AND {mark} = true "
            f"AND NOT EXISTS ({left})",
            sorted(others),
        )


def _found(tx: Tx, column: str, values: Iterable[str], more: str = "") -> Iterator[_Task]:
    sql = (
        "SELECT id, parent_id, original_task_id, COALESCE(kind, 'node') FROM apflow_tasks "
        f"WHERE {among(tx.dialect, column)}{more} {ordered(tx.dialect, 'created_at')}"
    )
    for chunk in chunks(tx.dialect, values):
        for row in tx.rows(sql, {"chunk": chunk}):
            yield _Task(*row)


def _dependents(tx: Tx, nodes: list[str]) -> list[str]:
    """Return the ids of the tasks that depend on one of these."""
    if len(nodes) == 1:
        return dependents_of(tx, nodes[0])
    found = all_dependents(tx) if nodes else {}
    return [one for node in nodes for one in found.get(node, ())]


def _touched(going: dict[str, _Task]) -> set[str]:
    others = (other for one in going.values() for other in (one.parent_id, one.original_task_id))
    return going.keys() | {other for other in others if other is not None}


def _each(tx: Tx, sql: str, values: list[str]) -> None:
    for chunk in chunks(tx.dialect, values):
        tx.execute(sql, {"chunk": chunk})
