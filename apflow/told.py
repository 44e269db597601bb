"""What remote callers may be told of an error: a code, a sentence and figures, never a user's exception text."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from apflow import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

INTERNAL = "internal"
_LONGEST = 10_000


@dataclass(frozen=True, slots=True)
class Told:
    """What may leave the process of an error.

    Attributes:
        code: A word that programs can tell apart; docs/serving.md lists them.
        message: A sentence for people and models. Nothing in it comes from a user's exception, but a `PublicError`'s.
        details: Figures, as JSON has them.
        retryable: Whether the same call could end differently later.
    """

    code: str
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)
    retryable: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON object, as rows have it."""
        return {"code": self.code, "message": self.message, "details": dict(self.details), "retryable": self.retryable}


def told(error: BaseException) -> Told:
    """Return what a remote caller may know of this error.

    What is not known to be harmless is `internal`: who may know more finds it on the row and in the log, by the id
    that goes with it.
    """
    for kind in type(error).__mro__:
        tell = _TELLERS.get(kind)
        if tell is not None:
            return tell(error)
    return Told(INTERNAL, "the task failed")


def read_told(stored: Mapping[str, Any] | None) -> Told:
    """Return what `as_json` had made, out of the column `error_info` of a row that failed.

    Args:
        stored: The column; None or one without it tells nothing.
    """
    found = (stored or {}).get("told")
    if not isinstance(found, dict):
        return Told(INTERNAL, "the task failed")
    return Told(found["code"], found["message"], found["details"], found["retryable"])


def _public(error: errors.PublicError) -> Told:
    try:
        text, details = str(error)[:_LONGEST], json.loads(json.dumps(error.details, allow_nan=False))
    except Exception:  # noqa: BLE001 - a class of the user's may have any text, and details that are no JSON
        text, details = "the task failed", {}
    harmless = text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    return Told(str(error.code), harmless, details, bool(error.retryable))


def _itself(code: str) -> Callable[[Any], Told]:
    """Return a teller for errors whose text is apflow's own and names no values, paths or addresses."""
    return lambda error: Told(code, str(error), retryable=error.retryable)


def _said(code: str, message: str, *, retryable: bool = False) -> Callable[[Any], Told]:
    return lambda _: Told(code, message, retryable=retryable)


def _failed(error: Any) -> Told:
    return error.told or Told(INTERNAL, "the task failed")


def _budget(error: Any) -> Told:
    details = {
        "budget": error.budget,
        "scope": error.scope,
        "unit": error.unit,
        "limit": _figure(error.limit),
        "remaining": _figure(error.remaining),
        "requested": _figure(error.requested),
        "resets_at": None if error.window_end is None else error.window_end.isoformat(),
        "policy": error.policy,
    }
    until = "; it does not reset" if error.window_end is None else f"; it resets at {details['resets_at']}"
    named = f"budget {error.budget!r}" if error.budget else "budget"
    return Told(
        "budget_exhausted",
        f"the {named} allows no more: {details['remaining']} of {details['limit']} {error.unit} left{until}",
        details,
    )


def _figure(amount: Any) -> Any:
    """Return whole numbers as they are, and dollars as text: JSON has no decimals."""
    return amount if isinstance(amount, int) else str(amount)


def _circuit(error: errors.CircuitOpenError) -> Told:
    seconds = round(error.retry_in_seconds, 1)
    message = f"task {error.task!r} failed repeatedly and is not called for now; try again in {seconds:g} s"
    return Told("circuit_open", message, {"task": error.task, "retry_in_seconds": seconds}, retryable=True)


def _timeout(error: errors.RunTimeoutError) -> Told:
    return Told("timeout", f"the task took longer than {error.seconds:g} s", {"seconds": error.seconds}, retryable=True)


def _not_found(error: errors.RunNotFoundError) -> Told:
    return Told("not_found", f"there is no task with the id {error.run_id!r}")


_STORAGE = _said("unavailable", "the database cannot be used at the moment", retryable=True)

_TELLERS: dict[type, Callable[[Any], Told]] = {
    errors.PublicError: _public,
    errors.InvalidInputsError: _itself("invalid_input"),
    errors.TaskTreeError: _itself("invalid_input"),
    errors.BudgetExhaustedError: _budget,
    errors.UserRequiredError: _said("user_required", "a budget counts per user, and this call has no user"),
    errors.UnpricedModelError: _said(
        "unpriced_model", "a budget in dollars stands above this task, and the model has no known price"
    ),
    errors.CircuitOpenError: _circuit,
    errors.RunTimeoutError: _timeout,
    errors.RunCancelledError: _said("cancelled", "the task was cancelled"),
    errors.RunInterruptedError: _said(
        "interrupted", "the task was interrupted before its end; it is carried on", retryable=True
    ),
    errors.RunNotFoundError: _not_found,
    errors.RunFailedError: _failed,
    errors.RunActiveError: _said("conflict", "the task is running; cancel it first"),
    errors.KeyConflictError: _said("conflict", "this key was used before with other arguments"),
    errors.TaskFrozenError: _said("conflict", "the task is archived and refuses changes"),
    errors.TaskInUseError: _said("conflict", "other tasks need this one"),
    errors.ExecutorNotFoundError: _said("not_found", "no executor here has this name"),
    errors.RuntimeClosedError: _said("unavailable", "this server is shutting down", retryable=True),
    errors.StorageError: _STORAGE,
}
