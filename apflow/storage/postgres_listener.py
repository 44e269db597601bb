"""Waiting for runs that other processes end: PostgreSQL's LISTEN on a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import Any

import psycopg

CHANNEL = "apflow_runs"


class Listener:
    """A thread that listens on a connection of its own and wakes whoever waits for a run."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._lock = threading.Lock()
        self._waiting: dict[str, set[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = {}
        self._listening = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="apflow-listener", daemon=True)
        self._thread.start()

    async def wait(self, run_id: str, seen: Any, timeout: float) -> Any:
        """Return at the next notification for `run_id`, or after `timeout` seconds, or a second when it is down."""
        loop = asyncio.get_running_loop()
        if seen is None:
            waiter = (loop, asyncio.Event())
            with self._lock:
                self._waiting.setdefault(run_id, set()).add(waiter)
            await loop.run_in_executor(None, self._listening.wait, 1.0)
            return waiter
        waiter = seen
        limit = timeout if self._listening.is_set() else min(timeout, 1.0)
        try:
            async with asyncio.timeout(limit):
                await waiter[1].wait()
        except TimeoutError:
            return waiter
        finally:
            waiter[1].clear()
        return waiter

    def forget(self, run_id: str, waiter: Any) -> None:
        """Wait for this run no longer."""
        with self._lock:
            waiters = self._waiting.get(run_id, set())
            waiters.discard(waiter)
            if not waiters:
                self._waiting.pop(run_id, None)

    def _work(self) -> None:
        while not self._closed:
            try:
                with psycopg.connect(self._conninfo, autocommit=True) as conn:
                    conn.execute(f"LISTEN {CHANNEL}")
                    self._listening.set()
                    self._wake_all()
                    while not self._closed:
                        for notice in conn.notifies(timeout=0.5):
                            self._wake(notice.payload)
            except psycopg.Error:
                self._listening.clear()
                if not self._closed:
                    time.sleep(0.5)

    def _wake_all(self) -> None:
        with self._lock:
            run_ids = list(self._waiting)
        for run_id in run_ids:
            self._wake(run_id)

    def _wake(self, run_id: str) -> None:
        with self._lock:
            waiters = list(self._waiting.get(run_id, ()))
        for loop, event in waiters:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(event.set)

    def close(self) -> None:
        self._closed = True
        self._thread.join(2.0)
