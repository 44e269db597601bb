"""The tasks of A2A in our database, on each kind of database."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from a2a.server.context import ServerCallContext
from a2a.types.a2a_pb2 import ListTasksRequest, Message, Part, Role, Task, TaskState
from apcore import Identity

import apflow
from apflow import Runtime
from apflow.bridge.a2a.parts import PROGRESS, agent_message, artifact, status
from apflow.bridge.a2a.store import A2aTasks
from apflow.bridge.a2a.user import CallingUser
from apflow.bridge.door import Door

pytestmark = pytest.mark.anyio

START = datetime(2026, 1, 1, tzinfo=UTC)
ALICE = ServerCallContext(user=CallingUser(Identity(id="alice")))
BOB = ServerCallContext(user=CallingUser(Identity(id="bob")))
NOBODY = ServerCallContext(user=CallingUser(None))

SUBMITTED, WORKING = TaskState.TASK_STATE_SUBMITTED, TaskState.TASK_STATE_WORKING
COMPLETED, CANCELED = TaskState.TASK_STATE_COMPLETED, TaskState.TASK_STATE_CANCELED


@apflow.task
async def double(n: int) -> int:
    return 2 * n


@pytest.fixture
async def runtime(database_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(database_url) as made:
        yield made


@pytest.fixture
def tasks(runtime: Runtime) -> A2aTasks:
    return A2aTasks(Door(runtime))


@pytest.fixture
def gone() -> str:
    """Name of the holder in a process that has ended."""
    return subprocess.run(
        [sys.executable, "-c", "from apflow.storage.owners import new_owner; print(new_owner())"],
        capture_output=True,
        check=True,
        text=True,
    ).stdout.strip()


def task(task_id: str = "t", state: Any = COMPLETED, minutes: int = 0, context: str = "c") -> Task:
    """Return a task that came into its state so many minutes after the start."""
    return Task(id=task_id, context_id=context, status=status(state, at=START + timedelta(minutes=minutes)))


async def body(runtime: Runtime, task_id: str = "t") -> Task:
    """Return a task as the database has it."""
    sql = "SELECT body FROM apflow_a2a_tasks WHERE id = :id"
    row = await runtime.store.read(lambda tx: tx.row(sql, {"id": task_id}))
    assert row is not None
    found: Task = Task.FromString(bytes(row[0]))
    return found


async def rows(runtime: Runtime) -> list[str]:
    """Return the ids of all tasks."""
    found = await runtime.store.read(lambda tx: tx.rows("SELECT id FROM apflow_a2a_tasks ORDER BY id"))
    return [row[0] for row in found]


async def test_a_task_is_there_for_whoever_sent_it(tasks: A2aTasks) -> None:
    saved = task()
    saved.artifacts.append(artifact([Part(text="x\0ü")]))
    await tasks.save(saved, ALICE)

    assert await tasks.get("t", ALICE) == saved
    assert await tasks.get("t", BOB) is None
    assert await tasks.get("t", NOBODY) is None
    assert await tasks.get("other", ALICE) is None
    assert await tasks.get("t\0", ALICE) is None
    await tasks.delete("t", BOB)
    assert await tasks.get("t", ALICE) == saved
    await tasks.delete("t", ALICE)
    assert await tasks.get("t", ALICE) is None


async def test_nobody_takes_the_task_of_somebody_else(tasks: A2aTasks) -> None:
    await tasks.save(task(context="alice's", state=TaskState.TASK_STATE_INPUT_REQUIRED), ALICE)
    await tasks.save(task(context="bob's"), BOB)

    found = await tasks.get("t", ALICE)

    assert found is not None
    assert found.context_id == "alice's"
    assert await tasks.get("t", BOB) is None


async def test_what_has_ended_stays_as_it_ended(tasks: A2aTasks) -> None:
    await tasks.save(task(), ALICE)
    await tasks.save(task(state=CANCELED), ALICE)

    found = await tasks.get("t", ALICE)

    assert found is not None
    assert found.status.state == COMPLETED


async def test_between_two_states_nothing_is_written(tasks: A2aTasks, runtime: Runtime) -> None:
    live = task(state=WORKING)
    await tasks.save(live, ALICE)
    live.artifacts.append(artifact([Part(text="one")]))
    live.history.append(Message(message_id="1", role=Role.ROLE_USER))
    live.history.append(agent_message(live, [Part(text="half")], PROGRESS))
    await tasks.save(live, ALICE)

    found = await tasks.get("t", ALICE)
    assert found is not None
    assert [one.parts[0].text for one in found.artifacts] == ["one"]
    assert [one.message_id for one in found.history] == ["1"]
    assert await tasks.get("t", BOB) is None
    assert not (await body(runtime)).artifacts
    live.status.CopyFrom(status(COMPLETED))
    await tasks.save(live, ALICE)
    assert [one.parts[0].text for one in (await body(runtime)).artifacts] == ["one"]


async def test_a_task_that_begins_at_once_is_stored_once_as_working(tasks: A2aTasks, runtime: Runtime) -> None:
    kept = tasks.expect("t", begins=True)
    await tasks.save(task(state=SUBMITTED), ALICE)
    assert kept.result()
    stored = await body(runtime)
    await tasks.save(task(state=WORKING, minutes=1), ALICE)

    assert stored.status.state == WORKING
    assert await body(runtime) == stored


async def test_an_id_made_here_is_no_task_until_it_is_saved(tasks: A2aTasks) -> None:
    made = tasks.new_id()
    assert await tasks.get(made, ALICE) is None
    await tasks.save(task(made), ALICE)
    assert await tasks.get(made, ALICE) == task(made)


async def test_pages_have_each_task_once_and_the_newest_first(tasks: A2aTasks) -> None:
    for number in range(5):
        await tasks.save(task(f"a{number}", minutes=number), ALICE)
        await tasks.save(task(f"b{number}", minutes=2), ALICE)
        await tasks.save(task(f"c{number}", minutes=number), BOB)

    seen: list[str] = []
    token = ""
    while True:
        page = await tasks.list(ListTasksRequest(page_size=3, page_token=token), ALICE)
        assert (page.total_size, page.page_size) == (10, 3)
        seen += [one.id for one in page.tasks]
        token = page.next_page_token
        if not token:
            break

    assert seen == ["a4", "a3", "b4", "b3", "b2", "b1", "b0", "a2", "a1", "a0"]


async def test_lists_are_filtered(tasks: A2aTasks) -> None:
    await tasks.save(task("one", minutes=1, context="x"), ALICE)
    await tasks.save(task("two", state=CANCELED, minutes=2, context="x"), ALICE)
    await tasks.save(task("three", minutes=3, context="y"), ALICE)

    async def listed(**params: Any) -> list[str]:
        return [one.id for one in (await tasks.list(ListTasksRequest(**params), ALICE)).tasks]

    assert await listed(context_id="x") == ["two", "one"]
    assert await listed(status=COMPLETED) == ["three", "one"]
    assert await listed(status_timestamp_after=START + timedelta(minutes=2)) == ["three", "two"]
    assert await listed(status=CANCELED, context_id="y") == []


async def test_a_task_that_nobody_answers_for_follows_its_run(tasks: A2aTasks, runtime: Runtime) -> None:
    answer = await Door(runtime).call("double", {"n": 21})
    assert answer.run_id is not None
    left = task(answer.run_id, SUBMITTED)
    left.metadata["skillId"] = "double"
    await tasks.store(left, "alice")

    found = await tasks.get(answer.run_id, ALICE)

    assert found is not None
    assert found.status.state == COMPLETED
    assert found.artifacts[0].parts[0].data.struct_value["result"] == 42
    assert await body(runtime, answer.run_id) == found
    assert await tasks.get(answer.run_id, BOB) is None


async def test_a_task_that_never_began_fails_once_its_process_is_gone(
    tasks: A2aTasks, runtime: Runtime, gone: str
) -> None:
    await tasks.store(task("held", SUBMITTED, minutes=0), "alice")
    await tasks.store(Task(id="mine", status=status(SUBMITTED)), "alice")
    await tasks.store(Task(id="left", status=status(SUBMITTED)), "alice")
    sql = "UPDATE apflow_a2a_tasks SET holder = :holder WHERE id = 'left'"
    await runtime.store.write(lambda tx: tx.execute(sql, {"holder": gone}))

    states = {}
    for one in ("held", "mine", "left"):
        found = await tasks.get(one, ALICE)
        assert found is not None
        states[one] = found.status.state

    # The first is older than a day.
    failed = TaskState.TASK_STATE_FAILED
    assert states == {"held": failed, "mine": SUBMITTED, "left": failed}


async def test_a_task_goes_with_its_run(tasks: A2aTasks, runtime: Runtime) -> None:
    door = Door(runtime)
    ids = [str(uuid.uuid4()) for _ in range(2)]
    for one in ids:
        await door.call("double", {"n": 1}, run_id=one)
        await tasks.save(Task(id=one, status=status(COMPLETED)), ALICE)
    await tasks.save(task("refused", TaskState.TASK_STATE_REJECTED), ALICE)
    await tasks.save(task("parked", TaskState.TASK_STATE_INPUT_REQUIRED), ALICE)
    await tasks.save(Task(id="young", status=status(COMPLETED, at=datetime.now(UTC) + timedelta(hours=1))), ALICE)

    await runtime.runs.delete(ids[0])
    assert await rows(runtime) == sorted([ids[1], "refused", "parked", "young"])
    await runtime.prune(older_than=datetime.now(UTC) + timedelta(seconds=1))
    assert await rows(runtime) == ["parked", "young"]
