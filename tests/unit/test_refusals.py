"""What callers get in place of an exception, and what the operator finds in the log."""

from __future__ import annotations

import json
import logging

import pytest
from apcore import ErrorCodes, ModuleError
from apcore.errors import CallDepthExceededError, CallFrequencyExceededError, ModuleTimeoutError

from apflow import errors
from apflow.bridge.refusals import RefusedError, refusal, refused
from apflow.told import Told

SECRET = "hunter2"  # noqa: S105 - it is none


def caught(error: BaseException) -> BaseException:
    try:
        raise error  # noqa: TRY301 - that is what it is for
    except BaseException as found:  # noqa: BLE001 - see above
        return found


def test_what_every_door_sends() -> None:
    found = RefusedError(Told("failed", "no", {"n": 1}, retryable=True), reference="ref", run_id="run")
    assert found.as_json() == {
        "code": "failed",
        "message": "no",
        "details": {"n": 1},
        "retryable": True,
        "reference": "ref",
        "run_id": "run",
    }
    assert json.loads(json.dumps(found.as_json())) == found.as_json()
    assert (found.code, found.retryable) == ("APFLOW_FAILED", True)
    assert found.details == {"n": 1, "code": "failed", "reference": "ref", "run_id": "run"}


def test_an_unknown_error_names_its_reference(caplog: pytest.LogCaptureFixture) -> None:
    found = refused(caught(ValueError(SECRET)), "job", "run-1")
    assert found.message == "the task failed; ask the operator about run-1"
    (record,) = caplog.records
    assert (record.levelno, record.name) == (logging.ERROR, "apflow.bridge.refusals")
    assert record.getMessage().startswith("'job': internal (builtins.ValueError in tests.unit.test_refusals, line ")
    assert record.getMessage().endswith("reference run-1")
    assert "/" not in record.getMessage()


def test_what_is_no_trouble_of_the_servers_is_logged_quietly(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for found in (
        refused(ModuleError(code=ErrorCodes.MODULE_NOT_FOUND, message=SECRET), "job"),
        refusal("forbidden", "no", n=1),
    ):
        assert found.run_id is None
        assert found.reference in caplog.text
    assert {one.levelno for one in caplog.records} == {logging.INFO}
    assert SECRET not in caplog.text


def test_a_refusal_is_refused_once(caplog: pytest.LogCaptureFixture) -> None:
    first = refused(caught(ValueError(SECRET)), "job", "run-1")
    assert refused(first, "job", "run-1") is first
    assert refused(first, "job") is first
    assert len(caplog.records) == 1
    # What has failed inside another run is told of that one.
    outer = refused(first, "outer", "run-2")
    assert (outer.told, outer.run_id, outer.reference) == (first.told, "run-2", "run-2")


def test_the_run_of_an_error_is_named_when_it_can_be_the_callers() -> None:
    assert refused(errors.KeyConflictError("mine", "x"), "job").run_id == "mine"
    assert refused(errors.RunNotFoundError("asked for"), "job").run_id is None
    assert refused(errors.RunCancelledError("mine"), "job", "mine").told.code == "cancelled"
    assert refused(errors.RunCancelledError("theirs"), "job", "mine").told.code == "internal"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ModuleTimeoutError(module_id="m", timeout_ms=1), "timeout"),
        (ModuleError(code=ErrorCodes.MODULE_DISABLED, message=SECRET), "not_found"),
        (ModuleError(code=ErrorCodes.ACL_DENIED, message=SECRET), "forbidden"),
        (ModuleError(code=ErrorCodes.EXECUTION_CANCELLED, message=SECRET), "cancelled"),
        (ModuleError(code="ANYTHING", message=SECRET), "internal"),
        (ModuleError(code="ANYTHING", message=SECRET, cause=ValueError(SECRET)), "internal"),
        (ModuleError(code="ANYTHING", message=SECRET, cause=errors.RuntimeClosedError(SECRET)), "unavailable"),
        (CallDepthExceededError(depth=5, max_depth=4, call_chain=[SECRET]), "call_depth"),
        (
            CallFrequencyExceededError(module_id="m", count=5, max_repeat=4, call_chain=[SECRET]),
            "call_depth",
        ),
    ],
)
def test_errors_of_apcore(error: ModuleError, code: str) -> None:
    found = refused(error, "job")
    assert found.told.code == code
    assert SECRET not in json.dumps(found.as_json())
