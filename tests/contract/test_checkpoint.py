"""Explicit checkpoints, on every store."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest

from apflow.durability.checkpoint import Checkpoint, CheckpointManager, delete_in, load_in, save_in
from apflow.durability.retry import BackoffStrategy, RetryManager, RetryPolicy
from apflow.errors import RunNotFoundError

if TYPE_CHECKING:
    from apflow.storage.store import Store

pytestmark = pytest.mark.anyio


class Standing:
    """A clock that stands still until it is set."""

    def __init__(self, time: datetime) -> None:
        self.time = time

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None: ...


@pytest.fixture
def clock(store: Store, monkeypatch: pytest.MonkeyPatch) -> Standing:
    standing = Standing(datetime(2026, 11, 22, 12, 0, tzinfo=UTC))
    monkeypatch.setattr(store, "clock", standing)
    return standing


@pytest.fixture
def manager(store: Store) -> CheckpointManager:
    return CheckpointManager(store)


async def new_task(store: Store) -> str:
    task_id = str(uuid.uuid4())
    await store.write(
        lambda tx: tx.execute(
            "INSERT INTO apflow_tasks (id, name, status) VALUES (:id, 'work', 'in_progress')", {"id": task_id}
        )
    )
    return task_id


@pytest.fixture
async def task_id(store: Store) -> str:
    return await new_task(store)


async def marks(store: Store, task_id: str) -> tuple[Any, Any]:
    """Return `checkpoint_at` and `resume_from` of the task."""
    row = await store.read(
        lambda tx: tx.row("SELECT checkpoint_at, resume_from FROM apflow_tasks WHERE id = :id", {"id": task_id})
    )
    assert row is not None
    return row[0], row[1]


async def stored(store: Store, task_id: str) -> list[tuple[Any, ...]]:
    """Return id, label and time of the task's checkpoints, the oldest first."""
    return await store.read(
        lambda tx: tx.rows(
            "SELECT id, step_name, created_at FROM task_checkpoints WHERE task_id = :id ORDER BY created_at",
            {"id": task_id},
        )
    )


# -- save and load -------------------------------------------------------------------------------------------


async def test_what_was_saved_is_loaded(manager: CheckpointManager, task_id: str) -> None:
    state = {"page": 3, "seen": ["a", "b"], "rate": 0.5, "done": False, "next": None, "deep": {"": [[]]}}
    checkpoint_id = await manager.save_checkpoint(task_id, state, step_name="after_step_3")
    assert str(uuid.UUID(checkpoint_id)) == checkpoint_id
    assert await manager.load_checkpoint(task_id) == state


async def test_the_latest_is_loaded(manager: CheckpointManager, task_id: str) -> None:
    for number in range(5):
        await manager.save_checkpoint(task_id, {"step": number})
    assert await manager.load_checkpoint(task_id) == {"step": 4}


async def test_nothing_saved_is_none(manager: CheckpointManager, task_id: str) -> None:
    assert await manager.load_checkpoint(task_id) is None
    assert await manager.load_checkpoint("no-such-task") is None


async def test_tasks_do_not_see_each_other(manager: CheckpointManager, store: Store, task_id: str) -> None:
    other = await new_task(store)
    await manager.save_checkpoint(task_id, {"of": "one"})
    await manager.save_checkpoint(other, {"of": "other"})
    assert await manager.load_checkpoint(task_id) == {"of": "one"}
    assert await manager.delete_checkpoints(other) == 1
    assert await manager.load_checkpoint(task_id) == {"of": "one"}


async def test_the_state_is_taken_when_it_is_saved(manager: CheckpointManager, task_id: str) -> None:
    state = {"items": [1]}
    saving = manager.save_checkpoint(task_id, state)
    running = asyncio.ensure_future(saving)
    await asyncio.sleep(0)
    state["items"].append(2)
    await running
    assert await manager.load_checkpoint(task_id) == {"items": [1]}


async def test_the_task_points_to_its_latest_checkpoint(
    manager: CheckpointManager, store: Store, task_id: str, clock: Standing
) -> None:
    assert await marks(store, task_id) == (None, None)
    await manager.save_checkpoint(task_id, {"n": 1})
    clock.time += timedelta(seconds=1)
    second = await manager.save_checkpoint(task_id, {"n": 2}, "two")
    last = (await stored(store, task_id))[-1]
    assert last[:2] == (second, "two")
    assert await marks(store, task_id) == (last[2], second)
    assert last[2] == store.timestamp(clock.time)


async def test_people_can_read_the_row(manager: CheckpointManager, store: Store, task_id: str) -> None:
    await manager.save_checkpoint(task_id, {"tide": "Ebbe über 5 m ↓"})
    row = await store.read(lambda tx: tx.row("SELECT checkpoint_data FROM task_checkpoints"))
    assert row == ('{"tide": "Ebbe über 5 m ↓"}',)


ODD_TEXTS = ["\0", "\ud800", "\udfff-\ud800", "\u2028", "\U0001f30a", "\\u0000", "'; --", "%s :id"]


async def test_no_text_is_too_odd(manager: CheckpointManager, task_id: str) -> None:
    state = {text: [text] for text in ODD_TEXTS}
    await manager.save_checkpoint(task_id, state, "%s :id '")
    assert await manager.load_checkpoint(task_id) == state


async def test_a_large_state_comes_back(manager: CheckpointManager, task_id: str) -> None:
    state = {"text": "ü" * 2_000_000, "number": 10**4200}
    await manager.save_checkpoint(task_id, state, "s" * 255)
    assert await manager.load_checkpoint(task_id) == state


# -- what is refused -----------------------------------------------------------------------------------------


async def test_what_is_refused_leaves_nothing(manager: CheckpointManager, store: Store, task_id: str) -> None:
    bad: Any = {"pages": {1, 2}}
    with pytest.raises(ValueError, match=r"data\.pages"):
        await manager.save_checkpoint(task_id, bad)
    with pytest.raises(TypeError, match="data must be a dict"):
        await manager.save_checkpoint(task_id, bad["pages"])
    with pytest.raises(ValueError, match="step_name"):
        await manager.save_checkpoint(task_id, {}, "s" * 256)
    assert await stored(store, task_id) == []
    assert await marks(store, task_id) == (None, None)


async def test_an_unknown_task_is_named(manager: CheckpointManager, store: Store) -> None:
    with pytest.raises(RunNotFoundError, match="no-such-task") as caught:
        await manager.save_checkpoint("no-such-task", {"n": 1})
    assert caught.value.run_id == "no-such-task"
    assert await stored(store, "no-such-task") == []


async def test_a_task_id_is_never_empty(manager: CheckpointManager) -> None:
    empty: Any
    for empty in ("", "  ", None, 5, "a\0b"):
        for use in (manager.load_checkpoint, manager.delete_checkpoints):
            with pytest.raises(ValueError, match="non-empty"):
                await use(empty)


# -- the order of checkpoints --------------------------------------------------------------------------------


async def test_saves_within_one_moment_keep_their_order(
    manager: CheckpointManager, store: Store, task_id: str, clock: Standing
) -> None:
    ids = [await manager.save_checkpoint(task_id, {"n": number}) for number in range(20)]
    assert await manager.load_checkpoint(task_id) == {"n": 19}
    rows = await stored(store, task_id)
    assert [row[0] for row in rows] == ids
    assert rows[3][2] == store.timestamp(clock.time + timedelta(microseconds=3))


async def test_a_clock_that_is_set_back_changes_nothing(
    manager: CheckpointManager, store: Store, task_id: str, clock: Standing
) -> None:
    ids: list[str] = []
    for hours in (0, -5, 3, -8760, -8760):
        clock.time += timedelta(hours=hours)
        ids.append(await manager.save_checkpoint(task_id, {"hours": hours, "n": len(ids)}))
    assert await manager.load_checkpoint(task_id) == {"hours": -8760, "n": 4}
    assert [row[0] for row in await stored(store, task_id)] == ids


async def test_the_order_outlives_deletion(
    manager: CheckpointManager, store: Store, task_id: str, clock: Standing
) -> None:
    await manager.save_checkpoint(task_id, {"n": 1})
    await manager.delete_checkpoints(task_id)
    await manager.save_checkpoint(task_id, {"n": 2})
    assert (await stored(store, task_id))[0][2] == store.timestamp(clock.time + timedelta(microseconds=1))


async def test_saves_at_once_are_all_kept_and_one_is_the_latest(
    manager: CheckpointManager, store: Store, task_id: str, clock: Standing
) -> None:
    ids = await asyncio.gather(*(manager.save_checkpoint(task_id, {"n": number}) for number in range(20)))
    rows = await stored(store, task_id)
    assert sorted(row[0] for row in rows) == sorted(ids)
    assert len({row[2] for row in rows}) == 20
    assert await marks(store, task_id) == (rows[-1][2], rows[-1][0])
    assert await manager.load_checkpoint(task_id) == {"n": ids.index(rows[-1][0])}


# -- inside larger transactions ------------------------------------------------------------------------------


async def test_a_transaction_that_runs_again_stores_it_once(
    manager: CheckpointManager, store: Store, task_id: str, clock: Standing
) -> None:
    first = Checkpoint.of(task_id, {"n": 1})
    await store.write(lambda tx: save_in(tx, store, first))
    before = await marks(store, task_id)
    await store.write(lambda tx: save_in(tx, store, first))
    assert await marks(store, task_id) == before
    second = await manager.save_checkpoint(task_id, {"n": 2})
    await store.write(lambda tx: save_in(tx, store, first))
    assert [row[0] for row in await stored(store, task_id)] == [first.id, second]
    assert (await marks(store, task_id))[1] == second
    assert await manager.load_checkpoint(task_id) == {"n": 2}


async def test_a_transaction_that_fails_leaves_nothing(store: Store, task_id: str) -> None:
    def save_and_fail(tx: Any) -> None:
        save_in(tx, store, Checkpoint.of(task_id, {"n": 1}))
        assert load_in(tx, task_id) == {"n": 1}
        raise LookupError

    with pytest.raises(LookupError):
        await store.write(save_and_fail)
    assert await stored(store, task_id) == []
    assert await marks(store, task_id) == (None, None)


async def test_what_retry_notes_can_be_passed_over(manager: CheckpointManager, store: Store, task_id: str) -> None:
    async def latest_own() -> dict[str, Any] | None:
        return await store.read(lambda tx: load_in(tx, task_id))

    await manager.save_checkpoint(task_id, {"n": 0}, "retry_checkpoint_attempt_1")
    assert await latest_own() is None
    for step in (None, "", "retry", "Retry_checkpoint_attempt_1", "my_retry_checkpoint_"):
        await manager.save_checkpoint(task_id, {"step": step}, step)
        await manager.save_checkpoint(task_id, {"failed_attempt": 1}, "retry_checkpoint_attempt_1")
        assert await latest_own() == {"step": step}
        assert await manager.load_checkpoint(task_id) == {"failed_attempt": 1}


async def test_the_retry_manager_notes_attempts_here(manager: CheckpointManager, store: Store, task_id: str) -> None:
    calls = 0

    async def fails_twice() -> str:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise ConnectionError("secret")
        return "done"

    policy = RetryPolicy(max_attempts=3, backoff_strategy=BackoffStrategy.FIXED)
    clock = Standing(datetime(2026, 1, 1, tzinfo=UTC))
    assert await RetryManager(manager, clock=clock).execute_with_retry(task_id, policy, fails_twice) == "done"
    assert [row[1] for row in await stored(store, task_id)] == [
        "retry_checkpoint_attempt_1",
        "retry_checkpoint_attempt_2",
    ]
    assert await manager.load_checkpoint(task_id) == {"failed_attempt": 2, "error": "ConnectionError"}


# -- deleting ------------------------------------------------------------------------------------------------


async def test_deleting_counts_and_leaves_no_pointer(manager: CheckpointManager, store: Store, task_id: str) -> None:
    for number in range(3):
        await manager.save_checkpoint(task_id, {"n": number})
    saved_at = (await marks(store, task_id))[0]
    assert await manager.delete_checkpoints(task_id) == 3
    assert await manager.load_checkpoint(task_id) is None
    assert await marks(store, task_id) == (saved_at, None)
    assert await manager.delete_checkpoints(task_id) == 0
    assert await store.write(lambda tx: delete_in(tx, "no-such-task")) == 0


async def test_checkpoints_go_with_their_task(manager: CheckpointManager, store: Store, task_id: str) -> None:
    await manager.save_checkpoint(task_id, {"n": 1})
    await store.write(lambda tx: tx.execute("DELETE FROM apflow_tasks WHERE id = :id", {"id": task_id}))
    assert await stored(store, task_id) == []


# -- what is logged ------------------------------------------------------------------------------------------


async def test_no_state_is_logged(manager: CheckpointManager, task_id: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await manager.save_checkpoint(task_id, {"secret": "secret"}, "secret")
    await manager.load_checkpoint(task_id)
    await manager.delete_checkpoints(task_id)
    own = [record for record in caplog.records if record.name.startswith("apflow.durability")]
    assert own
    assert all("secret" not in json.dumps(cast("Any", record.__dict__), default=str) for record in own)
