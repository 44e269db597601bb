"""Every error that apflow raises, in one tree.

    ApflowError
    ├── TaskDefinitionError          a function or an option that cannot make a task
    │   └── DuplicateTaskError       one name, two places
    ├── OutsideRunError              needs a running task, and there is none here
    ├── DeadlockError                a blocking call that could never end
    ├── RuntimeClosedError           the runtime was left
    ├── MissingExtraError            an optional package is not installed
    ├── PublicError                  raise it: its text may reach remote callers
    ├── SerializationError           a value that JSON and its annotation cannot carry
    ├── CircuitOpenError             the breaker of this task is open
    ├── UserRequiredError            a budget per user, and no user
    ├── PolicyNotFoundError          a cost policy that the runtime does not know
    ├── BudgetNotFoundError          a budget that nobody has used yet
    ├── TaskTreeError                task dictionaries that make no tree; carries `ids`
    ├── InvalidInputsError           inputs that do not fit an executor
    ├── ExecutorNotFoundError        no executor has this id
    ├── DuplicateExecutorError       one executor id, two places
    ├── ExecutorError                an executor could not do its work
    │   └── AddressRefusedError      an address that this runtime does not allow
    ├── TaskFrozenError              archived tasks refuse changes
    ├── TaskInUseError               other tasks need this one; carries `ids`
    ├── RunError                     about one run; carries `run_id`
    │   ├── RunNotFoundError
    │   ├── RunFailedError           it failed elsewhere; carries `error_type` and `message`
    │   ├── RunCancelledError
    │   ├── RunTimeoutError          an attempt took longer than `timeout`
    │   ├── RunActiveError           refused while it is running
    │   ├── RunInterruptedError      it was handed back and waits to be resumed
    │   ├── RunEndedError            its function has returned already
    │   ├── FencedError              somebody else owns the run now
    │   ├── KeyConflictError         the same key with other arguments
    │   ├── RecoveryLimitError       it took its processes down too often
    │   ├── BudgetExhaustedError     a budget or a policy says no; carries limit, settled, reserved, requested
    │   └── UnpricedModelError       a budget in dollars, and nobody knows what the model costs
    └── StorageError                 the database
        ├── StorageBusyError         locked by somebody else for too long
        ├── StorageReadOnlyError
        ├── StorageFullError
        ├── StorageUnavailableError  cannot be reached
        └── SchemaTooNewError        made by a newer apflow

`retryable` tells the retry layer whether another attempt could end differently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime
    from decimal import Decimal
    from typing import Any


class ApflowError(Exception):
    """Base of all errors that apflow raises.

    Attributes:
        retryable: Whether another attempt could end differently. A class of your own may set it too.
    """

    __module__ = "apflow"

    retryable: bool = False

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        if cls.__module__ == __name__:  # Tracebacks name an error as it is imported.
            cls.__module__ = "apflow"

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle text and fields, for process pools: the arguments of `__init__` are not kept."""
        return _restored, (type(self), self.args, vars(self))


def _restored(kind: type[ApflowError], args: tuple[object, ...], fields: dict[str, object]) -> ApflowError:
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(fields)
    return error


class TaskDefinitionError(ApflowError, TypeError):
    """This function, or an option given to `@apflow.task`, cannot make a task."""


class DuplicateTaskError(TaskDefinitionError):
    """Two tasks of one runtime have the same name.

    Give one of them another name with `@apflow.task(name=...)`.
    """


class OutsideRunError(ApflowError, RuntimeError):
    """This call belongs to a running task, and there is none here.

    Call it from a function decorated with `@apflow.task`.
    """

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} belongs to a running task, and there is none here. "
            "Call it from a function decorated with @apflow.task."
        )


class DeadlockError(ApflowError, RuntimeError):
    """This blocking call waits for work that only the blocked thread could do.

    The message names the line to write instead.
    """


class RuntimeClosedError(ApflowError, RuntimeError):
    """The runtime was left already. Call tasks inside its `with` block."""


class MissingExtraError(ApflowError, ImportError):
    """An optional package is not installed; the message names the line that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed. Run: pip install 'apflow[{extra}]'")


class PublicError(ApflowError):
    """Raise this, or a class of your own below it, where remote callers may read why a task failed.

    Of any other exception they are told no more than that the task failed, and an id to ask you about.

    Args:
        message: What callers read. Put nothing into it that they may not know.
        code: A word that their programs can tell apart: lower-case letters, digits and underscores.
        details: Further figures, as a JSON object.
        retryable: Whether another attempt could end differently.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "failed",
        details: Mapping[str, Any] | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.details = dict(details or {})
        self.retryable = retryable


class SerializationError(ApflowError, TypeError):
    """A value cannot be stored as JSON so that the same value comes back.

    Attributes:
        task: Name of the task.
        path: Where the value stands, such as `result.pages[3]`.
        type_name: What was found there.
    """

    def __init__(self, task: str, path: str, type_name: str, hint: str) -> None:
        super().__init__(f"task {task!r}: {path} is {type_name}, which cannot be stored: {hint}")
        self.task = task
        self.path = path
        self.type_name = type_name


class CircuitOpenError(ApflowError):
    """The circuit breaker of this task is open: it failed too often in a row.

    Attributes:
        task: Name of the task.
        retry_in_seconds: When the breaker lets a test call through, from now.
    """

    retryable = True

    def __init__(self, task: str, retry_in_seconds: float) -> None:
        super().__init__(
            f"task {task!r}: the circuit breaker is open after repeated failures; "
            f"a test call is let through in {retry_in_seconds:.1f} s"
        )
        self.task = task
        self.retry_in_seconds = retry_in_seconds


class UserRequiredError(ApflowError, ValueError):
    """A budget counts per user, and this call has no user. Nothing was written."""

    def __init__(self, task: str) -> None:
        super().__init__(
            f"task {task!r} has a budget per user, and this call has no user. "
            "Call it with with_options(user=...), or give the runtime one: Runtime(user=...)."
        )


class PolicyNotFoundError(ApflowError, KeyError):
    """No policy of this name is registered. Give it to `Runtime(policies=[...])`, or to the task itself.

    Attributes:
        policy_name: What was asked for.
        known: The names that are registered, sorted.
    """

    def __init__(self, policy_name: str, known: Iterable[str]) -> None:
        self.policy_name = policy_name
        self.known = tuple(sorted(known))
        super().__init__(
            f"there is no policy {policy_name!r}, known are: {', '.join(map(repr, self.known)) or 'none'}. "
            "Policies that tasks refer to by name are given to Runtime(policies=[...])"
        )

    def __str__(self) -> str:  # A KeyError would show the text as a quoted key.
        return str(self.args[0])


class BudgetNotFoundError(ApflowError, LookupError):
    """The ledger has no account of this budget. An account exists from the first call that it governs.

    Attributes:
        budget: The name that was asked for.
        per: `"run"`, `"user"` or `"global"`.
        units: The units without an account.
    """

    def __init__(self, budget: str, per: str, units: Iterable[str]) -> None:
        self.budget = budget
        self.per = per
        self.units = tuple(units)
        super().__init__(
            f"there is no account of the budget {budget!r} per {per} for {', '.join(self.units)} with this scope_id in "
            "the current window; an account exists from the first call that it governs"
        )


class TaskTreeError(ApflowError, ValueError):
    """These task dictionaries make no trees; nothing was stored.

    Attributes:
        ids: The offending ids, in the order in which they were found.
    """

    def __init__(self, message: str, ids: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.ids = tuple(ids)


class InvalidInputsError(ApflowError, ValueError):
    """Inputs do not fit the schema of the executor that gets them. The message names fields, never values."""


class ExecutorNotFoundError(ApflowError, LookupError):
    """No decorated task and no executor has this id. Import the module that has it before."""


class DuplicateExecutorError(ApflowError):
    """Two executors, or an executor and a decorated task, have one id; the message names both places."""


class ExecutorError(ApflowError):
    """An executor could not do its work. The message has nothing of what it was given or was answered.

    Attributes:
        retryable: Whether another attempt could end differently: a broken connection, not a wrong address.
    """

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class AddressRefusedError(ExecutorError):
    """This runtime does not allow connections to this address; nothing was sent.

    Private, loopback, link-local and metadata addresses have to be named in the executor's `allow` setting.
    """


class TaskFrozenError(ApflowError):
    """An archived task refuses every change."""


class TaskInUseError(ApflowError):
    """Other tasks need this one: they are inside it, depend on it or refer to it.

    Attributes:
        ids: The other tasks.
    """

    def __init__(self, message: str, ids: Iterable[str]) -> None:
        super().__init__(message)
        self.ids = tuple(ids)


class RunError(ApflowError):
    """Something about one run.

    Attributes:
        run_id: The run.
    """

    def __init__(self, run_id: str, message: str) -> None:
        super().__init__(f"run {run_id}: {message}")
        self.run_id = run_id


class RunNotFoundError(RunError, LookupError):
    """There is no run with this id in this database."""

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id, "there is no such run in this database")


class RunFailedError(RunError):
    """The run failed in another process or an earlier life, so its exception object is gone.

    Attributes:
        error_type: Qualified name of the exception class.
        message: Its text.
        told: What a remote caller may know of it, an `apflow.told.Told`, when that was stored.
    """

    retryable = True

    def __init__(self, run_id: str, error_type: str, message: str, told: Any = None) -> None:
        super().__init__(run_id, f"failed with {error_type}: {message}")
        self.told = told
        self.error_type = error_type
        self.message = message


class RunCancelledError(RunError):
    """The run was cancelled with `cancel()`. A cancelled run is never carried on."""

    def __init__(self, run_id: str, message: str = "was cancelled") -> None:
        super().__init__(run_id, message)


class RunTimeoutError(RunError, TimeoutError):
    """An attempt took longer than the `timeout` of its task.

    Attributes:
        seconds: The limit.
        still_running: The function is a plain one that did not stop; no other attempt is made.
        retryable: True unless `still_running`.
    """

    def __init__(self, run_id: str, task: str, seconds: float, *, still_running: bool) -> None:
        text = f"task {task!r} took longer than its timeout of {seconds:g} s"
        if still_running:
            text += (
                "; a plain function cannot be stopped from outside and its thread is still running. "
                "Let it look at apflow.current().cancelled, or write it as `async def`"
            )
        super().__init__(run_id, text)
        self.seconds = seconds
        self.still_running = still_running
        self.retryable = not still_running


class RunActiveError(RunError):
    """The run is running, so this cannot be done to it now. Cancel it first."""


class RunInterruptedError(RunError):
    """The run stopped before its end and waits to be carried on.

    Call the task again with the same key, or `await runtime.runs.resume(run_id)`.
    """

    def __init__(self, run_id: str) -> None:
        super().__init__(
            run_id,
            "was interrupted before its end; carry it on with `await runtime.runs.resume(run_id)`",
        )


class RunEndedError(RunError):
    """The function of this run has returned, so nothing can be started or stored in its name."""

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id, "has ended; await what it starts before its function returns")


class FencedError(RunError):
    """Another process has taken this run over; what this one still does is not stored."""

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id, "another process owns this run now; this one has to stop")


class KeyConflictError(RunError):
    """The same key was used before with other arguments. Choose another key."""


class RecoveryLimitError(RunError):
    """The processes that ran this died too often without any progress."""


class BudgetExhaustedError(RunError):
    """A budget, or a policy over it, does not allow more. Never retried.

    Attributes:
        scope: `"run"`, `"user"` or `"global"`: whom the budget is for.
        budget: Its name.
        unit: `"tokens"`, `"usd"` or `"requests"`.
        limit: Its hard limit; dollars are Decimals here and below.
        settled: What was used of it.
        reserved: What unfinished attempts hold of it.
        overrun: What was used beyond it.
        requested: What was asked for, 0 when nothing was declared.
        remaining: What is neither used nor held.
        window_end: When the window of the budget ends; None without a window.
        retry_at: The same: from then on another call may be admitted.
        policy: Name of the policy that decided; None for the limit itself.
        model: The model that was asked for, if one was.
    """

    def __init__(
        self,
        task_id: str,
        remaining: int | Decimal = 0,
        *,
        message: str = "the budget is exhausted",
        scope: str = "run",
        budget: str = "",
        unit: str = "tokens",
        limit: int | Decimal = 0,
        settled: int | Decimal = 0,
        reserved: int | Decimal = 0,
        overrun: int | Decimal = 0,
        requested: int | Decimal = 0,
        window_end: datetime | None = None,
        policy: str | None = None,
        model: str | None = None,
    ) -> None:
        super().__init__(task_id, message)
        self.remaining = remaining
        self.scope, self.budget, self.unit = scope, budget, unit
        self.limit, self.settled, self.reserved, self.overrun = limit, settled, reserved, overrun
        self.requested = requested
        self.window_end = self.retry_at = window_end
        self.policy, self.model = policy, model


class UnpricedModelError(RunError):
    """The run has a budget in dollars, and nobody knows what its model costs. Never retried.

    Attributes:
        model: The model; None when the usage named none.
    """

    def __init__(self, run_id: str, model: str | None, hint: str) -> None:
        what = "usage without a model has" if model is None else f"model {model!r} has"
        super().__init__(run_id, f"{what} no known price, and a budget in dollars stands above this run. {hint}")
        self.model = model


class StorageError(ApflowError):
    """The database refused or failed."""


class StorageBusyError(StorageError):
    """Somebody else has locked the database for longer than the wait allows."""

    retryable = True


class StorageReadOnlyError(StorageError):
    """The database cannot be written. Check the permissions of the file and its folder."""


class StorageFullError(StorageError):
    """The disk is full, so nothing was stored. Free some space and resume the run."""

    retryable = True


class StorageUnavailableError(StorageError):
    """The database cannot be reached."""

    retryable = True


class SchemaTooNewError(StorageError):
    """A newer apflow made this database. Upgrade apflow, or use another database.

    Attributes:
        found: The schema version of the database.
        known: The newest one that this apflow knows.
    """

    def __init__(self, found: str, known: str) -> None:
        super().__init__(
            f"the database has schema version {found}, and this apflow knows versions up to {known}. "
            "Upgrade apflow, or use another database. (If the version belongs to another program that keeps "
            "its own tables there, give apflow a database of its own.)"
        )
        self.found = found
        self.known = known
