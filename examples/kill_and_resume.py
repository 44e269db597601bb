"""The demo's stage: kill one worker process, let another finish, and show what each of the two really did."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sqlite3
from asyncio.subprocess import PIPE, Process
from dataclasses import dataclass
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import apflow

JOURNAL = "APFLOW_DEMO_JOURNAL"
LOOK_EVERY_SECONDS = 0.1


class Execution(NamedTuple):
    """One entry into the body of a step, and the tokens for which its model was paid; None when it never answered."""

    step: str
    run_id: str
    tokens: int | None


class Journal:
    """Every entry into the body of a step, appended to a SQLite file of its own.

    This is what makes the last lines of the demo honest. The file stands for the outside world (an invoice,
    a letter), which no engine can take back. The body itself writes to it, first of all and once more when its
    model has answered, committed at once, so a SIGKILL cannot hide an execution. apflow neither reads nor writes
    it, and steps are told apart by what they do and not by their run id: a step that apflow wrongly ran again
    shows up here, whatever `apflow_tasks` says of it.
    """

    def __init__(self, path: Path) -> None:
        # WAL, and a connection that stays: a worker that is held still in a write, or while it closes the file, would
        # keep everybody else from reading otherwise.
        self._connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        self._run("PRAGMA journal_mode=WAL")
        columns = "number INTEGER PRIMARY KEY, run_id, attempt, pid, step, tokens INTEGER"
        self._run(f"CREATE TABLE IF NOT EXISTS executions ({columns})")

    @staticmethod
    @functools.cache
    def of_this_process() -> Journal:
        """Return the journal that the environment names; workers inherit it."""
        return Journal(Path(os.environ[JOURNAL]))

    def enter(self, step: str) -> None:
        """Record that the body of the current run is entered now, by this process, and print it."""
        run = apflow.current()
        self._run(
            "INSERT INTO executions (run_id, attempt, pid, step) VALUES (?, ?, ?, ?)",
            (run.task_id, run.attempt, os.getpid(), step),
        )
        print(f"runs {step}", flush=True)

    def pay(self, tokens: int) -> None:
        """Record what the model of the current run took for the answer that it has just given."""
        newest = "SELECT max(number) FROM executions WHERE run_id = ?"
        values = (tokens, apflow.current().task_id)
        self._run(f"UPDATE executions SET tokens = coalesce(tokens, 0) + ? WHERE number = ({newest})", values)

    def executions(self) -> list[Execution]:
        """Return all entries in their order."""
        rows = self._run("SELECT step, run_id, tokens FROM executions ORDER BY number")
        return [Execution(*row) for row in rows]

    def _run(self, sql: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql, values).fetchall()


@dataclass(frozen=True)
class Play:
    """One demonstration.

    Attributes:
        console: Where it is shown.
        runtime: Reads the workers' database; runs no task itself.
        journal: What the workers really did.
        command: Starts a worker.
        steps: How many steps the agent has.
    """

    console: Console
    runtime: apflow.Runtime
    journal: Journal
    command: list[str]
    steps: int

    async def kill_and_resume(self, *, kill_at: int, unit: str) -> int | None:
        """Kill a worker once `kill_at` steps are stored and another is in flight; let a second one finish.

        Returns how many finished steps of the first were run again by the second, or None when the first was
        not killed midway or the second did not finish.
        """
        status = await self.live("process 1", kill_at)
        done, first = await self.done(), self.journal.executions()  # The worker is dead: both are final.
        if status != -SIGKILL or not done or first[0].step in done:
            self.say("parent", "could not kill the worker midway, so there is nothing to show")
            return None
        await self.live("process 2")
        second = self.journal.executions()[len(first) :]
        rows = await self.rows()
        root = rows[first[0].run_id]
        if root.status != "completed":
            self.say("parent", f"sees that the agent did not finish: {root.status}, {root.error}")
            return None
        self.console.print(f"\nThe answer: {root.result}\n", markup=False, highlight=False)
        self.console.print(table(first, second, done, rows, unit))
        return sum(entry.step in done for entry in second)

    async def live(self, name: str, kill_at: int | None = None) -> int:
        """Run a worker until it ends, or kill it when `kill_at` steps are stored and another is in flight.

        Returns its exit status, the negative number of the signal when it was killed.
        """
        worker = await asyncio.create_subprocess_exec(*self.command, stdout=PIPE)
        self.say(name, f"starts, pid {worker.pid}")
        with self.bar() as bar:
            relay = asyncio.create_task(self.relay(name, worker.stdout))
            try:
                await self.watch(worker, bar, name, kill_at)
            finally:
                with contextlib.suppress(ProcessLookupError):  # It may have ended by itself.
                    worker.kill()
                status = await worker.wait()
                await relay
        self.say(name, "is dead (SIGKILL)" if status == -SIGKILL else f"ends, exit status {status}")
        return status

    async def watch(self, worker: Process, bar: Progress, name: str, kill_at: int | None) -> None:
        """Show what the database says until the worker ends or it is time to kill it."""
        shown, seen = bar.add_task(name, total=self.steps), await self.done()
        while worker.returncode is None:
            done = await self.done()
            begun = list(dict.fromkeys(entry.step for entry in self.journal.executions()))[1:]
            for step in begun:
                if step in done - seen:
                    self.say("database", f"has the result of {step}")
            bar.update(shown, completed=len(done))
            if kill_at is not None and len(done) >= kill_at and begun and await self.in_flight(worker, name, begun):
                return
            seen = done
            await asyncio.sleep(LOOK_EVERY_SECONDS)

    async def in_flight(self, worker: Process, name: str, begun: list[str]) -> bool:
        """Hold the worker still and look; leave it still when it is in the middle of a step."""
        worker.send_signal(SIGSTOP)  # Otherwise the step could end between this look and the kill.
        done = await self.done()
        if in_flight := [step for step in begun if step not in done]:
            self.say("parent", f"kills {name} in the middle of {', '.join(in_flight)}")
            return True
        worker.send_signal(SIGCONT)
        return False

    async def rows(self) -> dict[str, Any]:
        """Return the rows of the agent's run and of its steps in `apflow_tasks`, by run id."""
        entered = self.journal.executions()
        if not entered:
            return {}
        tree = await self.runtime.runs.tree(entered[0].run_id)  # The agent's own run enters its body first.
        return {row.id: row for row in tree.walk()}

    async def done(self) -> set[str]:
        """Return the steps that are stored as completed."""
        rows = await self.rows()
        completed = {run_id for run_id, row in rows.items() if row.status == "completed"}
        return {entry.step for entry in self.journal.executions() if entry.run_id in completed}

    async def relay(self, name: str, lines: asyncio.StreamReader | None) -> None:
        """Show what a worker prints, as it prints it."""
        while lines and (line := await lines.readline()):
            self.say(name, line.decode(errors="replace").rstrip())

    def say(self, name: str, what: str) -> None:
        """Print one line about a process, above the bar."""
        self.console.print(f"[bold]{name:9}[/]  {escape(what)}", highlight=False, soft_wrap=True)

    def bar(self) -> Progress:
        """Return a progress bar; a terminal shows it, a log file does not."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        return Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)


def table(first: list[Execution], second: list[Execution], done: set[str], rows: dict[str, Any], unit: str) -> Table:
    """Return one line per step: what each process did with it, how long it took and what it cost."""
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, expand=True)
    shown.add_column("step", no_wrap=True, ratio=1)
    for heading in ("process 1", "process 2"):
        shown.add_column(heading, no_wrap=True, min_width=len(heading))
    for heading in ("seconds", unit):
        shown.add_column(heading, no_wrap=True, min_width=8, justify="right")
    early, late = {entry.step for entry in first}, {entry.step for entry in second}
    spared = 0
    for step, run_id in {entry.step: entry.run_id for entry in first + second}.items():
        row = rows[run_id]
        took = (row.completed_at - row.started_at).total_seconds()
        counts = [row.token_usage[name] for name in ("input", "output")] if row.token_usage else []
        spared += sum(counts) if step in done - late else 0
        did = acts(finished=step in done, early=step in early, late=step in late)
        shown.add_row(escape(step), *did, f"{took:.2f}", " + ".join(map(str, counts)))
    shown.caption = f"{spared} {unit} were not spent again"
    return shown


def acts(*, finished: bool, early: bool, late: bool) -> tuple[str, str]:
    """Return what the two processes did with a step that process 1 `finished` or not.

    Args:
        finished: Its result was stored when process 1 was killed.
        early: Process 1 entered its body.
        late: Process 2 entered its body.
    """
    if finished:
        return "ran", "[bold red]REPEATED[/]" if late else "[green]replayed[/]"
    if early:
        return "[yellow]cut off[/]", "re-run" if late else "-"
    return "-", "ran"
