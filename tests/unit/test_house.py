"""The house rules that a linter does not know."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import apflow

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
MODULES = sorted((ROOT / "apflow").rglob("*.py"))

FILE_LINES = 400
FUNCTION_LINES = 60
# What may be longer: its place, how long, and why. A function is written `file:name`.
EXCEPTIONS: dict[str, tuple[int, str]] = {
    "apflow/errors.py": (520, "the whole tree of errors stands in one file"),
    "apflow/task.py:task": (70, "the decorator's options, each with its line of documentation"),
}

UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError)\b|not implemented yet", re.IGNORECASE)
MACHINE_PATH = re.compile(r"""(?<![\w.])/(?:work|root|home|Users|tmp/\w)[/\w]*""")
URL = re.compile(r"https?://([\w.-]+)")
# Hosts that a text may name. A source worth citing is added here.
HOSTS = {
    *("127.0.0.1", "localhost", "api.example.com", "example.com", "example.org"),
    *("docs.python.org", "keepachangelog.com", "semver.org", "sqlite.org", "www.apache.org"),
    *("www.postgresql.org", "www.sqlite.org"),
}

HEAVY = {
    *("a2a", "alembic", "apcore", "apcore_a2a", "apcore_mcp", "httpx", "mcp", "psycopg"),
    *("pydantic", "rich", "sqlalchemy", "sqlmodel"),
}


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), path)


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def sizes() -> Iterator[tuple[str, int, int]]:
    """Yield the place, length and limit of every file and function of apflow, in lines."""
    for path in MODULES:
        yield place(path), len(path.read_text(encoding="utf-8").splitlines()), FILE_LINES
        for node in functions(path):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            yield f"{place(path)}:{node.name}", lines, FUNCTION_LINES


def texts() -> Iterator[tuple[str, int, str]]:
    """Yield place, number and text of every line that a stranger reads."""
    folders = ("apflow", "docs", "examples", "scripts", "tests", ".ci")
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*"))]
    found += [path for path in sorted(ROOT.iterdir()) if path.suffix in {".md", ".toml"}]
    for path in found:
        if path.is_file() and path.suffix != ".pyc" and path != Path(__file__):
            text = path.read_text(encoding="utf-8", errors="replace")
            for number, line in enumerate(text.splitlines(), 1):
                yield place(path), number, line


def test_rooms_are_small() -> None:
    too_long = [
        f"{where}: {lines} lines, at most {limit}"
        for where, lines, limit in sizes()
        if lines > EXCEPTIONS.get(where, (limit, ""))[0]
    ]
    assert too_long == []


def test_each_exception_is_needed_and_has_a_reason() -> None:
    over = {where for where, lines, limit in sizes() if lines > limit}
    assert set(EXCEPTIONS) - over == set()
    assert all(reason for _, reason in EXCEPTIONS.values())


def test_nothing_is_left_unfinished() -> None:
    found = [
        f"{where}:{number} {line.strip()}"
        for where, number, line in texts()
        if where.startswith("apflow/") and UNFINISHED.search(line)
    ]
    assert found == []


def test_the_library_never_prints() -> None:
    found = [
        f"{place(path)}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert found == []


@pytest.mark.parametrize(
    "leftover", ["see /home/ada/x", "/root/.cache", "in /tmp/w/venv", "https://files.internal.net/x"]
)
def test_leftovers_are_recognised(leftover: str) -> None:
    assert is_leftover(leftover)


@pytest.mark.parametrize("fine", ["tests/work/x", "http://127.0.0.1:8000/", "https://api.example.com/v1", "a/home/b"])
def test_ordinary_text_is_no_leftover(fine: str) -> None:
    assert not is_leftover(fine)


def test_no_file_names_a_machine() -> None:
    found = [f"{where}:{number} {line.strip()}" for where, number, line in texts() if is_leftover(line)]
    assert found == []


def is_leftover(line: str) -> bool:
    return bool(MACHINE_PATH.search(line)) or not HOSTS.issuperset(URL.findall(line))


def test_the_root_is_a_sorted_table_of_contents() -> None:
    assert apflow.__all__ == sorted(apflow.__all__)
    assert set(apflow.__all__) <= set(dir(apflow))
    for name in apflow.__all__:
        value = getattr(apflow, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__module__.partition(".")[0] == "apflow"


def test_the_root_defines_nothing_itself() -> None:
    root = tree(ROOT / "apflow" / "__init__.py")
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    defined = {node.name for node in root.body if isinstance(node, kinds)}
    assert defined <= {"__getattr__", "__dir__"}


def test_importing_and_decorating_loads_nothing_heavy(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, apflow\n"
        "@apflow.task(checkpoint=True)\n"
        "async def fetch(url: str) -> str: return url\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n",
        encoding="utf-8",
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert "apflow" in loaded
    assert HEAVY.isdisjoint(loaded)
