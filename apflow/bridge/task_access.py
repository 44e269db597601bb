"""Who may do what with which task: what belongs to somebody else does not exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apcore.builtin_steps import BuiltinACLCheck

from apflow.bridge.ids import can_be_id
from apflow.bridge.refusals import refusal
from apflow.engine.executors import find_executor
from apflow.engine.loading import load_scope
from apflow.engine.settings import REFERENCE, SECRETS
from apflow.errors import DuplicateExecutorError, RunNotFoundError
from apflow.runs import BELOW
from apflow.storage.conditions import NODE, among, chunks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from apcore import Context

    from apflow.engine.executors import Executor
    from apflow.runtime import Runtime
    from apflow.storage.store import Store, Tx

#: What callers can name: tasks of trees, and runs that are inside no other one.
VISIBLE = f"({NODE} OR (kind = 'run' AND parent_id IS NULL))"
_APPROVAL = "requires_approval"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls a module.

    Attributes:
        user: Whose tasks they see; None is everybody's.
        context: apcore's; None is a call from Python.
    """

    user: str | None
    context: Context[Any] | None


def user_of(context: Context[Any] | None) -> str | None:
    """Return whose tasks a caller sees; None is everybody's, for a caller that nobody has asked who they are.

    Raises:
        RefusedError: The caller has an identity, and its id is none.
    """
    identity = None if context is None else context.identity
    if identity is None:
        return None
    if not can_be_id(identity.id):  # an empty one is nobody, and not everybody
        raise refusal("forbidden", "the caller has no id that can be stored")
    return str(identity.id)


# -- whose it is -----------------------------------------------------------------------------------------------


def owned_by(user: str | None) -> str:
    """Return the condition that a row is there for this user, the parameter `user`."""
    return VISIBLE if user is None else f"{VISIBLE} AND user_id = :user"


async def refuse_unknown(store: Store, ids: Iterable[str], user: str | None, *, nodes: bool = False) -> None:
    """Refuse ids that name nothing of the user's.

    Args:
        store: Where the tasks are.
        ids: What the caller has given.
        user: Whose they have to be; None is anybody's.
        nodes: Tasks of trees only.

    Raises:
        RunNotFoundError: The first of them that does not exist for the user.
    """
    wanted = list(dict.fromkeys(ids))
    where = f"{owned_by(user)}{f' AND {NODE}' if nodes else ''}"
    params = {} if user is None else {"user": user}

    def read(tx: Tx) -> set[str]:
        sql = f"SELECT id FROM apflow_tasks WHERE {among(tx.dialect, 'id')} AND {where}"
        usable = [one for one in wanted if can_be_id(one)]
        return {row[0] for chunk in chunks(tx.dialect, usable) for row in tx.rows(sql, params | {"chunk": chunk})}

    found = await store.read(read)
    for one in wanted:
        if one not in found:
            raise RunNotFoundError(one)


async def is_node(store: Store, task_id: str, user: str | None) -> bool:
    """Whether the user's task with this id is one of a tree; else it is a run.

    Raises:
        RunNotFoundError: It does not exist for the user.
    """
    await refuse_unknown(store, [task_id], user)
    sql = f"SELECT 1 FROM apflow_tasks WHERE id = :id AND {NODE}"
    return await store.read(lambda tx: tx.row(sql, {"id": task_id})) is not None


async def refuse_foreign_below(store: Store, task_id: str, user: str | None) -> None:
    """Refuse to touch a task that has a task of somebody else inside it.

    Raises:
        RefusedError: It has.
    """
    if user is None:
        return
    sql = (
        f"{BELOW} SELECT 1 FROM apflow_tasks WHERE id IN (SELECT id FROM below) AND {NODE} "
        "AND COALESCE(user_id, '') <> :user LIMIT 1"
    )
    if await store.read(lambda tx: tx.row(sql, {"id": task_id, "user": user})) is not None:
        raise _foreign()


async def executors_to_run(store: Store, task_id: str, user: str | None) -> set[str]:
    """Return the executors of all that executing a task would run.

    Raises:
        RefusedError: Some of that belongs to somebody else.
        TaskFrozenError: The task is archived.
    """

    def read(tx: Tx) -> tuple[set[str], bool]:
        left = {node.id: node.executor for node in load_scope(tx, task_id) if node.status != "completed"}
        sql = f"SELECT 1 FROM apflow_tasks WHERE {among(tx.dialect, 'id')} AND COALESCE(user_id, '') <> :user LIMIT 1"
        foreign = user is not None and any(
            tx.row(sql, {"chunk": chunk, "user": user}) is not None for chunk in chunks(tx.dialect, left)
        )
        return {one for one in left.values() if one}, foreign

    found, foreign = await store.read(read)
    if foreign:
        raise _foreign()
    return found


def _foreign() -> Exception:
    return refusal("forbidden", "a task inside this one, or one that it needs, belongs to somebody else")


# -- what it may be --------------------------------------------------------------------------------------------


def find_all(ids: Iterable[str], runtime: Runtime) -> dict[str, Executor]:
    """Return these executors by id. Errors about them would name places in the source, so none gets out.

    Raises:
        RefusedError: One is not there, or stands for several.
    """
    found: dict[str, Executor] = {}
    for one in dict.fromkeys(ids):
        code, message = "not_found", f"no executor here has the name {one!r}"
        try:
            found[one] = find_executor(one, runtime)
            continue
        except DuplicateExecutorError:
            code, message = "conflict", f"the name {one!r} stands for several executors here"
        except Exception:  # noqa: BLE001, S110 - importing a module of the user's may raise anything
            pass
        raise refusal(code, message)
    return found


async def refuse_forbidden(context: Context[Any] | None, executors: Iterable[Executor], namespace: str) -> None:
    """Refuse executors that the caller could not call as modules: a task tree is no way round that.

    Args:
        context: apcore's; None is a call from Python, which may do anything.
        executors: What the caller wants to have run.
        namespace: What the ids of executor classes begin with.

    Raises:
        RefusedError: One may not be called, or each call of it has to be approved.
    """
    if context is None or context.executor is None:
        return
    gates = [step for step in context.executor.current_strategy.steps if isinstance(step, BuiltinACLCheck)]
    for executor in executors:
        module_id = executor.id if executor.runs is None else f"{namespace}.{executor.id}"
        approval = _APPROVAL in executor.definition.tags
        for gate in gates:
            if gate.acl is not None:
                decision = await gate.acl.async_check_access(context.caller_id, module_id, context)
                approval = approval or decision.approval_required
                if decision.access != "allow":
                    raise refusal("forbidden", f"you may not call {executor.id!r}")
        if approval:
            raise refusal("forbidden", f"each call of {executor.id!r} has to be approved; call it by itself")


def refuse_secrets(runtime: Runtime, *values: Any) -> None:
    """Refuse values that name a secret of the runtime that callers may not use.

    Raises:
        RefusedError: One does.
    """
    allowed = runtime.settings.get("remote", {}).get(SECRETS, ())
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if value.keys() == {REFERENCE} and value[REFERENCE] not in list(allowed):
                raise refusal("forbidden", f'inputs may not name this secret with {{"{REFERENCE}": ...}}')
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
