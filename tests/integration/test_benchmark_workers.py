"""The processes that the bench asks: they answer, or say in one line why not."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.benchmarks.sides import NotMeasuredError, Program, Worker

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("scenario", ["root", "child"])
def test_the_floor_answers_again_and_again(tmp_path: Path, scenario: str) -> None:
    floor = Worker(sys.executable, "floor_side", str(tmp_path / "f.db"), "NORMAL", log=tmp_path / "log")
    with closing(floor):
        for _ in range(2):
            sample = floor.measure(scenario, 3)
            assert 0 < sample.median < 10
            assert 0 < sample.mean < 10


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    floor = Worker(sys.executable, "floor_side", str(tmp_path / "no" / "f.db"), "NORMAL", log=tmp_path / "log")
    with closing(floor), pytest.raises(NotMeasuredError, match="unable to open database file"):
        floor.measure("root", 1)


def test_a_program_is_timed_until_its_first_line() -> None:
    script = "import time; print('done', flush=True); time.sleep(60)"
    assert Program(sys.executable, lambda: ["-c", script]).measure("first", 1).median < 30


def test_a_program_that_fails_says_why() -> None:
    with pytest.raises(NotMeasuredError, match="ZeroDivisionError"):
        Program(sys.executable, lambda: ["-c", "1 / 0"]).measure("first", 1)
