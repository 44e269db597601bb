"""What worker processes do. Each function gets the URL of the database first."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import apflow
from apflow import Runtime
from apflow.engine.creator import TaskCreator
from apflow.engine.manager import TaskManager
from tests.crash import flows
from tests.crash.effects import JOURNAL, LOOK_SECONDS, done, effect, exists, gate, until
from tests.crash.rigging import StillClock, Writes, hold_housekeeping, hold_renewals
from tests.crash.voyage import die_when_returned, voyage


def tell(**what: Any) -> None:
    """Tell the test something."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def sail(url: str, key: str) -> None:
    """Make a voyage, or carry one on."""
    runtime = Runtime(url, middleware=[die_when_returned])
    writes = Writes(runtime.store)
    async with runtime:
        log = await voyage.with_options(key=key)("Lisbon")
        tell(log=log.model_dump(), writes=writes.number)


async def send_fleet(url: str) -> None:
    """Send 200 ships, or those that have not come back."""
    runtime = Runtime(url)
    Writes(runtime.store)
    async with runtime:
        tell(fleet=await flows.fleet.with_options(key="fleet")())


async def call_all(url: str, names: list[str], renews: bool = True) -> None:
    """Call some tasks at once, each with its name as its key and with the shortest lease."""
    runtime = Runtime(url, lease_seconds=1)
    if not renews:
        hold_renewals(runtime.store)
    async with runtime:
        outcomes = await asyncio.gather(*map(_call, names), return_exceptions=True)
    tell(outcomes=[type(one).__name__ if isinstance(one, BaseException) else one for one in outcomes])


async def _call(name: str) -> Any:
    task = getattr(flows, name).with_options(key=name)
    if isinstance(task, apflow.SyncTask):
        return await asyncio.to_thread(task)
    return await task()


async def call_once(url: str, name: str, how: str) -> None:
    """Get the result of a run that others want at the same time, called or submitted, when the gate opens."""
    task = getattr(flows, name).with_options(key="same")
    async with Runtime(url):
        tell(ready=True)
        await gate()
        tell(result=await task("one") if how == "call" else await (await task.submit("one")))


async def first_call(url: str, number: int) -> None:
    """Use a database that may not exist yet, when the gate opens."""
    tell(ready=True)
    await gate()
    async with Runtime(url):
        tell(result=await flows.mark(f"number {number}"))


async def set_out(url: str) -> None:
    """Start runs of all sorts, with a lease that nobody can wait for."""
    async with Runtime(url, lease_seconds=600):
        await asyncio.to_thread(flows.plain_errand.submit, "submitted, plain")
        await flows.errand.submit("submitted")
        await asyncio.gather(
            flows.errand.with_options(key="the key")("keyed"),
            flows.errand("resumed"),
            flows.errand("the rest"),
            flows.captain("submitted by a call"),
        )


async def carry_on(url: str) -> None:
    """Carry on what nobody is allowed to carry on unasked."""
    async with Runtime(url) as runtime:
        unasked = [run.id for run in await runtime.recover()]
        left = {row.inputs["name"]: row.id for row in await runtime.runs.list(status="in_progress")}
        resumed = await (await runtime.runs.resume(left["resumed"]))
        keyed = await flows.errand.with_options(key="the key")("keyed")
        rest = sorted([await run for run in await runtime.recover(everything=True)])
        tell(unasked=unasked, left=sorted(left), resumed=resumed, keyed=keyed, rest=rest)


async def join(url: str) -> None:
    """Submit a run that another process has called with the same key, and leave."""
    async with Runtime(url):
        await flows.first_waits.with_options(key="same").submit("one")


async def submit(url: str, name: str, *arguments: Any) -> None:
    """Submit a run and wait for its end."""
    async with Runtime(url, clock=StillClock.given()):
        await (await getattr(flows, name).submit(*arguments))


async def call(url: str, name: str, *arguments: Any) -> None:
    """Call a task, with its name as its key."""
    async with Runtime(url, clock=StillClock.given()):
        await getattr(flows, name).with_options(key=name)(*arguments)


async def watch(url: str, leave: str, **options: Any) -> None:
    """Be a live process that knows the tasks, until a file says to leave."""
    runtime = Runtime(url, lease_seconds=1, clock=StillClock.given(), **options)
    Writes(runtime.store)
    async with runtime:
        await until(lambda: exists(leave))
    tell(left=True)


async def fork_inside(url: str) -> None:
    """Fork in the middle of runs."""
    async with Runtime(url):
        tell(result=await flows.forks())


def fork_outside(url: str) -> None:
    """Fork from plain code while a run goes on beside it; the children leave as programs do."""
    with Runtime(url):
        run = flows.plain_errand.submit("beside the forks")
        children = []
        for name in ("left fork", "right fork"):
            pid = os.fork()
            if pid == 0:
                flows.live_as_fork(name)
                sys.exit(0)
            children.append(pid)
        tell(statuses=[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])
        effect("forks done")
        tell(result=run.result())


def outlive(url: str) -> None:
    """Fork, have the child use the database, close it here, and have the child use it again."""
    with Runtime(url):
        flows.plain_mark("the parent")
        pid = os.fork()
        if pid == 0:
            flows.plain_mark("the child, beside its parent")
            while not exists("closed"):
                time.sleep(LOOK_SECONDS)
            flows.plain_mark("the child, alone")
            os._exit(0)
        while "mark the child, beside its parent" not in done():
            time.sleep(LOOK_SECONDS)
        flows.plain_mark("the parent again")
    Path(os.environ[JOURNAL]).with_name("closed").touch()
    tell(status=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def fork_often(url: str, times: int) -> None:
    """Fork while other threads open and close databases, and open one in each child."""
    stop = threading.Event()

    def look() -> None:
        store = apflow.create_session(url)
        assert store.read_blocking(lambda tx: tx.row("SELECT COUNT(*) FROM apflow_tasks")) == (0,)
        store.close()

    def keep_looking() -> None:
        while not stop.is_set():
            look()

    # One is enough; several keep each other waiting for locks, longer than a fork has patience for.
    threads = [threading.Thread(target=keep_looking)]
    for thread in threads:
        thread.start()
    for _ in range(times):
        pid = os.fork()
        if pid == 0:
            look()
            os._exit(0)
        os.waitpid(pid, 0)
    stop.set()
    for thread in threads:
        thread.join()
    tell(forked=times)


def interrupted(url: str, how: str) -> None:
    """Be a program that somebody stops with Ctrl-C, or that ends too early."""
    runtime = apflow.configure(url, lease_seconds=600, shutdown_seconds=0.3)
    plain = flows.plain_interruptible.with_options(key="k")
    try:
        if how == "async":
            asyncio.run(flows.interruptible.with_options(key="k")())
        elif how == "block":
            asyncio.run(_call_in_block(runtime))
        elif how == "plain":
            plain()
        elif how == "result":
            plain.submit().result()
        elif how == "end":
            plain.submit()
            while "waits" not in done():
                time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        effect("KeyboardInterrupt")
        raise


async def _call_in_block(runtime: Runtime) -> None:
    async with runtime:
        await flows.interruptible.with_options(key="k")()


def finish_interrupted(url: str, how: str) -> None:
    """Carry on what was interrupted, with the same key."""
    apflow.configure(url)
    if how in ("async", "block"):
        tell(result=asyncio.run(flows.interruptible.with_options(key="k")()))
    else:
        tell(result=flows.plain_interruptible.with_options(key="k")())


# -- task trees ----------------------------------------------------------------------------------------------------


async def plant(url: str, *trees: list[dict[str, Any]], knows: str | None = None) -> None:
    """Store task trees."""
    _learn(knows)
    async with Runtime(url) as runtime:
        for tasks in trees:
            await TaskCreator(runtime.store).create_task_tree_from_array(tasks)
    tell(planted=len(trees))


async def execute(
    url: str,
    task_id: str,
    *,
    leave: str | None = None,
    waits: bool = False,
    renews: bool = True,
    knows: str | None = None,
    **options: Any,
) -> None:
    """Execute a task of a tree, when the gate opens if it `waits`; leave the runtime when a file says so."""
    _learn(knows)
    runtime = Runtime(url, **options)
    Writes(runtime.store)
    if not renews:
        hold_renewals(runtime.store)
    async with runtime:
        if waits:
            tell(ready=True)
            await gate()
        execution = asyncio.create_task(_outcome(runtime, task_id))
        await until(lambda: execution.done() or (leave is not None and exists(leave)))
    tell(**await execution)


async def _outcome(runtime: Runtime, task_id: str) -> dict[str, Any]:
    try:
        return await TaskManager(runtime.store).execute_task(task_id)
    except apflow.ApflowError as error:
        return {"error": type(error).__name__}


async def recover_trees(url: str, **options: Any) -> None:
    """Carry on what dead processes left, once and when told to, and wait for its end."""
    runtime = Runtime(url, **options)
    Writes(runtime.store)
    hold_housekeeping(runtime)
    async with runtime:
        tell(counts=[await run for run in await runtime.recover()])


async def watch_knowing(url: str, leave: str, knows: str) -> None:
    """Be a live process that knows more than others."""
    _learn(knows)
    await watch(url, leave)


async def cancel(url: str, task_id: str) -> None:
    """Cancel a task of a tree that another process executes."""
    async with Runtime(url) as runtime:
        tell(**await TaskManager(runtime.store).cancel_task(task_id))


def _learn(module: str | None) -> None:
    if module is not None:
        import_module(module)
