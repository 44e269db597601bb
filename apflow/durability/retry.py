"""Retry: the policy, the loop that follows it, and the layer of the onion that uses the loop."""

from __future__ import annotations

import inspect
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from apflow.clock import Clock, SystemClock
from apflow.durability.checkpoint import RETRY_STEP_PREFIX
from apflow.durability.limits import check_number, check_whole
from apflow.errors import ApflowError

if TYPE_CHECKING:
    from apflow.call import Call, CallNext, Middleware
    from apflow.durability.checkpoint import CheckpointManager
    from apflow.state import RunState

T = TypeVar("T")
RetryOn = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool]
OnRetry = Callable[[str, int, Exception], Awaitable[None]]
BeforeWait = Callable[[int, Exception, float], Awaitable[None]]

#: With these even the shortest base reaches the longest wait; anything larger could only overflow.
LARGEST_EXPONENT = 20
LARGEST_FACTOR = 864_000
JITTER = 0.25

logger = logging.getLogger(__name__)
# Not the shared generator: processes that seed it alike would return together.
_random = random.SystemRandom()


class BackoffStrategy(Enum):
    """How the waits between attempts grow."""

    FIXED = "fixed"
    EXPONENTIAL = "exponential"
    LINEAR = "linear"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a failed task is tried again, after which errors, and how long it waits before.

    Attributes:
        max_attempts: Attempts in all, the first included: 1 to 100; 1 is no retry.
        backoff_strategy: How the waits grow: not at all, doubled each time, or longer by the base each time.
        backoff_base_seconds: The first wait: 0.1 to 3600.
        backoff_max_seconds: No wait is longer, jitter apart: `backoff_base_seconds` to 86400.
        jitter: Move each wait by up to 25 % either way, so that what failed together does not return
            together.
        retry_on: Which errors are retried: a class of exceptions, a tuple of classes, or a function that is
            given the exception. None is every `Exception` whose `retryable` attribute is not False.

    Raises:
        ValueError: A value is out of its range; the message names the field.
    """

    max_attempts: int = 3
    backoff_strategy: BackoffStrategy = BackoffStrategy.EXPONENTIAL
    backoff_base_seconds: float = 1.0
    backoff_max_seconds: float = 300.0
    jitter: bool = True
    retry_on: RetryOn | None = None

    def __post_init__(self) -> None:
        check_whole("max_attempts", self.max_attempts, 1, 100)
        if self.backoff_strategy not in list(BackoffStrategy):
            raise ValueError(f"backoff_strategy must be a BackoffStrategy, got {self.backoff_strategy!r}")
        base, longest = self.backoff_base_seconds, self.backoff_max_seconds
        check_number("backoff_base_seconds", base, 0.1, 3600.0)
        check_number("backoff_max_seconds", longest, 0.1, 86_400.0)
        if longest < base:
            raise ValueError(f"backoff_max_seconds ({longest}) must be >= backoff_base_seconds ({base})")
        if self.jitter is not True and self.jitter is not False:
            raise ValueError(f"jitter must be True or False, got {self.jitter!r}")
        _check_retry_on(self.retry_on)

    def calculate_delay(self, attempt: int) -> float:
        """Return the seconds to wait before retry number `attempt` (0 is the first retry).

        Grows as the strategy says, is capped at `backoff_max_seconds`, then moved by up to 25 % either way
        when `jitter` is set. Any attempt number is fine, however large.

        Raises:
            ValueError: `attempt` is negative or not a whole number.
        """
        if isinstance(attempt, bool) or not isinstance(attempt, int) or attempt < 0:
            raise ValueError(f"attempt must be a whole number >= 0, got {attempt!r}")
        delay = min(self.backoff_base_seconds * self._factor(attempt), float(self.backoff_max_seconds))
        if self.jitter:
            delay += _random.uniform(-JITTER, JITTER) * delay
        return delay

    def _factor(self, attempt: int) -> float:
        if self.backoff_strategy is BackoffStrategy.EXPONENTIAL:
            return 2.0 ** min(attempt, LARGEST_EXPONENT)
        if self.backoff_strategy is BackoffStrategy.LINEAR:
            return min(attempt, LARGEST_FACTOR) + 1.0
        return 1.0

    def retries(self, error: BaseException) -> bool:
        """Return whether another attempt may follow this error.

        An error of apflow whose `retryable` is False (cancellation, fencing, serialization, a timeout whose
        function still runs...) is never retried, even when `retry_on` names it; nor is a group that holds
        one. What is not an `Exception`, such as `KeyboardInterrupt`, is never retried either. A group is
        retried when its class is named, or when each error in it would be.
        """
        if not isinstance(error, Exception) or _never_retried(error):
            return False
        if self.retry_on is None or isinstance(self.retry_on, type | tuple):
            return self._chosen(error, self.retry_on)
        return bool(self.retry_on(error))

    def _chosen(self, error: Exception, named: type[Exception] | tuple[type[Exception], ...] | None) -> bool:
        parts = error.exceptions if isinstance(error, ExceptionGroup) else ()
        each_part = all(self._chosen(part, named) for part in parts)
        if named is None:
            return getattr(error, "retryable", True) is not False and each_part
        return isinstance(error, named) or (bool(parts) and each_part)


def _check_retry_on(retry_on: object) -> None:
    """Refuse what could never decide anything, or would decide everything.

    Raises:
        ValueError: It says what is expected.
    """
    classes = retry_on if isinstance(retry_on, tuple) else (retry_on,) if isinstance(retry_on, type) else ()
    if not all(isinstance(one, type) and issubclass(one, Exception) for one in classes):
        raise ValueError(f"retry_on takes subclasses of Exception, as nothing else is retried, got {retry_on!r}")
    if isinstance(retry_on, type | tuple) or retry_on is None:
        return
    if not callable(retry_on) or inspect.iscoroutinefunction(retry_on):
        raise ValueError(f"retry_on takes exception classes or a plain function, got {retry_on!r}")


def _never_retried(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_never_retried(one) for one in error.exceptions)
    return isinstance(error, ApflowError) and not error.retryable


class RetryManager:
    """Calls a coroutine function until it succeeds or its policy gives up.

    Args:
        checkpoint_manager: Where to note each failed attempt as a checkpoint of the task; None notes nothing.
        clock: Where the waits happen; None is the machine's.
    """

    def __init__(self, checkpoint_manager: CheckpointManager | None = None, *, clock: Clock | None = None) -> None:
        self._checkpoints = checkpoint_manager
        self._clock = clock or SystemClock()

    async def execute_with_retry(
        self,
        task_id: str,
        policy: RetryPolicy,
        execute_fn: Callable[[], Awaitable[T]],
        on_retry: OnRetry | None = None,
        *,
        attempts_done: int = 0,
        before_wait: BeforeWait | None = None,
    ) -> T:
        """Return what `execute_fn` returns, calling it again after an error as the policy says.

        At least one attempt is made. What `on_retry` or `before_wait` raises ends the loop.

        Args:
            task_id: Names the task in log lines and checkpoints.
            policy: How often, after which errors, after how long.
            execute_fn: Called with no arguments for each attempt.
            on_retry: Awaited before each wait with the task id, the number of attempts used, and the error.
            attempts_done: Attempts that an earlier life has used up; the count and the waits go on from
                there.
            before_wait: Awaited before `on_retry` with the number of attempts used, the error, and the
                seconds to wait: the place to store them.

        Raises:
            Exception: The last error of `execute_fn`, unchanged.
            ValueError: `task_id` is empty, or `attempts_done` is negative.
        """
        if not task_id or not task_id.strip():
            raise ValueError("task_id must be a non-empty string")
        if attempts_done < 0:
            raise ValueError(f"attempts_done must be >= 0, got {attempts_done}")
        used = attempts_done
        while True:
            used += 1
            try:
                return await execute_fn()
            except Exception as error:
                if used >= policy.max_attempts or not policy.retries(error):
                    raise
                delay = policy.calculate_delay(used - 1)
                kind = type(error).__name__
                logger.warning(
                    "task %s: attempt %d of %d failed with %s, next one in %.1f s",
                    task_id,
                    used,
                    policy.max_attempts,
                    kind,
                    delay,
                )
                if before_wait is not None:
                    await before_wait(used, error, delay)
                await self._note(task_id, used, kind)
                if on_retry is not None:
                    await on_retry(task_id, used, error)
            await self._clock.sleep(delay)

    async def _note(self, task_id: str, attempt: int, kind: str) -> None:
        """Save a checkpoint about a failed attempt. Without it the retry works as well."""
        if self._checkpoints is None:
            return
        try:
            await self._checkpoints.save_checkpoint(
                task_id=task_id,
                data={"failed_attempt": attempt, "error": kind},
                step_name=f"{RETRY_STEP_PREFIX}attempt_{attempt}",
            )
        except Exception as failure:  # noqa: BLE001 - a note that is lost must not cost the task its retry
            logger.error(  # noqa: TRY400 - a traceback could show what the user stores
                "task %s: the checkpoint about failed attempt %d was not saved: %s",
                task_id,
                attempt,
                type(failure).__name__,
            )


def retry_layer(clock: Clock) -> Middleware:
    """Return the layer that re-enters everything inside it for each attempt that the call's policy allows.

    It goes on from the attempts of an earlier life of the run, and lets the run's state store each failure
    before it waits.
    """
    manager = RetryManager(clock=clock)

    async def retry(call: Call, call_next: CallNext) -> Any:
        state = call.state
        allowance_start = state.attempts_allowed_from
        attempt = state.attempts_done
        if state.first_delay > 0:
            await clock.sleep(state.first_delay)

        async def try_once() -> Any:
            nonlocal attempt
            attempt += 1
            await state.begin_attempt(attempt)
            return await call_next(call if attempt == call.attempt else replace(call, attempt=attempt))

        async def store_failure(used: int, error: Exception, delay: float) -> None:
            await state.attempt_failed(allowance_start + used, error, delay)

        if call.options.retry is None:
            return await try_once()
        return await manager.execute_with_retry(
            call.run_id,
            _while_useful(call.options.retry, state),
            try_once,
            attempts_done=attempt - allowance_start,
            before_wait=store_failure,
        )

    return retry


def _while_useful(policy: RetryPolicy, state: RunState) -> RetryPolicy:
    """Return the policy without retries of a run that has to stop, or that would give out items twice."""

    def retry_on(error: Exception) -> bool:
        return not state.items_streamed and state.stopped() is None and policy.retries(error)

    return replace(policy, retry_on=retry_on)
