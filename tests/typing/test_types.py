"""What type checkers say about tasks: every right use passes, every wrong one is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
USES = ["tests/typing/right.py", "tests/typing/wrong.py"]
# The two modules whose hints say it all. pyright is not asked about the rest of apflow.
HINTS = ["apflow/kinds.py", "apflow/task.py"]


def report_of(checker: str, *arguments: str) -> str:
    """Return what a checker prints when it finds something, and nothing when it does not."""
    command = [sys.executable, "-m", checker, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


def test_mypy_strict() -> None:
    assert report_of("mypy", "--follow-imports=silent", *USES) == ""


@pytest.mark.timeout(300)
def test_pyright_strict() -> None:
    assert report_of("pyright", *USES, *HINTS) == ""


def test_a_mark_that_is_not_needed_is_an_error(tmp_path: Path) -> None:
    accepted = tmp_path / "accepted.py"
    marks = "# type: ignore[arg-type]  # pyright: ignore[reportArgumentType]"
    accepted.write_text(f"from tests.typing.right import add\n\nadd(1)  {marks}\n", encoding="utf-8")
    assert "unused-ignore" in report_of("mypy", "--follow-imports=silent", str(accepted))
    assert "Unnecessary" in report_of("pyright", "--project", str(ROOT), str(accepted))
