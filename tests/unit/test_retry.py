"""Retry: which waits, after which errors, how often."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from apflow.call import Call
from apflow.durability.checkpoint import CheckpointManager
from apflow.durability.retry import BackoffStrategy, RetryManager, RetryPolicy, retry_layer
from apflow.errors import (
    ApflowError,
    FencedError,
    RunCancelledError,
    RunTimeoutError,
    SerializationError,
    StorageError,
)
from apflow.options import Options, TaskDefinition

if TYPE_CHECKING:
    from collections.abc import Callable

    from apflow.state import RunState

pytestmark = pytest.mark.anyio

FENCED = FencedError("r1")
CANCELLED = RunCancelledError("r1")
UNSTORABLE = SerializationError("t", "result", "set", "use a list")
STOPPED = RunTimeoutError("r1", "t", 1.0, still_running=False)
STILL_RUNNING = RunTimeoutError("r1", "t", 1.0, still_running=True)


class SleepLog:
    """A clock whose sleeps take no time and are remembered."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


class Flaky:
    """Fails with each of `errors` in turn, then returns."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> dict[str, bool]:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return {"ok": True}


def steady(strategy: BackoffStrategy, **fields: Any) -> RetryPolicy:
    return RetryPolicy(backoff_strategy=strategy, jitter=False, **fields)


def waits(policy: RetryPolicy, count: int) -> list[float]:
    return [policy.calculate_delay(attempt) for attempt in range(count)]


# -- the policy ----------------------------------------------------------------------------------------------


def test_defaults() -> None:
    policy = RetryPolicy()
    assert (policy.max_attempts, policy.backoff_base_seconds, policy.backoff_max_seconds) == (3, 1.0, 300.0)
    assert policy.backoff_strategy is BackoffStrategy.EXPONENTIAL
    assert policy.jitter is True
    assert policy.retry_on is None


@pytest.mark.parametrize(
    "fields",
    [
        {"max_attempts": 1},
        {"max_attempts": 100},
        {"backoff_base_seconds": 0.1},
        {"backoff_base_seconds": 3600, "backoff_max_seconds": 3600},
        {"backoff_max_seconds": 86_400},
        {"backoff_base_seconds": 5.0, "backoff_max_seconds": 5.0},
        {"retry_on": OSError},
        {"retry_on": (OSError, KeyError)},
        {"retry_on": lambda error: bool(error.args)},
    ],
)
def test_limits_are_inclusive(fields: dict[str, Any]) -> None:
    policy = RetryPolicy(**fields)
    assert {name: getattr(policy, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("max_attempts", bad) for bad in (0, 101, -1, 2.0, True, "3", None)],
        *[("backoff_base_seconds", bad) for bad in (0.09, 3600.1, math.nan, math.inf, True, "1", None)],
        *[("backoff_max_seconds", bad) for bad in (0.9, 86_400.1, math.nan, math.inf, True, "1", None)],
        *[("backoff_strategy", bad) for bad in ("linear", None)],
        *[("jitter", bad) for bad in (1, "no", None)],
        *[("retry_on", bad) for bad in (5, "OSError", bool, KeyboardInterrupt, BaseException, [OSError])],
        ("retry_on", (OSError, asyncio.CancelledError)),
        ("retry_on", (OSError, (KeyError,))),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        RetryPolicy(**{field: value})  # type: ignore[arg-type]


def test_the_longest_wait_is_not_shorter_than_the_base() -> None:
    with pytest.raises(ValueError, match=r"backoff_max_seconds \(5.0\) must be >= backoff_base_seconds \(10.0\)"):
        RetryPolicy(backoff_base_seconds=10.0, backoff_max_seconds=5.0)


def test_a_coroutine_function_cannot_decide() -> None:
    async def always(error: Exception) -> bool:
        return True

    with pytest.raises(ValueError, match="retry_on"):
        RetryPolicy(retry_on=always)  # type: ignore[arg-type]


def test_a_policy_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        RetryPolicy().max_attempts = 5  # type: ignore[misc]


# -- the waits -----------------------------------------------------------------------------------------------


def test_fixed_waits_stay() -> None:
    assert waits(steady(BackoffStrategy.FIXED, backoff_base_seconds=2), 3) == [2.0, 2.0, 2.0]


def test_exponential_waits_double() -> None:
    assert waits(steady(BackoffStrategy.EXPONENTIAL, backoff_base_seconds=0.5), 5) == [
        0.5,
        1.0,
        2.0,
        4.0,
        8.0,
    ]


def test_linear_waits_grow_by_the_base() -> None:
    assert waits(steady(BackoffStrategy.LINEAR, backoff_base_seconds=1.5), 4) == [1.5, 3.0, 4.5, 6.0]


@pytest.mark.parametrize("strategy", [BackoffStrategy.EXPONENTIAL, BackoffStrategy.LINEAR])
@pytest.mark.parametrize("attempt", [20, 5_000, 864_000, 10**400])
def test_waits_end_at_the_longest_one_however_many(strategy: BackoffStrategy, attempt: int) -> None:
    assert steady(strategy, backoff_max_seconds=10.0).calculate_delay(attempt) == 10.0
    if attempt >= 864_000:
        policy = steady(strategy, backoff_base_seconds=0.1, backoff_max_seconds=86_400.0)
        assert policy.calculate_delay(attempt) == 86_400.0


@pytest.mark.parametrize("attempt", [-1, True, 1.0, None])
def test_an_attempt_is_a_number_from_zero(attempt: Any) -> None:
    with pytest.raises(ValueError, match="attempt"):
        RetryPolicy().calculate_delay(attempt)


@given(
    strategy=st.sampled_from(BackoffStrategy),
    base=st.floats(0.1, 3600),
    longest=st.floats(3600, 86_400),
    attempt=st.integers(0, 10_000),
)
def test_jitter_stays_within_a_quarter(strategy: BackoffStrategy, base: float, longest: float, attempt: int) -> None:
    fields: dict[str, Any] = {"backoff_base_seconds": base, "backoff_max_seconds": longest}
    middle = steady(strategy, **fields).calculate_delay(attempt)
    moved = RetryPolicy(backoff_strategy=strategy, **fields).calculate_delay(attempt)
    assert base <= middle <= longest
    assert middle * 0.7499 <= moved <= middle * 1.2501


def test_jitter_goes_both_ways() -> None:
    delays = waits(RetryPolicy(backoff_strategy=BackoffStrategy.FIXED, backoff_base_seconds=4.0), 200)
    assert min(delays) < 4.0 < max(delays)


# -- which errors --------------------------------------------------------------------------------------------


class GaveUpError(Exception):
    retryable = False


class FlakyApflowError(ApflowError):
    retryable = True


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError(), True),
        (ConnectionError(), True),
        (TimeoutError(), True),
        (GaveUpError(), False),
        (FlakyApflowError(), True),
        (ApflowError(), False),
        (StorageError(), False),
        (STOPPED, True),
        (STILL_RUNNING, False),
        (KeyboardInterrupt(), False),
        (asyncio.CancelledError(), False),
        (ExceptionGroup("all", [ValueError(), ExceptionGroup("of them", [OSError()])]), True),
        (ExceptionGroup("one not", [ValueError(), GaveUpError()]), False),
        (BaseExceptionGroup("interrupted", [ValueError(), KeyboardInterrupt()]), False),
    ],
)
def test_by_default_all_that_does_not_say_otherwise(error: BaseException, expected: bool) -> None:
    assert RetryPolicy().retries(error) is expected


@pytest.mark.parametrize("error", [FENCED, CANCELLED, UNSTORABLE, STILL_RUNNING, StorageError()])
@pytest.mark.parametrize("retry_on", [None, Exception, lambda _: True])
def test_some_are_never_retried(error: ApflowError, retry_on: Any) -> None:
    policy = RetryPolicy(retry_on=retry_on)
    assert not policy.retries(error)
    assert not policy.retries(ExceptionGroup("with others", [ValueError(), ExceptionGroup("deep", [error])]))
    if retry_on is not None:
        assert not RetryPolicy(retry_on=type(error)).retries(error)


def test_only_what_is_named() -> None:
    policy = RetryPolicy(retry_on=(ConnectionError, GaveUpError))
    assert policy.retries(ConnectionResetError())
    assert policy.retries(GaveUpError())
    assert not policy.retries(ValueError())
    assert not policy.retries(STOPPED)
    assert RetryPolicy(retry_on=TimeoutError).retries(STOPPED)


def test_a_group_counts_as_what_it_holds_unless_it_is_named() -> None:
    mixed = ExceptionGroup("", [ConnectionError(), ValueError()])
    policy = RetryPolicy(retry_on=ConnectionError)
    assert policy.retries(ExceptionGroup("", [ConnectionError(), ConnectionResetError()]))
    assert not policy.retries(mixed)
    assert RetryPolicy(retry_on=ExceptionGroup).retries(mixed)


def test_a_function_decides() -> None:
    policy = RetryPolicy(retry_on=lambda error: "429" in str(error))
    assert policy.retries(ValueError("429 too many"))
    assert not policy.retries(ValueError("400 bad"))
    assert not policy.retries(KeyboardInterrupt("429"))


# -- the manager ---------------------------------------------------------------------------------------------

THREE = steady(BackoffStrategy.EXPONENTIAL, max_attempts=3)


async def test_success_needs_one_attempt() -> None:
    clock, fn = SleepLog(), Flaky()
    assert await RetryManager(clock=clock).execute_with_retry("t1", THREE, fn) == {"ok": True}
    assert (fn.calls, clock.slept) == (1, [])


async def test_success_on_the_last_attempt() -> None:
    clock, fn = SleepLog(), Flaky(ValueError(), OSError())
    assert await RetryManager(clock=clock).execute_with_retry("t1", THREE, fn) == {"ok": True}
    assert (fn.calls, clock.slept) == (3, [1.0, 2.0])


async def test_the_last_error_is_raised_itself() -> None:
    clock, last = SleepLog(), ValueError("third")
    fn = Flaky(ValueError("first"), ValueError("second"), last)
    with pytest.raises(ValueError, match="third") as caught:
        await RetryManager(clock=clock).execute_with_retry("t1", THREE, fn)
    assert caught.value is last
    assert last.__context__ is None
    assert (fn.calls, clock.slept) == (3, [1.0, 2.0])


@pytest.mark.parametrize("error", [FENCED, KeyboardInterrupt(), asyncio.CancelledError(), GaveUpError(), STILL_RUNNING])
async def test_what_is_not_retried_passes_at_once(error: BaseException) -> None:
    clock, fn = SleepLog(), Flaky(error)
    with pytest.raises(type(error)) as caught:
        await RetryManager(clock=clock).execute_with_retry("t1", THREE, fn)
    assert caught.value is error
    assert (fn.calls, clock.slept) == (1, [])


async def test_cancellation_ends_the_wait() -> None:
    class Endless(SleepLog):
        @override
        async def sleep(self, seconds: float) -> None:
            await asyncio.Event().wait()

    fn = Flaky(ValueError())
    running = asyncio.ensure_future(RetryManager(clock=Endless()).execute_with_retry("t1", THREE, fn))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert fn.calls == 1


async def test_everything_happens_in_order() -> None:
    seen: list[Any] = []
    errors = [ValueError("a"), OSError("b")]

    class Log(SleepLog):
        @override
        async def sleep(self, seconds: float) -> None:
            seen.append(("sleep", seconds))

    async def on_retry(task_id: str, attempt: int, error: Exception) -> None:
        seen.append(("on_retry", task_id, attempt, error))

    async def before_wait(used: int, error: Exception, delay: float) -> None:
        seen.append(("before_wait", used, error, delay))

    await RetryManager(clock=Log()).execute_with_retry("t1", THREE, Flaky(*errors), on_retry, before_wait=before_wait)
    assert seen == [
        *[("before_wait", 1, errors[0], 1.0), ("on_retry", "t1", 1, errors[0]), ("sleep", 1.0)],
        *[("before_wait", 2, errors[1], 2.0), ("on_retry", "t1", 2, errors[1]), ("sleep", 2.0)],
    ]


async def test_what_a_callback_raises_ends_the_loop() -> None:
    async def on_retry(task_id: str, attempt: int, error: Exception) -> None:
        raise LookupError

    fn, first = Flaky(ValueError()), ValueError()
    fn.errors = [first]
    with pytest.raises(LookupError) as caught:
        await RetryManager(clock=SleepLog()).execute_with_retry("t1", THREE, fn, on_retry)
    assert caught.value.__context__ is first
    assert fn.calls == 1


async def test_an_earlier_life_counts() -> None:
    clock, fn = SleepLog(), Flaky(ValueError(), ValueError())
    policy = steady(BackoffStrategy.EXPONENTIAL, max_attempts=4)
    with pytest.raises(ValueError):  # noqa: PT011 - it has no text
        await RetryManager(clock=clock).execute_with_retry("t1", policy, fn, attempts_done=2)
    assert (fn.calls, clock.slept) == (2, [4.0])


@pytest.mark.parametrize("done", [3, 50])
async def test_at_least_one_attempt_is_made(done: int) -> None:
    clock, fn = SleepLog(), Flaky(ValueError())
    with pytest.raises(ValueError):  # noqa: PT011 - it has no text
        await RetryManager(clock=clock).execute_with_retry("t1", THREE, fn, attempts_done=done)
    assert (fn.calls, clock.slept) == (1, [])


async def test_arguments_are_checked_before_anything_runs() -> None:
    fn = Flaky()
    for task_id in ("", "  "):
        with pytest.raises(ValueError, match="task_id"):
            await RetryManager().execute_with_retry(task_id, THREE, fn)
    with pytest.raises(ValueError, match="attempts_done"):
        await RetryManager().execute_with_retry("t1", THREE, fn, attempts_done=-1)
    assert fn.calls == 0


async def test_without_a_clock_the_wait_is_real(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(_: object, seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("apflow.clock.SystemClock.sleep", sleep)
    await RetryManager().execute_with_retry("t1", THREE, Flaky(ValueError()))
    assert slept == [1.0]


class Notes(CheckpointManager):
    """Remembers what is saved, or fails to."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.saved: list[tuple[str, dict[str, Any], str | None]] = []
        self.failure = failure

    @override
    async def save_checkpoint(self, task_id: str, data: dict[str, Any], step_name: str | None = None) -> str:
        self.saved.append((task_id, data, step_name))
        if self.failure is not None:
            raise self.failure
        return "id"


async def test_each_failed_attempt_is_noted() -> None:
    notes = Notes()
    await RetryManager(notes, clock=SleepLog()).execute_with_retry("t1", THREE, Flaky(ValueError("x"), OSError()))
    assert notes.saved == [
        ("t1", {"failed_attempt": 1, "error": "ValueError"}, "retry_checkpoint_attempt_1"),
        ("t1", {"failed_attempt": 2, "error": "OSError"}, "retry_checkpoint_attempt_2"),
    ]


async def test_the_last_failure_is_not_noted() -> None:
    notes = Notes()
    with pytest.raises(ValueError, match="c"):
        await RetryManager(notes, clock=SleepLog()).execute_with_retry(
            "t1", THREE, Flaky(ValueError("a"), ValueError("b"), ValueError("c"))
        )
    assert [data["failed_attempt"] for _, data, _ in notes.saved] == [1, 2]


async def test_a_note_that_is_lost_costs_nothing_and_no_text_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    notes, fn = Notes(StorageError("secret-2")), Flaky(ValueError("secret-1"))
    assert await RetryManager(notes, clock=SleepLog()).execute_with_retry("t1", THREE, fn) == {"ok": True}
    logged = [record for record in caplog.records if record.name.startswith("apflow")]
    assert [record.levelname for record in logged] == ["WARNING", "ERROR"]
    assert "attempt 1 of 3 failed with ValueError" in caplog.text
    assert "not saved: StorageError" in caplog.text
    assert "secret" not in caplog.text


async def test_cancellation_while_noting_is_not_swallowed() -> None:
    class Cancelled(Notes):
        @override
        async def save_checkpoint(self, task_id: str, data: dict[str, Any], step_name: str | None = None) -> str:
            raise asyncio.CancelledError

    fn = Flaky(ValueError())
    with pytest.raises(asyncio.CancelledError):
        await RetryManager(Cancelled(), clock=SleepLog()).execute_with_retry("t1", THREE, fn)
    assert fn.calls == 1


# -- the layer -----------------------------------------------------------------------------------------------


class State:
    """Stands for the run's state: remembers what the layer tells it."""

    def __init__(self, seen: list[Any], done: int = 0, allowed_from: int = 0, delay: float = 0.0) -> None:
        self.seen = seen
        self.attempts_done, self.attempts_allowed_from, self.first_delay = done, allowed_from, delay
        self.items_streamed = False
        self.reason: str | None = None

    def stopped(self) -> str | None:
        return self.reason

    async def begin_attempt(self, attempt: int) -> None:
        self.seen.append(("begin", attempt))

    async def attempt_failed(self, attempt: int, error: Exception, delay: float) -> None:
        self.seen.append(("failed", attempt, type(error), delay))


class Seen(SleepLog):
    def __init__(self, seen: list[Any]) -> None:
        super().__init__()
        self.seen = seen

    @override
    async def sleep(self, seconds: float) -> None:
        self.seen.append(("sleep", seconds))


def make_call(state: State, policy: RetryPolicy | None) -> Call:
    async def work() -> None: ...

    task = TaskDefinition(
        fn=work,
        name="work",
        named=False,
        origin="tests",
        location="here:1",
        colour="async",
        signature=inspect.signature(work),
        takes_self=False,
    )
    options = Options(retry=policy)
    return Call(task, {}, options, "r1", 1, None, None, cast("RunState", state))


async def through_layer(state: State, policy: RetryPolicy | None, body: Callable[[Call], Any]) -> Any:
    async def call_next(call: Call) -> Any:
        state.seen.append(("call", call.attempt))
        return body(call)

    return await retry_layer(Seen(state.seen))(make_call(state, policy), call_next)


def failing_until(last: int) -> Callable[[Call], str]:
    def body(call: Call) -> str:
        if call.attempt < last:
            raise ConnectionError
        return "done"

    return body


async def test_the_layer_without_a_policy_makes_one_attempt() -> None:
    state = State([])
    with pytest.raises(ConnectionError):
        await through_layer(state, None, failing_until(2))
    assert state.seen == [("begin", 1), ("call", 1)]


async def test_the_layer_stores_each_failure_before_it_waits() -> None:
    state = State([])
    assert await through_layer(state, THREE, failing_until(3)) == "done"
    assert state.seen == [
        *[("begin", 1), ("call", 1), ("failed", 1, ConnectionError, 1.0), ("sleep", 1.0)],
        *[("begin", 2), ("call", 2), ("failed", 2, ConnectionError, 2.0), ("sleep", 2.0)],
        *[("begin", 3), ("call", 3)],
    ]


async def test_the_layer_goes_on_where_an_earlier_life_stopped() -> None:
    state = State([], done=1, delay=0.25)
    with pytest.raises(ConnectionError):
        await through_layer(state, THREE, failing_until(9))
    assert state.seen == [
        ("sleep", 0.25),
        *[("begin", 2), ("call", 2), ("failed", 2, ConnectionError, 2.0), ("sleep", 2.0)],
        *[("begin", 3), ("call", 3)],
    ]


async def test_a_new_allowance_has_all_its_attempts_and_short_waits() -> None:
    state = State([], done=3, allowed_from=3)
    with pytest.raises(ConnectionError):
        await through_layer(state, THREE, failing_until(99))
    assert [entry for entry in state.seen if entry[0] != "call"] == [
        *[("begin", 4), ("failed", 4, ConnectionError, 1.0), ("sleep", 1.0)],
        *[("begin", 5), ("failed", 5, ConnectionError, 2.0), ("sleep", 2.0)],
        ("begin", 6),
    ]


async def test_a_new_allowance_without_a_policy_has_one_attempt() -> None:
    state = State([], done=1, allowed_from=1)
    with pytest.raises(ConnectionError):
        await through_layer(state, None, failing_until(99))
    assert state.seen == [("begin", 2), ("call", 2)]


async def test_a_generator_that_gave_out_an_item_is_not_retried() -> None:
    state = State([])

    def body(call: Call) -> None:
        state.items_streamed = call.attempt == 2
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await through_layer(state, THREE, body)
    assert [entry for entry in state.seen if entry[0] == "begin"] == [("begin", 1), ("begin", 2)]


async def test_a_run_that_has_to_stop_is_not_retried() -> None:
    state = State([])

    def body(call: Call) -> None:
        state.reason = "cancelled"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await through_layer(state, THREE, body)
    assert state.seen == [("begin", 1), ("call", 1)]


async def test_an_attempt_that_cannot_begin_is_not_retried() -> None:
    class Fenced(State):
        @override
        async def begin_attempt(self, attempt: int) -> None:
            await super().begin_attempt(attempt)
            raise FENCED

    state = Fenced([])
    with pytest.raises(FencedError):
        await through_layer(state, THREE, failing_until(9))
    assert state.seen == [("begin", 1)]
