"""Workers as a test sees them: started, watched, stopped and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.contract.raw_database import RawDatabase
from tests.crash import effects
from tests.crash.effects import Effect

PATIENCE_SECONDS = 60.0


class Nursery:
    """The process that forks workers. It kills those that are left when it ends."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C belongs to the test run, which then closes this
        )

    def ask(self, **order: Any) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(order) + "\n")
        stdin.flush()
        return json.loads(stdout.readline())

    def close(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0


class Worker:
    """One process."""

    def __init__(self, nursery: Nursery, pid: int, out: Path, err: Path) -> None:
        self.pid = pid
        self._nursery = nursery
        self._out, self._err = out, err
        self._status: int | None = None

    def poll(self) -> int | None:
        """Return its exit status, the negative number of the signal that killed it, or None while it lives."""
        if self._status is None:
            self._status = self._nursery.ask(poll=self.pid)
        return self._status

    def wait(self) -> int:
        until(lambda: self.poll() is not None, f"worker {self.pid} ends", self.troubles)
        assert self._status is not None
        return self._status

    def finish(self) -> Any:
        """Wait for its orderly end and return the last thing that it told."""
        assert self.wait() == 0, self.troubles()
        return self.told()[-1]

    def die(self) -> None:
        """Wait for the kill that it was to give itself."""
        assert self.wait() == -signal.SIGKILL, self.troubles()

    def told(self) -> list[Any]:
        """Return what it has told so far."""
        return [json.loads(line) for line in self._out.read_text().splitlines()]

    def send(self, number: int) -> None:
        """Send it a signal."""
        assert self.poll() is None, self.troubles()
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.wait()

    def troubles(self) -> str:
        return f"worker {self.pid}, exit status {self._status}: {self._err.read_text()}"


class Crew:
    """The workers of one test: one database, one folder, and a journal that they share unless told otherwise."""

    def __init__(self, nursery: Nursery, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self._nursery = nursery
        self._workers: list[Worker] = []

    def start(
        self,
        what: str,
        *arguments: Any,
        journal: str = "journal",
        point: str = "",
        gate: str = "",
        order: int = 0,
        **options: Any,
    ) -> Worker:
        """Start a worker: a function of `tests.crash.worker`, given the database and these arguments.

        Args:
            journal: Where it writes its effects.
            point: Where it kills itself.
            gate: What its functions wait for.
            order: Seed of the order in which it does what may be done in any order.
        """
        number = len(self._workers)
        out, err = (self.folder / f"{number}.{kind}" for kind in ("out", "err"))
        out.touch()
        err.touch()
        environment = {
            effects.JOURNAL: str(self.folder / journal),
            effects.POINT: point,
            effects.GATE: gate,
            "CRASH_ORDER": str(order),
        }
        pid = self._nursery.ask(
            what=what,
            arguments=[self.url, *arguments],
            options=options,
            environment=environment,
            out=str(out),
            err=str(err),
        )
        worker = Worker(self._nursery, pid, out, err)
        self._workers.append(worker)
        return worker

    def open(self, gate: str) -> None:
        """Let pass who waits at this gate."""
        (self.folder / gate).touch()

    def effects(self, journal: str = "journal") -> list[Effect]:
        return effects.effects(self.folder / journal)

    def done(self, journal: str = "journal") -> list[str]:
        """Return the effects without the processes that they come from."""
        return [one.what for one in self.effects(journal)]

    def until_done(self, *what: str, journal: str = "journal") -> None:
        """Wait until the journal has all these effects."""
        until(lambda: set(what) <= set(self.done(journal)), f"{what} are done", self.troubles)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        database = RawDatabase(self.url)
        with closing(database.connection):
            return database.rows(query)

    def until_rows(self, query: str, expected: list[tuple[Any, ...]]) -> None:
        """Wait until the query gives this answer."""
        until(lambda: self.rows(query) == expected, f"{query} gives {expected}", self.troubles)

    def until_settled(self) -> None:
        """Wait until PostgreSQL has finished what dead workers had sent; none may be alive."""
        if not self.url.startswith("sqlite"):
            others = "datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
            self.until_rows(f"SELECT COUNT(*) FROM pg_stat_activity WHERE {others}", [(0,)])

    def everything(self) -> dict[str, list[str]]:
        """Return all rows of all tables that runs are kept in."""
        return {
            table: sorted(map(repr, self.rows(f"SELECT * FROM {table}")))
            for table in ("apflow_tasks", "task_checkpoints")
        }

    def check_sound(self) -> None:
        """Have SQLite look at every page of its file."""
        if self.url.startswith("sqlite"):
            assert self.rows("PRAGMA integrity_check") == [("ok",)]

    def troubles(self) -> str:
        return "\n".join(worker.troubles() for worker in self._workers) + f"\n{self.effects()}"

    def dismiss(self) -> None:
        """Kill whoever is left, with all that they have forked."""
        for worker in self._workers:
            self._nursery.ask(dismiss=worker.pid)


def until(condition: Callable[[], bool], what: str, troubles: Callable[[], str] = str) -> None:
    """Wait for a condition, much longer than it can take unless something is wrong."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"it does not happen that {what}\n{troubles()}"
        time.sleep(effects.LOOK_SECONDS)
