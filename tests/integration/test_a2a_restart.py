"""Tasks of A2A whose server stops in the middle, or that another server runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest

import apflow
from apflow import Runtime
from tests.integration.a2a_site import Caller, a2a_site, error_of, only, sent, state_of, until, value_of

pytestmark = pytest.mark.anyio

gates: list[asyncio.Event] = []
entered: list[str] = []


@pytest.fixture(autouse=True)
async def _closed() -> None:
    gates[:] = [asyncio.Event()]
    entered.clear()


@apflow.task
async def quick(n: int) -> int:
    return n


@apflow.task
async def waits(what: str) -> str:
    entered.append(what)
    await gates[0].wait()
    return what


@apflow.task
async def fails(what: str) -> str:
    entered.append(what)
    await gates[0].wait()
    raise apflow.PublicError(f"no {what}")


@apflow.task
async def counts(n: int) -> AsyncIterator[int]:
    entered.append("counts")
    await gates[0].wait()
    for number in range(n):
        yield number


@asynccontextmanager
async def server(database: str, **options: Any) -> AsyncIterator[tuple[Runtime, Caller]]:
    """Serve all tasks over a database; recovery runs first, as `apflow.serve` has it."""
    async with Runtime(database, shutdown_seconds=0, **options) as runtime:
        await runtime.recover()
        async with a2a_site(only(runtime, quick, waits, fails, counts)) as url:
            yield runtime, Caller(url)


async def _begun(number: int) -> None:
    async def there() -> bool:
        return len(entered) >= number

    await until(there)


async def test_a_task_goes_on_after_a_restart_and_ends_as_its_run(sqlite_url: str) -> None:
    async with server(sqlite_url) as (_, caller):
        done = await caller.send("quick", {"n": 3})
        tasks = [
            await caller.call("message/send", sent(name, given, blocking=False))
            for name, given in (("waits", "x"), ("fails", "luck"), ("counts", {"n": 2}))
        ]
        await _begun(3)
    async with server(sqlite_url) as (_, caller):
        await _begun(6)
        assert value_of(await caller.call("tasks/get", {"id": done["id"]})) == {"result": 3}
        for one in tasks:
            assert state_of(await caller.call("tasks/get", {"id": one["id"]})) == "working"
        assert len((await caller.call("tasks/list", {"status": "working"}))["tasks"]) == 3

        gates[0].set()

        waited, failed, counted = [
            await caller.until(one["id"], state)
            for one, state in zip(tasks, ("completed", "failed", "completed"), strict=True)
        ]
        assert value_of(waited) == "x"
        assert (error_of(failed)["code"], error_of(failed)["message"]) == ("failed", "no luck")
        assert [part["data"] for part in counted["artifacts"][0]["parts"]] == [{"result": 0}, {"result": 1}]
    async with server(sqlite_url) as (_, caller):
        assert value_of(await caller.call("tasks/get", {"id": waited["id"]})) == "x"


async def test_a_list_knows_what_ended_while_nobody_looked(sqlite_url: str) -> None:
    async with server(sqlite_url) as (_, caller):
        task = await caller.call("message/send", sent("waits", "x", blocking=False))
        await _begun(1)
    gates[0].set()
    async with Runtime(sqlite_url) as runtime:
        await runtime.recover()

        async def completed() -> bool:
            return await runtime.runs.count(name="waits", status="completed") == 1

        await until(completed)
    async with server(sqlite_url) as (_, caller):
        [listed] = (await caller.call("tasks/list", {"status": "completed", "includeArtifacts": True}))["tasks"]

        assert listed["id"] == task["id"]
        assert value_of(listed) == "x"
        assert (await caller.call("tasks/list", {"status": "working"}))["tasks"] == []


@pytest.mark.parametrize(("name", "state"), [("waits", "completed"), ("fails", "failed")])
async def test_who_resubscribes_after_a_restart_hears_the_end(sqlite_url: str, name: str, state: str) -> None:
    async with server(sqlite_url) as (_, caller):
        task = await caller.call("message/send", sent(name, "x", blocking=False))
        await _begun(1)
    async with server(sqlite_url) as (_, caller):
        await _begun(2)
        events = []
        async for event in caller.events("tasks/resubscribe", {"id": task["id"]}):
            events.append(event)
            gates[0].set()

    kinds = ["task", "artifact-update", "status-update"] if state == "completed" else ["task", "status-update"]
    assert [one["kind"] for one in events] == kinds
    assert state_of(events[0]) == "working"
    assert state_of(events[-1]) == state
    assert events[-1]["final"] is True


async def test_a_task_can_be_cancelled_after_a_restart(sqlite_url: str) -> None:
    async with server(sqlite_url) as (_, caller):
        task = await caller.call("message/send", sent("waits", "x", blocking=False))
        await _begun(1)
    async with server(sqlite_url) as (runtime, caller):
        await _begun(2)

        cancelled = await caller.call("tasks/cancel", {"id": task["id"]})

        assert state_of(cancelled) == "canceled"
        run = await runtime.runs.get(task["id"])
        assert run is not None
        assert run.status == "cancelled"
        assert await caller.code("tasks/cancel", {"id": task["id"]}) == -32002


async def test_who_waits_is_let_go_when_the_server_stops_and_the_run_goes_on(sqlite_url: str) -> None:
    async with server(sqlite_url) as (runtime, caller):
        waiting = asyncio.create_task(caller.call("message/send", sent("waits", "x")))
        await _begun(1)
    with suppress(httpx.TransportError):
        assert state_of(await waiting) == "working"
    gates[0].set()
    async with server(sqlite_url) as (runtime, caller):
        [run] = await runtime.runs.list(name="waits")
        assert value_of(await caller.until(run.id, "completed")) == "x"


async def test_a_task_that_another_server_runs(sqlite_url: str) -> None:
    async with (
        server(sqlite_url, lease_seconds=1) as (_, here),
        server(sqlite_url, lease_seconds=1) as (_, there),
    ):
        sending = asyncio.create_task(here.send("waits", "x"))
        await _begun(1)
        [task] = (await there.call("tasks/list", {"status": "working"}))["tasks"]

        cancelled = await there.call("tasks/cancel", {"id": task["id"]})

        assert state_of(cancelled) == "canceled"
        assert state_of(await sending) == "canceled"
        second = await here.call("message/send", sent("waits", "y", blocking=False))
        await _begun(2)
        events = []
        async for event in there.events("tasks/resubscribe", {"id": second["id"]}):
            events.append(event)
            gates[0].set()
        assert state_of(events[-1]) == "completed"
        assert events[1]["artifact"]["parts"][0]["text"] == "y"
