"""Keeps SQLite and forks apart.

SQLite keeps books on the locks of a process and has mutexes for all of it. A forked child inherits both. By the
books it holds locks that are its parent's, so it takes none of its own, and what it commits is lost when the parent
closes the database. A mutex that another thread holds at that moment stays locked in the child for ever.

So before a fork every store closes its connections, once no thread is inside SQLite, and opens them again after it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Protocol

from apflow.errors import StorageError

if TYPE_CHECKING:
    from types import TracebackType

logger = logging.getLogger(__name__)

#: A fork waits no longer for a thread, which is most likely waiting for another process itself.
PATIENCE_SECONDS = 5.0


class Forkable(Protocol):
    """A store as a fork sees it."""

    lock: threading.Lock

    def let_go(self) -> None:
        """Close every connection. Its lock is held, and nobody is inside `in_sqlite`."""
        ...

    def take_up(self) -> None:
        """Open again what `let_go` closed."""
        ...


class _InSQLite:
    """`with in_sqlite:` around whatever is done to SQLite without holding the lock of a store."""

    def __init__(self) -> None:
        self._stores: weakref.WeakSet[Forkable] = weakref.WeakSet()
        self._start_empty()

    def _start_empty(self) -> None:
        self._turn = threading.Lock()
        self._lock = threading.Lock()
        self._left = threading.Condition(self._lock)
        self._inside = 0
        self._held: list[Forkable] = []
        self._closed: list[Forkable] = []

    def include(self, store: Forkable) -> None:
        """Have forks wait for this store, which waits for a fork that is going on."""
        with self._turn:
            self._stores.add(store)

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._left.notify_all()

    def before_fork(self) -> None:
        """Wait until nobody is inside SQLite, let nobody in, and close what is open."""
        self._turn.acquire()
        deadline = time.monotonic() + PATIENCE_SECONDS
        stores = list(self._stores)
        # The locks come first: who holds one may want in, and who is in never waits for one.
        self._held = [store for store in stores if store.lock.acquire(timeout=_rest(deadline))]
        self._lock.acquire()
        alone = self._left.wait_for(lambda: not self._inside, _rest(deadline))
        if len(self._held) < len(stores) or not alone:
            logger.warning("this process forks while it uses SQLite; the child should not use the same database")
        self._closed = self._held if alone else []
        for store in self._closed:
            store.let_go()

    def after_fork_in_parent(self) -> None:
        """Go on as before."""
        for store in self._closed:
            try:
                store.take_up()
            except StorageError as error:  # its next user opens it
                logger.warning("a database was not opened again after a fork (%s)", type(error).__name__)
        for store in self._held:
            store.lock.release()
        self._held = self._closed = []
        self._lock.release()
        self._turn.release()

    def after_fork_in_child(self) -> None:
        """Begin anew: no other thread has come along, and every store has another lock."""
        self._start_empty()


def _rest(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


in_sqlite = _InSQLite()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=in_sqlite.before_fork,
        after_in_parent=in_sqlite.after_fork_in_parent,
        after_in_child=in_sqlite.after_fork_in_child,
    )
