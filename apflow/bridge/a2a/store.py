"""The tasks of callers over A2A, in our database: what was asked for stands there, what came of it on the run's row."""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from a2a.server.id_generator import IDGenerator
from a2a.server.tasks import TaskStore
from a2a.types.a2a_pb2 import ListTasksResponse, Role, Task, TaskState
from a2a.utils.constants import DEFAULT_LIST_TASKS_PAGE_SIZE
from a2a.utils.errors import InvalidParamsError
from typing_extensions import override

from apflow.bridge.a2a.ends import bring_up, orphaned
from apflow.bridge.a2a.parts import ENDED, PROGRESS, state_name, status
from apflow.storage.conditions import by_code_points, checked_id
from apflow.storage.owners import is_gone
from apflow.storage.statements import moment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from a2a.server.context import ServerCallContext
    from a2a.server.id_generator import IDGeneratorContext
    from a2a.types.a2a_pb2 import ListTasksRequest

    from apflow.bridge.door import Door
    from apflow.storage.store import Row, Tx

_ENDED = "('completed', 'failed', 'canceled', 'rejected')"
_WORKING = state_name(TaskState.TASK_STATE_WORKING)
_AT_REST = ENDED | {TaskState.TASK_STATE_INPUT_REQUIRED}
#: What never had a run, and whose holder is a process that nobody here can look at, is given up after that time.
_GIVEN_UP = timedelta(days=1)
#: How many tasks one look at a list brings up to date at most.
_BEHIND = 1000

_SAVE = f"""
INSERT INTO apflow_a2a_tasks (id, owner, context_id, state, updated_at, holder, body)
VALUES (:id, :owner, :context_id, :state, :updated_at, :holder, :body)
ON CONFLICT (id) DO UPDATE SET state = excluded.state, updated_at = excluded.updated_at, holder = excluded.holder,
  body = excluded.body
WHERE apflow_a2a_tasks.owner = excluded.owner AND apflow_a2a_tasks.state NOT IN {_ENDED}"""


@dataclass(slots=True)
class _Live:
    """A task whose call is being made here, as far as it is by now."""

    owner: str
    task: Task
    state: str


class NewIds(IDGenerator):
    """Makes the ids of new tasks, of which `tasks` then knows that nobody has stored them."""

    def __init__(self, tasks: A2aTasks) -> None:
        self._tasks = tasks

    @override
    def generate(self, context: IDGeneratorContext) -> str:
        return self._tasks.new_id()


class A2aTasks(TaskStore):
    """Keeps tasks, each for the caller who sent it: to everybody else it does not exist.

    What is stored of a task follows its state; progress and the items of a generator are kept here until the next
    one. A task that no call here answers for is brought up to date from its run when somebody asks.

    Args:
        door: Where the runs are.
    """

    def __init__(self, door: Door) -> None:
        self._door = door
        self._store = door.runtime.store
        self._live: dict[str, _Live] = {}
        self._awaited: dict[str, asyncio.Future[bool]] = {}
        self._beginning: set[str] = set()
        self._new: set[str] = set()

    def new_id(self) -> str:
        """Return the id of a task that is about to be saved. Until then it is not looked for in the database."""
        made = str(uuid.uuid4())
        self._new.add(made)
        return made

    @override
    async def save(self, task: Task, context: ServerCallContext) -> None:
        for index in reversed(range(len(task.history))):
            if _is_progress(task.history[index]):
                del task.history[index]
        owner, state = context.user.user_name, state_name(task.status.state)
        known = self._live.get(task.id)
        if known is None or known.state != state:
            awaited = self._awaited.pop(task.id, None)
            stored = task
            if known is None and task.id in self._beginning:
                stored, state = _begun(task), _WORKING
            try:
                await self.store(stored, owner)
            except BaseException:
                _tell(awaited, kept=False)
                raise
            finally:
                self._new.discard(task.id)
                self._beginning.discard(task.id)
            _tell(awaited, kept=True)
        self._live[task.id] = _Live(owner, task, state)
        if task.status.state in _AT_REST:
            self.drop(task.id)

    def expect(self, task_id: str, *, begins: bool) -> asyncio.Future[bool]:
        """Return what becomes true when a task is saved next, or false when that fails.

        Args:
            task_id: The task.
            begins: A new one is stored as working right away, since it begins as soon as that is done.
        """
        if begins:
            self._beginning.add(task_id)
        awaited = self._awaited[task_id] = asyncio.get_running_loop().create_future()
        return awaited

    async def store(self, task: Task, owner: str) -> None:
        """Store a task as it is now. One that has ended stays as it ended."""
        if not task.status.HasField("timestamp"):
            task.status.timestamp.FromDatetime(datetime.now(UTC))
        params = {
            "id": task.id,
            "owner": owner,
            "context_id": task.context_id,
            "state": state_name(task.status.state),
            "updated_at": self._store.timestamp(_updated(task)),
            "holder": self._door.runtime.keeper.owner,
            "body": task.SerializeToString(),
        }
        await self._door.runtime.ready()
        await self._store.write(lambda tx: tx.execute(_SAVE, params), single=True)

    def drop(self, task_id: str) -> None:
        """Note that no call here answers for a task any more."""
        self._live.pop(task_id, None)
        self._awaited.pop(task_id, None)
        self._beginning.discard(task_id)
        self._new.discard(task_id)

    @override
    async def get(self, task_id: str, context: ServerCallContext) -> Task | None:
        owner = context.user.user_name
        live = self._live.get(task_id)
        if live is not None:
            return _copy(live.task) if live.owner == owner else None
        if task_id in self._new or "\0" in task_id:
            return None
        sql = "SELECT id, holder, updated_at, body FROM apflow_a2a_tasks WHERE id = :id AND owner = :owner"
        params = {"id": task_id, "owner": owner}
        await self._door.runtime.ready()
        row = await self._store.read(lambda tx: tx.row(sql, params))
        return None if row is None else await self._brought_up(row, owner)

    async def _brought_up(self, row: Row, owner: str) -> Task:
        """Return a task as it is now, from its row and that of its run."""
        task_id, holder, updated_at, body = row
        live = self._live.get(task_id)
        if live is not None:
            return _copy(live.task)
        task: Task = Task.FromString(bytes(body))
        if task.status.state in _AT_REST:
            return task
        run = await self._door.runtime.runs.get(task_id)
        if run is not None:
            ended = bring_up(self._door, task, run)
        elif ended := is_gone(holder) or self._old(updated_at):
            orphaned(task)
        if ended:
            await self.store(task, owner)
        return task

    def _old(self, updated_at: Any) -> bool:
        since = moment(updated_at)
        return since is not None and self._store.clock.now() - since > _GIVEN_UP

    # -- lists -----------------------------------------------------------------------------------------------

    @override
    async def list(self, params: ListTasksRequest, context: ServerCallContext) -> ListTasksResponse:
        owner = context.user.user_name
        await self._catch_up(owner)
        conditions, values = self._filtered(params, owner)
        where = " AND ".join(conditions)
        size = params.page_size or DEFAULT_LIST_TASKS_PAGE_SIZE
        text = by_code_points(self._store.dialect)
        after = ""
        if params.page_token:
            updated, values["after_id"] = _read_token(params.page_token)
            values["after"] = self._store.timestamp(updated)
            after = f" AND (updated_at < :after OR (updated_at = :after AND id{text} < :after_id))"
        values["size"] = size + 1
        page = (
            f"SELECT id, holder, updated_at, body FROM apflow_a2a_tasks WHERE {where}{after} "
            f"ORDER BY updated_at DESC, id{text} DESC LIMIT :size"
        )

        def read(tx: Tx) -> tuple[int, Sequence[Row]]:
            count = tx.row(f"SELECT COUNT(*) FROM apflow_a2a_tasks WHERE {where}", values)
            return (0 if count is None else int(count[0])), tx.rows(page, values)

        total, rows = await self._store.read(read)
        more = len(rows) > size
        tasks = [await self._brought_up(row, owner) for row in rows[:size]]
        token = _token(rows[size - 1]) if more else ""
        return ListTasksResponse(tasks=tasks, next_page_token=token, page_size=size, total_size=total)

    def _filtered(self, params: ListTasksRequest, owner: str) -> tuple[Sequence[str], dict[str, Any]]:
        conditions, values = ["owner = :owner"], {"owner": owner}
        if params.context_id:
            conditions.append("context_id = :context_id")
            values["context_id"] = params.context_id
        if params.status:
            conditions.append("state = :state")
            values["state"] = state_name(params.status)
        if params.HasField("status_timestamp_after"):
            conditions.append("updated_at >= :since")
            values["since"] = self._store.timestamp(params.status_timestamp_after.ToDatetime(tzinfo=UTC))
        return conditions, values

    async def _catch_up(self, owner: str) -> None:
        """Bring the tasks up to date whose runs ended while nobody here answered for them."""
        sql = (
            "SELECT a.id, a.holder, a.updated_at, a.body FROM apflow_a2a_tasks a JOIN apflow_tasks r ON r.id = a.id "
            f"WHERE a.owner = :owner AND a.state IN ('submitted', 'working') "
            f"AND r.status IN ('completed', 'failed', 'cancelled') LIMIT {_BEHIND}"
        )
        await self._door.runtime.ready()
        for row in await self._store.read(lambda tx: tx.rows(sql, {"owner": owner})):
            await self._brought_up(row, owner)

    @override
    async def delete(self, task_id: str, context: ServerCallContext) -> None:
        self.drop(task_id)
        params = {"id": task_id, "owner": context.user.user_name}
        sql = "DELETE FROM apflow_a2a_tasks WHERE id = :id AND owner = :owner"
        await self._door.runtime.ready()
        await self._store.write(lambda tx: tx.execute(sql, params), single=True)


def _tell(awaited: asyncio.Future[bool] | None, *, kept: bool) -> None:
    if awaited is not None and not awaited.done():
        awaited.set_result(kept)


def _is_progress(message: Any) -> bool:
    return bool(message.role == Role.ROLE_AGENT) and str(message.message_id).startswith(PROGRESS)


def _begun(task: Task) -> Task:
    made = _copy(task)
    made.status.CopyFrom(status(TaskState.TASK_STATE_WORKING))
    return made


def _copy(task: Task) -> Task:
    made = Task()
    made.CopyFrom(task)
    return made


def _updated(task: Task) -> datetime:
    found: datetime = task.status.timestamp.ToDatetime(tzinfo=UTC)
    return found


def _token(row: Row) -> str:
    updated = moment(row[2])
    assert updated is not None
    return base64.urlsafe_b64encode(json.dumps([updated.isoformat(), row[0]]).encode()).decode()


def _read_token(token: str) -> tuple[datetime, str]:
    """Return where a page begins.

    Raises:
        InvalidParamsError: It is no token of ours.
    """
    try:
        updated, task_id = json.loads(base64.urlsafe_b64decode(token.encode()))
        found = datetime.fromisoformat(updated).astimezone(UTC), checked_id("page token", task_id)
        task_id.encode()
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise InvalidParamsError(message="this page token is not one of ours") from None
    return found
