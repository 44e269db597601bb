"""`python -m tests.crash.nursery` forks workers on demand, from a process that has imported all and started nothing.

Hundreds of processes live and die in these tests. To import apflow, pydantic and psycopg in each of them would take
half a second of processor time every time.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from apflow import AsyncTask, SyncTask
from tests.crash import flows, tree_flows, voyage, worker

#: What apflow would load at its first use.
LAZY = (
    *("background", "mapping", "storage.postgres", "storage.schema", "storage.sqlite_store", "streams", "submission"),
    *("engine.tree_run", "executors.aggregate", "storage.repository", "storage.tables"),
    *("governance.attach", "governance.governor", "governance.reporting", "governance.reserving"),
)


def prepare() -> None:
    """Do what costs time and is the same for all workers."""
    for name in LAZY:
        import_module(f"apflow.{name}")
    import_module("jsonschema")
    for task in (*vars(flows).values(), *vars(tree_flows).values(), *vars(voyage).values()):
        if isinstance(task, AsyncTask | SyncTask):
            assert task.definition.codec is not None
    gc.collect()
    gc.freeze()


def serve() -> dict[str, Any] | None:
    """Answer each line on standard input; return the order in the worker that it makes, None at the end."""
    workers: set[int] = set()
    while line := sys.stdin.readline():
        order: dict[str, Any] = json.loads(line)
        answer = None
        if "poll" in order:
            answer = status(order["poll"])
        elif "dismiss" in order:
            dismiss(order["dismiss"])
            workers.remove(order["dismiss"])
        else:
            answer = os.fork()
            if answer == 0:
                become_worker(order)
                return order
            workers.add(answer)
        print(json.dumps(answer), flush=True)  # noqa: T201 - this is how it answers
    for pid in workers:
        dismiss(pid)
    return None


def status(pid: int) -> int | None:
    """Return how a worker ended, or None. Its number stays its own until it is dismissed."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def dismiss(pid: int) -> None:
    """Kill a worker, if it lives, and whatever it has forked."""
    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it died before it had a group
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def become_worker(order: dict[str, Any]) -> None:
    """Have a group, streams and an environment of its own, and take Ctrl-C as a program at a terminal does."""
    os.setpgrp()
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, path in ((1, order["out"]), (2, order["err"])):
        os.dup2(os.open(path, flags), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(order["environment"])
    os.chdir(Path(order["out"]).parent)
    signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    prepare()
    mine = serve()
    if mine is not None:
        work = getattr(worker, mine["what"])(*mine["arguments"], **mine["options"])
        if work is not None:
            asyncio.run(work)
