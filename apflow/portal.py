"""Threads: the portal, whose loop runs the onion of plain functions, and where their bodies run.

The portal's loop never runs the body of a task, so it is never blocked, and a body may block for as long as it
likes. Bodies run on the thread that called the task, or on a thread of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import queue
import threading
from concurrent.futures import Future
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from apflow.errors import DeadlockError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

#: Event loops that are blocked by a plain task further up in this chain of calls.
blocked_loops: ContextVar[frozenset[asyncio.AbstractEventLoop]] = ContextVar("apflow_blocked", default=frozenset())


class LoopThread:
    """An event loop in a daemon thread of its own, started when it is first asked for."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._start_empty()

    def _start_empty(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.ident: int | None = None

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the running loop."""
        if self._loop is None:
            with self._lock:
                if self._loop is None:
                    self._loop = self._start()
        return self._loop

    def _start(self) -> asyncio.AbstractEventLoop:
        started: Future[asyncio.AbstractEventLoop] = Future()

        async def serve() -> None:
            self.ident = threading.get_ident()
            started.set_result(asyncio.get_running_loop())
            await asyncio.Event().wait()

        # A daemon without anything to clean up: it must not hold the interpreter's exit or a fork up.
        threading.Thread(target=asyncio.run, args=(serve(),), name=self._name, daemon=True).start()
        return started.result()

    def is_current(self) -> bool:
        """Whether the calling thread is this one."""
        return self.ident == threading.get_ident()

    def forget_after_fork(self) -> None:
        """The thread did not come along into the forked child."""
        _inherited.append(self._loop)
        self._start_empty()


portal = LoopThread("apflow-portal")
#: Runs async tasks that nobody's loop runs: called by `wait`, or taken over without a loop at hand.
worker = LoopThread("apflow-worker")
#: The same, for what a plain task waits for while it blocks the worker's loop, or one of these.
_deeper: list[LoopThread] = []
_growing = threading.Lock()
_inherited: list[Any] = []


class Spawned(Generic[T]):
    """A coroutine that runs as a task on another thread's loop.

    Attributes:
        future: Done when the task is really done, also after `cancel`.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T], context: contextvars.Context
    ) -> None:
        self.future: Future[T] = Future()
        self._loop = loop
        self._task: asyncio.Task[T] | None = None
        loop.call_soon_threadsafe(self._start, work, context)

    def _start(self, work: Coroutine[Any, Any, T], context: contextvars.Context) -> None:
        self._task = self._loop.create_task(work, context=context)
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.future.set_exception(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(task.result())

    def cancel(self) -> None:
        """Cancel the task."""
        self._loop.call_soon_threadsafe(lambda: self._task is not None and self._task.cancel())

    def result(self) -> T:
        """Wait for it; Ctrl-C cancels it, waits for its end, and goes on."""
        try:
            return self.future.result()
        except KeyboardInterrupt:
            self.cancel()
            with contextlib.suppress(BaseException):  # whatever it says: the caller wants to stop
                self.future.result()
            raise


class Job:
    """A body to be run on some thread, and the future that its onion awaits on the portal's loop."""

    def __init__(self, body: Callable[[], Any]) -> None:
        self.body = body
        self.context = contextvars.copy_context()
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.interrupt: BaseException | None = None

    def run(self) -> None:
        """Run the body here, on the calling thread, in the context of its run."""
        try:
            result = self.context.run(self.body)
        except Exception as error:  # noqa: BLE001 - it goes through the onion
            self.fail(error)
        except BaseException as error:  # noqa: BLE001 - Ctrl-C and the like: the run is interrupted
            self.abandon(error)
        else:
            self.finish(result)

    def abandon(self, error: BaseException) -> None:
        """Tell the onion that the body was interrupted."""
        self.interrupt = error
        self._settle(self.future.cancel)

    def finish(self, result: Any) -> None:
        """Hand the result to the onion."""
        self._settle(lambda: None if self.future.done() else self.future.set_result(result))

    def fail(self, error: Exception) -> None:
        """Hand the error to the onion."""
        if isinstance(error, StopIteration):
            wrapped = RuntimeError("the task's function raised StopIteration")
            wrapped.__cause__ = error
            error = wrapped
        self._settle(lambda: None if self.future.done() else self.future.set_exception(error))

    def _settle(self, how: Callable[[], Any]) -> None:
        self.future.get_loop().call_soon_threadsafe(how)


class CallerThread:
    """Runs bodies on the thread that called a plain task, while that thread waits for the onion."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()

    def start(self, job: Job) -> None:
        """Have the waiting thread run this."""
        self._jobs.put(job)

    def follow(self, onion: Spawned[Any]) -> None:
        """Stop waiting for jobs when this ends."""
        onion.future.add_done_callback(lambda _: self._jobs.put(None))

    def next_job(self) -> Job | None:
        """Wait for the next job; None means that there is none to come."""
        return self._jobs.get()

    def wait(self, onion: Spawned[T]) -> T:
        """Run bodies until the onion ends, and return what it returns."""
        self.follow(onion)
        interrupt: BaseException | None = None
        while True:
            try:
                job = self.next_job()
                if job is None:
                    break
                job.run()
                interrupt = job.interrupt or interrupt
            except KeyboardInterrupt as error:
                interrupt = error
                onion.cancel()
        if interrupt is not None:
            raise interrupt
        return onion.future.result()


class OwnThread:
    """Runs each body on a daemon thread of its own."""

    def start(self, job: Job) -> None:
        threading.Thread(target=job.run, name="apflow-body", daemon=True).start()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the loop that runs on this thread, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def start_on_portal(work: Coroutine[Any, Any, T]) -> Spawned[T]:
    """Run the onion of a plain task on the portal's loop, in the context of the caller.

    Raises:
        DeadlockError: This is the portal's own thread.
    """
    if portal.is_current():
        work.close()
        raise DeadlockError(
            "a plain task was called on apflow's own event loop, from the middleware of a plain task; "
            "write `await asyncio.to_thread(task, ...)` there"
        )
    return Spawned(portal.loop(), work, _context_of_blocked())


def blocked_here() -> frozenset[asyncio.AbstractEventLoop]:
    """Return the loops that cannot go on while the caller waits on its thread."""
    loop = running_loop()
    return blocked_loops.get() if loop is None else blocked_loops.get() | {loop}


def _context_of_blocked() -> contextvars.Context:
    """Return a copy of the current context that knows which loops the calling thread blocks."""
    context = contextvars.copy_context()
    context.run(blocked_loops.set, blocked_here())
    return context


def run_blocking(work: Coroutine[Any, Any, T]) -> T:
    """Run apflow's own coroutine, which runs no task body, on the portal's loop and wait for it."""
    if portal.is_current():
        work.close()
        raise DeadlockError("this would wait for apflow's own event loop on that loop; use `await` here")
    return Spawned(portal.loop(), work, contextvars.copy_context()).result()


def wait(work: Coroutine[Any, Any, T], *, inside_body: bool) -> T:
    """Run a coroutine of the user from plain code and wait for it.

    Args:
        work: May run async tasks.
        inside_body: The caller is the body of a plain task, which blocks the loop on its thread anyway.

    Raises:
        DeadlockError: The caller is a coroutine.
    """
    if portal.is_current() or (running_loop() is not None and not inside_body):
        work.close()
        raise DeadlockError("runtime.wait(...) would block the event loop that runs here; write `await ...`")
    return Spawned(_free_worker(blocked_here()), work, _context_of_blocked()).result()


def _free_worker(blocked: frozenset[asyncio.AbstractEventLoop]) -> asyncio.AbstractEventLoop:
    """Return the loop of the first worker that this chain of calls does not block."""
    with _growing:
        for thread in (worker, *_deeper):
            if thread.loop() not in blocked:
                return thread.loop()
        _deeper.append(LoopThread("apflow-worker"))
        return _deeper[-1].loop()


def _forget_after_fork() -> None:
    global _growing  # noqa: PLW0603 - another thread may have held it while forking
    _growing = threading.Lock()
    for thread in (portal, worker, *_deeper):
        thread.forget_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
