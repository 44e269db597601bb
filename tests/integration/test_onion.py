"""The layers around a call: their order, what middleware may do, and what survives a takeover."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

import apflow
from apflow import CircuitBreakerConfig, CircuitOpenError, RetryPolicy, Runtime, RunTimeoutError
from apflow.call import Call, CallNext, Middleware
from apflow.clock import SystemClock
from apflow.durability.retry import BackoffStrategy

pytestmark = pytest.mark.anyio

FAST = RetryPolicy(max_attempts=3, backoff_base_seconds=0.1, jitter=False)


class FakeClock(SystemClock):
    """Time that passes when somebody waits, and no sooner."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.passed

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.passed += seconds
        await asyncio.sleep(0)


@pytest.fixture
async def runtime(sqlite_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(sqlite_url, shutdown_seconds=0.5) as made:
        yield made


log: list[str] = []


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    log.clear()


def logs(name: str) -> Middleware:
    async def layer(call: Call, call_next: CallNext) -> Any:
        log.append(f"{name} in {call.attempt}")
        try:
            return await call_next(call)
        except BaseException as error:
            log.append(f"{name} sees {type(error).__name__}")
            raise
        finally:
            log.append(f"{name} out")

    return layer


@apflow.task
async def double(n: int) -> int:
    log.append(f"double {n}")
    return n * 2


# -- order -------------------------------------------------------------------------------------------------------


async def test_user_layers_are_outside_retry_and_the_runtimes_come_first(sqlite_url: str) -> None:
    @apflow.task(middleware=[logs("task a"), logs("task b")], retry=FAST, timeout=0.05)
    async def slow() -> int:
        attempt = apflow.current().attempt
        log.append(f"attempt {attempt}")
        if attempt == 1:
            await asyncio.sleep(60)
        return attempt

    async with Runtime(sqlite_url, middleware=[logs("runtime")], clock=FakeClock()):
        assert await slow() == 2
    assert log == [
        *("runtime in 1", "task a in 1", "task b in 1"),
        *("attempt 1", "attempt 2"),
        *("task b out", "task a out", "runtime out"),
    ]


async def test_record_is_outside_all_and_the_breaker_outside_middleware(runtime: Runtime) -> None:
    @apflow.task(breaker=CircuitBreakerConfig(failure_threshold=1), middleware=[logs("middleware")])
    async def fails() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await fails()
    assert log == ["middleware in 1", "middleware sees ValueError", "middleware out"]
    with pytest.raises(CircuitOpenError):
        await fails()
    assert len(log) == 3
    rows = await runtime.runs.list(name="fails")
    assert [row.error_info["type"] for row in rows] == ["apflow.CircuitOpenError", "ValueError"]


async def test_middleware_sees_the_last_timeout_and_runs_within_its_run(runtime: Runtime) -> None:
    seen: list[tuple[str, str, str | None]] = []

    async def looks(call: Call, call_next: CallNext) -> Any:
        seen.append((call.run_id, call.task.name, call.user))
        assert apflow.current().task_id == call.run_id
        return await call_next(call)

    @apflow.task(timeout=0.05, middleware=[logs("middleware"), looks])
    async def slow() -> None:
        await asyncio.sleep(60)

    with pytest.raises(RunTimeoutError):
        await slow.with_options(user="ada")()
    assert log[1] == "middleware sees RunTimeoutError"
    [row] = await runtime.runs.list()
    assert seen == [(row.id, "slow", "ada")]


# -- what middleware may do ----------------------------------------------------------------------------------------


async def changes(call: Call, call_next: CallNext) -> Any:
    return await call_next(replace(call, arguments={**call.arguments, "n": 21}))


async def answers(call: Call, call_next: CallNext) -> Any:
    return 99


async def refuses(call: Call, call_next: CallNext) -> Any:
    raise PermissionError("not you")


async def wraps(call: Call, call_next: CallNext) -> Any:
    return await call_next(call) + 1


async def test_middleware_changes_arguments_and_the_row_keeps_those_of_the_caller(runtime: Runtime) -> None:
    assert await double.with_options(middleware=[changes])(1) == 42
    [row] = await runtime.runs.list()
    assert (row.inputs, row.result) == ({"n": 1}, 42)


async def test_middleware_answers_in_place_of_the_function(runtime: Runtime) -> None:
    assert await double.with_options(middleware=[answers])(1) == 99
    [row] = await runtime.runs.list()
    assert (row.status, row.result, log) == ("completed", 99, [])


async def test_middleware_that_raises_fails_the_run(runtime: Runtime) -> None:
    with pytest.raises(PermissionError):
        await double.with_options(middleware=[refuses])(1)
    [row] = await runtime.runs.list()
    assert (row.status, row.error, log) == ("failed", "PermissionError: not you", [])


async def test_every_way_to_call_goes_through_middleware(sqlite_url: str) -> None:
    @apflow.task
    def plain(n: int) -> int:
        return n

    @apflow.task
    async def stream(n: int) -> AsyncIterator[int]:
        yield n

    async with Runtime(sqlite_url, middleware=[logs("seen")]):
        await double(1)
        await (await double.submit(1))
        await double.map([1])
        plain(1)
        await plain.submit(1)
        plain.map([1])
        assert [item async for item in stream(1)] == [1]
        await (await stream.submit(1))
    assert log.count("seen in 1") == 8


async def test_the_stored_result_is_the_one_that_left_the_middleware_and_replay_skips_it(runtime: Runtime) -> None:
    @apflow.task(checkpoint=True, retry=FAST)
    async def flow() -> int:
        result = await double.with_options(middleware=[logs("child"), wraps])(1)
        if apflow.current().attempt == 1:
            raise ConnectionError("away")
        return result

    assert await flow() == 3
    assert log == ["child in 1", "double 1", "child out"]


# -- breaker and retry with a clock of one's own ---------------------------------------------------------------------


async def test_breaker_opens_tests_and_closes_by_the_runtimes_clock(sqlite_url: str) -> None:
    healthy = False

    @apflow.task(breaker=CircuitBreakerConfig(failure_threshold=2, reset_timeout_seconds=60))
    async def remote() -> str:
        log.append("asked")
        if not healthy:
            raise ConnectionError("away")
        return "here"

    clock = FakeClock()
    async with Runtime(sqlite_url, clock=clock):
        for _ in range(2):
            with pytest.raises(ConnectionError):
                await remote()
        clock.passed += 59
        with pytest.raises(CircuitOpenError, match=r"1\.0 s"):
            await remote()
        clock.passed += 1
        with pytest.raises(ConnectionError):
            await remote()
        with pytest.raises(CircuitOpenError):
            await remote()
        clock.passed += 60
        healthy = True
        assert await remote() == await remote() == "here"
    assert len(log) == 5


async def test_a_test_call_that_was_cancelled_gives_its_place_back(sqlite_url: str) -> None:
    mode = "fail"

    @apflow.task(breaker=CircuitBreakerConfig(failure_threshold=1, reset_timeout_seconds=60))
    async def remote() -> str:
        if mode == "fail":
            raise ConnectionError("away")
        if mode == "hang":
            await asyncio.sleep(60)
        return "here"

    clock = FakeClock()
    async with Runtime(sqlite_url, clock=clock):
        with pytest.raises(ConnectionError):
            await remote()
        clock.passed += 60
        mode = "hang"
        probe = await remote.submit()
        await asyncio.sleep(0.05)
        with pytest.raises(CircuitOpenError):
            await remote()
        await probe.cancel()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(remote(), 0.05)
        mode = "work"
        assert await remote() == "here"


async def test_retry_waits_as_its_policy_says_on_the_runtimes_clock(sqlite_url: str) -> None:
    tries = 0

    @apflow.task
    async def flaky() -> int:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise ConnectionError("away")
        return tries

    policy = RetryPolicy(
        max_attempts=4, backoff_base_seconds=100, backoff_strategy=BackoffStrategy.EXPONENTIAL, jitter=False
    )
    clock = FakeClock()
    async with Runtime(sqlite_url, clock=clock) as runtime:
        assert await flaky.with_options(retry=policy)() == 4
        [row] = await runtime.runs.list()
        assert (row.attempt_count, row.max_attempts) == (4, 4)
    assert clock.slept == [100, 200, 300]


@pytest.mark.parametrize(
    ("retry_on", "expected"),
    [
        (None, 3),
        (ConnectionError, 3),
        ((OSError, ValueError), 3),
        (ValueError, 1),
        (lambda error: "aw" in str(error), 3),
    ],
    ids=["default", "type", "parent type", "other type", "predicate"],
)
async def test_retry_on_decides(sqlite_url: str, retry_on: Any, expected: int) -> None:
    tries = 0

    @apflow.task
    async def flaky() -> None:
        nonlocal tries
        tries += 1
        raise ConnectionError("away")

    async with Runtime(sqlite_url, clock=FakeClock()):
        with pytest.raises(ConnectionError):
            await flaky.with_options(retry=RetryPolicy(max_attempts=3, retry_on=retry_on))()
    assert tries == expected
