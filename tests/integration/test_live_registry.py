"""`runtime.registry` has a task as soon as it is decorated, and nothing that goes wrong in it reaches who decorates."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

import apflow
from apflow import Runtime, TaskDefinitionError
from apflow.bridge.door import Door
from apflow.bridge.module import TaskModule
from apflow.bridge.refusals import RefusedError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


@pytest.fixture
async def runtime(sqlite_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(sqlite_url, shutdown_seconds=1) as made:
        yield made


def cell(text: str, name: str = "__main__", *, within: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Run code as a cell of a notebook, or a module that is loaded, does; return what it defines."""
    space = {"apflow": apflow, "__name__": name} if within is None else within
    space |= more
    exec(text, space)  # noqa: S102 - this is how a notebook does it
    return space


async def test_a_task_is_there_as_soon_as_it_is_decorated(runtime: Runtime) -> None:
    heard: list[str] = []
    registry = runtime.registry
    registry.on("register", lambda name, _: heard.append(name))
    assert runtime.registry is registry
    assert not registry.has("live_later")

    @apflow.task(tags=("readonly",))
    async def live_later(n: int = 1) -> int:
        """Return a number.

        Args:
            n: The number.
        """
        return n

    module = registry.get("live_later")
    assert (heard, module.description, module.tags) == (["live_later"], "Return a number.", ["readonly"])
    assert (module.annotations.readonly, module.annotations.destructive) == (True, False)
    schema = module.input_schema.model_json_schema()
    assert schema["properties"]["n"] == {"default": 1, "type": "integer", "description": "The number."}
    assert (await Door(runtime).call("live_later", {"n": 4})).value == 4


async def test_the_newest_cell_of_a_notebook_counts(runtime: Runtime) -> None:
    door = Door(runtime)
    for number in (1, 2):
        cell(f"@apflow.task(name='live_cell')\nasync def f(a: int) -> int: return a * {number}")
        assert (await door.call("live_cell", {"a": 3})).value == 3 * number
    cell("@apflow.task(name='live_cell')\nasync def f(b: str) -> str: return b")
    assert (await door.call("live_cell", {"b": "x"})).value == "x"


async def test_a_call_ends_with_the_task_that_it_began_with(runtime: Runtime) -> None:
    door = Door(runtime)
    gate = asyncio.Event()
    code = "@apflow.task(name='live_old')\nasync def f() -> str:\n  await gate.wait()\n  return '{}'"
    cell(code.format("old"), gate=gate)
    call = asyncio.create_task(door.call("live_old", {}, run_id="r"))
    async with asyncio.timeout(30):
        while await runtime.runs.get("r") is None:  # noqa: ASYNC110 - a row of the database
            await asyncio.sleep(0.001)
    cell(code.format("new"), gate=gate)
    gate.set()
    assert (await call).value == "old"
    assert (await door.call("live_old", {})).value == "new"


async def test_the_first_of_two_modules_keeps_the_name(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    registry = runtime.registry
    text = "@apflow.task(name='live_twice')\nasync def f() -> str: return __name__"
    cell(text, "first_module")
    cell(text, "second_module")
    assert registry.get("live_twice").executor.definition.origin == "first_module"
    assert "live_twice stands in two modules, first_module and second_module" in caplog.text
    cell(text, "first_module")
    assert (await Door(runtime).call("live_twice", {})).value == "first_module"


async def test_methods_and_private_tasks_are_not_there(runtime: Runtime) -> None:
    registry = runtime.registry

    class Kind:
        @apflow.task(name="live_method")
        async def method(self) -> None: ...

        @staticmethod
        @apflow.task(name="live_static")
        async def static(n: int) -> int:
            return n

    @apflow.task(name="_live_private")
    async def private() -> None: ...

    assert [name for name in registry.list() if "live_" in name] == ["live_static"]
    assert (await Door(runtime).call("live_static", {"n": 1})).value == 1


async def test_a_function_that_turns_out_to_be_a_method_leaves(runtime: Runtime) -> None:
    registry = runtime.registry

    class Later:
        @apflow.task(name="live_turns")
        async def turns(this) -> None:  # noqa: N805 - the name is what hides it at first
            ...

        known_inside = registry.has("live_turns")

    assert Later.known_inside
    assert not registry.has("live_turns")


async def test_copies_with_other_options(runtime: Runtime) -> None:
    @apflow.task(timeout=60)
    async def live_origin() -> float | None:
        await asyncio.sleep(0)
        return 1

    registry = runtime.registry
    first = registry.get("live_origin")
    live_origin.with_options(timeout=5)
    live_origin.with_options(version="2")
    assert registry.get("live_origin") is first
    named = live_origin.with_options(timeout=0.5, retry=3, key="k", user="somebody").with_options(name="live_named")
    module = registry.get("live_named")
    assert isinstance(module, TaskModule)
    assert module._options.timeout == 0.5
    # Whose call it is belongs to calls, not to the task.
    assert (module._options.key, module._options.user, named.options.key) == (None, None, "k")
    answer = await Door(runtime).call("live_named", {})
    run = await runtime.runs.get(answer.run_id or "")
    assert run is not None
    assert (run.name, run.max_attempts, run.user_id, run.idempotency_key) == ("live_named", 3, None, None)


async def test_an_annotation_may_be_defined_later(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    door = Door(runtime)
    text = "from __future__ import annotations\n@apflow.task(name='live_forward')\n"
    space = cell(f"{text}async def f(x: Later) -> int: return x.n", "forward_module")
    for _ in range(3):
        assert "live_forward" not in door.modules()
    with pytest.raises(RefusedError) as caught:
        await door.call("live_forward", {"x": {"n": 1}})
    assert caught.value.told.code == "not_found"
    assert caplog.text.count("live_forward is not shown to callers") == 1
    cell("from pydantic import BaseModel\nclass Later(BaseModel):\n  n: int", within=space)
    assert "live_forward" in door.modules()
    assert (await door.call("live_forward", {"x": {"n": 1}})).value == 1


class Opaque:
    """No JSON is one."""


class Hostile:
    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        raise RuntimeError("no")


class Undrawable:
    """Can be validated; but nobody gets its schema."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return handler(int)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> Any:
        raise RuntimeError("no")


async def test_a_task_without_a_form_in_json_hides_only_itself(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    for number, kind in enumerate((Opaque, Hostile, Undrawable)):
        with_argument = f"@apflow.task(name='live_arg{number}')\nasync def f(x: kind) -> None: ..."
        with_result = f"@apflow.task(name='live_result{number}')\nasync def f() -> kind: ..."
        cell(with_argument, kind=kind)
        cell(with_result, kind=kind)
    cell("@apflow.task(name='live_fine')\nasync def f() -> None: ...")
    assert [name for name in Door(runtime, prefix="live_").modules() if name.startswith("live_")] == ["live_fine"]
    assert caplog.text.count("is not shown to callers") >= 6


async def test_what_somebody_else_has_registered_stays(runtime: Runtime) -> None:
    module = object()
    runtime.registry.register("live_theirs", module)
    cell("@apflow.task(name='live_theirs')\nasync def f() -> None: ...")
    assert runtime.registry.get("live_theirs") is module


async def test_who_hears_of_a_task_may_make_another(runtime: Runtime) -> None:
    def hears(name: str, _: Any) -> None:
        if name == "live_one":
            cell("@apflow.task(name='live_two')\nasync def f() -> None: ...")
            raise ValueError("and may break")

    runtime.registry.on("register", hears)
    cell("@apflow.task(name='live_one')\nasync def f() -> None: ...")
    assert runtime.registry.has("live_one")
    assert runtime.registry.has("live_two")


def test_tasks_and_registries_may_be_made_on_many_threads(tmp_path: Path) -> None:
    runtimes = [Runtime(f"sqlite:///{tmp_path}/{number}.db") for number in range(4)]
    start = threading.Barrier(8)
    troubles: list[BaseException] = []

    def work(number: int) -> None:
        try:
            start.wait()
            for count in range(20):
                cell(f"@apflow.task(name='live_thread{number}_{count}')\nasync def f() -> None: ...")
                assert runtimes[count % 4].registry.has(f"live_thread{number}_{count}")
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            troubles.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert troubles == []
    for runtime in runtimes:
        assert sum(name.startswith("live_thread") for name in runtime.registry.list()) == 160
        runtime.close()


def test_a_runtime_that_is_left_is_forgotten(tmp_path: Path) -> None:
    from apflow import definition

    with Runtime(f"sqlite:///{tmp_path}/1.db") as runtime:
        assert runtime.registry is runtime.registry
        Door(runtime)
    gc.collect()
    before = len(definition._watchers)
    gone = weakref.ref(runtime)
    del runtime
    gc.collect()
    assert gone() is None
    assert len(definition._watchers) == before - 1


def test_the_registry_works_in_plain_code(tmp_path: Path) -> None:
    with Runtime(f"sqlite:///{tmp_path}/1.db") as runtime:
        cell("@apflow.task(name='live_plain')\ndef f(n: int) -> int: return n")
        assert runtime.wait(Door(runtime, prefix="live_").call("live_plain", {"n": 1})).value == 1
        assert runtime.registry.export_schema("live_plain") is not None


def test_decorating_loads_neither_apcore_nor_pydantic() -> None:
    program = (
        "import sys, apflow\n@apflow.task\nasync def f(n: int) -> int: return n\n"
        "print([m for m in ('apcore', 'pydantic', 'starlette', 'mcp') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_names_that_apcore_keeps_for_itself_are_refused_where_they_are_given() -> None:
    from apcore.registry.registry import MAX_MODULE_ID_LENGTH, RESERVED_WORDS

    from apflow.naming import MAX_NAME

    assert MAX_NAME <= MAX_MODULE_ID_LENGTH
    for word in RESERVED_WORDS:
        with pytest.raises(TaskDefinitionError, match="reserved"):
            cell(f"@apflow.task(name='{word}.x')\nasync def f() -> None: ...")
