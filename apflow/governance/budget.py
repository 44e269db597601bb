"""Budgets: what is declared, what is left, and the manager that checks and updates what a task has used."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from apflow.governance.amounts import NOTHING, UNITS, Amounts, Reserve, Unit, amounts, nano, public, whole
from apflow.governance.windows import check_tz, check_window

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from decimal import Decimal

    from apflow.storage.repository import TaskRepository
    from apflow.storage.tables import TaskModel

Per = Literal["run", "user", "global"]
PERS: tuple[Per, ...] = ("run", "user", "global")
UNLIMITED = -1

_NAME_LENGTH = 255


@dataclass(frozen=True)
class Budget:
    """What a run and everything below it may use, or one user, or everybody.

    Attributes:
        tokens: Input plus output tokens, at least 1.
        usd: Dollars: a string such as `"0.50"`, a Decimal or an int; more than 0, at most 9 decimals.
        requests: Calls of a model, at least 1.
        per: Whom it is for: each run by itself, each user over all runs, or all together.
        window: A calendar hour, day, week from Monday, or month, after which it begins anew; None is for ever.
        tz: The time zone in which days begin.
        reserve: What one attempt holds before it starts: an int (tokens) or a mapping of units. Without it an attempt
            is admitted while anything is left.
        name: Tells budgets apart; the task's name by default. Tasks that name the same budget share it.

    Raises:
        ValueError: A value is out of its range; the text names the field.
    """

    tokens: int | None = None
    usd: str | Decimal | int | None = None
    requests: int | None = None
    per: Per = "run"
    window: Literal["1h", "1d", "1w", "1mo"] | None = None
    tz: str = "UTC"
    reserve: Reserve | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        limits = self.limits
        if not limits:
            raise ValueError("a budget needs a limit: tokens=, usd= or requests=")
        if self.per not in PERS:
            raise ValueError(f"per must be one of {', '.join(PERS)}, got {self.per!r}")
        check_window(self.window)
        check_tz(self.tz)
        if self.name is not None and not (isinstance(self.name, str) and 0 < len(self.name) <= _NAME_LENGTH):
            raise ValueError(f"name takes 1 to {_NAME_LENGTH} characters")
        for unit in UNITS:
            wanted = self.reserved.of(unit)
            if wanted and wanted > limits.get(unit, 0):
                allowed = public(unit, limits.get(unit, 0))
                raise ValueError(f"reserve asks for {public(unit, wanted)} {unit}, and the budget has {allowed}")

    @cached_property
    def limits(self) -> dict[Unit, int]:
        """The limits that were given; dollars as nano-dollars."""
        found: dict[Unit, int] = {}
        if self.tokens is not None:
            found["tokens"] = whole(self.tokens, "tokens")
        if self.usd is not None:
            found["usd"] = nano(self.usd, "usd")
        if self.requests is not None:
            found["requests"] = whole(self.requests, "requests")
        return found

    @cached_property
    def reserved(self) -> Amounts:
        """What one attempt holds."""
        try:
            return NOTHING if self.reserve is None else amounts(self.reserve)
        except ValueError as error:
            raise ValueError(f"reserve: {error}") from error


class BudgetScope(Enum):
    """What a budget applies to."""

    TASK = "task"
    USER = "user"
    GLOBAL = "global"


@dataclass
class TokenBudget:
    """A number of tokens, and how many of them are used.

    Attributes:
        scope: What the budget applies to.
        scope_id: Id of the task, the user...
        limit: The most tokens allowed, at least 1.
        used: Tokens used so far, at least 0.

    Raises:
        ValueError: A value is out of its range.
    """

    scope: BudgetScope
    scope_id: str
    limit: int
    used: int = 0

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"limit must be >= 1, got {self.limit}")
        if self.used < 0:
            raise ValueError(f"used must be >= 0, got {self.used}")
        _check_id("scope_id", self.scope_id)

    @property
    def remaining(self) -> int:
        """Tokens that are left, at least 0."""
        return max(0, self.limit - self.used)

    @property
    def utilization(self) -> float:
        """Used tokens over the limit: 0.0 to 1.0, more after an overrun."""
        return self.used / self.limit

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing is left."""
        return self.used >= self.limit


@dataclass
class BudgetCheckResult:
    """Whether a task may run.

    Attributes:
        allowed: It may.
        remaining: Tokens that are left; -1 without a budget.
        utilization: Used tokens over the limit; 0.0 without a budget.
        budget: What was checked; None without a budget.
    """

    allowed: bool
    remaining: int
    utilization: float
    budget: TokenBudget | None


class BudgetManager:
    """Checks what a task's budget allows, and adds what was used. Both work on the ledger itself.

    Safe to use from many tasks, threads and processes at once: one conditional update in the database decides.

    Args:
        task_repository: Where the tasks are.
    """

    def __init__(self, task_repository: TaskRepository) -> None:
        from apflow.governance.ledger import Ledger

        self._repository = task_repository
        self._ledger = Ledger(task_repository.store)

    async def check_budget(self, task_id: str) -> BudgetCheckResult:
        """Return whether the task has tokens left.

        Used is what the ledger says of the task and everything below it.

        Raises:
            ValueError: `task_id` is empty.
            KeyError: There is no such task.
        """
        task = await self._task(task_id)
        if task.token_budget is None:
            return BudgetCheckResult(allowed=True, remaining=UNLIMITED, utilization=0.0, budget=None)
        budget = await self._budget_of(task)
        return BudgetCheckResult(
            allowed=not budget.is_exhausted,
            remaining=budget.remaining,
            utilization=budget.utilization,
            budget=budget,
        )

    async def update_usage(self, task_id: str, token_usage: Mapping[str, int]) -> TokenBudget | None:
        """Add what the task has used to its row, to the ledger's events and to its budget.

        Args:
            task_id: The task.
            token_usage: `input`, `output` and `total`, each at least 0; what is left out is 0, or the sum.

        Returns:
            The budget afterwards; None when the task has none.

        Raises:
            ValueError: `task_id` is empty, or a number is negative or no whole number.
            KeyError: There is no such task.
        """
        from apflow.governance.updating import add_usage
        from apflow.governance.usage import returned_usage

        _check_id("task_id", task_id)
        usage = returned_usage({"token_usage": token_usage})
        task = await self._task(task_id)
        if usage is not None:
            await add_usage(self._repository.store, self._ledger, task, usage)
        return None if task.token_budget is None else await self._budget_of(task)

    async def _task(self, task_id: str) -> TaskModel:
        _check_id("task_id", task_id)
        task = await self._repository.get_task_by_id(task_id)
        if task is None:
            raise KeyError(f"Task not found: {task_id}")
        return task

    async def _budget_of(self, task: TaskModel) -> TokenBudget:
        """Return the narrowest token budget of the task itself, as the ledger has it."""
        assert task.token_budget is not None
        found = await self._repository.store.read(lambda tx: self._ledger.tokens_of_run(tx, task.id))
        limit, used = found or (task.token_budget, (task.token_usage or {}).get("total", 0))
        return TokenBudget(BudgetScope.TASK, task.id, limit=limit, used=used)


def budgets(value: Any) -> tuple[Budget, ...]:
    """Return what the option `budget=` stands for.

    Raises:
        ValueError: It is no budget; the text says what is.
    """
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        return (_one_budget(value),)
    several = tuple(_one_budget(one) for one in value)
    _check_distinct(several)
    return several


def _one_budget(value: object) -> Budget:
    if isinstance(value, Budget):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return Budget(tokens=value)
    raise ValueError(
        f"takes a number of tokens, a Budget or a list of them, not a value of type {type(value).__name__}"
    )


def _check_distinct(several: Sequence[Budget]) -> None:
    """Refuse two budgets that would count on the same account."""
    seen: set[tuple[object, ...]] = set()
    for one in several:
        for unit in one.limits:
            account = (one.name, one.per, unit, one.window, one.tz if one.window else "")
            if account in seen:
                raise ValueError(f"has two limits of {unit} per {one.per} that are one account; give one budget a name")
            seen.add(account)


def _check_id(field: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{field} must be a non-empty string")
