"""The runtime: a store, a clock, the onion's own parts, and what runs in the background."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Self, TypeVar

from apflow import portal
from apflow.clock import SystemClock
from apflow.definition import check_unique
from apflow.durability.circuit_breaker import CircuitBreakerRegistry
from apflow.durability.ownership import LeaseKeeper
from apflow.durability.recording import Recorder
from apflow.errors import RuntimeClosedError
from apflow.exposed import Exposed
from apflow.governed import Governed
from apflow.state import current_state
from apflow.storage.connect import create_session
from apflow.storage.owners import new_owner

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence
    from datetime import datetime, timedelta
    from types import TracebackType

    from apflow.background import Background
    from apflow.call import Middleware
    from apflow.clock import Clock
    from apflow.governance.policy import CostPolicy
    from apflow.options import Options, TaskDefinition
    from apflow.run import Run
    from apflow.runs import Runs
    from apflow.storage.store import Durability, Store

T = TypeVar("T")

RECOVERY_LIMIT = 10
SHORTEST_LEASE = 1.0


class Runtime(Governed, Exposed):
    """Where tasks run: a database and everything around it.

    Nothing has to be started: the default runtime is made at the first call. Use an explicit one as a context
    manager, `async with` or `with`; several in one process do not disturb each other.

    Args:
        database_url: `sqlite:///path`, `sqlite:///:memory:` or any libpq URI. None is `APFLOW_DATABASE_URL`, else
            `sqlite:///apflow.db` in the working directory. Or what `create_session` returned: leaving the runtime
            leaves it open, and it keeps the clock and the durability that it was made with.
        middleware: Layers around every call, the first outermost.
        policies: Cost policies that tasks refer to by name.
        user: User id of calls that name none.
        concurrency: How many submitted root runs run at once, at least 1; what they call waits for nothing.
        lease_seconds: After how many seconds of silence another machine may take a run over, at least 1.
        shutdown_seconds: How long leaving waits for submitted runs, and how long a plain function may take to
            notice that it has to stop.
        durability: `"normal"` survives any crash of the process, `"full"` a power failure too.
        clock: Where the time comes from; None is the machine's.
        recovery_limit: How often a run is taken over from processes that died without any progress.
        settings: What executors have to know and nobody may store, by executor id; `"secrets"` has what inputs of
            task trees name with `{"$secret": name}`.

    Raises:
        ValueError: A value is out of its range.
    """

    def __init__(
        self,
        database_url: str | Store | None = None,
        *,
        middleware: Sequence[Middleware] = (),
        policies: Sequence[CostPolicy] = (),
        user: str | None = None,
        concurrency: int = 100,
        lease_seconds: float = 30,
        shutdown_seconds: float = 10,
        durability: Durability = "normal",
        clock: Clock | None = None,
        recovery_limit: int = RECOVERY_LIMIT,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        _check(concurrency, lease_seconds, shutdown_seconds, durability, recovery_limit)
        self.user = user
        self.concurrency = concurrency
        self.lease_seconds = float(lease_seconds)
        self.shutdown_seconds = float(shutdown_seconds)
        self.middleware = tuple(middleware)
        self.settings: Mapping[str, Mapping[str, Any]] = dict(settings or {})
        self._keeps_store_open = not (database_url is None or isinstance(database_url, str))
        self.store: Store
        if database_url is None or isinstance(database_url, str):
            self.store = create_session(database_url, clock=clock, durability=durability)
        else:
            self.store, clock = database_url, clock or database_url.clock
        self.clock: Clock = clock or SystemClock()
        self.breakers = CircuitBreakerRegistry(clock=self.clock)
        self._recovery_limit = recovery_limit
        self._govern(policies)
        self._names: dict[str, TaskDefinition] = {}
        self.home: asyncio.AbstractEventLoop | None = None
        self._begin()
        _runtimes.add(self)

    def _begin(self) -> None:
        """Make what belongs to this process alone."""
        from apflow.background import Background

        self._ready = False
        self._closed = False
        self._closing = threading.Lock()
        self.keeper = LeaseKeeper(self.store, new_owner(), self.lease_seconds, self._tidy)
        self.recorder = Recorder(self.store, self.keeper, self.lease_seconds, self._recovery_limit, self._release_holds)
        self.background: Background = Background(self)

    def __repr__(self) -> str:
        return f"<apflow.Runtime {self.store.dialect}{' (closed)' if self._closed else ''}>"

    @property
    def closed(self) -> bool:
        """Whether it was left."""
        return self._closed

    @property
    def entered(self) -> bool:
        """Whether this is inside its `with` block."""
        return self in _entered

    # -- life ------------------------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Open the database at the first use.

        Raises:
            RuntimeClosedError: The runtime was left.
            StorageError: The database cannot be used.
        """
        if self._ready:
            return
        self.check_open()
        await self.store.open()
        self._ready = True
        self.keeper.start()

    async def __aenter__(self) -> Self:
        await self.ready()
        self.home = asyncio.get_running_loop()
        _enter(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _leave(self)
        await self.aclose()

    def __enter__(self) -> Self:
        portal.run_blocking(self.ready())
        _enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _leave(self)
        self.close()

    async def aclose(self) -> None:
        """Wait up to `shutdown_seconds` for runs submitted here, hand the rest back, and close the database."""
        if self._begin_to_close():
            await self.background.drain(self.shutdown_seconds)
            await asyncio.get_running_loop().run_in_executor(None, self._close_parts)

    def close(self) -> None:
        """Do what `aclose` does, from plain code."""
        if self._begin_to_close():
            self.background.drain_blocking(self.shutdown_seconds)
            self._close_parts()

    def _begin_to_close(self) -> bool:
        with self._closing:
            first = not self._closed
            self._closed = True
        return first

    def _close_parts(self) -> None:
        self._finish_late(self.shutdown_seconds)
        self.keeper.close()
        if not self._keeps_store_open:
            self.store.close()
        self._ready = False

    def forget_after_fork(self) -> None:
        """Begin anew in a forked child: another owner, no runs, connections of its own."""
        self.home = None
        self._forget_governing()
        if not self._closed:
            self._begin()

    def check_open(self) -> None:
        """Refuse new runs once the runtime was left.

        Raises:
            RuntimeClosedError: It was.
        """
        if self._closed:
            raise RuntimeClosedError("this runtime was left; call tasks inside its `with` block")

    # -- what calls need -------------------------------------------------------------------------------------

    def claim_name(self, definition: TaskDefinition) -> None:
        """Remember which task has this name here.

        Raises:
            DuplicateTaskError: Another one has it.
            TaskDefinitionError: Its results cannot be stored as its annotation says.
        """
        known = self._names.get(definition.name)
        if known is not definition:
            if known is not None:
                check_unique(known, definition)
            definition.codec.check_result()
            self._names[definition.name] = definition

    def task_named(self, name: str) -> TaskDefinition | None:
        """Return the task that has used this name here."""
        return self._names.get(name)

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine from plain code and return its result: `runtime.wait(runtime.runs.list())`.

        Raises:
            DeadlockError: An event loop runs on this thread: write `await` instead.
        """
        state = current_state()
        inside = state is not None and state.definition.colour in ("sync", "stream")
        return portal.wait(work, inside_body=inside)

    # -- runs ------------------------------------------------------------------------------------------------

    @property
    def runs(self) -> Runs:
        """Queries over the runs in the database, and what can be done with them."""
        from apflow.runs import Runs

        return Runs(self)

    async def recover(self, *, everything: bool = False) -> list[Run[Any]]:
        """Take over the interrupted runs whose task this process knows, and return their handles.

        Args:
            everything: Also runs that were merely called and died with their caller.
        """
        await self.ready()
        return await self.background.recover(everything=everything)

    async def prune(self, *, older_than: datetime | timedelta) -> int:
        """Delete finished trees of runs and return how many rows that were. Nothing is deleted by itself.

        Args:
            older_than: Trees whose root ended before that moment, or longer ago than that.
        """
        await self.ready()
        return await self.runs.prune(older_than)

    def _tidy(self) -> None:
        """Look for interrupted runs and release what dead ones hold, from the lease keeper's thread."""
        if self._ready and not self._closed:
            self.background.recover_from_thread()
            self._sweep()


def _check(
    concurrency: int, lease_seconds: float, shutdown_seconds: float, durability: str, recovery_limit: int
) -> None:
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, got {concurrency}")
    if not lease_seconds >= SHORTEST_LEASE:
        raise ValueError(f"lease_seconds must be at least {SHORTEST_LEASE:g}, got {lease_seconds}")
    if not shutdown_seconds >= 0:
        raise ValueError(f"shutdown_seconds must be at least 0, got {shutdown_seconds}")
    if durability not in ("normal", "full"):
        raise ValueError(f'durability must be "normal" or "full", got {durability!r}')
    if recovery_limit < 0:
        raise ValueError(f"recovery_limit must be at least 0, got {recovery_limit}")


_runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet()
_active: ContextVar[tuple[Runtime, ...]] = ContextVar("apflow_runtime", default=())
_entered: list[Runtime] = []
_default: list[Runtime] = []
_choosing = threading.Lock()


def _enter(runtime: Runtime) -> None:
    _active.set((*_active.get(), runtime))
    _entered.append(runtime)


def _leave(runtime: Runtime) -> None:
    _active.set(tuple(one for one in _active.get() if one is not runtime))
    if runtime in _entered:
        _entered.remove(runtime)


def runtime() -> Runtime:
    """Return the runtime that a call made here would use.

    That is the one whose `with` block this is, else (on another thread) the one that was entered last, else the
    default one, which is made now if need be.
    """
    for candidates in (_active.get(), _entered, _default):
        if candidates:
            return candidates[-1]
    with _choosing:
        if not _default:
            _default.append(Runtime())
        return _default[-1]


def runtime_over(store: Store) -> Runtime | None:
    """Return a runtime of this process that uses this very store, the current run's before any other, or None."""
    state = current_state()
    candidates = [*([] if state is None else [state.runtime]), *_active.get()[::-1], *list(_runtimes)]
    return next((one for one in candidates if one.store is store and not one.closed), None)


def configure(
    database_url: str | None = None,
    *,
    middleware: Sequence[Middleware] = (),
    policies: Sequence[CostPolicy] = (),
    user: str | None = None,
    concurrency: int = 100,
    lease_seconds: float = 30,
    shutdown_seconds: float = 10,
    durability: Durability = "normal",
    clock: Clock | None = None,
    recovery_limit: int = RECOVERY_LIMIT,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Runtime:
    """Make the default runtime with these options, in place of an earlier one, and return it. See `Runtime`."""
    made = Runtime(
        database_url,
        middleware=middleware,
        policies=policies,
        user=user,
        concurrency=concurrency,
        lease_seconds=lease_seconds,
        shutdown_seconds=shutdown_seconds,
        durability=durability,
        clock=clock,
        recovery_limit=recovery_limit,
        settings=settings,
    )
    with _choosing:
        former = _default[:]
        _default[:] = [made]
    for one in former:
        one.close()
    return made


def runtime_for(options: Options) -> Runtime:
    """Return where a root call with these options runs.

    Raises:
        RuntimeClosedError: That runtime was left.
    """
    chosen = options.runtime or runtime()
    chosen.check_open()
    return chosen


def _close_all() -> None:
    """Hand everything back when the interpreter ends."""
    for one in list(_runtimes):
        one.close()


def _forget_after_fork() -> None:
    global _choosing  # noqa: PLW0603 - another thread may have held it while forking
    _choosing = threading.Lock()
    for one in list(_runtimes):
        one.forget_after_fork()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
