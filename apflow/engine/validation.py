"""What makes an array of task dictionaries a forest: checked before anything is written, in linear time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

from apflow.cycles import cycles, drawn
from apflow.engine.specs import read_task
from apflow.errors import (
    DuplicateExecutorError,
    ExecutorNotFoundError,
    InvalidInputsError,
    TaskDefinitionError,
    TaskTreeError,
)
from apflow.storage.conditions import NODE, among, by_code_points, chunks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from apflow.engine.executors import Executor
    from apflow.engine.specs import TaskSpec
    from apflow.storage.store import Tx

MOST_SHOWN = 20
#: Ids of trees share so many locks, since a server has a limited number; and where these begin.
_MOST_LOCKS = 64
_TREE_LOCKS = int.from_bytes(b"trees", "big") << 8


@dataclass(slots=True)
class Problems:
    """What is wrong with an array: 20 problems in words, some of each kind; the others are counted.

    Attributes:
        ids: The tasks that it is about, each once, in the order in which they were found.
    """

    ids: dict[str, None] = field(default_factory=dict)
    _count: Counter[str] = field(default_factory=Counter)
    _texts: list[tuple[int, int, str]] = field(default_factory=list)

    def add(self, kind: str, text: str, *ids: str) -> None:
        """Note one problem with these tasks."""
        self.ids |= dict.fromkeys(ids)
        self._count[kind] += 1
        if self._count[kind] <= MOST_SHOWN:
            self._texts.append((self._count[kind], len(self._texts), text))

    def copy(self) -> Problems:
        """Return another list that begins with these."""
        return Problems(dict(self.ids), self._count.copy(), [*self._texts])

    def refuse(self) -> None:
        """Raise TaskTreeError when there are any."""
        count = self._count.total()
        if count == 0:
            return
        shown = sorted(sorted(self._texts)[:MOST_SHOWN], key=lambda found: found[1])  # the first of each kind first
        lines = [text for _, _, text in shown]
        if count > len(lines):
            lines.append(f"and {count - len(lines)} more")
        listed = "".join(f"\n- {line}" for line in lines)
        raise TaskTreeError(f"these tasks make no tree, and nothing was stored:{listed}", self.ids)


@dataclass(frozen=True, slots=True)
class Forest:
    """The tasks of an array and how they hang together.

    Attributes:
        specs: By id, in the order of the array.
        children: What is directly inside each.
        tops: Tasks whose parent is not in the array: roots, and those that go into a tree of the database.
        parents: Ids of parents that have to be in the database.
        outside: Ids of dependencies that have to be.
    """

    specs: dict[str, TaskSpec]
    children: dict[str, list[TaskSpec]]
    tops: list[TaskSpec]
    parents: list[str]
    outside: list[str]


class Standing(NamedTuple):
    """A node that is in the database."""

    task_tree_id: str
    user_id: str | None
    archived: bool


class Placement(NamedTuple):
    """What a task gets from where it is."""

    task_tree_id: str
    user_id: str | None


# -- the array alone -----------------------------------------------------------------------------------------


def read_forest(tasks: Iterable[object], problems: Problems) -> Forest:
    """Read an array, and note everything that is wrong with it without a look into the database."""
    specs = _read(tasks, problems)
    by_id: dict[str, TaskSpec] = {}
    for spec in specs:
        first = by_id.setdefault(spec.id, spec)
        if first is not spec:
            problems.add("ids", f"{spec.label}: tasks[{first.place}] and tasks[{spec.place}] have this id", spec.id)
    children: dict[str, list[TaskSpec]] = {}
    tops = []
    for spec in by_id.values():
        if spec.parent_id in by_id:
            children.setdefault(spec.parent_id or "", []).append(spec)
        else:
            tops.append(spec)
    parents = {spec.parent_id for spec in tops if spec.parent_id is not None}
    needed = {needed.id for spec in by_id.values() for needed in spec.dependencies if needed.id not in by_id}
    forest = Forest(by_id, children, tops, sorted(parents), sorted(needed - parents))
    _check_edges(forest, problems)
    _check_cycles(forest, problems)
    return forest


def _read(tasks: Iterable[object], problems: Problems) -> list[TaskSpec]:
    if isinstance(tasks, str | bytes | Mapping):
        raise TaskTreeError(f"tasks are a list of dictionaries, got a value of type {type(tasks).__name__}")
    specs = []
    for place, task in enumerate(tasks):
        found: list[str] = []
        spec = read_task(task, place, found.append)
        label = f"tasks[{place}]" if spec is None else spec.label
        for text in found:
            problems.add(
                "fields", f"{label} {text}" if text.startswith(("has ", "is ")) else f"{label}: {text}", *_named(spec)
            )
        if spec is not None:
            specs.append(spec)
    if not specs:
        problems.add("parents", "there is no root: the array has no tasks")
    return specs


def _named(spec: TaskSpec | None) -> tuple[str, ...]:
    return (spec.id,) if spec is not None and spec.given_id else ()


def _check_edges(forest: Forest, problems: Problems) -> None:
    for spec in forest.specs.values():
        seen: set[str] = set()
        for needed in spec.dependencies:
            if needed.id == spec.id:
                problems.add("dependencies", f"{spec.label} depends on itself", spec.id)
            elif needed.id in seen:
                problems.add("dependencies", f"{spec.label} depends on {needed.id!r} twice", *_named(spec), needed.id)
            seen.add(needed.id)
        check_references(spec, problems)


def check_references(spec: TaskSpec, problems: Problems) -> None:
    """Note what in the inputs of a task cannot be the result of a dependency."""
    needed = {dependency.id for dependency in spec.dependencies}
    for reference in spec.references:
        if reference.id not in needed:
            text = f"{spec.label}: inputs refer to {reference.id!r}, which is not among its dependencies"
            problems.add("inputs", text, *_named(spec), reference.id)
    if needed and "dependencies" in (spec.inputs or {}):
        text = 'inputs["dependencies"] is where the results of its dependencies go; use another name'
        problems.add("inputs", f"{spec.label}: {text}", *_named(spec))


def _check_cycles(forest: Forest, problems: Problems) -> None:
    inside = {spec.id: [spec.parent_id] for spec in forest.specs.values() if spec.parent_id is not None}
    for circle in islice(cycles(inside), MOST_SHOWN):
        problems.add("parents", f"these tasks are inside each other: {drawn(circle)}", *circle)
    if forest.specs and not forest.tops:
        problems.add("parents", "there is no root: the parent of every task is in the array")
    after = {
        spec.id: [needed.id for needed in spec.dependencies if needed.id != spec.id] for spec in forest.specs.values()
    }
    for circle in islice(cycles(after), MOST_SHOWN):
        problems.add("circles", f"these tasks depend on each other: {drawn(circle)}", *circle)


def check_executors(specs: Iterable[TaskSpec], problems: Problems) -> None:
    """Note the tasks without an executor, and those whose executor would refuse their inputs or params."""
    executors = Executors()
    for spec in specs:
        if spec.broken & {"name", "schemas"}:
            continue
        executor = executors.find(spec.executor_id)
        if isinstance(executor, str):
            problems.add("executors", f"{spec.label}: {executor}", *_named(spec))
        elif not spec.broken & {"inputs", "params", "dependencies"}:
            try:
                executor.check(spec.inputs or {}, spec.params or {}, spec.later)
            except (InvalidInputsError, ExecutorNotFoundError, TaskDefinitionError) as error:
                problems.add("inputs", f"{spec.label}: {error}", *_named(spec))


class Executors:
    """Finds each executor once."""

    def __init__(self) -> None:
        self._found: dict[str, Executor | str] = {}

    def find(self, executor_id: str) -> Executor | str:
        """Return the executor, or why there is none."""
        from apflow.engine.executors import find_executor

        if executor_id not in self._found:
            try:
                self._found[executor_id] = find_executor(executor_id)
            except (ExecutorNotFoundError, DuplicateExecutorError) as error:
                self._found[executor_id] = str(error)
        return self._found[executor_id]


# -- the array and the database ------------------------------------------------------------------------------


def place_forest(tx: Tx, forest: Forest, problems: Problems) -> dict[str, Placement]:
    """Find where in the database the tasks go, and keep others from deleting what they need until the end of `tx`.

    Args:
        tx: The transaction that will insert them.
        forest: The tasks.
        problems: What is wrong with that is added here.

    Returns:
        Tree and user of each task that is not on a circle of parents, by id, each after its parent.
    """
    _lock_trees(tx, forest)
    standing = nodes_in(tx, forest.parents, lock="NO KEY UPDATE") | nodes_in(tx, forest.outside, lock="SHARE")
    for spec in forest.specs.values():
        for needed in spec.dependencies:
            if needed.id not in forest.specs and needed.id not in standing:
                problems.add(
                    "dependencies",
                    f"{spec.label} depends on {needed.id!r}, which does not exist",
                    *_named(spec),
                    needed.id,
                )
    for spec in forest.tops:
        if spec.parent_id is None:
            continue
        if spec.parent_id not in standing:
            text = f"{spec.label} has the parent {spec.parent_id!r}, which does not exist"
            problems.add("parents", text, *_named(spec), spec.parent_id)
        elif standing[spec.parent_id].archived:
            text = f"{spec.label} has the parent {spec.parent_id!r}, which is archived and refuses changes"
            problems.add("parents", text, *_named(spec), spec.parent_id)
    taken = existing(tx, "id", [spec.id for spec in forest.specs.values() if spec.given_id])
    for task_id in taken:
        problems.add("ids", f"{task_id!r}: the database has a task with this id already", task_id)
    _check_trees(tx, forest, taken, problems)
    return _placements(forest, standing, problems)


def _lock_trees(tx: Tx, forest: Forest) -> None:
    """Let nobody else store a tree with one of these ids until the end of `tx`; SQLite has one writer anyway.

    A tree that is called after its root needs no more than the root's id, which is in the database once: such trees
    only keep out those that get the same name by their `task_tree_id`, and not each other.
    """
    if tx.dialect == "sqlite":
        return
    alone: dict[int, bool] = {}
    for spec in forest.tops:
        if spec.parent_id is None and (spec.given_id or spec.task_tree_id is not None):
            tree_id = spec.task_tree_id or spec.id
            lock = _TREE_LOCKS + crc32(tree_id.encode("utf-8", "replace")) % _MOST_LOCKS
            alone[lock] = alone.get(lock, False) or tree_id != spec.id
    for lock in sorted(alone):
        tx.row(f"SELECT pg_advisory_xact_lock{'' if alone[lock] else '_shared'}(:lock)", {"lock": lock})


def _check_trees(tx: Tx, forest: Forest, taken: list[str], problems: Problems) -> None:
    owners: dict[str, TaskSpec] = {}
    for spec in forest.tops:
        if spec.parent_id is None:
            tree_id = spec.task_tree_id or spec.id
            first = owners.setdefault(tree_id, spec)
            if first is not spec:
                text = f"the roots {first.label} and {spec.label} have one task_tree_id, {tree_id!r}"
                problems.add("trees", text, *_named(first), *_named(spec))
    known = {tree_id for tree_id, spec in owners.items() if spec.given_id or spec.task_tree_id is not None}
    for tree_id in existing(tx, "task_tree_id", sorted(known.difference(taken))):
        text = f"{owners[tree_id].label}: the database has a tree with the task_tree_id {tree_id!r} already"
        problems.add("trees", text, *(_named(owners[tree_id]) or (tree_id,)))


def _placements(forest: Forest, standing: dict[str, Standing], problems: Problems) -> dict[str, Placement]:
    placed: dict[str, Placement] = {}
    order = [*forest.tops]
    for spec in order:  # which grows while it is walked
        order += forest.children.get(spec.id, ())
        above = placed.get(spec.parent_id or "") or standing.get(spec.parent_id or "")
        if above is None:
            placed[spec.id] = Placement(spec.task_tree_id or spec.id, spec.user_id)
            continue
        if spec.task_tree_id not in (None, above.task_tree_id):
            text = f"has another task_tree_id than its root, which is in {above.task_tree_id!r}"
            problems.add("trees", f"{spec.label} {text}", *_named(spec))
        placed[spec.id] = Placement(above.task_tree_id, spec.user_id or above.user_id)
    return placed


def nodes_in(tx: Tx, ids: list[str], *, lock: str) -> dict[str, Standing]:
    """Return the nodes of the database with these ids, locked on PostgreSQL until the end of the transaction."""
    sql = (
        "SELECT id, COALESCE(task_tree_id, id), user_id, origin_type FROM apflow_tasks "
        f"WHERE {among(tx.dialect, 'id')} AND {NODE} ORDER BY id{by_code_points(tx.dialect)}"
    )
    if tx.dialect == "postgresql":
        sql += f" FOR {lock}"
    found = [row for chunk in chunks(tx.dialect, ids) for row in tx.rows(sql, {"chunk": chunk})]
    return {row[0]: Standing(row[1], row[2], row[3] == "archive") for row in found}


def existing(tx: Tx, column: str, values: list[str]) -> list[str]:
    """Return those of `values` that a task of the database has in `column`, sorted."""
    sql = f"SELECT DISTINCT {column} FROM apflow_tasks WHERE {among(tx.dialect, column)}"
    found = [row for chunk in chunks(tx.dialect, values) for row in tx.rows(sql, {"chunk": chunk})]
    return sorted(value for (value,) in found)
