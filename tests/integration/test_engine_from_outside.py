"""The task engine as a stranger meets it: the start-up code of the first design, and the example."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

PIPELINE = Path(__file__).parents[2] / "examples" / "pipeline.py"


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *command], capture_output=True, text=True, timeout=100, check=False
    )


def test_the_start_up_code_of_the_first_design_runs_as_written() -> None:
    Path("start.py").write_text(
        textwrap.dedent("""
        from apflow import create_session, TaskManager
        from apflow.core.execution.task_creator import TaskCreator
        from apflow.core.storage.sqlalchemy.task_repository import TaskRepository

        # Initialize apflow
        session = create_session()
        repo = TaskRepository(session)
        creator = TaskCreator(session)
        manager = TaskManager(session)

        import asyncio
        import apflow

        @apflow.task
        async def double(number: int) -> int:
            return number * 2

        async def main():
            tree = await creator.create_task_tree_from_array([{"name": "double", "inputs": {"number": 21}}])
            outcome = await manager.execute_task(tree.task.id)
            task = await repo.get_task_by_id(tree.task.id)
            print(outcome["status"], outcome["result"], task.status, task.result)

        asyncio.run(main())
        """)
    )
    done = run("start.py")
    assert (done.returncode, done.stdout, done.stderr) == (0, "completed 42 completed 42\n", "")
    assert Path("apflow.db").exists()


def test_the_pipeline_example_completes_and_its_mail_arrives() -> None:
    done = run(PIPELINE)
    assert (done.returncode, done.stderr) == (0, "")
    *tree, _, mail, tides, winds = done.stdout.splitlines()
    drawn = "\n".join(tree)
    assert drawn.count("done") == 8
    assert drawn.count("failed") == 1
    assert "apflow.BudgetExhaustedError" in drawn
    assert mail == "mail to reader@example.com: The weather"
    assert (tides, winds) == ("tides: Tides rise and fall twice a day", "winds: Winds blow from high pressure to low")
