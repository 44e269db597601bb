"""What a runtime of a worker is made of: a store that kills its process, and a clock that stands still."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

from apflow import Runtime, Store
from apflow.storage.store import Tx
from tests.crash.effects import JOURNAL, effect, reach

T = TypeVar("T")

START = datetime(2030, 1, 1, tzinfo=UTC)


class Writes:
    """Numbers the writes of a store from 1 and dies at the point `write N inside` or `write N stored`."""

    def __init__(self, store: Store) -> None:
        self.number = 0
        self._write = store.write
        setattr(store, "write", self.write)  # noqa: B010 - the rest of the store stays as it is

    async def write(self, fn: Callable[[Tx], T], *, single: bool = False) -> T:
        self.number += 1
        number = self.number

        def watched(tx: Tx) -> T:
            result = fn(tx)
            reach(f"write {number} inside")
            return result

        result = await self._write(watched, single=single)
        reach(f"write {number} stored")
        return result


def hold_renewals(store: Store) -> None:
    """Never let a lease be renewed, so that the process does not learn that it lost its runs."""

    def never(fn: Callable[[Tx], Any]) -> Any:
        threading.Event().wait()

    setattr(store, "write_blocking", never)  # noqa: B010 - the rest of the store stays as it is


def hold_housekeeping(runtime: Runtime) -> None:
    """Never let interrupted runs be taken over unless somebody asks for it."""
    setattr(runtime.background, "recover_from_thread", lambda: None)  # noqa: B010 - the rest stays as it is


class StillClock:
    """Stands at the second that a file names, so that a wait can be read to the second; it ends at once.

    The process dies at the point `sleep N`, in its N-th wait.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._sleeps = 0

    @classmethod
    def given(cls) -> Self | None:
        """Return the clock when the test has made its file."""
        file = Path(os.environ[JOURNAL]).with_name("time")
        return cls(file) if file.exists() else None

    def monotonic(self) -> float:
        return float(self._file.read_text())

    def now(self) -> datetime:
        return START + timedelta(seconds=self.monotonic())

    async def sleep(self, seconds: float) -> None:
        self._sleeps += 1
        effect(f"sleeps {seconds:g}")
        reach(f"sleep {self._sleeps}")
