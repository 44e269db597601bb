"""What callers get instead of an exception: one mapping for every door."""

from __future__ import annotations

import logging
import uuid
from typing import TYPE_CHECKING, Any

from apcore import ErrorCodes, ModuleError
from apcore.errors import CallDepthExceededError, CallFrequencyExceededError, SchemaValidationError

from apflow.errors import RunError, RunNotFoundError
from apflow.told import INTERNAL, Told, told

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)

_LONGEST_ID = 200

#: Errors of apcore's own pipeline, by their code. Their texts may hold inputs, so callers get these sentences.
_OF_APCORE = {
    ErrorCodes.MODULE_NOT_FOUND: ("not_found", "there is no task of this name here"),
    ErrorCodes.MODULE_DISABLED: ("not_found", "this task is switched off"),
    ErrorCodes.ACL_DENIED: ("forbidden", "you may not call this task"),
    ErrorCodes.APPROVAL_DENIED: ("approval_denied", "the call was not approved"),
    ErrorCodes.APPROVAL_TIMEOUT: ("approval_timeout", "nobody approved the call in time"),
    ErrorCodes.APPROVAL_PENDING: ("approval_pending", "the call waits for approval"),
    ErrorCodes.MODULE_TIMEOUT: ("timeout", "the task took too long"),
    ErrorCodes.EXECUTION_CANCELLED: ("cancelled", "the task was cancelled"),
    ErrorCodes.SCHEMA_VALIDATION_ERROR: ("invalid_input", "the inputs do not fit the schema of this task"),
    ErrorCodes.GENERAL_INVALID_INPUT: ("invalid_input", "the inputs do not fit the schema of this task"),
}


class RefusedError(ModuleError):
    """A call through a door that has no result. Everything in it may be shown to the caller.

    Attributes:
        told: What it says.
        reference: An id that stands in the log and on the row of the run, when there is one: the run's id.
        run_id: The run, or None when the call did not come so far.
    """

    def __init__(self, told: Told, *, reference: str, run_id: str | None = None) -> None:
        text = told.message if told.code != INTERNAL else f"{told.message}; ask the operator about {reference}"
        super().__init__(
            code=f"APFLOW_{told.code.upper()}",
            message=text,
            details={**told.details, "code": told.code, "reference": reference, "run_id": run_id},
            retryable=told.retryable,
        )
        self.told = told
        self.reference = reference
        self.run_id = run_id

    def as_json(self) -> dict[str, Any]:
        """Return what every door sends: `code`, `message`, `details`, `retryable`, `reference` and `run_id`."""
        return {
            "code": self.told.code,
            "message": self.message,
            "details": dict(self.told.details),
            "retryable": self.told.retryable,
            "reference": self.reference,
            "run_id": self.run_id,
        }


def refused(error: BaseException, module_id: str, run_id: str | None = None) -> RefusedError:
    """Return what the caller gets for this error, and log what only the operator may know.

    Args:
        error: What was raised.
        module_id: What was called.
        run_id: The run of the call, when one was stored.
    """
    if isinstance(error, RefusedError) and run_id in (None, error.run_id):
        return error
    if run_id is None and isinstance(error, RunError) and not isinstance(error, RunNotFoundError):
        run_id = error.run_id or None
    reference = run_id or uuid.uuid4().hex
    theirs = isinstance(error, ModuleError) and not isinstance(error, RefusedError)
    found = _of_apcore(error) if theirs else told(error, run_id)
    _log(found.code, module_id, _place(error), reference)
    return RefusedError(found, reference=reference, run_id=run_id)


def refusal(code: str, message: str, **details: Any) -> RefusedError:
    """Return a refusal that a door decides by itself."""
    reference = uuid.uuid4().hex
    _log(code, "a call", "refused", reference)
    return RefusedError(Told(code, message, details), reference=reference)


def _log(code: str, module_id: str, what: str, reference: str) -> None:
    # The text of an error may hold anything; the row of the run has it, with the traceback.
    level = logging.ERROR if code == INTERNAL else logging.INFO
    logger.log(level, "%r: %s (%s), reference %s", module_id[:_LONGEST_ID], code, what, reference)


def _of_apcore(error: Any) -> Told:
    if isinstance(error, CallDepthExceededError | CallFrequencyExceededError):
        return Told("call_depth", "tasks call each other too deeply")
    if error.code not in _OF_APCORE:
        cause = error.cause or error.__cause__
        return (
            told(cause)
            if isinstance(cause, Exception) and not isinstance(cause, ModuleError)
            else Told(INTERNAL, "the task failed")
        )
    code, message = _OF_APCORE[error.code]
    details: Mapping[str, Any] = {}
    if code == "approval_pending":
        details = {"approval_id": (error.details or {}).get("approval_id")}
    if isinstance(error, SchemaValidationError):
        message += _broken_rules(error)
    return Told(code, message, details)


def _broken_rules(error: SchemaValidationError) -> str:
    """Return where the inputs do not fit and which rule of the schema that breaks: never apcore's own texts."""
    found = [
        f"{str(one.get('path') or '/')[:_LONGEST_ID]!r} breaks {one.get('keyword')}"
        for one in error.details.get("errors", ())
        if isinstance(one, dict)
    ]
    return f": {', '.join(dict.fromkeys(found[:10]))}" if found else ""


def _place(error: BaseException) -> str:
    """Return the class of an error and where it was raised, without its text."""
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return kind if trace is None else f"{kind} in {trace.tb_frame.f_globals.get('__name__')}, line {trace.tb_lineno}"
