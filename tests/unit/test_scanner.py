"""Executors found in source files that nobody imports."""

from __future__ import annotations

import ast
import logging
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import pytest

from apflow import DuplicateExecutorError, ExecutableTask, ExecutorNotFoundError
from apflow.engine import registry, scanner
from apflow.engine.scanner import ExecutorMetadata, ExtensionScanner

BODY = """
    name = "N"
    description = "D"
    def get_input_schema(self): return {}
    async def execute(self, inputs): return inputs
"""


def executor(executor_id: str, class_name: str = "Found", decorator: str = "@apflow.executor_register") -> str:
    return (
        f"import apflow\n\n{decorator}\nclass {class_name}(apflow.ExecutableTask):\n    id = {executor_id!r}\n{BODY}\n"
    )


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test scans as a new process would."""
    monkeypatch.setattr(ExtensionScanner, "_known", scanner._Known())
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were parsed."""
    names: list[str] = []
    parse = ast.parse

    def counting(source: bytes, path: Path) -> ast.Module:
        names.append(path.name)
        return parse(source, path)

    monkeypatch.setattr(ast, "parse", counting)
    return names


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on `sys.path`; what is imported from there is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield tmp_path / "site"
    for name in [name for name in sys.modules if name.partition(".")[0] in ("ours", "single", "lacking")]:
        del sys.modules[name]


def test_what_the_source_tells(tmp_path: Path) -> None:
    file = write(
        tmp_path / "full.py",
        '''
        raise SystemExit("importing this ends the process")
        from apflow import ExecutableTask, executor_register

        @executor_register
        class Full(ExecutableTask):
            """Does it all.

            And more.
            """
            id: str = "full.thing"
            name = "Full Thing"
            description = "In so many words."
            tags: tuple[str, ...] = ("a", "b")
            dependencies = ["numpy"]

        @executor_register()
        class Terse(ExecutableTask):
            """First paragraph
            in two lines.

            Second paragraph.
            """
            id = "terse_http_call"
            tags = tuple("computed")
        ''',
    )
    found = ExtensionScanner.scan_path(tmp_path)
    words = "First paragraph in two lines."
    assert found == {
        "full.thing": ExecutorMetadata(
            "full.thing", "Full Thing", "In so many words.", ("a", "b"), ("numpy",), "full", "Full", file, 6
        ),
        "terse_http_call": ExecutorMetadata(
            "terse_http_call", "Terse Http Call", words, (), (), "full", "Terse", file, 18
        ),
    }
    assert [one.always_available for one in found.values()] == [False, True]


@pytest.mark.parametrize(
    ("imports", "decorator"),
    [
        ("from apflow import executor_register", "executor_register"),
        ("from apflow import executor_register as known", "known(id='x.y')"),
        ("from apflow import *", "executor_register"),
        ("from .base import executor_register", "executor_register()"),
        ("import apflow", "apflow.executor_register"),
        ("import apflow", "apflow.executor_register(id='x.y')"),
        ("import apflow.engine.registry", "apflow.engine.registry.executor_register"),
        ("from apflow.engine import registry as r", "r.executor_register"),
        ("try:\n    import apflow as af\nfinally:\n    pass", "af.executor_register(id=None)"),
    ],
)
def test_the_decorator_in_every_dress(imports: str, decorator: str, tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(f"{imports}\n@other\n@{decorator}\nclass A:\n    id = 'x.y'\n", encoding="utf-8")
    assert list(ExtensionScanner.scan_path(tmp_path)) == ["x.y"]


@pytest.mark.parametrize(
    "text",
    [
        "class A:\n    id = 'x'\n",
        "from apflow import task as executor_registers\n@executor_registers\nclass A:\n    id = 'x'\n",
        "def executor_register(cls): return cls\n@executor_register\nclass A:\n    id = 'x'\n",
        "@self.executor_register\nclass A:\n    id = 'x'\n",
        "import apflow\ndef make():\n    @apflow.executor_register\n    class A:\n        id = 'x'\n    return A\n",
        "from apflow import executor_register\n# @executor_register\nclass A:\n    id = '''@executor_register'''\n",
    ],
)
def test_other_classes_are_left_alone(text: str, tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(text, encoding="utf-8")
    assert ExtensionScanner.scan_path(tmp_path) == {}
    assert ExtensionScanner.broken() == ()


def test_the_id_of_the_decorator_wins_and_classes_may_stand_inside_others_and_in_branches(tmp_path: Path) -> None:
    write(
        tmp_path / "m.py",
        """
        import apflow
        class Outer:
            @apflow.executor_register(id="inner")
            class Inner(apflow.ExecutableTask):
                id = "other"
        if True:
            @apflow.executor_register
            class Either(apflow.ExecutableTask):
                id = "either"
        else:
            @apflow.executor_register
            class Either(apflow.ExecutableTask):
                id = "either"
        """,
    )
    found = ExtensionScanner.scan_path(tmp_path)
    assert {one.id: one.class_name for one in found.values()} == {"inner": "Outer.Inner", "either": "Either"}


@pytest.mark.parametrize(
    ("arguments", "line", "reason"),
    [
        ("", "id = PREFIX + '.x'", "cannot be read without importing"),
        ("", "id = 7", "cannot be read without importing"),
        ("", "tags = ()", "cannot be read without importing"),
        ("", "@property\n    def id(self): return 'x'", "cannot be read without importing"),
        ("(id=compute())", "id = 'x'", "cannot be read without importing"),
        ("", "id = 'Not Legal'", "'Not Legal'"),
        ("('x')", "id = 'x'", "write the decorator as"),
        ("(name='x')", "id = 'x'", "write the decorator as"),
        ("(**options)", "id = 'x'", "write the decorator as"),
    ],
)
def test_a_class_whose_id_cannot_be_read_is_reported(
    arguments: str, line: str, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "m.py"
    file.write_text(f"import apflow\n@apflow.executor_register{arguments}\nclass A:\n    {line}\n", encoding="utf-8")
    assert ExtensionScanner.scan_path(tmp_path) == {}
    (broken,) = ExtensionScanner.broken()
    assert (broken.file, broken.line) == (file, 3)
    assert reason in broken.reason
    assert f"{file}:3" in caplog.text


def test_broken_files_are_reported_and_the_others_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "good.py", executor("good"))
    write(tmp_path / "syntax.py", "x = 1\ndef broken(:\n")
    (tmp_path / "bytes.py").write_bytes(b"name = '\xff'\n")
    (tmp_path / "nulls.py").write_bytes(b"x = 1\x00\n")
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")
    assert list(ExtensionScanner.scan_path(tmp_path)) == ["good"]
    broken = {one.file.name: one for one in ExtensionScanner.broken()}
    assert broken.keys() == {"syntax.py", "bytes.py", "nulls.py", "gone.py"}
    assert broken["syntax.py"].line == 2
    assert "cannot be read" in broken["gone.py"].reason
    assert sorted(record.levelname for record in caplog.records) == ["WARNING"] * 4
    caplog.clear()
    assert list(ExtensionScanner.scan_path(tmp_path)) == ["good"]
    assert caplog.records == []
    write(tmp_path / "syntax.py", executor("mended"))
    assert set(ExtensionScanner.scan_path(tmp_path)) == {"good", "mended"}
    assert "syntax.py" not in {one.file.name for one in ExtensionScanner.broken()}


def test_a_second_scan_parses_what_has_changed(tmp_path: Path, parsed: list[str]) -> None:
    write(tmp_path / "a.py", executor("a"))
    write(tmp_path / "b.py", executor("b"))
    write(tmp_path / "c.py", executor("c"))
    assert set(ExtensionScanner.scan_path(tmp_path)) == {"a", "b", "c"}
    parsed.clear()
    assert set(ExtensionScanner.scan_path(tmp_path)) == {"a", "b", "c"}
    assert parsed == []
    write(tmp_path / "a.py", executor("a2"))
    (tmp_path / "b.py").unlink()
    write(tmp_path / "d.py", executor("d"))
    assert set(ExtensionScanner.scan_path(tmp_path)) == {"a2", "c", "d"}
    assert sorted(parsed) == ["a.py", "d.py"]
    assert ExtensionScanner.find("a") is ExtensionScanner.find("b") is None


def test_the_time_of_a_file_counts_when_its_size_is_the_same(tmp_path: Path) -> None:
    file = write(tmp_path / "a.py", executor("one"))
    ExtensionScanner.scan_path(tmp_path)
    later = write(file, executor("two")).stat().st_mtime_ns + 1_000_000_000
    os.utime(file, ns=(later, later))
    assert list(ExtensionScanner.scan_path(tmp_path)) == ["two"]


def test_two_places_of_one_id_are_both_named(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.py", executor("same")), write(tmp_path / "sub" / "b.py", executor("same"))
    with pytest.raises(DuplicateExecutorError, match="'same'") as caught:
        ExtensionScanner.scan_path(tmp_path)
    assert f"{first}:4" in str(caught.value)
    assert f"{second}:4" in str(caught.value)
    assert ExtensionScanner.find("same") is None
    write(second, executor("other"))
    assert set(ExtensionScanner.scan_path(tmp_path)) == {"same", "other"}


def test_an_id_is_taken_by_earlier_scans_and_by_apflow_itself(tmp_path: Path) -> None:
    here = write(tmp_path / "here" / "a.py", executor("same"))
    there = write(tmp_path / "there" / "b.py", executor("same"))
    ExtensionScanner.scan_path(here)
    with pytest.raises(DuplicateExecutorError, match=str(here)):
        ExtensionScanner.scan_path(there)
    here.unlink()
    assert list(ExtensionScanner.scan_path(there)) == ["same"]
    write(tmp_path / "c.py", executor("aggregate_results_executor"))
    with pytest.raises(DuplicateExecutorError, match=r"aggregate\.py:"):
        ExtensionScanner.scan_path(tmp_path / "c.py")
    write(tmp_path / "c.py", executor("twice") + executor("twice", "Second"))
    with pytest.raises(DuplicateExecutorError, match="Second"):
        ExtensionScanner.scan_path(tmp_path / "c.py")


def test_a_package_on_the_path_is_scanned_without_importing_and_loaded_when_wanted(site: Path) -> None:
    write(site / "ours" / "__init__.py", executor("ours.root"))
    write(site / "ours" / "parts" / "__init__.py", "raise RuntimeError('not to be imported by scanning')")
    write(site / "ours" / "parts" / "inner.py", executor("ours.inner"))
    write(site / "ours" / "no_init" / "deep" / "leaf.py", executor("ours.leaf"))
    write(site / "ours" / "not-a-module.py", executor("ours.no"))
    write(site / "ours" / ".hidden" / "x.py", executor("ours.hidden"))
    before = set(sys.modules)
    found = ExtensionScanner.scan_package("ours")
    assert {one.id: one.module_path for one in found.values()} == {
        "ours.root": "ours",
        "ours.inner": "ours.parts.inner",
        "ours.leaf": "ours.no_init.deep.leaf",
    }
    assert list(ExtensionScanner.scan_package("ours.parts.inner")) == ["ours.inner"]
    assert list(ExtensionScanner.scan_package("ours.no_init")) == ["ours.leaf"]
    assert {name for name in set(sys.modules) - before if name.partition(".")[0] == "ours"} == set()
    metadata = found["ours.leaf"]
    assert ExtensionScanner.find("ours.leaf") is metadata
    kind = ExtensionScanner.load(metadata)
    assert issubclass(kind, ExecutableTask)
    assert kind.__module__ == "ours.no_init.deep.leaf"
    assert kind().id == "ours.leaf"
    assert ExtensionScanner.load(metadata) is kind


def test_a_namespace_package_in_two_places_and_a_single_module(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = site.parent / "other"
    write(site / "ours" / "a.py", executor("ours.a"))
    write(other / "ours" / "b.py", executor("ours.b"))
    write(site / "single.py", executor("single"))
    monkeypatch.syspath_prepend(other)
    assert set(ExtensionScanner.scan_package("ours")) == {"ours.a", "ours.b"}
    (found,) = ExtensionScanner.scan_package("single").values()
    assert found.module_path == "single"


@pytest.mark.parametrize("name", ["no_such_package", "json.no_such_module", "sys", "", ".relative", "a..b", "__main__"])
def test_a_package_that_is_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    with pytest.raises(ExecutorNotFoundError):
        ExtensionScanner.scan_package(name)


def test_a_path_gets_the_package_that_it_stands_in(tmp_path: Path) -> None:
    write(tmp_path / "ours" / "__init__.py", "")
    file = write(tmp_path / "ours" / "parts" / "__init__.py", executor("x"))
    leaf = write(tmp_path / "ours" / "parts" / "leaf.py", executor("y"))

    def modules(path: Path, package: str = "") -> list[str]:
        return [one.module_path for one in ExtensionScanner.scan_path(path, package).values()]

    assert modules(tmp_path / "ours") == ["ours.parts", "ours.parts.leaf"]
    assert modules(file) == ["ours.parts"]
    assert modules(leaf) == ["ours.parts.leaf"]
    assert modules(leaf, "given.name") == ["given.name.leaf"]
    assert modules(tmp_path / "ours" / "parts", "given") == ["given", "given.leaf"]
    with pytest.raises(ExecutorNotFoundError):
        ExtensionScanner.scan_path(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_package", "'no_such_package' is not installed"),
        ("    dependencies = ('no_such_package',)\nimport no_such_package", "pip install no_such_package"),
        ("raise apflow.MissingExtraError('aiosmtplib', 'email')", "pip install 'apflow[email]'"),
        ("raise ValueError('secret')", "it raised ValueError"),
        ("raise SystemExit(3)", "it raised SystemExit"),
    ],
)
def test_an_import_that_fails_says_what_is_missing(text: str, said: str, site: Path) -> None:
    write(site / "lacking.py", executor("x") + text)
    metadata = ExtensionScanner.scan_package("lacking")["x"]
    with pytest.raises(ExecutorNotFoundError, match="lacking cannot be imported") as caught:
        ExtensionScanner.load(metadata)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_module_that_is_not_on_the_path_or_another_one_of_its_name(tmp_path: Path, site: Path) -> None:
    write(tmp_path / "elsewhere" / "single.py", executor("x"))
    metadata = ExtensionScanner.scan_path(tmp_path / "elsewhere")["x"]
    with pytest.raises(ExecutorNotFoundError, match=r"'single' on sys\.path"):
        ExtensionScanner.load(metadata)
    write(site / "single.py", "")
    with pytest.raises(ExecutorNotFoundError, match="Found is not registered"):
        ExtensionScanner.load(metadata)


def test_a_class_of_the_running_program_is_not_imported_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "program.py", executor("x"))
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(file), raising=False)
    exec(compile(file.read_text(), file, "exec"), {"__name__": "__main__"})  # noqa: S102 - as Python runs a program
    kind = ExtensionScanner.load(ExtensionScanner.scan_path(file)["x"])
    assert kind.__module__ == "__main__"


def test_the_executors_of_apflow_itself() -> None:
    found = ExtensionScanner.scan_builtin_executors()
    assert {"aggregate_results_executor", "send_email_executor"} <= found.keys()
    assert ExtensionScanner.broken() == ()
    email = found["send_email_executor"]
    assert email is ExtensionScanner.find("send_email_executor")
    assert (email.module_path, email.class_name) == ("apflow.executors.email", "SendEmailExecutor")
    assert email.dependencies == ("aiosmtplib",)
    for metadata in found.values():
        kind = ExtensionScanner.load(metadata)
        made = kind()
        assert (made.id, made.name, made.description) == (metadata.id, metadata.name, metadata.description)
        assert (made.tags, made.dependencies) == (metadata.tags, metadata.dependencies)
    assert ExtensionScanner.find("no_such_executor") is None


def test_threads_may_scan_at_the_same_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(20):
        write(tmp_path / f"m{number}.py", executor(f"e{number}"))
    start = threading.Barrier(8)
    seen: list[int] = []

    def scan() -> None:
        start.wait()
        found = ExtensionScanner.scan_path(tmp_path)
        seen.append(sum(ExtensionScanner.find(one) is not None for one in found))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: scan(), range(8)))
    assert seen == [20] * 8
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
