"""What remote callers may know of an error: every error of apflow has a decision, and no text of anybody's gets out."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

import apflow
from apflow import errors
from apflow.storage.serialize import describe_error
from apflow.told import INTERNAL, Told, read_told, told

SECRET = "hunter2 /etc/passwd SELECT"  # noqa: S105 - it is none
UNKNOWN = Told(INTERNAL, "the task failed")


def raised(error: BaseException) -> BaseException:
    """Return an error that a user's function has raised."""
    try:
        raise error  # noqa: TRY301 - that is what it is for
    except BaseException as caught:  # noqa: BLE001 - also those that are no Exception
        return caught


# One of each class, with as much of the secret in it as its constructor takes.
MADE: dict[type[BaseException], Callable[[], BaseException]] = {
    errors.ApflowError: lambda: errors.ApflowError(SECRET),
    errors.TaskDefinitionError: lambda: errors.TaskDefinitionError(SECRET),
    errors.DuplicateTaskError: lambda: errors.DuplicateTaskError(SECRET),
    errors.OutsideRunError: lambda: errors.OutsideRunError(SECRET),
    errors.DeadlockError: lambda: errors.DeadlockError(SECRET),
    errors.RuntimeClosedError: lambda: errors.RuntimeClosedError(SECRET),
    errors.MissingExtraError: lambda: errors.MissingExtraError(SECRET, SECRET),
    errors.SerializationError: lambda: errors.SerializationError("t", SECRET, SECRET, SECRET),
    errors.CircuitOpenError: lambda: errors.CircuitOpenError("fetch", 12.34),
    errors.UserRequiredError: lambda: errors.UserRequiredError(SECRET),
    errors.PolicyNotFoundError: lambda: errors.PolicyNotFoundError(SECRET, [SECRET]),
    errors.TaskTreeError: lambda: errors.TaskTreeError(SECRET, [SECRET]),
    errors.InvalidInputsError: lambda: errors.InvalidInputsError(SECRET),
    errors.ExecutorNotFoundError: lambda: errors.ExecutorNotFoundError(SECRET),
    errors.DuplicateExecutorError: lambda: errors.DuplicateExecutorError(SECRET),
    errors.ExecutorError: lambda: errors.ExecutorError(SECRET),
    errors.AddressRefusedError: lambda: errors.AddressRefusedError(SECRET),
    errors.TaskFrozenError: lambda: errors.TaskFrozenError(SECRET),
    errors.TaskInUseError: lambda: errors.TaskInUseError(SECRET, [SECRET]),
    errors.RunError: lambda: errors.RunError("r", SECRET),
    errors.RunNotFoundError: lambda: errors.RunNotFoundError("r"),
    errors.RunFailedError: lambda: errors.RunFailedError("r", SECRET, SECRET),
    errors.RunCancelledError: lambda: errors.RunCancelledError("r", SECRET),
    errors.RunTimeoutError: lambda: errors.RunTimeoutError("r", SECRET, 2.5, still_running=True),
    errors.RunActiveError: lambda: errors.RunActiveError("r", SECRET),
    errors.RunInterruptedError: lambda: errors.RunInterruptedError("r"),
    errors.RunEndedError: lambda: errors.RunEndedError("r"),
    errors.FencedError: lambda: errors.FencedError("r"),
    errors.KeyConflictError: lambda: errors.KeyConflictError("r", SECRET),
    errors.RecoveryLimitError: lambda: errors.RecoveryLimitError("r", SECRET),
    errors.BudgetExhaustedError: lambda: errors.BudgetExhaustedError("r", message=SECRET),
    errors.UnpricedModelError: lambda: errors.UnpricedModelError("r", SECRET, SECRET),
    errors.StorageError: lambda: errors.StorageError(SECRET),
    errors.StorageBusyError: lambda: errors.StorageBusyError(SECRET),
    errors.StorageReadOnlyError: lambda: errors.StorageReadOnlyError(SECRET),
    errors.StorageFullError: lambda: errors.StorageFullError(SECRET),
    errors.StorageUnavailableError: lambda: errors.StorageUnavailableError(SECRET),
    errors.SchemaTooNewError: lambda: errors.SchemaTooNewError(SECRET, SECRET),
    KeyboardInterrupt: lambda: KeyboardInterrupt(SECRET),
    SystemExit: lambda: SystemExit(SECRET),
    ExceptionGroup: lambda: ExceptionGroup(SECRET, [errors.PublicError(SECRET)]),
    ValueError: lambda: ValueError(SECRET),
}

CODES: dict[str, set[str]] = {
    "invalid_input": {"InvalidInputsError", "TaskTreeError"},
    "budget_exhausted": {"BudgetExhaustedError"},
    "user_required": {"UserRequiredError"},
    "unpriced_model": {"UnpricedModelError"},
    "circuit_open": {"CircuitOpenError"},
    "timeout": {"RunTimeoutError"},
    "cancelled": {"RunCancelledError"},
    "interrupted": {"RunInterruptedError", "FencedError"},
    "not_found": {"RunNotFoundError", "ExecutorNotFoundError"},
    "conflict": {"RunActiveError", "KeyConflictError", "TaskFrozenError", "TaskInUseError"},
    "unavailable": {
        "RuntimeClosedError",
        "StorageError",
        "StorageBusyError",
        "StorageReadOnlyError",
        "StorageFullError",
        "StorageUnavailableError",
        "SchemaTooNewError",
    },
    "failed": {"PublicError"},
    INTERNAL: {
        "ApflowError",
        "TaskDefinitionError",
        "DuplicateTaskError",
        "OutsideRunError",
        "DeadlockError",
        "MissingExtraError",
        "SerializationError",
        "PolicyNotFoundError",
        "BudgetNotFoundError",
        "DuplicateExecutorError",
        "ExecutorError",
        "AddressRefusedError",
        "RunError",
        "RunFailedError",
        "RunEndedError",
        "RecoveryLimitError",
    },
}


def kinds(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ == "apflow":
            yield from kinds(below)


def test_each_error_of_apflow_has_been_decided_about() -> None:
    decided = [name for names in CODES.values() for name in names]
    assert sorted(decided) == sorted({kind.__name__ for kind in kinds(errors.ApflowError)})
    missing = {kind.__name__ for kind in kinds(errors.ApflowError)} - {kind.__name__ for kind in MADE}
    assert missing == {"PublicError", "BudgetNotFoundError"}


@pytest.mark.parametrize("kind", MADE, ids=lambda kind: kind.__name__)
def test_no_error_tells_what_it_was_given(kind: type[BaseException]) -> None:
    error = raised(MADE[kind]())
    found = told(error)
    text = json.dumps(found.as_json())
    assert not any(word in text for word in SECRET.split())
    wanted = next((code for code, names in CODES.items() if kind.__name__ in names), INTERNAL)
    assert found.code == wanted
    assert found.retryable in (True, False)
    stored = describe_error(error).get("told")
    assert (stored is None) == (found.code == INTERNAL)
    assert read_told({"told": stored}) == found


def test_what_apflow_itself_says_of_inputs_is_told() -> None:
    @apflow.task
    def told_add(a: int) -> int:
        return a

    from apflow.engine.inputs import inputs_of

    with pytest.raises(errors.InvalidInputsError) as caught:
        inputs_of(told_add.definition).convert({"a": SECRET})
    found = told(caught.value)
    assert found.message == "inputs of 'told_add' do not fit: 'a' should be an integer"


class MyInputsError(errors.InvalidInputsError):
    pass


class MyTimeoutError(errors.RunTimeoutError):
    def __init__(self) -> None:  # leaves out ours, and with it all our fields
        Exception.__init__(self, SECRET)


class MyBudgetError(errors.BudgetExhaustedError):
    def __init__(self) -> None:
        Exception.__init__(self, SECRET)


class BrokenError(Exception):
    @property
    def told(self) -> Told:
        raise ValueError(SECRET)


def test_classes_of_users_below_ours_neither_leak_nor_break() -> None:
    assert told(raised(MyInputsError(SECRET))) == Told("invalid_input", "the inputs do not fit")
    assert told(MyInputsError(SECRET)) == Told("invalid_input", "the inputs do not fit")
    for kind in (MyTimeoutError, MyBudgetError, BrokenError):
        assert told(raised(kind())) == UNKNOWN
        assert "told" not in describe_error(raised(kind()))


def test_what_has_befallen_another_run_is_not_told_as_if_it_were_the_callers() -> None:
    for kind in (errors.RunCancelledError, errors.RunNotFoundError, errors.RunInterruptedError, errors.FencedError):
        error = kind("theirs")
        assert told(error, "mine") == UNKNOWN
        assert told(error, "theirs").code != INTERNAL
        assert "told" not in describe_error(error, "mine")
    # A budget or a timeout somewhere inside the task is why the task failed.
    assert told(errors.BudgetExhaustedError("theirs"), "mine").code == "budget_exhausted"
    assert told(errors.RunTimeoutError("theirs", "t", 1, still_running=False), "mine").code == "timeout"


def test_a_budget_tells_what_is_left_and_when_it_begins_anew() -> None:
    until = datetime(2026, 12, 1, tzinfo=UTC)
    dollars = errors.BudgetExhaustedError(
        "r", Decimal("1E-7"), unit="usd", limit=Decimal("0.50"), requested=Decimal("1E+2"), budget="b",
        scope="user", window_end=until,
    )  # fmt: skip
    found = told(dollars)
    assert found.details == {
        "budget": "b",
        "scope": "user",
        "unit": "usd",
        "limit": "0.50",
        "remaining": "0.0000001",
        "requested": "100",
        "resets_at": "2026-12-01T00:00:00+00:00",
        "policy": None,
    }
    assert found.message == (
        "the budget 'b' allows no more: 0.0000001 of 0.50 usd left; it resets at 2026-12-01T00:00:00+00:00"
    )
    tokens = told(errors.BudgetExhaustedError("r", 3, limit=10))
    assert tokens.message == "the budget allows no more: 3 of 10 tokens left; it does not reset"
    assert json.loads(json.dumps(tokens.as_json())) == tokens.as_json()


class QuotaError(apflow.PublicError):
    def __init__(self) -> None:
        super().__init__("quota used up", code="quota", details={"left": 0}, retryable=True)


class BareError(apflow.PublicError):
    def __init__(self) -> None:
        Exception.__init__(self, "bare")


class NoTextError(apflow.PublicError):
    def __str__(self) -> str:
        raise ValueError(SECRET)


def nested(depth: int) -> Any:
    found: Any = 1
    for _ in range(depth):
        found = [found]
    return found


def test_a_public_error_tells_what_it_says() -> None:
    assert told(QuotaError()) == Told("quota", "quota used up", {"left": 0}, retryable=True)
    assert told(pickle.loads(pickle.dumps(QuotaError()))) == told(QuotaError())  # noqa: S301 - its own
    assert told(BareError()) == Told("failed", "bare")
    assert told(NoTextError("x")) == Told("failed", "the task failed")


@pytest.mark.parametrize(
    ("details", "kept"),
    [
        ({"a": [1, 2.5, None, True, {"b": ("x",)}]}, {"a": [1, 2.5, None, True, {"b": ["x"]}]}),
        ({1: "x"}, {"1": "x"}),
        ({"a\0": "b\0\ud800"}, {"a\\x00": "b\\x00\\ud800"}),
        ({"a": float("nan")}, {}),
        ({"a": object()}, {}),
        ({"a": "x" * 20_000}, {}),
        ({"a": nested(60)}, {}),
        ({"a": nested(100_000)}, {}),
        ({"a": 10**5_000}, {}),
    ],
    ids=["json", "number as name", "no text", "nan", "no json", "long", "deep", "deeper", "big"],
)
def test_details_of_a_public_error_are_json_that_can_be_stored(details: dict[Any, Any], kept: dict[str, Any]) -> None:
    error = apflow.PublicError("why", details=details)
    assert told(error) == Told("failed", "why", kept)
    assert read_told(json.loads(json.dumps(describe_error(error)))) == told(error)


def test_texts_and_codes_of_a_public_error_can_be_stored() -> None:
    assert told(apflow.PublicError("a\0b\ud800")).message == "a\\x00b\\ud800"
    assert len(told(apflow.PublicError("x" * 100_000)).message) == 10_000
    for code in ("", "Has Spaces", "a\0", "x" * 65, "1st", None, 5):
        assert told(apflow.PublicError("x", code=code)).code == "failed"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "stored",
    [None, {}, {"told": None}, {"told": "x"}, {"told": {}}, {"told": {"code": 5}}, {"type": "x", "message": SECRET}],
)
def test_rows_that_say_nothing_or_nonsense_tell_nothing(stored: dict[str, Any] | None) -> None:
    assert read_told(stored) == UNKNOWN


def test_a_row_that_lacks_parts_tells_the_rest() -> None:
    assert read_told({"told": {"code": "timeout"}}) == Told("timeout", "the task failed")
