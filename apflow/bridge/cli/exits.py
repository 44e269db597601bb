"""How a command ends: its exit code, and an error as people and as programs read it."""

from __future__ import annotations

import json
import traceback
from typing import TYPE_CHECKING, Any, Final

import click

from apflow.bridge.cli.output import visible

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import IO

INVALID, NOT_FOUND, INTERRUPTED = 3, 4, 130

#: What each exit code means. They are part of the interface: none is ever given another meaning.
MEANINGS: Final = {
    0: "done",
    1: "the task failed, or the app could not be loaded",
    2: "wrong usage: an unknown command or option",
    INVALID: "inputs that do not fit: bad JSON, a missing or unknown argument, a wrong value, a key used otherwise",
    NOT_FOUND: "no such task, run, app or database",
    5: "a budget or a policy allows no more",
    6: "not allowed, or not approved",
    7: "the run was cancelled",
    8: "the task took too long",
    9: "unavailable for now: the database, an open circuit breaker, a run that was interrupted",
    INTERRUPTED: "Ctrl-C; a run that had begun was handed back and can be resumed",
}

_BY_CODE: Final = {
    "invalid_input": INVALID,
    "conflict": INVALID,
    "not_found": NOT_FOUND,
    "budget_exhausted": 5,
    "user_required": 5,
    "unpriced_model": 5,
    "forbidden": 6,
    "approval_denied": 6,
    "approval_timeout": 6,
    "approval_pending": 6,
    "cancelled": 7,
    "timeout": 8,
    "unavailable": 9,
    "circuit_open": 9,
    "interrupted": 9,
    "usage": 2,
    "stopped": INTERRUPTED,
}

_HINTS: Final = {
    "user_required": "name one with --user",
    "approval_denied": "give --approve to approve the call yourself",
}


class Failed(click.ClickException):
    """A command that ends with an error.

    Args:
        code: A word that programs can tell apart; the exit code follows from it.
        message: What is wrong and what to do, in one line.
        details: Further figures, as JSON has them.
        run_id: The run that it is about.
        retryable: Whether the same command could end differently later.
        trace: Lines for `--traceback`.

    Attributes:
        as_text: What `show` writes is JSON.
        shown: It was told already, as part of the answer.
    """

    as_json = False
    shown = False

    def __init__(
        self,
        code: str,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        run_id: str | None = None,
        retryable: bool = False,
        trace: str = "",
    ) -> None:
        super().__init__(" ".join(message.split("\n")))
        vars(self)["exit_code"] = _BY_CODE.get(code, 1)  # click declares it as one for all of a class
        self.error: dict[str, Any] = {
            "code": code,
            "message": self.message,
            "details": dict(details or {}),
            "retryable": retryable,
            "reference": run_id,
            "run_id": run_id,
        }
        self.trace = trace

    def show(self, file: IO[Any] | None = None) -> None:
        """Write it to the standard error, as one line or as JSON."""
        if self.shown:
            return
        if self.as_json:
            click.echo(json.dumps(self.error, default=str), file=file, err=True)
        else:
            click.echo(f"apflow: {visible(self.message)}", file=file, err=True)


def failed(error: BaseException) -> Failed:
    """Return what a command says about an error of apflow or of its own."""
    from apflow.bridge.refusals import RefusedError
    from apflow.errors import ApflowError, RunError
    from apflow.told import INTERNAL, told

    trace = "".join(traceback.format_exception(error))
    if isinstance(error, RefusedError):
        return _of_refusal(error, trace)
    if isinstance(error, ApflowError):
        # Whoever uses the command line runs the app too, so they get the whole text.
        known = told(error)
        run_id = error.run_id if isinstance(error, RunError) else None
        code = "failed" if known.code == INTERNAL else known.code
        text = f"{str(error) or type(error).__name__}{_hint(code)}"
        return Failed(code, text, details=known.details, run_id=run_id, retryable=known.retryable, trace=trace)
    text = f"{type(error).__name__} at {place_of(error)}; `apflow --traceback ...` shows more"
    return Failed("internal", text, trace=trace)


def _of_refusal(error: Any, trace: str) -> Failed:
    code, run_id = error.told.code, error.run_id
    text = f"{error.told.message}{_hint(code)}"
    if run_id is not None:
        text += f"; `apflow runs show {run_id}` has more"
    made = Failed(code, text, details=error.told.details, run_id=run_id, retryable=error.told.retryable, trace=trace)
    made.error["reference"] = error.reference
    return made


def _hint(code: str) -> str:
    return f"; {_HINTS[code]}" if code in _HINTS else ""


def place_of(error: BaseException, path: str | None = None) -> str:
    """Return `file:line` of where an error was raised: the innermost place in `path`, or of all."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if frame.filename == path] or list(frames)
    return f"{inside[-1].filename}:{inside[-1].lineno}" if inside else "an unknown place"


def epilog() -> str:
    """Return the exit codes for `apflow --help`."""
    lines = [f"{code:>4}  {meaning}" for code, meaning in MEANINGS.items()]
    return "\b\nExit codes:\n" + "\n".join(lines)
