"""Runs that were lost to somebody else, could not be stored, or were left by their consumer."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import pytest

import apflow
from apflow import FencedError, RunInterruptedError, Runtime
from apflow.errors import StorageFullError
from apflow.portal import portal

if TYPE_CHECKING:
    from apflow.storage.store import Tx

T = TypeVar("T")

pytestmark = pytest.mark.anyio

FAR = "2999-01-01 00:00:00.000000"

log: list[str] = []


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    log.clear()


@pytest.fixture
async def runtime(database_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(database_url, shutdown_seconds=1) as made:
        yield made


@apflow.task
def add(first: int, second: int) -> int:
    return first + second


@apflow.task
def numbers(n: int) -> Iterator[int]:
    yield from range(n)


async def taken_over_elsewhere(runtime: Runtime, name: str) -> None:
    """Have another machine own the running runs of a task."""
    sql = (
        "UPDATE apflow_tasks SET epoch = epoch + 1, owner = 'elsewhere', lease_expires_at = :far "
        "WHERE name = :name AND status = 'in_progress'"
    )
    assert await runtime.store.write(lambda tx: tx.execute(sql, {"name": name, "far": FAR})) > 0


# -- lost to another process -------------------------------------------------------------------------------------


@pytest.mark.parametrize("handles", [True, False])
async def test_a_child_lost_to_another_process_is_an_error_like_any_other(runtime: Runtime, handles: bool) -> None:
    @apflow.task
    async def child() -> int:
        await taken_over_elsewhere(runtime, child.name)
        return 1

    @apflow.task
    async def parent() -> int:
        try:
            return await child.with_options(key="k")()
        except FencedError:
            if handles:
                return -1
            raise

    if handles:
        assert await parent() == -1
    else:
        with pytest.raises(FencedError):
            await parent()
    [row] = await runtime.runs.list(name=parent.name)
    assert row.status == ("completed" if handles else "failed")
    [row] = await runtime.runs.list(name=child.name)
    assert (row.status, row.owner) == ("in_progress", "elsewhere")


async def test_who_joined_a_run_that_was_lost_waits_for_its_new_owner(runtime: Runtime) -> None:
    begun = asyncio.Event()

    @apflow.task
    async def answer() -> int:
        begun.set()
        await asyncio.sleep(60)
        return 1

    keyed = answer.with_options(key="k")
    caller = asyncio.create_task(keyed())
    await begun.wait()
    joiner = asyncio.create_task(keyed())
    await asyncio.sleep(0.05)
    await taken_over_elsewhere(runtime, answer.name)
    await asyncio.to_thread(runtime.keeper.renew)
    with pytest.raises(FencedError):
        await caller
    assert not joiner.done()
    sql = "UPDATE apflow_tasks SET status = 'completed', result = '2'"
    await runtime.store.write(lambda tx: tx.execute(sql, {}))
    assert await joiner == 2


async def test_a_run_of_another_version_is_found_by_who_makes_that_version(database_url: str) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    @apflow.task
    async def answer() -> int:
        begun.set()
        await go_on.wait()
        return 42

    async with Runtime(database_url, shutdown_seconds=0) as first:
        run = await answer.with_options(version="2").submit()
        other = await answer.with_options(version="3").submit()
        await begun.wait()
        await first.store.write(
            lambda tx: tx.execute("UPDATE apflow_tasks SET task_version = '4' WHERE id = :id", {"id": other.id})
        )
    go_on.set()
    async with Runtime(database_url) as second:
        await second.recover()
        assert await (await second.runs.resume(run.id)) == 42
        row = await second.runs.get(other.id)
        assert row is not None
        assert (row.task_version, row.interrupted) == ("4", True)


# -- not stored --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["called", "submitted"])
async def test_a_result_that_could_not_be_stored_leaves_the_run_interrupted(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    write = runtime.store.write

    async def full(fn: Callable[[Tx], T], *, single: bool = False) -> T:
        if "_end_owned_in" in repr(fn):
            raise StorageFullError("no space")
        return await write(fn, single=single)

    @apflow.task
    async def answer() -> int:
        log.append("answer")
        return 42

    await runtime.ready()
    with monkeypatch.context() as disk:
        disk.setattr(runtime.store, "write", full)
        with pytest.raises(StorageFullError):
            await (answer() if how == "called" else await answer.submit())
    [row] = await runtime.runs.list()
    assert (row.interrupted, row.error) == (True, None)
    assert await (await runtime.runs.resume(row.id)) == 42
    assert log == ["answer"] * 2


# -- leaving -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("looks", [True, False])
def test_what_a_plain_function_did_without_knowing_of_the_end_counts(sqlite_url: str, looks: bool) -> None:
    begun = threading.Event()

    @apflow.task
    def work() -> str:
        context = apflow.current()
        begun.set()
        while not (context.cancelled if looks else context._state.body_told_to_stop):
            time.sleep(0.01)
        return "done"

    with Runtime(sqlite_url, shutdown_seconds=1) as runtime:
        run = work.submit()
        begun.wait()
    if looks:
        with pytest.raises(RunInterruptedError):
            run.result()
    else:
        assert run.result() == "done"
    with Runtime(sqlite_url, lease_seconds=60) as runtime:
        # Housekeeping may be about to take it over, but the function waits for the end again.
        row = runtime.wait(runtime.runs.get(run.id))
        assert row is not None
        assert (row.status, row.epoch) in ([("in_progress", 1), ("in_progress", 2)] if looks else [("completed", 1)])


# -- streams and map ---------------------------------------------------------------------------------------------


def test_a_stream_that_the_garbage_collector_ends_holds_nothing_up(sqlite_url: str) -> None:
    def consume_half() -> None:
        stream = numbers(5)
        assert next(stream) == 0
        cycle: list[object] = [stream]
        cycle.append(cycle)

    results: list[int] = []
    collected = threading.Event()

    def collect() -> None:
        gc.collect()
        collected.set()

    # Were the stream's end waited for there, it would take until then.
    with Runtime(sqlite_url, shutdown_seconds=60) as runtime:
        gc.disable()
        try:
            consume_half()
            portal.loop().call_soon_threadsafe(collect)
            assert collected.wait(20)
        finally:
            gc.enable()
        caller = threading.Thread(target=lambda: results.append(add(1, 2)), daemon=True)
        caller.start()
        caller.join(30)
        assert results == [3]
        row = runtime.wait(ended(runtime, numbers.name))
        assert row == "interrupted"


async def ended(runtime: Runtime, name: str) -> str | None:
    """Return the status of the only run of a task once nobody holds it."""
    while True:
        [row] = await runtime.runs.list(name=name)
        if row.status != "in_progress" or row.interrupted:
            return "interrupted" if row.interrupted else row.status
        await asyncio.sleep(0.01)


async def test_who_closes_a_stream_can_be_cancelled(runtime: Runtime) -> None:
    closing, go_on = asyncio.Event(), asyncio.Event()

    @apflow.task
    async def slow_to_close() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closing.set()
            await go_on.wait()

    stream = slow_to_close()
    assert await anext(stream) == 1
    closer = asyncio.ensure_future(stream.aclose())
    await closing.wait()
    closer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closer
    go_on.set()
    assert await ended(runtime, slow_to_close.name) == "interrupted"


async def test_an_error_in_the_items_of_a_map_starts_nothing(runtime: Runtime) -> None:
    @apflow.task
    async def later(n: int) -> int:
        return n

    @apflow.task
    def now(n: int) -> int:
        return n

    def items() -> Iterator[int]:
        yield 1
        raise ValueError("in the items")

    with pytest.raises(ValueError, match="in the items"):
        await later.map(items())
    with pytest.raises(ValueError, match="in the items"):
        now.map(items())
    await asyncio.sleep(0.05)
    assert await runtime.runs.count() == 0


# -- forks -------------------------------------------------------------------------------------------------------

FORKED = """
import os, sys, threading, warnings
import apflow

warnings.simplefilter("ignore", DeprecationWarning)
apflow.configure("sqlite:///forked.db")
go_on = threading.Event()

@apflow.task
def answer() -> int:
    go_on.wait()
    return 42

run = answer.submit()
child = os.fork()
if child == 0:
    print("child", run.result(timeout=60), flush=True)
    os._exit(0)
go_on.set()
run.result()
os.waitpid(child, 0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="nothing forks there")
def test_a_handle_in_a_forked_child_looks_into_the_database() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=90, check=False)
    assert (done.stdout, done.returncode) == ("child 42\n", 0), done.stderr
