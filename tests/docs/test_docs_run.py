"""Every Python block of the README and of docs/ runs.

A block that cannot be run says why after its fence: "```python no-run: needs an API key".
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.run_page import Block, blocks

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def python_blocks(page: Path) -> list[Block]:
    return [block for block in blocks(page.read_text(encoding="utf-8")) if block.is_python]


def run_page(page: Path) -> subprocess.CompletedProcess[str]:
    """Run a page in a process of its own, in the current (temporary) folder, warnings as errors."""
    command = [sys.executable, "-W", "error", "-m", "tests.docs.run_page", str(page)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path) -> None:
    done = run_page(page)
    assert done.returncode == 0, done.stderr


def test_the_readme_has_something_to_run() -> None:
    assert any(block.runs for block in python_blocks(ROOT / "README.md"))


def test_each_block_runs_or_says_why_not() -> None:
    silent = [
        f"{page.relative_to(ROOT)}:{block.line} ```{block.info}"
        for page in PAGES
        for block in python_blocks(page)
        if not block.runs and not (block.info.startswith("python no-run:") and block.reason)
    ]
    assert silent == []


def test_a_failing_block_names_its_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n```python\nx = 1\n```\ntext\n```python\n\nassert x == 2\n```\n", encoding="utf-8")
    done = run_page(page)
    assert done.returncode == 1
    assert f'{page}", line 9' in done.stderr


def test_blocks_share_names_and_may_await(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nimport asyncio\nclass Box:\n    full = True\n```\n"
        "- a list\n\n  ```python\n  await asyncio.sleep(0)\n  seen = Box.full\n  ```\n"
        "```bash\nexit 1\n```\n```python no-run: never\n1 / 0\n```\n"
        "```python\nassert __name__ == '__main__'\nprint(seen)\n```\n",
        encoding="utf-8",
    )
    done = run_page(page)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
