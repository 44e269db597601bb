"""The names that `import apflow` gives."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import apflow
from apflow import errors

ROOT = Path(__file__).parent.parent.parent


def output_of(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_error_is_exported_under_its_public_name() -> None:
    named = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert named <= set(apflow.__all__)
    for name in named:
        assert repr(getattr(apflow, name)) == f"<class 'apflow.{name}'>"


def test_an_error_of_the_user_keeps_its_module() -> None:
    class MyError(apflow.ApflowError):
        pass

    assert MyError.__module__ == __name__


def test_all_can_be_imported() -> None:
    assert output_of("from apflow import *; print(task.__name__, runtime.__name__)") == "task runtime"


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'apflow' has no attribute 'tasks'"):
        apflow.tasks  # type: ignore[attr-defined]  # noqa: B018 - looking is enough
    assert not hasattr(apflow, "budget")


@pytest.mark.parametrize("first", ["import apflow.task, apflow.runtime", "from apflow import Runtime, AsyncTask"])
def test_a_public_name_wins_over_the_module_of_that_name(first: str) -> None:
    program = f"{first}\nimport apflow\nprint(type(apflow.task).__name__, type(apflow.runtime).__name__)"
    assert output_of(program) == "function function"
    assert output_of(f"{first}\nfrom apflow.task import task\nimport apflow\nprint(apflow.task is task)") == "True"


def test_modules_without_a_public_name_are_attributes_as_usual() -> None:
    assert output_of("import apflow.errors\nprint(apflow.errors.__name__)") == "apflow.errors"


def test_importing_loads_nothing_until_a_name_is_used() -> None:
    program = "import sys, apflow; print(*sorted(m for m in sys.modules if m.startswith('apflow')))"
    assert output_of(program) == "apflow apflow.exports"


def test_decorating_does_not_load_the_event_loop() -> None:
    program = "import sys, apflow\n@apflow.task\nasync def f(): ...\nprint('asyncio' in sys.modules)"
    assert output_of(program) == "False"


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert apflow.__version__ == project["version"]
