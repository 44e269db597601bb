"""apcore's own command line works on a registry of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys

import apflow
from apcore_cli import create_cli


@apflow.task
async def repeat(text: str, times: int = 2, loud: bool = False) -> str:
    '''Say it again.'''
    return (text.upper() if loud else text) * times


create_cli(registry=apflow.runtime().registry, prog_name="ours")()
"""


@pytest.fixture(autouse=True)
def _program(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")


def ours(folder: Path, *args: str) -> str:
    # It keeps a log of calls in the home folder.
    env = os.environ | {"HOME": str(folder)}
    command = [sys.executable, "program.py", *args]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_apcore_cli_lists_tasks_and_calls_them_with_flags(tmp_path: Path) -> None:
    assert "repeat" in ours(tmp_path, "apcli", "list", "--format", "json")
    answer = json.loads(ours(tmp_path, "repeat", "--text", "ab", "--times", "3", "--loud", "--format", "json"))
    assert answer == {"result": "ABABAB"}
