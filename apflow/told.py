"""What remote callers may be told of an error: a code, a sentence and figures, never a user's exception text."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from apflow import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

INTERNAL = "internal"
_LONGEST = 10_000
_DEEPEST = 50
_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")


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


_UNKNOWN = Told(INTERNAL, "the task failed")


def told(error: BaseException, run_id: str | None = None) -> Told:
    """Return what a remote caller may know of this error; it raises nothing itself.

    What is not known to be harmless is `internal`: who may know more finds it on the row and in the log, by the id
    that goes with it.

    Args:
        error: What was raised.
        run_id: The run of the caller that it has ended, if any. What is wrong with another run, which the task had
            used, means nothing to the caller.
    """
    try:
        found = getattr(error, "told", None)
        if isinstance(found, Told):
            return found
        for kind in type(error).__mro__:
            tell = _TELLERS.get(kind)
            if tell is not None:
                foreign = kind in _OF_ONE_RUN and run_id not in (None, getattr(error, "run_id", None))
                return _UNKNOWN if foreign else tell(error)
    except Exception:  # noqa: BLE001 - a class of the user's below one of ours may lack what ours has
        return _UNKNOWN
    return _UNKNOWN


def read_told(stored: Mapping[str, Any] | None) -> Told:
    """Return what `as_json` had made, out of the column `error_info` of a row that failed.

    Args:
        stored: The column; None or one without it tells nothing.
    """
    found = (stored or {}).get("told")
    if not isinstance(found, dict) or not isinstance(found.get("code"), str):
        return _UNKNOWN
    message, details = found.get("message"), found.get("details")
    return Told(
        found["code"],
        message if isinstance(message, str) else _UNKNOWN.message,
        details if isinstance(details, dict) else {},
        found.get("retryable") is True,
    )


def _public(error: errors.PublicError) -> Told:
    # A class of the user's may have left out our constructor, and may have any text.
    fields = vars(error)
    code, retryable = str(fields.get("code", "failed")), fields.get("retryable", type(error).retryable)
    try:
        text = _harmless(str(error)[:_LONGEST])
    except Exception:  # noqa: BLE001 - see above
        text = _UNKNOWN.message
    return Told(
        code if _CODE.fullmatch(code) else "failed", text, _public_details(fields.get("details", {})), retryable is True
    )


def _public_details(details: Any) -> dict[str, Any]:
    """Return details as every database and protocol takes them; none when they are no JSON, too long or too deep."""
    try:
        text = json.dumps(details, allow_nan=False, ensure_ascii=False)
        clean = _clean(json.loads(text), _DEEPEST) if len(text) <= _LONGEST else None
        return clean if isinstance(clean, dict) else {}
    except Exception:  # noqa: BLE001 - details may be anything
        return {}


def _clean(value: Any, depth: int) -> Any:
    if depth < 0:
        raise ValueError("nested too deeply")
    if isinstance(value, str):
        return _harmless(value)
    if isinstance(value, dict):
        return {_harmless(name): _clean(part, depth - 1) for name, part in value.items()}
    return [_clean(part, depth - 1) for part in value] if isinstance(value, list) else value


def _harmless(text: str) -> str:
    """Return text without what no database takes: NUL, and halves of surrogate pairs."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _itself(code: str, otherwise: str) -> Callable[[Any], Told]:
    """Return a teller for errors whose text is apflow's own and names no values, paths or addresses.

    The same class, or one below it, that was raised by somebody else says `otherwise`.
    """
    return lambda error: Told(code, str(error) if _ours(error) else otherwise, retryable=bool(error.retryable))


def _ours(error: BaseException) -> bool:
    """Whether apflow has raised it, not a user's function, which may put anything into its text."""
    if not type(error).__module__.startswith("apflow"):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "apflow." if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return place.startswith("apflow.")


def _said(code: str, message: str, *, retryable: bool = False) -> Callable[[Any], Told]:
    return lambda _: Told(code, message, retryable=retryable)


def _budget(error: errors.BudgetExhaustedError) -> Told:
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
    return amount if isinstance(amount, int) else f"{amount:f}"


def _circuit(error: errors.CircuitOpenError) -> Told:
    seconds = round(error.retry_in_seconds, 1)
    message = f"task {error.task!r} failed repeatedly and is not called for now; try again in {seconds:g} s"
    return Told("circuit_open", message, {"task": error.task, "retry_in_seconds": seconds}, retryable=True)


def _timeout(error: errors.RunTimeoutError) -> Told:
    return Told("timeout", f"the task took longer than {error.seconds:g} s", {"seconds": error.seconds}, retryable=True)


def _not_found(error: errors.RunNotFoundError) -> Told:
    return Told("not_found", f"there is no task with the id {error.run_id!r}")


_INTERRUPTED = _said("interrupted", "the task was interrupted before its end; it is carried on", retryable=True)

_TELLERS: dict[type, Callable[[Any], Told]] = {
    errors.PublicError: _public,
    errors.InvalidInputsError: _itself("invalid_input", "the inputs do not fit"),
    errors.TaskTreeError: _itself("invalid_input", "the tasks make no tree"),
    errors.BudgetExhaustedError: _budget,
    errors.UserRequiredError: _said("user_required", "a budget counts per user, and this call has no user"),
    errors.UnpricedModelError: _said(
        "unpriced_model", "a budget in dollars stands above this task, and the model has no known price"
    ),
    errors.CircuitOpenError: _circuit,
    errors.RunTimeoutError: _timeout,
    errors.RunCancelledError: _said("cancelled", "the task was cancelled"),
    errors.RunInterruptedError: _INTERRUPTED,
    errors.FencedError: _INTERRUPTED,
    errors.RunNotFoundError: _not_found,
    errors.RunActiveError: _said("conflict", "the task is running; cancel it first"),
    errors.KeyConflictError: _said("conflict", "this key was used before with other arguments"),
    errors.TaskFrozenError: _said("conflict", "the task is archived and refuses changes"),
    errors.TaskInUseError: _said("conflict", "other tasks need this one"),
    errors.ExecutorNotFoundError: _said("not_found", "no executor here has this name"),
    errors.RuntimeClosedError: _said("unavailable", "this server is shutting down", retryable=True),
    errors.StorageError: _said("unavailable", "the database cannot be used at the moment", retryable=True),
}

#: Errors that say in which state a run is: only of the caller's own.
_OF_ONE_RUN = {
    errors.RunCancelledError,
    errors.RunInterruptedError,
    errors.FencedError,
    errors.RunNotFoundError,
    errors.RunActiveError,
    errors.KeyConflictError,
}
