"""Executor classes as modules: runs of theirs, and the registries that have them."""

from __future__ import annotations

import asyncio
import json
import logging
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from apcore import Identity, Registry

import apflow
from apflow import ExecutableTask, Runtime
from apflow.bridge.door import Door
from apflow.bridge.module_adapter import ExecutableTaskModuleAdapter
from apflow.bridge.refusals import RefusedError
from apflow.bridge.registry_setup import create_apflow_registry
from apflow.bridge.scanner_bridge import adapter_of, discover_executor_modules
from apflow.engine.creator import TaskCreator
from apflow.engine.manager import TaskManager
from apflow.engine.scanner import BrokenFile, ExtensionScanner
from apflow.storage.repository import TaskRepository
from tests.integration.test_engine_from_outside import run as run_program
from tests.integration.tree_helpers import rows, until, until_stored

pytestmark = pytest.mark.anyio

ALICE, BOB = Identity(id="alice"), Identity(id="bob")
EXECUTORS = ["aggregate_results_executor", "apflow_api_executor", "rest_executor", "send_email_executor"]
WORDS = ["create", "execute", "list", "get", "delete", "cancel"]
IDS = {f"apflow.{one}" for one in EXECUTORS} | {f"apflow.task.{one}" for one in WORDS} | {"apflow.usage.report"}

seen: list[dict[str, Any]] = []
gates: dict[str, asyncio.Event] = {}


@pytest.fixture(autouse=True)
def _empty() -> None:
    seen.clear()
    gates.clear()


class Speaker(ExecutableTask):
    """Says what it was given, once its gate is open."""

    id = "bm_speaker"
    name = "Speaker"
    description = "Says something."

    async def execute(self, inputs: dict[str, Any]) -> Any:
        seen.append(inputs)
        if (gate := gates.get(inputs["text"])) is not None:
            await gate.wait()
        if inputs["text"] == "trouble":
            raise ValueError("password=hunter2")
        return {"said": inputs["text"], "key_is_right": inputs.get("key") == "hidden-value"}

    def get_input_schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": {"text": {"type": "string"}, "key": {"type": "string"}, "times": {"type": "integer"}},
            "required": ["text"],
            "additionalProperties": False,
        }

    def redact(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {name: "***" if name == "key" else value for name, value in inputs.items()}


def speaker(runtime: Runtime | None = None, kind: type = Speaker, **output: Any) -> ExecutableTaskModuleAdapter:
    schema = kind().get_input_schema()
    returned = output or {"type": "object"}
    return ExecutableTaskModuleAdapter(
        kind, "bm_speaker", "Speaker", "Says something.", schema, returned, ["sound"], [], True, runtime=runtime
    )


def door_to(runtime: Runtime | None, **more: Any) -> Door:
    registry = Registry()
    registry.register("mine.speaker", speaker(runtime, **more))
    return Door(registry)


SETTINGS: dict[str, dict[str, Any]] = {
    "secrets": {"spoken": "hidden-value", "kept": "other"},
    "remote": {"secrets": ["spoken"]},
}


@pytest.fixture
async def runtime(database_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(database_url, settings=SETTINGS, shutdown_seconds=0.1) as made:
        yield made


@pytest.fixture
async def local(sqlite_url: str) -> AsyncIterator[Runtime]:
    """For what does not depend on the database."""
    async with Runtime(sqlite_url, settings=SETTINGS, shutdown_seconds=0.1) as made:
        yield made


# -- runs ----------------------------------------------------------------------------------------------------------


async def test_a_call_is_an_accepted_run_of_the_caller(runtime: Runtime) -> None:
    answer = await door_to(runtime).call("mine.speaker", {"text": "hello", "times": 2.0}, identity=ALICE)
    assert answer.output == {"said": "hello", "key_is_right": False}
    assert [repr(one["times"]) for one in seen] == ["2"]
    assert answer.run_id is not None
    row = await runtime.runs.get(answer.run_id)
    assert row is not None
    assert (row.name, row.user_id, row.status, row.kind, row.accepted) == (
        "bm_speaker", "alice", "completed", "run", True,
    )  # fmt: skip


async def test_without_a_runtime_it_uses_the_one_of_a_call(runtime: Runtime) -> None:
    module = speaker()
    assert module.runtime is runtime
    assert await module.execute({"text": "here"}) == {"said": "here", "key_is_right": False}
    assert await runtime.runs.count(name="bm_speaker") == 1


async def test_inputs_that_do_not_fit_are_told_and_nothing_is_stored(runtime: Runtime) -> None:
    for inputs in ({}, {"text": 3}, {"text": "x", "more": 1}, {"text": "x", "times": 1.5}):
        with pytest.raises(RefusedError) as caught:
            await door_to(runtime).call("mine.speaker", inputs)
        assert caught.value.told.code == "invalid_input"
    assert (await runtime.runs.count(), seen) == (0, [])


async def test_what_it_raises_stays_here(runtime: Runtime) -> None:
    with pytest.raises(RefusedError) as caught:
        await door_to(runtime).call("mine.speaker", {"text": "trouble"})
    assert caught.value.told.code == "internal"
    assert "hunter2" not in json.dumps(caught.value.as_json())
    row = await runtime.runs.get(caught.value.reference)
    assert row is not None
    assert "hunter2" in (row.error or "")


async def test_a_result_that_is_no_object_is_no_answer_of_one_that_promised_it(local: Runtime) -> None:
    class Number(Speaker):
        async def execute(self, inputs: dict[str, Any]) -> Any:
            return 5

    with pytest.raises(RefusedError) as caught:
        await door_to(local, kind=Number).call("mine.speaker", {"text": "x"})
    assert caught.value.told.code == "internal"
    answer = await door_to(local, kind=Number, type="integer").call("mine.speaker", {"text": "x"})
    assert (answer.output, answer.value) == ({"result": 5}, 5)


async def test_an_interrupted_run_is_carried_on_with_its_secret(runtime: Runtime, database_url: str) -> None:
    door, gates["wait"] = door_to(runtime), asyncio.Event()
    call = asyncio.create_task(door.call("mine.speaker", {"text": "wait", "key": {"$secret": "spoken"}}, run_id="r1"))
    await until(lambda: len(seen) == 1)
    await runtime.aclose()
    with pytest.raises(RefusedError):
        await call
    gates["wait"].set()
    async with Runtime(database_url, settings=runtime.settings) as after:
        await after.recover()
        await until_stored(lambda: after.runs.count(status="completed"))
        found = await after.runs.get("r1")
    assert found is not None
    assert (found.status, found.result) == ("completed", {"said": "wait", "key_is_right": True})


async def test_passwords_do_not_stay_in_the_row(runtime: Runtime) -> None:
    answer = await door_to(runtime).call("mine.speaker", {"text": "hush", "key": "letmein"})
    found = await rows(runtime.store, "SELECT CAST(inputs AS TEXT) FROM apflow_tasks WHERE id = :id", id=answer.run_id)
    assert "letmein" not in found[0][0]
    assert json.loads(found[0][0])["inputs"] == {"text": "hush", "key": "***"}


async def test_only_secrets_that_are_meant_for_callers_can_be_named(local: Runtime) -> None:
    door = door_to(local)
    answer = await door.call("mine.speaker", {"text": "a", "key": {"$secret": "spoken"}})
    assert answer.output["key_is_right"]
    for name in ("kept", "nothing", ["spoken"], None):
        with pytest.raises(RefusedError) as caught:
            await door.call("mine.speaker", {"text": "a", "key": {"$secret": name}}, identity=ALICE)
        assert caught.value.told.code == "forbidden"
    assert len(seen) == 1


async def test_a_caller_can_aggregate_what_they_have(local: Runtime) -> None:
    door = Door(local.include_engine())
    inputs = {"dependencies": {"a": 1, "b": {"$from": "x"}}, "strategy": "list"}
    answer = await door.call("apflow.aggregate_results_executor", inputs, identity=ALICE)
    assert answer.output["aggregated_result"] == [1, {"$from": "x"}]
    with pytest.raises(RefusedError) as caught:
        await door.call("apflow.aggregate_results_executor", {"dependencies": [1]})
    assert caught.value.told.code == "invalid_input"


# -- registries ----------------------------------------------------------------------------------------------------


async def test_a_registry_has_executors_and_task_modules(local: Runtime) -> None:
    store = local.store
    registry = create_apflow_registry(TaskManager(store), TaskCreator(store), TaskRepository(store))
    assert set(registry.list()) == IDS
    assert Door(registry).runtime is local
    other = create_apflow_registry(TaskManager(store), TaskCreator(store), TaskRepository(store), "my.engine")
    assert "my.engine.task.create" in other.list()


async def test_each_module_is_described_as_the_specification_wants(local: Runtime) -> None:
    registry = local.include_engine()
    for module_id in IDS:
        exported = registry.export_schema(module_id)
        assert exported is not None
        assert set(exported) == {"module_id", "description", "input_schema", "output_schema"}
        assert exported["description"]
        assert exported["input_schema"]["type"] == exported["output_schema"]["type"] == "object"
        assert json.loads(json.dumps(exported)) == exported
        definition = registry.get_definition(module_id)
        assert definition is not None
        assert definition.tags
        assert definition.version == "1.0.0"
        assert definition.annotations is not None
        assert definition.annotations.extra["resources"] == {"timeout": 0}


async def test_hints_tell_what_a_call_may_do(local: Runtime) -> None:
    modules = Door(local.include_engine()).modules()
    readers = {one for one, module in modules.items() if module.annotations.readonly}
    assert readers == {
        *("apflow.aggregate_results_executor", "apflow.task.list", "apflow.task.get", "apflow.usage.report"),
    }
    assert {one for one in IDS if modules[one].annotations.open_world} == {
        *("apflow.rest_executor", "apflow.send_email_executor", "apflow.apflow_api_executor", "apflow.task.execute"),
    }
    assert modules["apflow.task.delete"].annotations.destructive


async def test_a_runtime_includes_the_engine_once(local: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    @apflow.task(name="bm_mine")
    async def mine() -> int:
        return 1

    registry = local.include_engine()
    before = {module_id: registry.get(module_id) for module_id in registry.list()}
    assert local.include_engine() is registry is local.registry
    assert {module_id: registry.get(module_id) for module_id in registry.list()} == before
    assert IDS | {"bm_mine"} <= set(before)
    assert caplog.records == []
    assert (await Door(local).call("bm_mine", {})).value == 1


async def test_a_task_of_the_same_name_stays(local: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    @apflow.task(name="bm.task.list")
    async def mine() -> int:
        return 1

    registry = local.include_engine("bm")
    assert (await Door(registry).call("bm.task.list", {})).value == 1
    assert [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING] == [
        "bm.task.list is a task of this process; apflow's own module of this name is left out"
    ]


def test_the_start_up_code_of_the_first_design_makes_a_registry() -> None:
    Path("start.py").write_text(
        textwrap.dedent("""
        from apflow import create_session, TaskManager
        from apflow.core.execution.task_creator import TaskCreator
        from apflow.core.storage.sqlalchemy.task_repository import TaskRepository
        from apflow.bridge.registry_setup import create_apflow_registry

        # Initialize apflow
        session = create_session()
        repo = TaskRepository(session)
        creator = TaskCreator(session)
        manager = TaskManager(session)

        # Create registry
        registry = create_apflow_registry(manager, creator, repo)

        import asyncio
        from apcore import Executor

        async def main():
            executor = Executor(registry)
            inputs = {"name": "aggregate_results_executor", "inputs": {"strategy": "count"}}
            made = await executor.call_async("apflow.task.create", inputs)
            done = await executor.call_async("apflow.task.execute", {"task_id": made["id"]})
            print(len(registry.list()), done["status"], done["result"]["count"])

        asyncio.run(main())
        """)
    )
    done = run_program("start.py")
    assert (done.returncode, done.stdout, done.stderr) == (0, "11 completed 0\n", "")


# -- discovery -----------------------------------------------------------------------------------------------------


def test_the_executors_of_apflow_are_found() -> None:
    skipped: list[BrokenFile] = []
    found = discover_executor_modules(skipped=skipped)
    assert sorted(one.executor_id for one in found) == EXECUTORS
    assert skipped == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("dependencies = ('no_such_package_here',)", "needs no_such_package_here, which is not installed"),
        ("def __init__(self): raise ValueError('secret')", "cannot be described (ValueError)"),
        ("def get_input_schema(self): return 3", "cannot be described (TypeError)"),
        ("def get_input_schema(self): return {'type': 3}", "cannot be described (SchemaError)"),
    ],
)
def test_an_executor_that_fails_is_left_out_and_reported(
    body: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"bm_broken_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(
        "from apflow import ExecutableTask, executor_register\n"
        f"@executor_register(id='{name}')\nclass Broken(ExecutableTask):\n"
        "    name = description = 'Broken'\n    async def execute(self, inputs): pass\n"
        f"    def get_input_schema(self): return {{}}\n    {body}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    metadata = ExtensionScanner.scan_path(tmp_path / f"{name}.py")
    with pytest.raises(Exception):  # noqa: B017, PT011 - each kind of executor has an error of its own
        adapter_of(metadata[name])
    monkeypatch.setattr(ExtensionScanner, "scan_builtin_executors", lambda: metadata)
    skipped: list[BrokenFile] = []
    assert discover_executor_modules(skipped=skipped) == []
    assert [(one.file.name, one.reason) for one in skipped] == [(f"{name}.py", f"executor {name!r} {reason}")]
    assert [one.getMessage() for one in caplog.records] == [f"executor {name} is left out of the modules: {reason}"]
