"""What workers do to the world outside the database, and the points at which they kill themselves."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

#: Environment of a worker: its journal, the point at which it kills itself, the gate that it waits at.
JOURNAL = "CRASH_JOURNAL"
POINT = "CRASH_POINT"
GATE = "CRASH_GATE"
LOOK_SECONDS = 0.01


class Effect(NamedTuple):
    """One line of a journal."""

    pid: int
    what: str


def effect(what: str) -> None:
    """Append a line to the journal, in one write: a kill can neither tear it nor take it back."""
    line = f"{os.getpid()} {what}\n".encode()
    journal = os.open(os.environ[JOURNAL], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(journal, line)
    finally:
        os.close(journal)


def effects(journal: Path | None = None) -> list[Effect]:
    """Return all lines of a journal, of this worker's own when none is given."""
    path = journal or Path(os.environ[JOURNAL])
    lines = path.read_text().splitlines() if path.exists() else []
    return [Effect(int(pid), what) for pid, what in (line.split(" ", 1) for line in lines)]


def done() -> list[str]:
    """Return what this journal says has been done, by whomever."""
    return [one.what for one in effects()]


def reach(point: str) -> None:
    """Die here if this is the point."""
    if os.environ.get(POINT) == point:
        os.kill(os.getpid(), signal.SIGKILL)


def exists(name: str) -> bool:
    """Whether there is a file with this name beside the journal."""
    return Path(os.environ[JOURNAL]).with_name(name).exists()


def is_open() -> bool:
    """Whether there is no gate, or the test has opened it."""
    name = os.environ.get(GATE)
    return not name or exists(name)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    while not condition():  # noqa: ASYNC110 - no event crosses processes
        await asyncio.sleep(LOOK_SECONDS)


async def gate() -> None:
    """Wait until the gate is open."""
    await until(is_open)


def plain_gate() -> None:
    """Do what `gate` does in a plain function."""
    while not is_open():
        time.sleep(LOOK_SECONDS)
