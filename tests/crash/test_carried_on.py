"""Who is carried on by a process that lives: what was accepted, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.crash.processes import Crew

OPEN = "SELECT inputs, status, epoch FROM apflow_tasks WHERE status = 'in_progress'"
ACCEPTED = "SELECT DISTINCT status, epoch FROM apflow_tasks WHERE accepted"
SCRIPT = """
import asyncio, os, signal, sys, time
import apflow

@apflow.task
async def work(n: int) -> str:
    if "die" in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.path.basename(__file__)

async def main() -> None:
    async with apflow.Runtime(sys.argv[1], lease_seconds=1) as runtime:
        if "die" in sys.argv:
            await work.submit(1)
            await asyncio.sleep(60)
        for _ in range(3):
            await runtime.recover()
        while "wait" in sys.argv and not await runtime.runs.count(status="completed"):
            await asyncio.sleep(0.01)

asyncio.run(main())
"""


def test_a_submitted_run_is_taken_over_at_once_and_a_call_only_when_asked(crew: Crew) -> None:
    names = ("keyed", "resumed", "the rest", "submitted", "submitted by a call", "submitted, plain")
    watchers = [crew.start("watch", "leave") for _ in range(2)]
    owner = crew.start("set_out", gate="never")
    crew.until_done(*(f"errand {name}" for name in names), "captain of submitted by a call")
    owner.kill()

    # The lease of the dead process lasts ten minutes; it is its death that counts.
    crew.until_rows(ACCEPTED, [("completed", 2)])
    calls = crew.rows("SELECT status, epoch FROM apflow_tasks WHERE NOT accepted")
    assert calls == [("in_progress", 1)] * 4
    crew.open("leave")
    assert [watcher.finish() for watcher in watchers] == [{"left": True}] * 2
    assert [crew.done().count(f"errand {name}") for name in names] == [1, 1, 1, 2, 2, 2]

    told = crew.start("carry_on").finish()
    me = told["keyed"].rpartition(" ")[2]
    heirs = {one.pid for one in crew.effects() if one.what == "errand submitted by a call"} - {owner.pid}
    assert told == {
        "unasked": [],
        "left": ["keyed", "resumed", "submitted by a call", "the rest"],
        "resumed": f"resumed by {me}",
        "keyed": f"keyed by {me}",
        "rest": [f"submitted by a call by {heirs.pop()}", f"the rest by {me}"],
    }
    assert [crew.done().count(f"errand {name}") for name in names] == [2] * 6
    assert crew.rows(OPEN) == []


def test_a_call_is_accepted_once_somebody_submits_it_with_its_key(crew: Crew) -> None:
    caller = crew.start("call_once", "first_waits", "call")
    crew.until_done("enters one")
    assert crew.start("join").wait() == 0
    assert crew.rows("SELECT status, accepted FROM apflow_tasks") == [("in_progress", True)]
    caller.kill()
    heir = crew.start("watch", "leave")
    crew.until_rows(ACCEPTED, [("completed", 2)])
    crew.open("leave")
    heir.finish()


def test_a_script_does_not_take_over_the_run_of_its_neighbour(sqlite_crew: Crew, tmp_path: Path) -> None:
    for name in ("first.py", "second.py"):
        (tmp_path / name).write_text(SCRIPT)

    def run(script: str, mode: str) -> int:
        command = [sys.executable, str(tmp_path / script), sqlite_crew.url, mode]
        return subprocess.run(command, env=os.environ, check=False, timeout=60).returncode

    row = "SELECT status, epoch, result FROM apflow_tasks"
    assert run("first.py", "die") == -9
    assert run("second.py", "look") == 0
    assert sqlite_crew.rows(row) == [("in_progress", 1, None)]
    assert run("first.py", "wait") == 0
    assert sqlite_crew.rows(row) == [("completed", 2, '"first.py"')]
