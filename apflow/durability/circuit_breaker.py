"""Circuit breakers: a task that keeps failing is left alone for a while."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from apflow.clock import Clock, SystemClock
from apflow.durability.limits import check_number, check_whole
from apflow.errors import (
    BudgetExhaustedError,
    CircuitOpenError,
    FencedError,
    RunCancelledError,
    RunInterruptedError,
    UnpricedModelError,
)

if TYPE_CHECKING:
    from apflow.call import Call, CallNext, Middleware

#: These say nothing about the task's health, nor about the service behind it.
NEVER_COUNTED = (RunCancelledError, FencedError, RunInterruptedError, BudgetExhaustedError, UnpricedModelError)

logger = logging.getLogger(__name__)


class CircuitState(Enum):
    """What a breaker does with calls: lets them through, refuses them, or lets a few test calls through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class CircuitBreakerConfig:
    """When a breaker opens, and how it finds out that it may close.

    Attributes:
        failure_threshold: Failures in a row that open it: 1 to 1000.
        reset_timeout_seconds: How long it then refuses every call: 1 to 86400.
        half_open_max_attempts: How many test calls may be under way at once after that: 1 to 10.

    Raises:
        ValueError: A value is out of its range; the message names the field.
    """

    failure_threshold: int = 5
    reset_timeout_seconds: float = 60.0
    half_open_max_attempts: int = 1

    def __post_init__(self) -> None:
        check_whole("failure_threshold", self.failure_threshold, 1, 1000)
        check_number("reset_timeout_seconds", self.reset_timeout_seconds, 1.0, 86_400.0)
        check_whole("half_open_max_attempts", self.half_open_max_attempts, 1, 10)


class CircuitBreaker:
    """The breaker of one executor. Every method may be called from any thread.

    A call asks `can_execute()` first, and ends with `record_success()`, `record_failure()`, or `release()`
    when it was given up before it had an outcome. The first test call that succeeds closes the breaker, the
    first that fails opens it again.

    Calls overlap, so an outcome may arrive in another period than its call began in: after the breaker has
    opened, or closed again. `admit()` gives out a ticket of the period; an outcome that comes with a ticket
    of an earlier period changes nothing. An outcome without a ticket is taken to be of the present period,
    and an open breaker takes none at all.

    Args:
        executor_id: What it guards.
        config: When it opens and closes. May be replaced at any time; the next decision follows it.
        clock: Where the time comes from; None is the machine's.

    Raises:
        ValueError: `executor_id` is empty.
    """

    def __init__(self, executor_id: str, config: CircuitBreakerConfig, *, clock: Clock | None = None) -> None:
        if not executor_id or not executor_id.strip():
            raise ValueError("executor_id must be a non-empty string")
        self.executor_id = executor_id
        self.config = config
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._state = CircuitState.CLOSED
        self._period = 1
        self._failures = 0
        self._tests = 0
        self._half_open_at = 0.0

    @property
    def state(self) -> CircuitState:
        """The state as of now: an open breaker is half open from the moment that its time is up."""
        with self._lock:
            return self._now()

    def can_execute(self) -> bool:
        """Return whether a call may begin. In the half-open state, True takes the place of a test call."""
        return self.admit() is not None

    def admit(self) -> int | None:
        """Do what `can_execute` does; return a ticket for the call's outcome, None when it may not begin."""
        with self._lock:
            state = self._now()
            if state is CircuitState.OPEN:
                return None
            if state is CircuitState.HALF_OPEN:
                if self._tests >= self.config.half_open_max_attempts:
                    return None
                self._tests += 1
            return self._period

    def record_success(self, ticket: int | None = None) -> None:
        """Note that a call succeeded: failures are counted from zero again, a half-open breaker closes."""
        with self._lock:
            if not self._counts(ticket):
                return
            closes = self._state is CircuitState.HALF_OPEN
            self._close()
        if closes:
            logger.info("circuit breaker of %s: closed after a successful test call", self.executor_id)

    def record_failure(self, ticket: int | None = None) -> None:
        """Note that a call failed: `failure_threshold` in a row, or one test call, open the breaker."""
        with self._lock:
            if not self._counts(ticket):
                return
            self._failures += 1
            opens = self._state is CircuitState.HALF_OPEN or self._failures >= self.config.failure_threshold
            if opens:
                self._state = CircuitState.OPEN
                self._failures = 0
                self._period += 1
                self._half_open_at = self._clock.monotonic() + self.config.reset_timeout_seconds
        if opens:
            logger.warning("circuit breaker of %s: open after repeated failures", self.executor_id)

    def release(self, ticket: int | None = None) -> None:
        """Note that a call ended without an outcome. A test call gives its place to the next one."""
        with self._lock:
            if self._counts(ticket) and self._tests > 0:
                self._tests -= 1

    def retry_in_seconds(self) -> float:
        """Return the seconds until an open breaker lets a test call through; 0 when it is not open."""
        with self._lock:
            if self._now() is not CircuitState.OPEN:
                return 0.0
            return self._half_open_at - self._clock.monotonic()

    def reset(self) -> None:
        """Close the breaker and forget the past, including the calls that are under way."""
        with self._lock:
            self._period += 1
            self._close()

    def _close(self) -> None:
        self._state = CircuitState.CLOSED
        self._failures = 0
        self._tests = 0

    def _now(self) -> CircuitState:
        if self._state is CircuitState.OPEN and self._clock.monotonic() >= self._half_open_at:
            self._state = CircuitState.HALF_OPEN
            self._tests = 0
        return self._state

    def _counts(self, ticket: int | None) -> bool:
        return self._now() is not CircuitState.OPEN and ticket in (None, self._period)


class CircuitBreakerRegistry:
    """The breakers of one runtime, made on first use. Every method may be called from any thread.

    Args:
        default_config: For breakers that are asked for without one; None is `CircuitBreakerConfig()`.
        clock: Where the time comes from; None is the machine's.
    """

    def __init__(self, default_config: CircuitBreakerConfig | None = None, *, clock: Clock | None = None) -> None:
        self._default_config = default_config or CircuitBreakerConfig()
        self._clock = clock
        self._breakers: dict[str, CircuitBreaker] = {}
        self._lock = threading.Lock()

    def get(self, executor_id: str, config: CircuitBreakerConfig | None = None) -> CircuitBreaker:
        """Return the breaker of this executor, always the same one.

        Args:
            executor_id: What it guards.
            config: The breaker follows it from now on; its state and count stay. None leaves a breaker that
                exists as it is.

        Raises:
            ValueError: `executor_id` is empty.
        """
        with self._lock:
            breaker = self._breakers.get(executor_id)
            if breaker is None:
                breaker = CircuitBreaker(executor_id, config or self._default_config, clock=self._clock)
                self._breakers[executor_id] = breaker
            elif config is not None:
                breaker.config = config
            return breaker

    def reset_all(self) -> None:
        """Close every breaker."""
        with self._lock:
            breakers = list(self._breakers.values())
        for breaker in breakers:
            breaker.reset()


def breaker_layer(registry: CircuitBreakerRegistry) -> Middleware:
    """Return the layer that asks the breaker of the call's task, when it has one, and tells it the outcome.

    A call counts once, with all its attempts; one that was cancelled, fenced off or interrupted not at all.
    The layer raises `CircuitOpenError` in place of a call that is refused.
    """

    async def guard(call: Call, call_next: CallNext) -> Any:
        if call.options.breaker is None:
            return await call_next(call)
        breaker = registry.get(call.task.name, call.options.breaker)
        ticket = breaker.admit()
        if ticket is None:
            raise CircuitOpenError(call.task.name, breaker.retry_in_seconds())
        try:
            result = await call_next(call)
        except Exception as error:
            if isinstance(error, NEVER_COUNTED):
                breaker.release(ticket)
            else:
                breaker.record_failure(ticket)
            raise
        except BaseException:
            breaker.release(ticket)
            raise
        breaker.record_success(ticket)
        return result

    return guard
