"""New trees from trees that are there: copied to run again, linked to, or archived."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from apflow.engine.creator import insert_nodes, note
from apflow.engine.loading import needs_of
from apflow.engine.specs import TaskSpec, executor_id_of, read_task, renamed
from apflow.engine.tree import TaskTreeNode, tree_of
from apflow.engine.validation import Executors, Problems, check_executors, check_references
from apflow.errors import RunNotFoundError, TaskTreeError
from apflow.storage.conditions import NODE, checked_id

if TYPE_CHECKING:
    from apflow.storage.store import Store, Tx

OVERRIDABLE = ("inputs", "params", "priority", "token_budget", "cost_policy", "max_attempts", "name")
ENDED = frozenset({"completed", "failed", "cancelled"})
_NAMED = 10  # most ids that a text repeats

#: What every new row has of its original.
_KEPT = (
    *("user_id", "name", "priority", "inputs", "params", "schemas", "max_attempts", "backoff_strategy"),
    *("backoff_base_seconds", "token_budget", "cost_policy", "estimated_cost_usd"),
)
_TIMES = ("started_at", "completed_at")
#: What the row of something that has run has besides.
_OUTCOME = (
    *("result", "error", "error_info", "token_usage", "actual_cost_usd", "model", "task_version"),
    *_TIMES,
)
_FIRST = ("id", "parent_id", "dependencies", "origin_type", "original_task_id")
_ORIGINAL = (*_FIRST, "status", "progress", "attempt_count", "created_at", *_KEPT, *_OUTCOME)
_RESULT = """
CASE WHEN t.origin_type = 'link' THEN (SELECT o.result FROM apflow_tasks o WHERE o.id = t.original_task_id)
     ELSE t.result END"""

Row = dict[str, Any]
#: From the originals to the columns in which each new row differs from a copy that waits to run.
Make = Callable[["Originals"], Mapping[str, Row]]


@dataclass(frozen=True)
class Originals:
    """A task and all that is inside it, from which something new is made.

    Attributes:
        root: Its id.
        rows: By id, in the order of creation, as the driver returned them.
    """

    root: str
    rows: dict[str, Row]

    @cached_property
    def needs(self) -> dict[str, tuple[tuple[str, bool], ...]]:
        """What each depends on, and whether it has to complete."""
        return {task_id: needs_of(row["dependencies"]) for task_id, row in self.rows.items()}

    def dependents(self, start: str) -> set[str]:
        """Return `start` and all that depends on it, directly or not, required or not."""
        after: dict[str, list[str]] = {}
        for task_id, needs in self.needs.items():
            for needed, _ in needs:
                after.setdefault(needed, []).append(task_id)
        found = {start: None}
        order = [start]
        for task_id in order:  # which grows while it is walked
            new = [one for one in after.get(task_id, ()) if one not in found]
            found |= dict.fromkeys(new)
            order += new
        return set(found)

    def not_in(self, statuses: Iterable[str]) -> list[str]:
        """Return the ids of those with another status."""
        return [task_id for task_id, row in self.rows.items() if row["status"] not in statuses]


# -- the three ways ------------------------------------------------------------------------------------------


async def copied(
    store: Store, task_id: str, overrides: Mapping[str, Mapping[str, Any]], start: str | None
) -> TaskTreeNode:
    """Do what `TaskCreator.from_copy` says."""
    checked_id("task_id", task_id)
    originals = await store.read(lambda tx: originals_in(tx, task_id))
    problems = Problems()
    _check_executors(originals, _rerun(originals, overrides, start), overrides, problems)
    problems.refuse()
    return await _made(store, task_id, partial(_copies, overrides=overrides, start=start))


async def linked(store: Store, task_id: str) -> TaskTreeNode:
    """Do what `TaskCreator.from_link` says."""
    return await _made(store, task_id, _links)


async def archived(store: Store, task_id: str) -> TaskTreeNode:
    """Do what `TaskCreator.from_archive` says."""
    return await _made(store, task_id, _archives, results=True)


def _copies(originals: Originals, overrides: Mapping[str, Mapping[str, Any]], start: str | None) -> dict[str, Row]:
    again = _rerun(originals, overrides, start)
    made = {task_id: {} if task_id in again else _link(row) for task_id, row in originals.rows.items()}
    problems = Problems()
    for task_id, values in overrides.items():
        spec = _overridden(originals, task_id, values, problems)
        if spec is None:
            continue
        changed = {name: getattr(spec, name) for name in values}
        for name in changed.keys() & {"inputs", "params"}:
            changed[name] = None if changed[name] is None else json.dumps(changed[name], ensure_ascii=False)
        made[task_id] |= changed
    problems.refuse()
    return made


def _links(originals: Originals) -> dict[str, Row]:
    _refuse(originals.not_in({"completed"}), "has not completed, and only what has completed can be linked to")
    return {task_id: _link(row) for task_id, row in originals.rows.items()}


def _link(row: Row) -> Row:
    """Return what makes a new row refer to the result of this one; to the real one if this is a link itself."""
    real = row["original_task_id"] if row["origin_type"] == "link" else row["id"]
    times = {name: row[name] for name in _TIMES}
    return {"status": "completed", "progress": 1, "origin_type": "link", "original_task_id": real} | times


def _archives(originals: Originals) -> dict[str, Row]:
    _refuse(originals.not_in(ENDED), "has not ended, and only what has ended can be archived")
    kept = ("status", "progress", "attempt_count", "created_at", *_OUTCOME)
    return {
        task_id: {name: row[name] for name in kept} | {"origin_type": "archive"}
        for task_id, row in originals.rows.items()
    }


# -- what of a copy runs again -------------------------------------------------------------------------------


def _rerun(originals: Originals, overrides: Mapping[str, Any], start: str | None) -> set[str]:
    """Return the ids of those that run again.

    Raises:
        TaskTreeError: `start` is not among the originals, or one with overrides does not run again.
    """
    if start is not None and start not in originals.rows:
        raise TaskTreeError(f"start: there is no task {start!r} inside task {originals.root!r}", [start])
    again = set(originals.rows) if start is None else originals.dependents(start) | set(originals.not_in({"completed"}))
    _refuse([one for one in overrides if one not in originals.rows], f"of overrides is not inside {originals.root!r}")
    _refuse([one for one in overrides if one not in again], "of overrides has completed and does not run again")
    return again


def _overridden(originals: Originals, task_id: str, values: Mapping[str, Any], problems: Problems) -> TaskSpec | None:
    """Return what a task is with its overrides, and note what is wrong with them."""
    if not isinstance(values, Mapping) or not values.keys() <= set(OVERRIDABLE):
        text = f"{task_id!r}: overrides are a dictionary, with keys among {', '.join(OVERRIDABLE)}"
        problems.add("fields", text, task_id)
        return None
    row = originals.rows[task_id]
    task = {name: row[name] for name in ("id", *OVERRIDABLE)}
    task |= {name: _parsed(row[name]) for name in ("inputs", "params", "schemas")}
    task["dependencies"] = [{"id": needed, "required": required} for needed, required in originals.needs[task_id]]
    found: list[str] = []
    spec = read_task(task | dict(values), 0, found.append)
    for text in found:
        problems.add("fields", f"{task_id!r}: {text}", task_id)
    if spec is not None:
        check_references(spec, problems)
    return spec


def _check_executors(
    originals: Originals, again: set[str], overrides: Mapping[str, Mapping[str, Any]], problems: Problems
) -> None:
    """Note what cannot run: without an executor, or with overrides that do not fit it.

    Inputs that stay as they are fitted once. Secrets may have been taken out of them since, so only running them tells.
    """
    specs = (_overridden(originals, task_id, values, problems) for task_id, values in overrides.items())
    check_executors([spec for spec in specs if spec is not None], problems)
    executors = Executors()
    for task_id, row in originals.rows.items():
        if task_id not in again or task_id in overrides:
            continue
        executor = executors.find(executor_id_of(row["name"], _parsed(row["schemas"])))
        if isinstance(executor, str):
            problems.add("executors", f"{task_id!r}: {executor}", task_id)


# -- rows ----------------------------------------------------------------------------------------------------


def originals_in(tx: Tx, task_id: str, *, lock: bool = False, results: bool = False) -> Originals:
    """Read a task and all that is inside it.

    Args:
        tx: Where to read.
        task_id: The task.
        lock: Keep others from changing them until the end of the transaction.
        results: Read results too, those of links from what they refer to; otherwise they are None.

    Raises:
        RunNotFoundError: There is no such task.
    """
    special = {"result": _RESULT if results else "NULL"}
    columns = ", ".join(special.get(column, f"t.{column}") for column in _ORIGINAL)
    sql = f"""
WITH RECURSIVE sub (id) AS (
  SELECT id FROM apflow_tasks WHERE id = :id AND {NODE}
  UNION
  SELECT c.id FROM apflow_tasks c JOIN sub ON c.parent_id = sub.id WHERE {NODE}
)
SELECT {columns} FROM apflow_tasks t WHERE t.id IN (SELECT id FROM sub) ORDER BY t.created_at, t.id"""
    if lock and tx.dialect == "postgresql":
        sql += " FOR NO KEY UPDATE OF t"
    rows = {row[0]: dict(zip(_ORIGINAL, row, strict=True)) for row in tx.rows(sql, {"id": task_id})}
    if not rows:
        raise RunNotFoundError(task_id)
    return Originals(task_id, rows)


async def _made(store: Store, task_id: str, make: Make, *, results: bool = False) -> TaskTreeNode:
    """Store a new tree and return it."""
    from apflow.storage.repository import TaskRepository

    checked_id("task_id", task_id)
    root = str(uuid.uuid4())

    def write(tx: Tx) -> None:  # again, when the answer of a commit was lost
        if tx.row("SELECT 1 FROM apflow_tasks WHERE id = :id", {"id": root}) is None:
            originals = originals_in(tx, task_id, lock=True, results=results)
            rows = _new_rows(store, originals, root, make(originals))
            insert_nodes(tx, rows)
            note(tx, "has_references", sorted({row["original_task_id"] for row in rows}))

    await store.write(write)
    models = await TaskRepository(store).get_tree(root)
    return tree_of(next(model for model in models if model.id == root), models)


def _new_rows(store: Store, originals: Originals, root: str, made: Mapping[str, Row]) -> list[Row]:
    ids = {task_id: root if task_id == originals.root else str(uuid.uuid4()) for task_id in originals.rows}
    parents = {row["parent_id"] for row in originals.rows.values()}
    now: datetime = store.clock.now()
    rows = []
    for number, (task_id, original) in enumerate(originals.rows.items()):
        created = store.timestamp(now + timedelta(microseconds=number))
        row: Row = dict.fromkeys(_OUTCOME) | {name: original[name] for name in _KEPT}
        row |= {"status": "pending", "progress": 0, "attempt_count": 0, "created_at": created, "updated_at": created}
        row |= {"origin_type": "copy", "original_task_id": task_id, "kind": "node", "epoch": 0} | made[task_id]
        needs = [{"id": ids.get(one, one), "required": required} for one, required in originals.needs[task_id]]
        row |= {
            "id": ids[task_id],
            "parent_id": None if task_id == originals.root else ids[original["parent_id"]],
            "task_tree_id": root,
            "dependencies": json.dumps(needs, ensure_ascii=False) if needs else None,
            "has_children": task_id in parents,
        }
        if row["inputs"] is not None:
            row["inputs"] = json.dumps(renamed(_parsed(row["inputs"]), ids), ensure_ascii=False)
        rows.append(row)
    return rows


def _parsed(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _refuse(ids: list[str], what: str) -> None:
    """Raise TaskTreeError when there are any."""
    if ids:
        more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
        named = ", ".join(map(repr, ids[:_NAMED]))
        raise TaskTreeError(f"task {named}{more} {what}; nothing was stored", ids)
