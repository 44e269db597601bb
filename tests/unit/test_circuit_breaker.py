"""Circuit breakers: when they open, what they let through, and how they close."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from typing_extensions import override

from apflow.call import Call
from apflow.durability.circuit_breaker import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerRegistry,
    CircuitState,
    breaker_layer,
)
from apflow.errors import (
    CircuitOpenError,
    FencedError,
    RunCancelledError,
    RunInterruptedError,
    RunTimeoutError,
)
from apflow.options import Options, TaskDefinition

if TYPE_CHECKING:
    from collections.abc import Callable

    from apflow.state import RunState

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN


class Hands:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


@pytest.fixture
def clock() -> Hands:
    return Hands()


def breaker_with(clock: Hands, threshold: int = 2, timeout: float = 60.0, tests: int = 1) -> CircuitBreaker:
    return CircuitBreaker("work", CircuitBreakerConfig(threshold, timeout, tests), clock=clock)


def opened(clock: Hands, **fields: Any) -> CircuitBreaker:
    breaker = breaker_with(clock, **fields)
    for _ in range(breaker.config.failure_threshold):
        breaker.record_failure()
    return breaker


def half_open(clock: Hands, **fields: Any) -> CircuitBreaker:
    breaker = opened(clock, **fields)
    clock.time += breaker.config.reset_timeout_seconds
    return breaker


# -- configuration -------------------------------------------------------------------------------------------


def test_defaults() -> None:
    assert CircuitBreakerConfig() == CircuitBreakerConfig(5, 60.0, 1)


@pytest.mark.parametrize("values", [(1, 1.0, 1), (1000, 86_400, 10)])
def test_limits_are_inclusive(values: tuple[int, float, int]) -> None:
    config = CircuitBreakerConfig(*values)
    assert (config.failure_threshold, config.reset_timeout_seconds, config.half_open_max_attempts) == values


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("failure_threshold", bad) for bad in (0, 1001, True, 2.0, None)],
        *[("reset_timeout_seconds", bad) for bad in (0.9, 86_400.1, math.nan, math.inf, True, "60")],
        *[("half_open_max_attempts", bad) for bad in (0, 11, True, 1.0)],
    ],
)
def test_what_is_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        CircuitBreakerConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("executor_id", ["", "   "])
def test_it_guards_something(executor_id: str) -> None:
    with pytest.raises(ValueError, match="non-empty"):
        CircuitBreaker(executor_id, CircuitBreakerConfig())
    with pytest.raises(ValueError, match="non-empty"):
        CircuitBreakerRegistry().get(executor_id)


# -- transitions ---------------------------------------------------------------------------------------------


def test_a_new_breaker_is_closed(clock: Hands) -> None:
    breaker = breaker_with(clock)
    assert breaker.state is CLOSED
    assert breaker.can_execute()
    assert breaker.retry_in_seconds() == 0.0


def test_failures_in_a_row_open_it(clock: Hands) -> None:
    breaker = breaker_with(clock, threshold=3)
    breaker.record_failure()
    breaker.record_failure()
    assert breaker.state is CLOSED
    breaker.record_failure()
    assert breaker.state is OPEN
    assert not breaker.can_execute()
    assert breaker.retry_in_seconds() == 60.0


def test_a_success_starts_the_count_again(clock: Hands) -> None:
    breaker = breaker_with(clock, threshold=2)
    for _ in range(5):
        breaker.record_failure()
        breaker.record_success()
    breaker.record_failure()
    assert breaker.state is CLOSED


def test_it_is_half_open_when_its_time_is_up(clock: Hands) -> None:
    breaker = opened(clock)
    clock.time += 59.75
    assert breaker.state is OPEN
    assert breaker.retry_in_seconds() == 0.25
    clock.time += breaker.retry_in_seconds()
    assert breaker.state is HALF_OPEN
    assert breaker.retry_in_seconds() == 0.0


@pytest.mark.parametrize("tests", [1, 3])
def test_half_open_lets_only_test_calls_through(clock: Hands, tests: int) -> None:
    breaker = half_open(clock, tests=tests)
    assert [breaker.can_execute() for _ in range(tests + 2)] == [True] * tests + [False] * 2
    assert breaker.state is HALF_OPEN


def test_a_test_call_that_succeeds_closes_it(clock: Hands) -> None:
    breaker = half_open(clock)
    assert breaker.can_execute()
    breaker.record_success()
    assert breaker.state is CLOSED
    breaker.record_failure()
    assert breaker.state is CLOSED, "the old failures are forgotten"


def test_a_test_call_that_fails_opens_it_for_the_full_time(clock: Hands) -> None:
    breaker = half_open(clock, threshold=5)
    assert breaker.can_execute()
    clock.time += 10
    breaker.record_failure()
    assert breaker.state is OPEN
    assert breaker.retry_in_seconds() == 60.0
    clock.time += 60
    assert breaker.can_execute()


def test_an_outcome_nobody_asked_for_counts_in_the_half_open_state(clock: Hands) -> None:
    breaker = half_open(clock)
    breaker.record_success()
    assert breaker.state is CLOSED
    breaker = half_open(clock)
    breaker.record_failure()
    assert breaker.state is OPEN


def test_reset_closes_it(clock: Hands) -> None:
    breaker = opened(clock)
    breaker.reset()
    assert breaker.state is CLOSED
    assert breaker.can_execute()


def test_reset_forgets_failures_and_calls_that_are_under_way(clock: Hands) -> None:
    breaker = breaker_with(clock, threshold=2)
    ticket = breaker.admit()
    breaker.record_failure()
    breaker.reset()
    breaker.record_failure()
    breaker.record_failure(ticket)
    assert breaker.state is CLOSED
    breaker.record_failure()
    assert breaker.state is OPEN


def test_time_moves_on_without_a_clock_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    hands = Hands()
    monkeypatch.setattr("apflow.clock.SystemClock.monotonic", lambda _: hands.time)
    breaker = CircuitBreaker("work", CircuitBreakerConfig(failure_threshold=1))
    breaker.record_failure()
    assert breaker.state is OPEN
    hands.time += 60
    assert breaker.state is HALF_OPEN


# -- calls that overlap --------------------------------------------------------------------------------------


def test_a_late_success_does_not_close_an_open_breaker(clock: Hands) -> None:
    breaker = breaker_with(clock, threshold=1)
    slow = breaker.admit()
    breaker.record_failure()
    breaker.record_success()
    assert breaker.state is OPEN
    breaker.record_success(slow)
    assert breaker.state is OPEN
    clock.time += 60
    breaker.record_success(slow)
    assert breaker.state is HALF_OPEN


def test_late_failures_do_not_keep_it_open(clock: Hands) -> None:
    breaker = breaker_with(clock, threshold=1)
    slow = breaker.admit()
    breaker.record_failure()
    clock.time += 59
    breaker.record_failure()
    breaker.record_failure(slow)
    clock.time += 1
    assert breaker.state is HALF_OPEN
    breaker.record_failure(slow)
    assert breaker.state is HALF_OPEN


def test_a_late_failure_of_an_earlier_test_call_does_not_open_it_again(clock: Hands) -> None:
    breaker = half_open(clock, tests=2)
    first, second = breaker.admit(), breaker.admit()
    breaker.record_failure(first)
    clock.time += 60
    third = breaker.admit()
    breaker.record_failure(second)
    assert breaker.state is HALF_OPEN
    breaker.record_success(second)
    assert breaker.state is HALF_OPEN
    breaker.record_success(third)
    assert breaker.state is CLOSED


def test_the_first_test_call_decides_and_the_next_is_an_ordinary_one(clock: Hands) -> None:
    breaker = half_open(clock, threshold=2, tests=2)
    first, second = breaker.admit(), breaker.admit()
    breaker.record_success(first)
    assert breaker.state is CLOSED
    breaker.record_failure(second)
    assert breaker.state is CLOSED
    breaker.record_failure()
    assert breaker.state is OPEN


def test_a_test_call_that_was_given_up_gives_its_place_back(clock: Hands) -> None:
    breaker = half_open(clock)
    for _ in range(3):
        ticket = breaker.admit()
        assert ticket is not None
        assert not breaker.can_execute()
        breaker.release(ticket)
        assert breaker.state is HALF_OPEN
    assert breaker.can_execute()
    breaker.release()
    assert breaker.can_execute()


def test_a_place_is_given_back_once(clock: Hands) -> None:
    breaker = half_open(clock)
    breaker.release()
    breaker.release()
    assert [breaker.can_execute(), breaker.can_execute()] == [True, False]


def test_an_earlier_call_gives_no_place_back(clock: Hands) -> None:
    breaker = breaker_with(clock, threshold=1)
    slow = breaker.admit()
    breaker.record_failure()
    clock.time += 60
    assert breaker.can_execute()
    breaker.release(slow)
    assert not breaker.can_execute()


def test_giving_up_changes_nothing_else(clock: Hands) -> None:
    breaker = breaker_with(clock, threshold=2)
    breaker.record_failure()
    breaker.release(breaker.admit())
    breaker.record_failure()
    assert breaker.state is OPEN
    breaker.release()
    assert breaker.state is OPEN


class Overlapping(RuleBasedStateMachine):
    """Calls begin, end, fail and are given up in any order, each with its ticket, while time passes.

    The model keeps no counters: it looks back at what has happened since the breaker opened or closed last.
    """

    threshold, timeout, places = 3, 60.0, 2

    def __init__(self) -> None:
        super().__init__()
        self.clock = Hands()
        self.breaker = breaker_with(self.clock, self.threshold, self.timeout, self.places)
        self.history: list[str] = []
        self.open_since: float | None = None
        self.round: object = object()
        self.under_way: list[tuple[int, object]] = []

    def expected(self) -> CircuitState:
        if self.open_since is None:
            return CLOSED
        return HALF_OPEN if self.clock.time - self.open_since >= self.timeout else OPEN

    @rule(seconds=st.sampled_from([1.0, 29.5, 60.0]))
    def wait(self, seconds: float) -> None:
        self.clock.time += seconds

    @rule()
    def begin(self) -> None:
        busy = sum(1 for _, of in self.under_way if of is self.round)
        allowed = {CLOSED: True, OPEN: False, HALF_OPEN: busy < self.places}[self.expected()]
        ticket = self.breaker.admit()
        assert (ticket is not None) is allowed
        if ticket is not None:
            self.under_way.append((ticket, self.round))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), outcome=st.sampled_from(["success", "failure", "release"]))
    def end(self, data: st.DataObject, outcome: str) -> None:
        ticket, of = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        expected = self.expected()
        {
            "success": self.breaker.record_success,
            "failure": self.breaker.record_failure,
            "release": self.breaker.release,
        }[outcome](ticket)
        if of is not self.round or outcome == "release":
            return
        self.history.append(outcome)
        if outcome == "success":
            self.open_since = None
        elif expected is HALF_OPEN or self.history[-self.threshold :] == ["failure"] * self.threshold:
            self.open_since, self.round, self.history = self.clock.time, object(), []

    @rule()
    def reset(self) -> None:
        self.breaker.reset()
        self.open_since, self.round, self.history = None, object(), []

    @invariant()
    def agrees(self) -> None:
        assert self.breaker.state is self.expected()
        left = 0.0 if self.open_since is None else self.open_since + self.timeout - self.clock.time
        assert self.breaker.retry_in_seconds() == max(0.0, left)


TestOverlapping = Overlapping.TestCase


# -- threads -------------------------------------------------------------------------------------------------

THREADS = 8


class Wavering(CircuitBreakerConfig):
    """Lets another thread go first whenever it is asked: what is not under a lock goes wrong."""

    @override
    def __getattribute__(self, name: str) -> Any:
        time.sleep(0.0005)
        return super().__getattribute__(name)


class WaveringName(str):
    """The same for an executor's id."""

    __slots__ = ()

    @override
    def strip(self, chars: str | None = None, /) -> str:
        time.sleep(0.0005)
        return super().strip(chars)


def together(work: Callable[[], Any]) -> list[Any]:
    """Run `work` in several threads that begin at the same time, and return what each returned."""
    barrier = threading.Barrier(THREADS)

    def start() -> Any:
        barrier.wait()
        return work()

    with ThreadPoolExecutor(THREADS) as pool:
        return [future.result() for future in [pool.submit(start) for _ in range(THREADS)]]


def test_threads_share_the_places_of_test_calls(clock: Hands) -> None:
    breaker = CircuitBreaker("work", Wavering(1, 60.0, 3), clock=clock)
    for _ in range(5):
        breaker.record_failure()
        clock.time += 60
        assert together(breaker.can_execute).count(True) == 3


def test_threads_open_a_breaker_once(clock: Hands, caplog: pytest.LogCaptureFixture) -> None:
    breaker = CircuitBreaker("work", Wavering(THREADS - 1, 60.0, 1), clock=clock)
    together(breaker.record_failure)
    assert breaker.state is OPEN
    assert caplog.text.count("open after repeated failures") == 1


def test_no_failure_is_lost_between_threads(clock: Hands) -> None:
    each = 20
    breaker = CircuitBreaker("work", Wavering(THREADS * each, 60.0, 1), clock=clock)

    def fail() -> None:
        for _ in range(each - 1):
            breaker.record_failure()

    together(fail)
    for _ in range(THREADS - 1):
        breaker.record_failure()
    assert breaker.state is CLOSED
    breaker.record_failure()
    assert breaker.state is OPEN


def test_threads_get_the_same_breaker() -> None:
    registry = CircuitBreakerRegistry()
    name = WaveringName("work")
    assert len({id(breaker) for breaker in together(lambda: registry.get(name))}) == 1


# -- the registry --------------------------------------------------------------------------------------------


def test_the_registry_makes_one_breaker_per_executor(clock: Hands) -> None:
    registry = CircuitBreakerRegistry(CircuitBreakerConfig(failure_threshold=1), clock=clock)
    breaker = registry.get("a")
    breaker.record_failure()
    assert registry.get("a") is breaker
    assert registry.get("a").state is OPEN
    assert registry.get("b").state is CLOSED
    clock.time += 60
    assert breaker.state is HALF_OPEN


def test_an_executor_may_have_its_own_configuration() -> None:
    registry = CircuitBreakerRegistry()
    own = CircuitBreakerConfig(failure_threshold=1)
    assert registry.get("a", own).config == own
    assert registry.get("a").config == own
    assert registry.get("b").config == CircuitBreakerConfig()


def test_a_changed_configuration_is_followed_from_now_on() -> None:
    registry = CircuitBreakerRegistry()
    breaker = registry.get("a", CircuitBreakerConfig(failure_threshold=5))
    for _ in range(3):
        breaker.record_failure()
    assert registry.get("a", CircuitBreakerConfig(failure_threshold=4)) is breaker
    assert breaker.state is CLOSED
    breaker.record_failure()
    assert breaker.state is OPEN


def test_reset_all_closes_every_breaker() -> None:
    registry = CircuitBreakerRegistry(CircuitBreakerConfig(failure_threshold=1))
    breakers = [registry.get(name) for name in "abc"]
    for breaker in breakers:
        breaker.record_failure()
    registry.reset_all()
    assert [breaker.state for breaker in breakers] == [CLOSED] * 3


# -- the layer -----------------------------------------------------------------------------------------------


def make_call(config: CircuitBreakerConfig | None) -> Call:
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
    return Call(task, {}, Options(breaker=config), "r1", 1, None, None, cast("RunState", None))


class Door:
    """The layer with something behind it that counts its calls."""

    def __init__(self, clock: Hands, config: CircuitBreakerConfig | None) -> None:
        self.registry = CircuitBreakerRegistry(clock=clock)
        self.layer = breaker_layer(self.registry)
        self.config = config
        self.calls = 0

    async def __call__(self, error: BaseException | None = None) -> str:
        async def call_next(_: Call) -> str:
            self.calls += 1
            if error is not None:
                raise error
            return "done"

        result: str = await self.layer(make_call(self.config), call_next)
        return result

    async def fail(self, times: int = 1) -> None:
        for _ in range(times):
            with pytest.raises(OSError, match="down"):
                await self(OSError("down"))

    @property
    def state(self) -> CircuitState:
        return self.registry.get("work").state


TWO = CircuitBreakerConfig(failure_threshold=2)


@pytest.mark.anyio
async def test_the_layer_refuses_calls_while_the_breaker_is_open(clock: Hands) -> None:
    door = Door(clock, TWO)
    await door.fail(2)
    clock.time += 15
    with pytest.raises(CircuitOpenError, match="work") as caught:
        await door()
    assert (caught.value.task, caught.value.retry_in_seconds) == ("work", 45.0)
    assert door.calls == 2
    clock.time += 45
    assert await door() == "done"
    assert door.state is CLOSED


@pytest.mark.anyio
async def test_a_task_without_a_breaker_is_never_refused(clock: Hands) -> None:
    door = Door(clock, None)
    await door.fail(20)
    assert await door() == "done"


@pytest.mark.anyio
async def test_the_layer_counts_failures_in_a_row(clock: Hands) -> None:
    door = Door(clock, TWO)
    for _ in range(3):
        await door.fail()
        assert await door() == "done"
    timed_out = RunTimeoutError("r1", "work", 1.0, still_running=False)
    for _ in range(2):
        with pytest.raises(RunTimeoutError):
            await door(timed_out)
    assert door.state is OPEN


@pytest.mark.anyio
@pytest.mark.parametrize(
    "error",
    [
        RunCancelledError("r1"),
        FencedError("r1"),
        RunInterruptedError("r1"),
        asyncio.CancelledError(),
        KeyboardInterrupt(),
    ],
)
async def test_what_says_nothing_about_the_task_is_not_counted(clock: Hands, error: BaseException) -> None:
    door = Door(clock, TWO)
    await door.fail()
    with pytest.raises(type(error)):
        await door(error)
    assert door.state is CLOSED
    await door.fail()
    assert door.state is OPEN
    clock.time += 60
    for _ in range(2):
        with pytest.raises(type(error)):
            await door(error)
        assert door.state is HALF_OPEN
    assert await door() == "done"
    assert door.state is CLOSED


@pytest.mark.anyio
@pytest.mark.parametrize("fails", [False, True])
async def test_a_slow_call_decides_nothing_about_a_breaker_that_opened_meanwhile(clock: Hands, fails: bool) -> None:
    door = Door(clock, TWO)
    go_on = asyncio.Event()

    async def slow(_: Call) -> None:
        await go_on.wait()
        if fails:
            raise OSError

    running = asyncio.ensure_future(door.layer(make_call(TWO), slow))
    await asyncio.sleep(0)
    await door.fail(2)
    clock.time += 60
    go_on.set()
    await asyncio.wait([running])
    assert (running.exception() is not None) is fails
    assert door.state is HALF_OPEN
