"""One decorator makes Python functions fit for production agent work: durable, governed, perceivable."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apflow.exports import export_lazily

if TYPE_CHECKING:
    from apflow.call import Call, CallNext, Middleware
    from apflow.clock import Clock, SystemClock
    from apflow.context import RunContext, checkpoint, current, progress
    from apflow.durability.checkpoint import CheckpointManager
    from apflow.durability.circuit_breaker import (
        CircuitBreaker,
        CircuitBreakerConfig,
        CircuitBreakerRegistry,
        CircuitState,
    )
    from apflow.durability.retry import BackoffStrategy, RetryManager, RetryPolicy
    from apflow.errors import (
        ApflowError,
        CircuitOpenError,
        DeadlockError,
        DuplicateTaskError,
        FencedError,
        KeyConflictError,
        MissingExtraError,
        OutsideRunError,
        RecoveryLimitError,
        RunActiveError,
        RunCancelledError,
        RunEndedError,
        RunError,
        RunFailedError,
        RunInterruptedError,
        RunNotFoundError,
        RuntimeClosedError,
        RunTimeoutError,
        SchemaTooNewError,
        SerializationError,
        StorageBusyError,
        StorageError,
        StorageFullError,
        StorageReadOnlyError,
        StorageUnavailableError,
        TaskDefinitionError,
    )
    from apflow.kinds import AsyncStreamTask, AsyncTask, StreamTask, SyncTask, Task
    from apflow.records import RunRecord, RunTree
    from apflow.run import Run
    from apflow.runtime import Runtime, configure, runtime
    from apflow.storage.connect import create_session
    from apflow.storage.store import Store
    from apflow.task import task

__all__ = [
    "ApflowError",
    "AsyncStreamTask",
    "AsyncTask",
    "BackoffStrategy",
    "Call",
    "CallNext",
    "CheckpointManager",
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitBreakerRegistry",
    "CircuitOpenError",
    "CircuitState",
    "Clock",
    "DeadlockError",
    "DuplicateTaskError",
    "FencedError",
    "KeyConflictError",
    "Middleware",
    "MissingExtraError",
    "OutsideRunError",
    "RecoveryLimitError",
    "RetryManager",
    "RetryPolicy",
    "Run",
    "RunActiveError",
    "RunCancelledError",
    "RunContext",
    "RunEndedError",
    "RunError",
    "RunFailedError",
    "RunInterruptedError",
    "RunNotFoundError",
    "RunRecord",
    "RunTimeoutError",
    "RunTree",
    "Runtime",
    "RuntimeClosedError",
    "SchemaTooNewError",
    "SerializationError",
    "StorageBusyError",
    "StorageError",
    "StorageFullError",
    "StorageReadOnlyError",
    "StorageUnavailableError",
    "Store",
    "StreamTask",
    "SyncTask",
    "SystemClock",
    "Task",
    "TaskDefinitionError",
    "__version__",
    "checkpoint",
    "configure",
    "create_session",
    "current",
    "progress",
    "runtime",
    "task",
]

__version__ = "0.20.0"

export_lazily(
    __name__,
    {
        "call": ("Call", "CallNext", "Middleware"),
        "clock": ("Clock", "SystemClock"),
        "context": ("RunContext", "checkpoint", "current", "progress"),
        "durability.checkpoint": ("CheckpointManager",),
        "durability.circuit_breaker": (
            "CircuitBreaker",
            "CircuitBreakerConfig",
            "CircuitBreakerRegistry",
            "CircuitState",
        ),
        "durability.retry": ("BackoffStrategy", "RetryManager", "RetryPolicy"),
        "errors": tuple(name for name in __all__ if name.endswith("Error")),
        "kinds": ("AsyncStreamTask", "AsyncTask", "StreamTask", "SyncTask", "Task"),
        "records": ("RunRecord", "RunTree"),
        "run": ("Run",),
        "runtime": ("Runtime", "configure", "runtime"),
        "storage.connect": ("create_session",),
        "storage.store": ("Store",),
        "task": ("task",),
    },
)
