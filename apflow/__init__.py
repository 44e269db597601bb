"""One decorator makes Python functions fit for production agent work: durable, governed, perceivable."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apflow.exports import export_lazily

if TYPE_CHECKING:
    from apflow.bridge.serve import aserve, asgi, serve
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
    from apflow.engine.creator import TaskCreator
    from apflow.engine.executable import ExecutableTask
    from apflow.engine.function_executor import FunctionExecutor, executor_of
    from apflow.engine.manager import TaskManager
    from apflow.engine.registry import executor_register
    from apflow.engine.scanner import BrokenFile, ExecutorMetadata, ExtensionScanner
    from apflow.engine.tree import TaskTreeNode
    from apflow.errors import (
        AddressRefusedError,
        ApflowError,
        BudgetExhaustedError,
        BudgetNotFoundError,
        CircuitOpenError,
        DeadlockError,
        DuplicateExecutorError,
        DuplicateTaskError,
        ExecutorError,
        ExecutorNotFoundError,
        FencedError,
        InvalidInputsError,
        KeyConflictError,
        MissingExtraError,
        OutsideRunError,
        PolicyNotFoundError,
        PublicError,
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
        TaskFrozenError,
        TaskInUseError,
        TaskTreeError,
        UnpricedModelError,
        UserRequiredError,
    )
    from apflow.executors.aggregate import AggregateResultsExecutor
    from apflow.executors.api import ApFlowApiExecutor
    from apflow.executors.email import SendEmailExecutor
    from apflow.executors.rest import RestExecutor
    from apflow.governance.amounts import AmountsDict
    from apflow.governance.budget import Budget, BudgetCheckResult, BudgetManager, BudgetScope, TokenBudget
    from apflow.governance.budgets import Budgets
    from apflow.governance.policy import CostPolicy, PolicyAction, PolicyEngine, PolicyEvaluation
    from apflow.governance.prices import Price, PriceBook, Prices
    from apflow.governance.provider_router import ModelSelection, ProviderRouter
    from apflow.governance.reporter import UsageReporter, UsageSummary
    from apflow.governance.reporting import report_usage, reserve
    from apflow.governance.reports import UsageReports, UsageRow, UsageTable
    from apflow.governance.reserving import Reservation
    from apflow.governance.statuses import BudgetStatus, Decision, HoldStatus
    from apflow.governance.usage import Usage
    from apflow.governance.view import BudgetView
    from apflow.kinds import AsyncStreamTask, AsyncTask, StreamTask, SyncTask, Task
    from apflow.records import RunRecord, RunTree
    from apflow.run import Run
    from apflow.runtime import Runtime, configure, runtime
    from apflow.storage.connect import create_session
    from apflow.storage.repository import TaskRepository
    from apflow.storage.store import Store
    from apflow.task import task

__all__ = [
    "AddressRefusedError",
    "AggregateResultsExecutor",
    "AmountsDict",
    "ApFlowApiExecutor",
    "ApflowError",
    "AsyncStreamTask",
    "AsyncTask",
    "BackoffStrategy",
    "BrokenFile",
    "Budget",
    "BudgetCheckResult",
    "BudgetExhaustedError",
    "BudgetManager",
    "BudgetNotFoundError",
    "BudgetScope",
    "BudgetStatus",
    "BudgetView",
    "Budgets",
    "Call",
    "CallNext",
    "CheckpointManager",
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitBreakerRegistry",
    "CircuitOpenError",
    "CircuitState",
    "Clock",
    "CostPolicy",
    "DeadlockError",
    "Decision",
    "DuplicateExecutorError",
    "DuplicateTaskError",
    "ExecutableTask",
    "ExecutorError",
    "ExecutorMetadata",
    "ExecutorNotFoundError",
    "ExtensionScanner",
    "FencedError",
    "FunctionExecutor",
    "HoldStatus",
    "InvalidInputsError",
    "KeyConflictError",
    "Middleware",
    "MissingExtraError",
    "ModelSelection",
    "OutsideRunError",
    "PolicyAction",
    "PolicyEngine",
    "PolicyEvaluation",
    "PolicyNotFoundError",
    "Price",
    "PriceBook",
    "Prices",
    "ProviderRouter",
    "PublicError",
    "RecoveryLimitError",
    "Reservation",
    "RestExecutor",
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
    "SendEmailExecutor",
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
    "TaskCreator",
    "TaskDefinitionError",
    "TaskFrozenError",
    "TaskInUseError",
    "TaskManager",
    "TaskRepository",
    "TaskTreeError",
    "TaskTreeNode",
    "TokenBudget",
    "UnpricedModelError",
    "Usage",
    "UsageReporter",
    "UsageReports",
    "UsageRow",
    "UsageSummary",
    "UsageTable",
    "UserRequiredError",
    "__version__",
    "aserve",
    "asgi",
    "checkpoint",
    "configure",
    "create_session",
    "current",
    "executor_of",
    "executor_register",
    "progress",
    "report_usage",
    "reserve",
    "runtime",
    "serve",
    "task",
]

__version__ = "0.20.0"

export_lazily(
    __name__,
    {
        "bridge.serve": ("aserve", "asgi", "serve"),
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
        "engine.executable": ("ExecutableTask",),
        "engine.creator": ("TaskCreator",),
        "engine.manager": ("TaskManager",),
        "engine.tree": ("TaskTreeNode",),
        "engine.scanner": ("BrokenFile", "ExecutorMetadata", "ExtensionScanner"),
        "engine.function_executor": ("FunctionExecutor", "executor_of"),
        "executors.rest": ("RestExecutor",),
        "executors.email": ("SendEmailExecutor",),
        "executors.aggregate": ("AggregateResultsExecutor",),
        "executors.api": ("ApFlowApiExecutor",),
        "engine.registry": ("executor_register",),
        "errors": tuple(name for name in __all__ if name.endswith("Error")),
        "governance.amounts": ("AmountsDict",),
        "governance.budget": ("Budget", "BudgetCheckResult", "BudgetManager", "BudgetScope", "TokenBudget"),
        "governance.budgets": ("Budgets",),
        "governance.policy": ("CostPolicy", "PolicyAction", "PolicyEngine", "PolicyEvaluation"),
        "governance.prices": ("Price", "PriceBook", "Prices"),
        "governance.provider_router": ("ModelSelection", "ProviderRouter"),
        "governance.reporter": ("UsageReporter", "UsageSummary"),
        "governance.reporting": ("report_usage", "reserve"),
        "governance.reports": ("UsageReports", "UsageRow", "UsageTable"),
        "governance.reserving": ("Reservation",),
        "governance.statuses": ("BudgetStatus", "Decision", "HoldStatus"),
        "governance.usage": ("Usage",),
        "governance.view": ("BudgetView",),
        "kinds": ("AsyncStreamTask", "AsyncTask", "StreamTask", "SyncTask", "Task"),
        "records": ("RunRecord", "RunTree"),
        "run": ("Run",),
        "runtime": ("Runtime", "configure", "runtime"),
        "storage.connect": ("create_session",),
        "storage.repository": ("TaskRepository",),
        "storage.store": ("Store",),
        "task": ("task",),
    },
)
