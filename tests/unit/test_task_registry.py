"""Where tasks stand, which ones this process knows, and how they travel between processes."""

from __future__ import annotations

import copy
import pickle
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from apflow import DuplicateTaskError, Task, TaskDefinitionError, task
from apflow.definition import check_unique, describe, known
from apflow.options import TaskDefinition


def load(source: str, **module: Any) -> dict[str, Any]:
    """Run source as a module with these globals, and return what it defines."""
    module.setdefault("task", task)
    exec(compile(source, module.get("__file__", "<test>"), "exec", dont_inherit=True), module)  # noqa: S102 - tests write it
    return module


def definition(source: str, **module: Any) -> TaskDefinition:
    made: Task[..., Any] = load("@task\n" + source, **module)["made"]
    return made.definition


MADE = "def made(): ..."


# Origins


def test_the_origin_is_the_module() -> None:
    assert portable.definition.origin == __name__


def test_the_origin_of_a_script_is_its_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    for name in ("__main__", "__mp_main__"):
        assert definition(MADE, __name__=name, __file__=str(script), __spec__=None).origin == str(script)
    monkeypatch.chdir(tmp_path)
    assert definition(MADE, __name__="__main__", __file__="script.py", __spec__=None).origin == str(script)


def test_the_origin_of_a_very_deep_script_fits_its_column() -> None:
    path = "/x" * 400 + "/script.py"
    origin = definition(MADE, __name__="__main__", __file__=path, __spec__=None).origin
    assert len(origin) == 500
    assert path.endswith(origin)


def test_the_origin_of_a_module_run_with_m_is_the_module() -> None:
    spec = ModuleSpec("pkg.mod", None)
    assert definition(MADE, __name__="__main__", __file__="/x/pkg/mod.py", __spec__=spec).origin == "pkg.mod"
    folder = ModuleSpec("__main__", None)
    made = definition(MADE, __name__="__main__", __file__="/x/app/__main__.py", __spec__=folder)
    assert made.origin == "/x/app/__main__.py"


def test_a_prompt_has_no_better_origin() -> None:
    assert definition(MADE, __name__="__main__").origin == "__main__"


def test_origin_and_location_are_those_of_the_function_within() -> None:
    other = load(
        """
import functools
def passing_on(function):
    @functools.wraps(function)
    def wrapper():
        return function()
    return wrapper
""",
        __name__="other",
        __file__="/x/other.py",
    )
    module = load(
        "\n\n@task\n@passing_on\ndef made(): ...",
        __name__="__main__",
        __file__="/x/mine.py",
        passing_on=other["passing_on"],
    )
    made = module["made"].definition
    assert (made.origin, made.location) == ("/x/mine.py", "/x/mine.py:3")


# What this process knows


def test_nobody_knows_what_was_never_made() -> None:
    assert known("never_made") == []


def test_decorating_again_in_the_same_place_replaces() -> None:
    source = "def cell(): ...\nmade = cell"
    first = definition(source, __name__="notebook")
    second = definition(source, __name__="notebook")
    assert known("cell") == [second]
    assert second is not first
    check_unique(first, second)


def test_the_same_name_elsewhere_is_kept_beside_it_and_refused_where_both_are_used() -> None:
    source = "def twice(): ...\nmade = twice"
    first = definition(source, __name__="one", __file__="/x/one.py")
    second = definition(source, __name__="two", __file__="/x/two.py")
    assert known("twice") == [first, second]
    with pytest.raises(DuplicateTaskError) as caught:
        check_unique(first, second)
    for place in ("twice in one, /x/one.py:1", "twice in two, /x/two.py:1", "@apflow.task(name=...)"):
        assert place in str(caught.value)


def test_two_functions_of_one_module_are_two_places() -> None:
    module = load(
        """
class A:
    @task
    def run_it(self): ...

class B:
    @task
    def run_it(self): ...
""",
        __name__="both",
    )
    first, second = module["A"].run_it.definition, module["B"].run_it.definition
    assert known("run_it") == [first, second]
    with pytest.raises(DuplicateTaskError, match=r"A\.run_it in both.*B\.run_it in both"):
        check_unique(first, second)


def test_one_name_that_was_given_twice_is_refused_too() -> None:
    source = "@task(name='given.name')\ndef {0}(): ..."
    first = load(source.format("f"), __name__="one")["f"].definition
    second = load(source.format("g"), __name__="one")["g"].definition
    with pytest.raises(DuplicateTaskError):
        check_unique(first, second)


def test_a_script_that_is_also_imported_is_no_duplicate() -> None:
    source = "def worker_step(): ...\nmade = worker_step"
    path = "/x/worker.py"
    check_unique(
        definition(source, __name__="__main__", __file__=path, __spec__=None),
        definition(source, __name__="worker", __file__=path),
    )


def test_other_names_never_clash() -> None:
    check_unique(definition(MADE, __name__="one"), portable.definition)


def test_a_definition_is_described_by_name_and_place() -> None:
    made = definition("def described(): ...\nmade = described", __name__="m", __file__="/x/m.py")
    assert describe(made) == "'described' (described in m, /x/m.py:1)"


def test_a_refused_function_is_not_known() -> None:
    with pytest.raises(TaskDefinitionError):
        definition("def refused(*args): ...\nmade = refused", __name__="m")
    assert known("refused") == []


# Copies and pickles


@task
def portable(x: int) -> int:
    return x + 1


class Carrier:
    @task
    def carry(self, x: int) -> int:
        return x

    @staticmethod
    @task
    def stay(x: int) -> int:
        return x

    def __init__(self) -> None:
        self.load = 3
        self.tool = self.carry


def owner_of(made: Task[..., Any]) -> Any:
    bound: Any = made.__wrapped__
    return bound.__self__


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickle finds a module by its name, and pytest does not register this one."""
    module = type(sys)(__name__)
    vars(module).update(globals())
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__, module))


def test_tasks_are_pickled_by_their_names() -> None:
    for made in (portable, Carrier.carry, Carrier.stay):
        assert pickle.loads(pickle.dumps(made)) is made  # noqa: S301 - our own bytes


def test_methods_are_pickled_with_their_instance() -> None:
    carrier = Carrier()
    carrier.load = 4
    again = pickle.loads(pickle.dumps(carrier.carry))  # noqa: S301 - our own bytes
    assert again.name == "carry"
    assert owner_of(again).load == 4


def test_what_has_no_name_is_not_pickled_into_something_else() -> None:
    local = task(name="local.name")(lambda: None)
    for made in (portable.with_options(key="k"), Carrier().carry.with_options(key="k"), local):
        with pytest.raises((pickle.PicklingError, AttributeError)):
            pickle.dumps(made)


def test_a_task_is_its_own_copy() -> None:
    changed = portable.with_options(key="k")
    for made in (portable, changed):
        assert copy.copy(made) is made
        assert copy.deepcopy(made) is made


def test_a_deep_copy_of_an_object_has_its_own_methods() -> None:
    carrier = Carrier()
    again = copy.deepcopy(carrier)
    again.load = 9
    assert owner_of(again.tool) is again
    assert owner_of(copy.copy(carrier.tool)) is carrier
