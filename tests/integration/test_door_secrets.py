"""What goes wrong behind a door stays there: no text of an exception and no input gets into a log or an answer."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import traceback
from collections.abc import AsyncIterator
from typing import Any

import pytest
from apcore import ApprovalResult, Context, Identity, ModuleError, Registry
from apcore.errors import InvalidInputError, SchemaValidationError
from pydantic import BaseModel, field_validator

import apflow
from apflow import Runtime
from apflow.bridge.door import Door
from apflow.bridge.refusals import RefusedError

pytestmark = pytest.mark.anyio

SECRET = "hunter2"  # noqa: S105 - it is none


@pytest.fixture(autouse=True)
def _everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


@pytest.fixture
async def runtime(sqlite_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(sqlite_url, shutdown_seconds=1) as made:
        yield made


class Login(BaseModel):
    password: str

    @field_validator("password")
    @classmethod
    def refuse(cls, value: str) -> str:
        if value.endswith("!"):
            raise ValueError(f"bad password {value}")
        return value


@apflow.task
async def secret_login(login: Login, mode: str = "") -> str:
    if mode == "chained":
        try:
            int(login.password)
        except ValueError as error:
            raise RuntimeError(f"/etc/{login.password}") from error
    if mode == "group":
        raise ExceptionGroup(login.password, [ValueError(login.password)])
    if mode == "inputs":
        raise apflow.InvalidInputsError(login.password)
    if mode == "sql":
        raise apflow.StorageError(f"SELECT {login.password}")
    if mode == "child":
        await secret_child(login.password)
    if mode == "waits":
        waiting.set()
        await asyncio.Event().wait()
    if mode == "late":
        waiting.set()
        await goes_on.wait()
        raise ValueError(login.password)
    return "in"


@apflow.task
async def secret_child(password: str) -> None:
    raise ValueError(password)


@apflow.task(tags=("requires_approval",))
async def secret_approved(password: str) -> str:
    return "done"


@apflow.task(tags=("destructive",))
async def secret_destructive(password: str) -> str:
    return "done"


waiting, goes_on = asyncio.Event(), asyncio.Event()


@pytest.fixture(autouse=True)
def _fresh_events() -> None:
    global waiting, goes_on
    waiting, goes_on = asyncio.Event(), asyncio.Event()


def everything(caplog: pytest.LogCaptureFixture) -> str:
    """Return all that was logged, with what hangs on the records."""
    shown = [logging.Formatter("%(name)s %(message)s").format(one) for one in caplog.records]
    return "\n".join([*shown, *(repr(vars(one)) for one in caplog.records)])


async def refusal(door: Door, name: str, inputs: dict[str, Any], **options: Any) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        await door.call(name, inputs, **options)
    return caught.value


@pytest.mark.parametrize("mode", ["chained", "group", "inputs", "sql", "child"])
async def test_an_exception_of_the_task_stays_inside(
    runtime: Runtime, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    loop_errors: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: loop_errors.append(what))
    found = await refusal(Door(runtime), "secret_login", {"login": {"password": SECRET}, "mode": mode})
    answer = json.dumps(found.as_json()) + str(found) + repr(found) + repr(found.to_dict())
    assert SECRET not in answer + "".join(traceback.format_exception(found))
    assert (found.__cause__, found.__context__) == (None, None)
    assert SECRET not in everything(caplog)
    # Who may know more finds it by the reference, in the log and on the row.
    assert found.reference in caplog.text
    row = await runtime.runs.get(found.reference)
    assert row is not None
    assert SECRET in str(row.error)
    assert SECRET not in json.dumps(row.error_info.get("told"))
    gc.collect()
    assert loop_errors == []


async def test_inputs_that_a_validator_refuses_are_not_repeated(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    found = await refusal(Door(runtime), "secret_login", {"login": {"password": f"{SECRET}!"}})
    assert found.message == "inputs of 'secret_login' do not fit: 'login.password' was refused by its validator"
    assert SECRET not in everything(caplog)


async def test_what_is_called_can_write_no_lines_into_the_log(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    await refusal(Door(runtime), f"nothing\nERROR forged {'x' * 5_000}", {})
    assert "\nERROR forged" not in caplog.text
    assert "x" * 1_000 not in caplog.text


@pytest.mark.parametrize("detached", [True, False])
async def test_a_caller_who_has_left_leaves_no_text_behind(
    runtime: Runtime, caplog: pytest.LogCaptureFixture, detached: bool
) -> None:
    loop_errors: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: loop_errors.append(what))
    inputs = {"login": {"password": SECRET}, "mode": "late"}
    call = asyncio.create_task(Door(runtime).call("secret_login", inputs, run_id="r", detached=detached))
    await waiting.wait()
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()
    goes_on.set()
    with pytest.raises((ValueError, apflow.RunCancelledError, apflow.RunFailedError)):
        await runtime.background.join("r", None)
    del call
    gc.collect()
    await asyncio.sleep(0)
    assert loop_errors == []
    assert SECRET not in everything(caplog)


async def test_inputs_are_in_no_log_of_apcore(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    door = Door(runtime)
    assert (await door.call("secret_login", {"login": {"password": SECRET}})).value == "in"
    assert (await door.call("secret_destructive", {"password": SECRET})).value == "done"
    await refusal(door, "secret_login", {"login": SECRET})
    await refusal(door, "secret_login", {SECRET: 1, "login": {"password": ""}})
    await refusal(door, "secret_approved", {"password": SECRET})
    assert SECRET not in everything(caplog)


# -- approval ------------------------------------------------------------------------------------------------


class Approver:
    def __init__(self, status: Any) -> None:
        self._status = status
        self.asked: list[Any] = []

    async def request_approval(self, request: Any) -> ApprovalResult:
        self.asked.append((request.module_id, request.arguments, request.context.identity))
        if self._status == "raises":
            raise ValueError(SECRET)
        return ApprovalResult(status=self._status, reason=f"{self._status} because", approval_id="approval-1")

    async def check_approval(self, approval_id: str) -> ApprovalResult:
        self.asked.append(approval_id)
        return ApprovalResult(status="approved")


async def test_what_needs_approval_is_refused_when_nobody_can_give_it(runtime: Runtime) -> None:
    door = Door(runtime)
    for inputs in ({"password": "x"}, {"password": "x", "_approval_token": "guessed"}):
        found = await refusal(door, "secret_approved", inputs)
        assert (found.told.code, found.message, found.run_id) == ("approval_denied", "the call was not approved", None)
    assert await runtime.runs.count() == 0
    assert (await door.call("secret_destructive", {"password": "x"})).value == "done"


@pytest.mark.parametrize(
    ("status", "code", "details"),
    [
        ("rejected", "approval_denied", {}),
        ("timeout", "approval_timeout", {}),
        ("pending", "approval_pending", {"approval_id": "approval-1"}),
        ("something", "approval_denied", {}),
        ("raises", "internal", {}),
    ],
)
async def test_what_is_not_approved_does_not_run(
    runtime: Runtime, caplog: pytest.LogCaptureFixture, status: str, code: str, details: dict[str, Any]
) -> None:
    door = Door(runtime, approval_handler=Approver(status))
    found = await refusal(door, "secret_approved", {"password": "x"})
    assert (found.told.code, found.told.details) == (code, details)
    assert await runtime.runs.count() == 0
    assert found.reference in caplog.text
    assert SECRET not in json.dumps(found.as_json()) + everything(caplog)


async def test_what_is_approved_runs_with_its_inputs(runtime: Runtime) -> None:
    approver = Approver("approved")
    door = Door(runtime, approval_handler=approver)
    alice = Identity(id="alice")
    assert (await door.call("secret_approved", {"password": "x"}, identity=alice)).value == "done"
    again = {"password": "x", "_approval_token": "approval-1"}
    assert (await door.call("secret_approved", again)).value == "done"
    # The token was given for no call of this caller, so that it is asked about like any other one.
    assert approver.asked == [("secret_approved", {"password": "x"}, who) for who in (alice, None)]


# -- modules that are not ours -------------------------------------------------------------------------------


class Plain:
    """A module of apcore with a plain function."""

    description = "fails in many ways"

    def execute(self, inputs: dict[str, Any], context: Context[Any]) -> Any:
        kind = inputs.get("kind")
        errors: dict[Any, Exception] = {
            "value": ValueError(SECRET),
            "module": ModuleError(code="CUSTOM", message=SECRET, details={"x": SECRET}),
            "inputs": InvalidInputError(message=SECRET),
            "schema": SchemaValidationError(message=SECRET, errors=[]),
            "public": apflow.PublicError("it is so", details={"n": 1}),
            "timeout": TimeoutError(SECRET),
        }
        if kind in errors:
            raise errors[kind]
        return {"kind": kind}


class PlainInputs(BaseModel):
    n: int


class PlainOutput(BaseModel):
    password: int


class Typed:
    """A module of apcore with schemas."""

    description = "has schemas"
    input_schema = PlainInputs
    output_schema = PlainOutput

    async def execute(self, inputs: dict[str, Any], context: Context[Any]) -> Any:
        return {"password": 1 if inputs["n"] else SECRET}


@pytest.fixture
def foreign(runtime: Runtime) -> Door:
    registry = Registry()
    registry.register("plain", Plain())
    registry.register("typed", Typed())
    registry.register("ours", Door(runtime).module("secret_login"))
    return Door(registry)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("value", "internal"),
        ("module", "internal"),
        ("inputs", "invalid_input"),
        ("schema", "invalid_input"),
        ("public", "failed"),
        ("timeout", "timeout"),
    ],
)
async def test_errors_of_other_modules_are_mapped_too(
    foreign: Door, caplog: pytest.LogCaptureFixture, kind: str, code: str
) -> None:
    found = await refusal(foreign, "plain", {"kind": kind})
    assert (found.told.code, found.run_id) == (code, None)
    assert found.reference in caplog.text
    assert SECRET not in json.dumps(found.as_json()) + everything(caplog) + "".join(traceback.format_exception(found))
    if kind == "public":
        assert (found.message, found.told.details) == ("it is so", {"n": 1})


async def test_schemas_of_other_modules_hold(foreign: Door, caplog: pytest.LogCaptureFixture) -> None:
    assert (await foreign.call("typed", {"n": 1})).output == {"password": 1}
    assert (await foreign.call("plain", {"kind": "x"})).value == {"kind": "x"}
    found = await refusal(foreign, "typed", {"n": SECRET})
    assert found.message == "the inputs do not fit the schema of this task: '/n' breaks type"
    # What the module does wrong is not the caller's fault.
    assert (await refusal(foreign, "typed", {"n": 0})).told.code == "internal"
    assert SECRET not in everything(caplog)


# -- apcore's own limits ------------------------------------------------------------------------------------


async def test_nothing_of_apcore_cuts_or_counts_our_calls(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APCORE_EXECUTOR_DEFAULT_TIMEOUT", "1")
    monkeypatch.setenv("APCORE_EXECUTOR_GLOBAL_TIMEOUT", "1")

    class Recursive:
        description = "calls itself"

        async def execute(self, inputs: dict[str, Any], context: Context[Any]) -> dict[str, Any]:
            assert context.global_deadline is None
            left = inputs["left"]
            if left:
                executor: Any = context.executor
                return {"depth": 1 + (await executor.call_async("recursive", {"left": left - 1}, context))["depth"]}
            await asyncio.sleep(0.005)
            return {"depth": 0}

    registry = Registry()
    registry.register("recursive", Recursive())
    assert (await Door(registry).call("recursive", {"left": 40})).output == {"depth": 40}
