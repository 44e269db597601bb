"""Explicit checkpoints: the state that a task saves to find again after a crash or before another attempt."""

from __future__ import annotations

import json
import logging
import math
import reprlib
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from apflow.errors import RunNotFoundError

if TYPE_CHECKING:
    from apflow.storage.store import Store, Tx

#: Begins the step names of the checkpoints that `RetryManager` makes.
RETRY_STEP_PREFIX = "retry_checkpoint_"
USERS_OWN = f" AND coalesce(substr(step_name, 1, {len(RETRY_STEP_PREFIX)}), '') <> '{RETRY_STEP_PREFIX}'"
LONGEST_STEP_NAME = 255
DEEPEST_NESTING = 200
#: Just below the 4,300 digits above which Python refuses to read a number.
LARGEST_INT_BITS = 14_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One checkpoint, ready to be stored. Its id is made here, so storing it twice stores it once.

    Attributes:
        id: A UUID.
        task_id: The task, a row of `apflow_tasks`.
        text: The state as JSON.
        step_name: The user's label, if any.
    """

    id: str
    task_id: str
    text: str
    step_name: str | None

    @classmethod
    def of(cls, task_id: str, data: dict[str, Any], step_name: str | None = None) -> Checkpoint:
        """Check and encode the state as it is now; later changes of `data` do not matter.

        Raises:
            TypeError: `data` is not a dict.
            ValueError: `task_id` is empty, `step_name` is longer than 255 characters or has a NUL in it, or
                `data` holds what would not come back from JSON as it was; the message names the place, not
                the value.
        """
        _check_task_id(task_id)
        if step_name is not None and (len(step_name) > LONGEST_STEP_NAME or "\0" in step_name):
            raise ValueError(f"step_name must have at most {LONGEST_STEP_NAME} characters and no NUL")
        return cls(str(uuid.uuid4()), task_id, _encoded(data), step_name)


class CheckpointManager:
    """Saves, loads and deletes the checkpoints of tasks.

    Args:
        store: What `create_session(url)` returns.

    Raises:
        TypeError: `store` is something else.
    """

    def __init__(self, store: Store) -> None:
        if not hasattr(store, "write"):
            found = "None" if store is None else type(store).__name__
            raise TypeError(f"store must not be {found}: pass what create_session(url) returns")
        self._store = store

    async def save_checkpoint(self, task_id: str, data: dict[str, Any], step_name: str | None = None) -> str:
        """Store a checkpoint beside the earlier ones of the task, and return its id.

        Args:
            task_id: The task, a row of `apflow_tasks`.
            data: What JSON carries: dicts with `str` keys, lists, `str`, finite numbers, `bool`, None. Encode
                bytes as base64.
            step_name: A label for people, such as `"after_step_3"`; at most 255 characters.

        Raises:
            TypeError: `data` is not a dict.
            ValueError: Something is out of range, or not JSON; the message names the place, not the value.
            RunNotFoundError: There is no such task.
            StorageError: Nothing was stored.
        """
        checkpoint = Checkpoint.of(task_id, data, step_name)
        await self._store.write(lambda tx: save_in(tx, self._store, checkpoint))
        logger.debug("task %s: saved checkpoint %s", task_id, checkpoint.id)
        return checkpoint.id

    async def load_checkpoint(self, task_id: str) -> dict[str, Any] | None:
        """Return the state that was saved last, or None when there is none.

        Raises:
            ValueError: `task_id` is empty.
            StorageError: The database failed.
        """
        _check_task_id(task_id)
        return await self._store.read(lambda tx: load_in(tx, task_id, ignore_retry=False))

    async def delete_checkpoints(self, task_id: str) -> int:
        """Delete all checkpoints of the task and return how many there were.

        Raises:
            ValueError: `task_id` is empty.
            StorageError: Nothing was deleted.
        """
        _check_task_id(task_id)
        count = await self._store.write(lambda tx: delete_in(tx, task_id))
        logger.debug("task %s: deleted %d checkpoints", task_id, count)
        return count


def save_in(tx: Tx, store: Store, checkpoint: Checkpoint, *, replace: bool = False) -> None:
    """Store a checkpoint inside an open transaction, and make it the one that its task resumes from.

    The task's row is locked first, so that savers take turns. Each checkpoint of a task is at least a
    microsecond younger than the one before, even when the clock stands still or is set back: the latest is
    never in doubt.

    Args:
        tx: The transaction.
        store: Its database.
        checkpoint: What is stored.
        replace: Delete the earlier checkpoints of the task that have the same step name.

    Raises:
        RunNotFoundError: There is no such task.
    """
    # Not FOR UPDATE: children that are being inserted refer to this row and need not wait.
    lock = " FOR NO KEY UPDATE" if tx.dialect == "postgresql" else ""
    task = tx.row(
        f"SELECT checkpoint_at FROM apflow_tasks WHERE id = :task_id{lock}",
        {"task_id": checkpoint.task_id},
    )
    if task is None:
        raise RunNotFoundError(checkpoint.task_id)
    created_at = store.timestamp(_after(task[0], store.clock.now()))
    inserted = tx.execute(
        "INSERT INTO task_checkpoints (id, task_id, checkpoint_data, step_name, created_at) "
        "VALUES (:id, :task_id, :text, :step_name, :created_at) ON CONFLICT (id) DO NOTHING",
        {
            "id": checkpoint.id,
            "task_id": checkpoint.task_id,
            "text": checkpoint.text,
            "step_name": checkpoint.step_name,
            "created_at": created_at,
        },
    )
    # Not inserted means that an earlier run of this transaction was committed after all, and that a younger
    # checkpoint may have followed.
    if inserted:
        tx.execute(
            "UPDATE apflow_tasks SET checkpoint_at = :created_at, resume_from = :id WHERE id = :task_id",
            {"created_at": created_at, "id": checkpoint.id, "task_id": checkpoint.task_id},
        )
    if inserted and replace:
        tx.execute(
            "DELETE FROM task_checkpoints WHERE task_id = :task_id AND step_name = :step_name AND id <> :id",
            {"task_id": checkpoint.task_id, "step_name": checkpoint.step_name, "id": checkpoint.id},
        )


def load_in(tx: Tx, task_id: str, *, ignore_retry: bool = True) -> dict[str, Any] | None:
    """Return the state that was saved last, or None.

    Args:
        tx: An open transaction.
        task_id: The task.
        ignore_retry: Pass over the checkpoints that `RetryManager` made.
    """
    users = USERS_OWN if ignore_retry else ""
    row = tx.row(
        f"SELECT checkpoint_data FROM task_checkpoints WHERE task_id = :task_id{users} "
        "ORDER BY created_at DESC, id DESC LIMIT 1",
        {"task_id": task_id},
    )
    if row is None:
        return None
    state: dict[str, Any] = json.loads(row[0])
    return state


def delete_in(tx: Tx, task_id: str) -> int:
    """Delete the task's checkpoints inside an open transaction and return how many there were."""
    count = tx.execute("DELETE FROM task_checkpoints WHERE task_id = :task_id", {"task_id": task_id})
    if count:
        tx.execute("UPDATE apflow_tasks SET resume_from = NULL WHERE id = :task_id", {"task_id": task_id})
    return count


def _check_task_id(task_id: object) -> None:
    if not isinstance(task_id, str) or not task_id.strip() or "\0" in task_id:
        raise ValueError("task_id must be a non-empty string without NUL")


def _after(last: Any, now: datetime) -> datetime:
    """Return `now`, or a microsecond after `last` when that is later."""
    if last is None:
        return now
    moment = datetime.fromisoformat(last) if isinstance(last, str) else last
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(now, moment + timedelta(microseconds=1))


def _encoded(data: object) -> str:
    """Return the state as JSON text that people can read in the database."""
    if not isinstance(data, dict):
        raise TypeError(f"data must be a dict, got {type(data).__name__}")
    flaw = _flaw(data)
    if flaw is not None:
        raise ValueError(
            f"checkpoint data is not JSON-serializable: data{flaw[0]} is {flaw[1]}. Use dicts with str keys, "
            "lists, str, finite numbers, bool and None, which come back as they were; encode bytes as base64"
        )
    text = json.dumps(data, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which no database stores as such
        return json.dumps(data)
    return text


def _flaw(value: object, depth: int = 0) -> tuple[str, str] | None:
    """Return where below `value` is something that JSON would refuse or change, and what it is, or None."""
    if not isinstance(value, dict | list):
        what = _flaw_of_leaf(value)
        return None if what is None else ("", what)
    if depth == DEEPEST_NESTING:
        return "", f"nested more than {DEEPEST_NESTING} levels deep, or holds itself"
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if isinstance(value, dict) and not isinstance(key, str):
            return "", f"a dict with a key of type {type(key).__name__}"
        flaw = _flaw(item, depth + 1)
        if flaw is not None:
            return _step(key) + flaw[0], flaw[1]
    return None


def _flaw_of_leaf(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return None
    if isinstance(value, int):
        return None if value.bit_length() <= LARGEST_INT_BITS else "a number of more than 4,000 digits"
    if isinstance(value, float):
        return None if math.isfinite(value) else "not a finite number"
    return f"of type {type(value).__name__}"


def _step(key: str | int) -> str:
    return f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{reprlib.repr(key)}]"
