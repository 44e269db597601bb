"""Noticing the commits of others, by polling `PRAGMA data_version` on a connection of its own."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any

from apflow.errors import StorageBusyError, StorageError
from apflow.storage import sqlite_connection as connection
from apflow.storage.sqlite_fork import in_sqlite

if TYPE_CHECKING:
    from collections.abc import Callable

    from apflow.storage.store import Durability

POLL_SECONDS = (0.005, 0.05)


class Watcher:
    """Watches one database.

    Args:
        target: The database.
        durability: How its connection is set up.
        count: What counts the changes of a database in memory, which only its one connection sees.
    """

    def __init__(self, target: connection.Target, durability: Durability, count: Callable[[], Any]) -> None:
        self._target, self._durability, self._count = target, durability, count
        self._opening = threading.Lock()
        self._conn: sqlite3.Connection | None = None
        self._closed = False

    async def changed(self, seen: Any, timeout: float) -> Any:
        """Return another version than `seen` as soon as there is one, or `seen` after `timeout` seconds."""
        if self._conn is None and not self._target.memory:
            await asyncio.get_running_loop().run_in_executor(None, self._open)
        pause, longest = POLL_SECONDS
        deadline = time.monotonic() + timeout
        version = self._version(seen)
        while version == seen and time.monotonic() < deadline:
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, longest)
            version = self._version(seen)
        return version

    def _open(self) -> None:
        with self._opening, in_sqlite:
            if self._conn is None and not self._closed:
                self._conn = connection.connect_impatient(self._target, self._durability)

    def _version(self, seen: Any) -> Any:
        if self._target.memory:
            return self._count()
        try:
            with in_sqlite:
                if self._conn is None or self._closed:
                    raise StorageError("this store was closed")
                return self._conn.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.Error as error:
            outcome = connection.translated(error, self._target)
            if isinstance(outcome, StorageBusyError):
                return seen
            raise outcome from error

    def close(self) -> None:
        """End the watching."""
        with self._opening, in_sqlite:
            self._closed = True
            if self._conn is not None:
                self._conn.close()
                self._conn = None

    def let_go(self) -> None:
        """Close the connection for the moment of a fork."""
        if self._conn is not None:
            self._conn.close()

    def take_up(self) -> None:
        """Open again what `let_go` closed; the versions of the new connection are others."""
        if self._conn is not None:
            self._conn = None
            self._conn = connection.connect_impatient(self._target, self._durability)
