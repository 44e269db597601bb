"""The way in that all protocols share: who may call what, whose run it is, and how a call ends."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from apcore import ACL, ACLRule, Context, Identity, Registry

import apflow
from apflow import Runtime, UserRequiredError
from apflow.bridge.door import Answer, Door
from apflow.bridge.refusals import RefusedError
from apflow.durability.circuit_breaker import CircuitBreakerConfig
from apflow.errors import RunCancelledError
from apflow.state import Progress

pytestmark = pytest.mark.anyio

ALICE, BOB = Identity(id="alice"), Identity(id="bob")
gates: dict[str, asyncio.Event] = {}
seen: list[Any] = []


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    seen.clear()
    gates.clear()


@pytest.fixture
async def runtime(sqlite_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(sqlite_url, shutdown_seconds=1) as made:
        yield made


@pytest.fixture
def door(runtime: Runtime) -> Door:
    return Door(runtime, prefix="door_")


@apflow.task
async def door_add(a: int, b: int = 2) -> int:
    """Add two numbers."""
    seen.append(a)
    return a + b


@apflow.task(tags=("readonly", "shown"))
async def door_shown(text: str) -> dict[str, str]:
    return {"text": text}


@apflow.task
async def hidden(**anything: int) -> int:
    seen.append(anything)
    return 0


@apflow.task
async def door_waits(name: str) -> str:
    gates[name] = asyncio.Event()
    try:
        await gates[name].wait()
    except asyncio.CancelledError:
        seen.append("cancelled")
        raise
    seen.append("done")
    return name


@apflow.task
async def door_raises(kind: str) -> None:
    raise {"value": ValueError("secret"), "other": RunCancelledError("another"), "exit": SystemExit("secret")}[kind]


async def begun(name: str) -> None:
    async with asyncio.timeout(30):
        while name not in gates:  # noqa: ASYNC110 - it is set by the task
            await asyncio.sleep(0.001)


async def ends(runtime: Runtime, run_id: str) -> str:
    async with asyncio.timeout(30):
        while True:
            run = await runtime.runs.get(run_id)
            if run is not None and run.status in ("completed", "failed", "cancelled"):
                return run.status
            await asyncio.sleep(0.005)


async def refusal(door: Door, name: str, inputs: Any = None, **options: Any) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        await door.call(name, {} if inputs is None else inputs, **options)
    return caught.value


# -- what there is -------------------------------------------------------------------------------------------


async def test_a_call_is_a_run_of_the_caller(door: Door, runtime: Runtime) -> None:
    answer = await door.call("door_add", {"a": 3.0}, identity=ALICE)
    assert (answer.output, answer.value) == ({"result": 5}, 5)
    run = await runtime.runs.get(answer.run_id or "")
    assert run is not None
    assert (run.name, run.user_id, run.status, run.result) == ("door_add", "alice", "completed", 5)


async def test_nobody_asked_is_the_user_of_the_runtime(sqlite_url: str) -> None:
    async with Runtime(sqlite_url, user="me") as runtime:
        answer = await Door(runtime).call("door_add", {"a": 1})
        run = await runtime.runs.get(answer.run_id or "")
        assert run is not None
        assert run.user_id == "me"
        # A caller without a name is not the owner of the server.
        for wrong in ("", "a\0", "x" * 256, "\ud800"):
            found = await refusal(Door(runtime), "door_add", {"a": 1}, identity=Identity(id=wrong))
            assert found.told.code == "forbidden"
        assert await runtime.runs.count() == 1


async def test_what_is_filtered_out_cannot_be_called(runtime: Runtime) -> None:
    door = Door(runtime, tags=["shown"], prefix="door_")
    assert list(door.modules()) == ["door_shown"]
    for name in ("hidden", "door_add", "nothing", "door_", "", "Not An Id", "door_shown\n", "_private"):
        found = await refusal(door, name, {"a": 1})
        assert (found.told.code, found.message) == ("not_found", "there is no task of this name here")
    assert seen == []
    assert (await door.call("door_shown", {"text": "x"})).value == {"text": "x"}


async def test_inputs_that_are_no_object_are_refused(door: Door) -> None:
    for inputs in ([1], "x", 5, None):
        with pytest.raises(RefusedError) as caught:
            await door.call("door_add", inputs)  # type: ignore[arg-type]
        assert caught.value.told.code == "invalid_input"


@apflow.task
async def door_any(value: Any) -> str:
    return "taken"


async def test_inputs_that_are_nested_too_deeply_are_the_callers_fault(door: Door, runtime: Runtime) -> None:
    for depth in (300, 950, 5_000):
        value: Any = 1
        for _ in range(depth):
            value = [value]
        found = await refusal(door, "door_any", {"value": value})
        assert (found.told.code, "nested too deeply" in found.message) == ("invalid_input", True)
    assert await runtime.runs.count() == 0


async def test_a_list_of_tasks_is_served_as_it_is(runtime: Runtime) -> None:
    slow = door_add.with_options(runtime=runtime, user="batch")
    door = Door([slow, door_shown])
    assert (list(door.modules()), door.runtime) == (["door_add", "door_shown"], runtime)
    run = await runtime.runs.get((await door.call("door_add", {"a": 1})).run_id or "")
    assert run is not None
    assert run.user_id == "batch"
    assert list(Door(door_shown).modules()) == ["door_shown"]
    assert list(Door([door_shown, door_shown]).modules()) == ["door_shown"]


class Things:
    @apflow.task(name="door_method")
    async def door_method(self) -> None: ...


@apflow.task(name="_door_private")
async def door_private() -> None: ...


class Opaque:
    """No JSON is one."""


@apflow.task
async def door_undescribable(value: Opaque) -> None: ...


def test_what_cannot_be_served_is_refused_at_once(tmp_path: Any) -> None:
    with pytest.raises(TypeError, match="not int"):
        Door(5)
    with pytest.raises(TypeError, match=r"not function; decorate with @apflow\.task"):
        Door([door_add, test_what_cannot_be_served_is_refused_at_once])
    with pytest.raises(ValueError, match="nothing to serve"):
        Door([])
    with pytest.raises(ValueError, match="private"):
        Door([door_private])
    with pytest.raises(ValueError, match="cannot be served together"):
        Door([door_add, door_add.with_options(timeout=5)])
    with pytest.raises(apflow.ExecutorNotFoundError, match="method"):
        Door([Things.door_method])
    with pytest.raises(apflow.TaskDefinitionError):
        Door([door_undescribable])
    with (
        Runtime(f"sqlite:///{tmp_path}/1.db") as one,
        Runtime(f"sqlite:///{tmp_path}/2.db") as two,
        pytest.raises(ValueError, match="several runtimes"),
    ):
        Door([door_add.with_options(runtime=one), door_shown.with_options(runtime=two)])


# -- ids and keys --------------------------------------------------------------------------------------------


@pytest.fixture
async def shared(database_url: str) -> AsyncIterator[Door]:
    async with Runtime(database_url, shutdown_seconds=1) as runtime:
        yield Door(runtime, prefix="door_")


async def test_an_id_that_exists_is_refused_and_nothing_is_overwritten(shared: Door) -> None:
    runs = shared.runtime.runs
    assert (await shared.call("door_add", {"a": 1}, run_id="one", identity=ALICE)).run_id == "one"
    before = await runs.get("one")
    for inputs, identity in (({"a": 1}, BOB), ({"a": 1}, ALICE), ({"a": 2}, ALICE), ({"a": 1}, None)):
        found = await refusal(shared, "door_add", inputs, run_id="one", identity=identity)
        assert (found.told.code, found.run_id) == ("conflict", None)
        assert "one" not in found.message.split()
    assert (await refusal(shared, "door_raises", {"kind": "value"}, run_id="bad")).told.code == "internal"
    assert (await refusal(shared, "door_raises", {"kind": "value"}, run_id="bad")).told.code == "conflict"
    assert (await refusal(shared, "door_raises", {"kind": "value"}, run_id="bad", key="k")).told.code == "conflict"
    assert await runs.get("one") == before
    assert seen == [1]
    assert await runs.count() == 2


async def test_one_id_at_the_same_moment_is_one_run(shared: Door) -> None:
    calls = [shared.call("door_add", {"a": 1}, run_id="same", identity=who) for who in (ALICE, BOB) * 5]
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(one, Answer) for one in found) == 1
    assert [one.told.code for one in found if isinstance(one, RefusedError)] == ["conflict"] * 9
    assert len(seen) == 1


async def test_an_id_or_a_key_that_no_database_takes_is_refused(shared: Door) -> None:
    for wrong in ("", "a\0", "\ud800", "x" * 256):
        for options in ({"run_id": wrong}, {"key": wrong}):
            found = await refusal(shared, "door_add", {"a": 1}, **options)
            assert found.told.code == "invalid_input"
    assert await shared.runtime.runs.count() == 0


async def test_a_key_belongs_to_its_caller(door: Door) -> None:
    first = await door.call("door_add", {"a": 1}, key="k", identity=ALICE)
    again = await door.call("door_add", {"a": 1}, key="k", identity=ALICE, run_id=first.run_id)
    theirs = await door.call("door_add", {"a": 1}, key="k", identity=BOB)
    nobodys = await door.call("door_add", {"a": 1}, key="k")
    assert again == first
    assert len({first.run_id, theirs.run_id, nobodys.run_id}) == 3
    assert (await refusal(door, "door_add", {"a": 2}, key="k", identity=ALICE)).told.code == "conflict"


# -- ends ----------------------------------------------------------------------------------------------------


async def cancelled(call: asyncio.Task[Any]) -> None:
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_caller_who_leaves_a_detached_call_leaves_the_run_alone(door: Door, runtime: Runtime) -> None:
    call = asyncio.create_task(door.call("door_waits", {"name": "a"}, run_id="r"))
    await begun("a")
    await cancelled(call)
    gates["a"].set()
    assert await ends(runtime, "r") == "completed"


async def test_a_caller_who_leaves_otherwise_cancels_the_run(door: Door, runtime: Runtime) -> None:
    call = asyncio.create_task(door.call("door_waits", {"name": "a"}, run_id="r", detached=False))
    await begun("a")
    await cancelled(call)
    assert (await ends(runtime, "r"), seen) == ("cancelled", ["cancelled"])
    direct = asyncio.create_task(door.executor.call_async("door_waits", {"name": "b"}))
    await begun("b")
    await cancelled(direct)
    assert (await runtime.runs.count(status="cancelled"), len(seen)) == (2, 2)


@pytest.mark.parametrize("detached", [True, False])
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8])
async def test_a_caller_who_leaves_while_the_run_is_stored_leaves_a_whole_one(
    door: Door, runtime: Runtime, steps: int, detached: bool
) -> None:
    await runtime.ready()
    call = asyncio.create_task(door.call("door_add", {"a": 1}, run_id="r", detached=detached))
    for _ in range(steps):
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    if await runtime.runs.get("r") is not None:
        assert await ends(runtime, "r") in (("completed",) if detached else ("cancelled", "completed"))


async def test_who_joined_a_run_does_not_cancel_it_by_leaving(door: Door, runtime: Runtime) -> None:
    first = asyncio.create_task(door.call("door_waits", {"name": "a"}, key="k", detached=False))
    await begun("a")
    ids: list[str] = []
    second = asyncio.create_task(
        door.call("door_waits", {"name": "a"}, key="k", detached=False, begun=ids.append, identity=None)
    )
    async with asyncio.timeout(30):
        while not ids:  # noqa: ASYNC110 - told by the other task
            await asyncio.sleep(0.001)
    await cancelled(second)
    gates["a"].set()
    assert (await first).run_id == ids[0]


async def test_a_run_that_is_cancelled_on_purpose_tells_so(door: Door, runtime: Runtime) -> None:
    call = asyncio.create_task(door.call("door_waits", {"name": "a"}, run_id="r"))
    await begun("a")
    await runtime.runs.cancel("r")
    with pytest.raises(RefusedError) as caught:
        await call
    assert caught.value.as_json() == {
        "code": "cancelled",
        "message": "the task was cancelled",
        "details": {},
        "retryable": False,
        "reference": "r",
        "run_id": "r",
    }
    # Called once more with a key, it says the same and is not begun again.
    again = await refusal(door, "door_waits", {"name": "a"}, run_id="r", key="k")
    assert again.told.code == "conflict"


async def test_an_error_about_another_run_is_an_error_of_the_task(door: Door, runtime: Runtime) -> None:
    found = await refusal(door, "door_raises", {"kind": "other"}, run_id="r")
    assert (found.told.code, found.reference) == ("internal", "r")
    row = await runtime.runs.get("r")
    assert row is not None
    assert row.status == "failed"


@apflow.task
def door_exits() -> None:
    raise SystemExit("secret")


async def test_a_plain_task_that_wants_to_end_the_process_does_not_answer_with_its_text(door: Door) -> None:
    found = await refusal(door, "door_exits")
    assert "secret" not in str(found.as_json())


async def test_a_server_that_shuts_down_interrupts(sqlite_url: str) -> None:
    async with Runtime(sqlite_url, shutdown_seconds=0.01) as runtime:
        call = asyncio.create_task(Door(runtime).call("door_waits", {"name": "a"}, run_id="r"))
        await begun("a")
    with pytest.raises(RefusedError) as caught:
        await call
    assert (caught.value.told.code, caught.value.told.retryable) == ("interrupted", True)
    assert (await refusal(Door(runtime), "door_add", {"a": 1})).told.code == "unavailable"


# -- inside each other ---------------------------------------------------------------------------------------


@apflow.task
async def door_outer(a: int) -> int:
    door: Door = seen[-1]
    return int((await door.call("door_add", {"a": a})).value)


@apflow.task
async def door_outer_fails() -> int:
    door: Door = seen[-1]
    return int((await door.call("door_add", {"a": "x"})).value)


async def test_a_call_inside_a_run_is_part_of_it(door: Door, runtime: Runtime) -> None:
    seen.append(door)
    answer = await door.call("door_outer", {"a": 5}, run_id="outer", identity=ALICE, key="k")
    assert answer.value == 7
    tree = await runtime.runs.tree("outer")
    (child,) = tree.children
    assert (child.run.parent_id, child.run.user_id, child.run.name) == ("outer", "alice", "door_add")


async def test_a_refusal_inside_a_run_is_told_of_the_run_that_was_called(door: Door, runtime: Runtime) -> None:
    seen.append(door)
    found = await refusal(door, "door_outer_fails", run_id="outer")
    assert (found.told.code, found.run_id, found.reference) == ("invalid_input", "outer", "outer")
    row = await runtime.runs.get("outer")
    assert row is not None
    assert row.status == "failed"


class Foreign:
    """A module of apcore that nobody has told of us."""

    description = "calls two tasks"
    annotations = None

    async def execute(self, inputs: dict[str, Any], context: Context[Any]) -> dict[str, Any]:
        executor: Any = context.executor
        first = await executor.call_async("door_add", {"a": 1}, context)
        second = await executor.call_async("door_add", {"a": 1}, context)
        return {"both": [first["result"], second["result"]]}


async def test_what_the_door_knows_is_for_the_module_that_was_called(runtime: Runtime) -> None:
    registry = Registry()
    registry.register("foreign", Foreign())
    for name, module in Door(runtime, prefix="door_").modules().items():
        registry.register(name, module)
    door = Door(registry)
    assert door.runtime is runtime
    answer = await door.call("foreign", {}, run_id="mine", key="k", identity=ALICE)
    assert (answer.output, answer.run_id) == ({"both": [3, 3]}, None)
    runs = await runtime.runs.list()
    assert len(runs) == 2
    assert {run.user_id for run in runs} == {"alice"}
    assert "mine" not in {run.id for run in runs}


# -- limits --------------------------------------------------------------------------------------------------


@apflow.task(budget=apflow.Budget(requests=1, per="user", window="1d", name="door_calls"))
async def door_budgeted() -> str:
    await asyncio.sleep(0)
    apflow.report_usage(input=1)
    return "ok"


@apflow.task(breaker=CircuitBreakerConfig(failure_threshold=1, reset_timeout_seconds=60))
async def door_breaks() -> None:
    raise ValueError("secret")


@apflow.task(timeout=0.01)
async def door_slow() -> None:
    await asyncio.Event().wait()


@apflow.task
async def door_public(text: str) -> None:
    raise apflow.PublicError(f"no {text}\0", code="no_such_thing", details={"tried": ["\ud800"]}, retryable=True)


async def test_limits_are_told_with_their_figures(door: Door) -> None:
    assert (await door.call("door_budgeted", {}, identity=ALICE, run_id="b1")).value == "ok"
    found = await refusal(door, "door_budgeted", {}, identity=ALICE, run_id="b2")
    assert (found.told.code, found.told.details["remaining"], found.run_id) == ("budget_exhausted", 0, "b2")
    assert found.told.details["resets_at"] is not None
    assert (await door.call("door_budgeted", {}, identity=BOB)).value == "ok"
    assert (await refusal(door, "door_budgeted")).told.code == "user_required"

    assert (await refusal(door, "door_breaks")).told.code == "internal"
    found = await refusal(door, "door_breaks")
    assert (found.told.code, found.told.details["task"]) == ("circuit_open", "door_breaks")
    assert 0 < found.told.details["retry_in_seconds"] <= 60

    found = await refusal(door, "door_slow")
    assert (found.told.code, found.told.details) == ("timeout", {"seconds": 0.01})


async def test_what_was_told_stands_on_the_row(shared: Door) -> None:
    found = await refusal(shared, "door_public", {"text": "x"}, run_id="p")
    assert found.as_json() == {
        "code": "no_such_thing",
        "message": "no x\\x00",
        "details": {"tried": ["\\ud800"]},
        "retryable": True,
        "reference": "p",
        "run_id": "p",
    }
    assert (await refusal(shared, "door_slow", run_id="t")).told.code == "timeout"
    for run_id, code in (("p", "no_such_thing"), ("t", "timeout")):
        with pytest.raises(apflow.RunFailedError) as caught:
            await elsewhere(shared.runtime, run_id)
        assert caught.value.told.code == code


async def elsewhere(runtime: Runtime, run_id: str) -> Any:
    """Wait for a run as another process does."""
    row = await runtime.recorder.claims.result(run_id, lambda _: asyncio.sleep(0, result=False))
    return row.result


# -- listening -----------------------------------------------------------------------------------------------


class Ears:
    def __init__(self, *, broken: bool = False) -> None:
        self.heard: list[Any] = []
        self.threads: set[int] = set()
        self._broken = broken

    def progressed(self, progress: Progress) -> None:
        self._hear((progress.done, progress.total, progress.message))

    def produced(self, item: Any) -> None:
        self._hear(item)

    def _hear(self, what: Any) -> None:
        self.heard.append(what)
        self.threads.add(threading.get_ident())
        if self._broken:
            raise RuntimeError("Event loop is closed")


@apflow.task
async def door_stream(n: int) -> Any:
    for i in range(n):
        await apflow.progress(i + 1, n, f"item {i}")
        yield i


@apflow.task
def door_plain_stream(n: int) -> Iterator[int]:
    for i in range(n):
        apflow.current().progress(i + 1, n)
        yield i


@pytest.mark.parametrize("name", ["door_stream", "door_plain_stream"])
async def test_a_listener_hears_of_progress_and_items(door: Door, name: str) -> None:
    ears = Ears()
    answer = await door.call(name, {"n": 3}, listener=ears)
    assert answer.value == [0, 1, 2]
    assert [one for one in ears.heard if isinstance(one, int)] == [0, 1, 2]
    assert [one[:2] for one in ears.heard if isinstance(one, tuple)] == [(1, 3), (2, 3), (3, 3)]
    assert (threading.get_ident() in ears.threads) == (name == "door_stream")
    assert door.modules()[name].streaming


@pytest.mark.parametrize("name", ["door_stream", "door_plain_stream"])
async def test_a_listener_that_is_broken_does_not_break_the_run(
    door: Door, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    ears = Ears(broken=True)
    assert (await door.call(name, {"n": 3}, listener=ears)).value == [0, 1, 2]
    assert len(ears.heard) == 1
    assert "a listener is told no more of its run: it raised RuntimeError" in caplog.text


async def test_who_is_told_of_a_run_before_it_ends_may_break_too(door: Door) -> None:
    ids: list[str] = []

    def told_of(run_id: str) -> None:
        ids.append(run_id)
        raise ValueError

    answer = await door.call("door_add", {"a": 1}, begun=told_of)
    assert [answer.run_id] == ids


# -- rules of apcore -----------------------------------------------------------------------------------------


async def test_rules_of_access_hold_for_the_caller(runtime: Runtime) -> None:
    acl = ACL(
        [
            ACLRule(callers=["*"], targets=["door_add"], effect="allow", conditions={"roles": ["adder"]}),
            ACLRule(callers=["*"], targets=["*"], effect="deny"),
        ]
    )
    door = Door(runtime, acl=acl)
    adder = Identity(id="a", roles=("adder",))
    assert (await door.call("door_add", {"a": 1}, identity=adder)).value == 3
    for identity in (ALICE, None):
        found = await refusal(door, "door_add", {"a": 1}, identity=identity)
        assert (found.told.code, found.message) == ("forbidden", "you may not call this task")
    assert await runtime.runs.count() == 1


async def test_a_user_is_needed_where_a_budget_counts_per_user(runtime: Runtime) -> None:
    with pytest.raises(UserRequiredError):
        await door_budgeted.with_options(runtime=runtime)()
    with contextlib.suppress(RefusedError):
        await Door(runtime).call("door_budgeted", {})
    assert await runtime.runs.count() == 0


@apflow.task
async def door_exits_awaited() -> None:
    raise SystemExit("no more")


@apflow.task
async def door_exits_streaming() -> AsyncIterator[int]:
    yield 1
    raise SystemExit("no more")


@apflow.task
def door_exits_plainly() -> None:
    raise SystemExit("no more")


@pytest.mark.parametrize(
    "task", [door_exits_awaited, door_exits_streaming, door_exits_plainly], ids=lambda task: task.name
)
async def test_a_function_that_exits_fails_and_takes_nothing_with_it(
    door: Door, runtime: Runtime, task: apflow.Task[..., Any]
) -> None:
    with pytest.raises(RefusedError) as refused:
        await door.call(task.name, {})

    assert refused.value.told.code == "internal"
    row = await runtime.runs.get(refused.value.run_id or "")
    assert row is not None
    assert row.status == "failed"
    assert (await door.call("door_add", {"a": 1})).value == 3
