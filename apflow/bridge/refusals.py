"""What callers get instead of an exception: one mapping for every door."""

from __future__ import annotations

import logging
import uuid
from typing import TYPE_CHECKING, Any

from apcore import ErrorCodes, ModuleError
from apcore.errors import CallDepthExceededError, CallFrequencyExceededError

from apflow.errors import RunError
from apflow.told import INTERNAL, Told, told

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)

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
    if isinstance(error, RefusedError):
        return error
    if run_id is None and isinstance(error, RunError) and error.run_id:
        run_id = error.run_id
    reference = run_id or uuid.uuid4().hex
    found = _of_apcore(error) if isinstance(error, ModuleError) else told(error)
    level = logging.ERROR if found.code == INTERNAL else logging.INFO
    # Its text may hold anything; the row of the run has it, with the traceback.
    logger.log(level, "%s: %s (%s), reference %s", module_id, found.code, _place(error), reference)
    return RefusedError(found, reference=reference, run_id=run_id)


def refusal(code: str, message: str, **details: Any) -> RefusedError:
    """Return a refusal that a door decides by itself."""
    return RefusedError(Told(code, message, details), reference=uuid.uuid4().hex)


def _of_apcore(error: ModuleError) -> Told:
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
    if code == "invalid_input":
        fields = sorted({str(one.get("field", "")) for one in (error.details or {}).get("errors", ()) if one})
        message += f": {', '.join(filter(None, fields))}" if any(fields) else ""
    return Told(code, message, details)


def _place(error: BaseException) -> str:
    """Return the class of an error and where it was raised, without its text."""
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return kind if trace is None else f"{kind} at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
