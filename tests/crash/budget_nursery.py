"""`python -m tests.crash.budget_nursery` forks workers that spend budgets, as `tests.crash.nursery` forks others."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from importlib import import_module

from apflow import AsyncTask, SyncTask
from tests.crash import budget_flows, budget_stress, budget_worker
from tests.crash.nursery import prepare, serve
from tests.crash.processes import Nursery

#: What apflow would load at the first governed run.
LAZY = ("budgets", "governor", "readers", "reporting", "reports", "reserving")


class BudgetNursery(Nursery):
    """The process that forks these workers."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.budget_nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


def prepare_budgets() -> None:
    """Do what costs time and is the same for all workers that spend."""
    for name in LAZY:
        import_module(f"apflow.governance.{name}")
    for task in (*vars(budget_flows).values(), *vars(budget_stress).values()):
        if isinstance(task, AsyncTask | SyncTask):
            assert task.definition.codec is not None
    prepare()


if __name__ == "__main__":
    prepare_budgets()
    mine = serve()
    if mine is not None:
        asyncio.run(getattr(budget_worker, mine["what"])(*mine["arguments"], **mine["options"]))
