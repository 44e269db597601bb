"""The runtime that nobody made: where it is, how often a loop may come and go, and how its process ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import apflow
from apflow import Run, Runtime
from apflow.runtime import _default


@apflow.task
def add(first: int, second: int = 1) -> int:
    return first + second


@apflow.task
async def add_later(first: int, second: int = 1) -> int:
    await asyncio.sleep(0)
    return first + second


@pytest.fixture(autouse=True)
def _no_default_runtime() -> Iterator[None]:
    """Neither find one nor leave one."""
    _default.clear()
    yield
    for runtime in _default:
        runtime.close()
    _default.clear()


def rows(file: str | Path = "apflow.db") -> list[tuple[str, str, str | None]]:
    """What another program sees: name, status, and the lease, of each run."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        return connection.execute(
            "SELECT name, status, lease_expires_at FROM apflow_tasks ORDER BY created_at"
        ).fetchall()


def run_script(text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in this folder to its end."""
    Path("script.py").write_text(textwrap.dedent(text))
    return subprocess.run(
        [sys.executable, "-W", "error", "script.py"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_it_is_made_by_the_first_call_in_the_working_directory() -> None:
    assert not Path("apflow.db").exists()
    assert add(1) == 2
    assert rows() == [("add", "completed", None)]


def test_its_url_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APFLOW_DATABASE_URL", f"sqlite:///{tmp_path}/elsewhere.db")
    assert add(1) == 2
    assert rows(tmp_path / "elsewhere.db") == [("add", "completed", None)]
    assert not Path("apflow.db").exists()


def test_configure_takes_the_place_of_the_earlier_one() -> None:
    first = apflow.configure("sqlite:///first.db", user="ada")
    assert apflow.runtime() is first
    add(1)
    second = apflow.configure("sqlite:///second.db")
    add(1)
    add(2)
    assert len(rows("first.db")) == 1
    assert len(rows("second.db")) == 2
    assert second.user is None
    with pytest.raises(apflow.RuntimeClosedError):
        first.check_open()


def test_a_runtime_that_is_entered_goes_before_the_default_one() -> None:
    apflow.configure("sqlite:///default.db")
    with Runtime("sqlite:///entered.db"):
        add(1)
    add(1)
    assert len(rows("entered.db")) == len(rows("default.db")) == 1


def test_loops_may_come_and_go() -> None:
    async def main() -> int:
        run = await add_later.submit(1)
        return await add_later(1) + await run + add(1)

    assert [asyncio.run(main()) for _ in range(3)] == [6, 6, 6]
    assert {status for _, status, _ in rows()} == {"completed"}


@pytest.mark.parametrize("begun", [False, True])
def test_a_loop_that_ends_too_early_interrupts_what_was_submitted_on_it(begun: bool) -> None:
    lives = 0

    @apflow.task
    async def long() -> int:
        nonlocal lives
        lives += 1
        if lives == begun:
            await asyncio.sleep(60)
        return lives

    async def main() -> Run[int]:
        run = await long.submit()
        if begun:
            await asyncio.sleep(0.05)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        return run

    run = asyncio.run(main())
    with pytest.raises(apflow.RunInterruptedError):
        run.result(timeout=10)
    assert run.status == "interrupted"
    assert rows() == [("long", "in_progress", None)]
    resumed = apflow.runtime().wait(apflow.runtime().runs.resume(run.id))
    assert resumed.result(timeout=30) == 1 + begun


def test_the_first_look_leaves_alone_what_was_handed_back_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look at the start is late on a busy machine: the loop has come and gone before it."""
    handed_back, looked = threading.Event(), threading.Event()
    tidy = Runtime._tidy

    def late(runtime: Runtime) -> None:
        assert handed_back.wait(30)
        tidy(runtime)
        looked.set()

    monkeypatch.setattr(Runtime, "_tidy", late)

    @apflow.task
    async def long() -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        await long.submit()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    asyncio.run(main())
    handed_back.set()
    assert looked.wait(30)
    assert apflow.runtime().wait(apflow.runtime().background.recover(everything=False, own=False)) == []
    assert rows() == [("long", "in_progress", None)]


def test_a_script_ends_after_its_last_line() -> None:
    done = run_script("""
        import asyncio
        import apflow

        @apflow.task
        def add(first: int, second: int = 1) -> int:
            return first + second

        @apflow.task
        async def add_later(first: int) -> int:
            return add(first)

        assert add(1) == 2
        assert add.submit(1).result() == 2
        assert list(add.map([1, 2])) == [2, 3]
        assert asyncio.run(add_later(1)) == 2
        assert apflow.runtime().wait(add_later(1)) == 2
        print("done")
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    assert {status for _, status, _ in rows()} == {"completed"}


def test_a_script_that_ends_waits_for_what_it_submitted() -> None:
    done = run_script("""
        import time
        import apflow

        @apflow.task
        def slow() -> None:
            time.sleep(0.5)

        slow.submit()
    """)
    assert (done.returncode, done.stderr) == (0, "")
    assert rows() == [("slow", "completed", None)]


@pytest.mark.parametrize("polite", [True, False])
def test_a_script_hands_back_what_it_cannot_wait_for(polite: bool) -> None:
    done = run_script(
        """
        import os
        import threading
        import time
        import apflow

        apflow.configure(shutdown_seconds=0.5)
        begun = threading.Event()

        @apflow.task
        def endless() -> None:
            begun.set()
            while not (os.environ["POLITE"] and apflow.current().cancelled):
                time.sleep(0.01)

        endless.submit()
        begun.wait()
        """,
        POLITE="yes" if polite else "",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert rows() == [("endless", "in_progress", None)]


def test_a_coroutine_may_use_a_runtime_as_a_plain_context_manager() -> None:
    """Leaving it blocks the loop, so what was submitted on that loop cannot be waited for: it is handed back."""

    @apflow.task
    async def long() -> None:
        await asyncio.sleep(60)

    async def main() -> Run[None]:
        with Runtime("sqlite:///plain.db", shutdown_seconds=300):
            run = await long.submit()
            await asyncio.sleep(0.05)
        return run

    run = asyncio.run(main())
    assert rows("plain.db") == [("long", "in_progress", None)]
    with pytest.raises(apflow.RunInterruptedError):
        run.result(timeout=0)
