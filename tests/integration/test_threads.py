"""Plain tasks, threads and event loops: what works from where, and what is refused instead of hanging."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import pytest

import apflow
from apflow import DeadlockError, RetryPolicy, Run, Runtime, RuntimeClosedError
from apflow.call import Call, CallNext

FAST = RetryPolicy(max_attempts=3, backoff_base_seconds=0.1, jitter=False)

color: ContextVar[str] = ContextVar("color", default="none")


@apflow.task
def where() -> int:
    return threading.get_ident()


@apflow.task
def add(first: int, second: int = 1) -> int:
    return first + second


@apflow.task
async def add_later(first: int, second: int = 1) -> int:
    await asyncio.sleep(0)
    return first + second


@apflow.task
def see_color() -> str:
    return color.get()


@apflow.task
def by_waiting(n: int) -> int:
    return apflow.runtime().wait(back_and_forth(n - 1)) + 1


@apflow.task
async def back_and_forth(n: int) -> int:
    """Go down `n` levels, plain and async in turn, each blocking the loop of the one above."""
    await asyncio.sleep(0)
    return by_waiting(n) if n > 0 else 0


@pytest.fixture
def runtime(sqlite_url: str) -> Iterator[Runtime]:
    with Runtime(sqlite_url, shutdown_seconds=1) as made:
        yield made


# -- plain code ----------------------------------------------------------------------------------------------


def test_the_body_runs_on_the_thread_that_called(runtime: Runtime) -> None:
    assert where() == threading.get_ident()
    assert where.submit().result(timeout=30) != threading.get_ident()


def test_the_first_calls_come_from_many_threads_at_once(sqlite_url: str) -> None:
    runtime = Runtime(sqlite_url)
    start = threading.Barrier(8)

    def call(n: int) -> int:
        start.wait()
        return add.with_options(runtime=runtime)(n)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(call, range(8))) == list(range(1, 9))
    assert runtime.wait(runtime.runs.count(status="completed")) == 8
    runtime.close()


def test_threads_that_know_no_context_use_the_runtime_that_was_entered(runtime: Runtime) -> None:
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(add(1)))
    thread.start()
    thread.join()
    assert results == [2]
    assert runtime.wait(runtime.runs.count(name="add")) == 1


def test_plain_code_waits_for_coroutines(runtime: Runtime) -> None:
    assert runtime.wait(add_later(1)) == 2
    run = runtime.wait(add_later.submit(2))
    assert run.result(timeout=30) == 3
    assert runtime.wait(run_of(run)) == 3


async def run_of(run: Run[int]) -> int:
    return await run


def test_two_runtimes_do_not_disturb_each_other(tmp_path: object) -> None:
    with Runtime(f"sqlite:///{tmp_path}/a.db") as first, Runtime(f"sqlite:///{tmp_path}/b.db") as second:
        assert add.with_options(runtime=first)(1) == add(1) == 2
        assert add.with_options(runtime=first)(2) == 3
        assert first.wait(first.runs.count()) == 2
        assert second.wait(second.runs.count()) == 1


def test_a_runtime_that_was_left_says_so(runtime: Runtime) -> None:
    add(1)
    runtime.close()
    with pytest.raises(RuntimeClosedError):
        add.with_options(runtime=runtime)(1)
    with pytest.raises(RuntimeClosedError):
        add.with_options(runtime=runtime).submit(1)
    with pytest.raises(RuntimeClosedError):
        asyncio.run(add_later.with_options(runtime=runtime)(1))


# -- inside a running event loop -------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_plain_call_works_inside_a_running_loop(runtime: Runtime) -> None:
    """As in a notebook, whose cells are run by a loop."""
    assert add(1) == 2
    assert add.map([1, 2]) == [2, 3]
    assert add.submit(1).result(timeout=30) == 2
    assert await add.submit(3) == 4
    assert where() == threading.get_ident()


@pytest.mark.anyio
async def test_async_calls_plain_calls_async_calls_plain(runtime: Runtime) -> None:
    assert await back_and_forth(4) == 4
    assert await runtime.runs.count(status="completed") == 9


def test_the_same_from_plain_code(runtime: Runtime) -> None:
    """Here the outermost async task runs on apflow's own worker loop, which the next level blocks."""
    assert runtime.wait(back_and_forth(4)) == 4
    assert by_waiting(3) == 3


def test_what_is_submitted_from_below_a_blocked_loop_keeps_running(runtime: Runtime) -> None:
    go = threading.Event()

    @apflow.task
    async def patient() -> int:
        await asyncio.to_thread(go.wait)
        return 5

    handles: list[Run[int]] = []

    @apflow.task
    def starts() -> str:
        handles.append(apflow.runtime().wait(patient.submit()))
        return handles[0].id

    @apflow.task
    async def outer() -> str:
        return starts()

    runtime.wait(outer())
    go.set()
    assert handles[0].result(timeout=30) == 5


@pytest.mark.anyio
async def test_waiting_in_a_coroutine_names_the_line_to_write(runtime: Runtime) -> None:
    with pytest.raises(DeadlockError, match="write `await"):
        runtime.wait(add_later(1))


@pytest.mark.anyio
async def test_result_on_the_loop_that_runs_the_run_is_refused(runtime: Runtime) -> None:
    run = await add_later.submit(1)
    with pytest.raises(DeadlockError, match="write `await run`"):
        run.result()
    assert await run == 2
    assert run.result() == 2


@pytest.mark.anyio
async def test_result_is_refused_when_a_plain_task_blocks_the_loop_further_up(runtime: Runtime) -> None:
    run = await add_later.submit(1)

    async def ask() -> int:
        return await run

    @apflow.task
    def blocks(how: str) -> int:
        if how == "result":
            return run.result()
        return apflow.runtime().wait(ask())

    for how in ("result", "wait"):
        with pytest.raises(DeadlockError, match="write `await run`"):
            blocks(how)
    assert await run == 2


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["call", "submit", "wait"])
async def test_middleware_on_the_loop_of_plain_tasks_cannot_block_it(sqlite_url: str, how: str) -> None:
    async def blocking(call: Call, call_next: CallNext) -> object:
        if how == "call":
            add(1)
        elif how == "submit":
            add.submit(1)
        else:
            made.wait(add_later(1))
        return await call_next(call)

    async with Runtime(sqlite_url) as made:
        with pytest.raises(DeadlockError, match=r"write `await|use `await"):
            add.with_options(middleware=[blocking])(1)


@pytest.mark.anyio
async def test_a_run_that_waits_for_itself_is_refused(runtime: Runtime) -> None:
    @apflow.task
    async def itself(depth: int) -> int:
        return await itself.with_options(key="k")(depth)

    with pytest.raises(DeadlockError, match="its own key"):
        await itself.with_options(key="k")(1)

    @apflow.task
    async def awaits_itself() -> None:
        await handle

    handle = await awaits_itself.submit()
    with pytest.raises(DeadlockError, match="wait for itself"):
        await handle


# -- contextvars -----------------------------------------------------------------------------------------------


def test_context_variables_follow_into_bodies_and_their_threads(runtime: Runtime) -> None:
    color.set("blue")
    assert see_color() == "blue"
    assert see_color.submit().result(timeout=30) == "blue"

    @apflow.task
    def see_twice(n: int) -> str:
        return f"{color.get()} {see_color()}"

    assert see_twice.map([1, 2, 3]) == ["blue blue"] * 3

    @apflow.task
    async def see_later() -> str:
        return color.get()

    assert runtime.wait(see_later()) == "blue"


def test_middleware_hands_context_variables_to_the_body(runtime: Runtime) -> None:
    async def paints(call: Call, call_next: CallNext) -> object:
        color.set("red")
        return await call_next(call)

    assert see_color.with_options(middleware=[paints])() == "red"
    assert color.get() != "red"


# -- map and generators ------------------------------------------------------------------------------------------


def test_map_of_a_plain_task_is_bounded_and_keeps_order(runtime: Runtime) -> None:
    running, most = 0, 0
    lock, both = threading.Lock(), threading.Barrier(2)

    @apflow.task
    def slow(n: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        both.wait(30)
        with lock:
            running -= 1
        return n * 10

    assert slow.with_options(map_limit=2).map(range(6)) == [0, 10, 20, 30, 40, 50]
    assert most == 2
    assert slow.map([]) == []


def test_first_error_of_a_plain_map_starts_nothing_more(runtime: Runtime) -> None:
    begun: list[int] = []

    @apflow.task
    def fails_at_two(n: int) -> int:
        begun.append(n)
        if n == 2:
            raise ValueError("two")
        return n

    with pytest.raises(ValueError, match="two"):
        fails_at_two.with_options(map_limit=1).map(range(50))
    assert begun == [0, 1, 2]


def test_plain_generator_is_retried_before_its_first_item_only(runtime: Runtime) -> None:
    tries = 0

    @apflow.task(retry=FAST)
    def stream(fail_after: int) -> Iterator[int]:
        nonlocal tries
        tries += 1
        for number in range(3):
            if number == fail_after and tries < 3:
                raise ConnectionError("away")
            yield number

    assert list(stream(0)) == [0, 1, 2]
    assert tries == 3
    tries = 0
    seen = []
    with pytest.raises(ConnectionError):  # noqa: PT012 - the items before the error matter
        for item in stream(1):
            seen.append(item)  # noqa: PERF402
    assert (seen, tries) == ([0], 1)


def test_body_of_a_plain_generator_sees_its_run_and_stays_on_the_consumers_thread(runtime: Runtime) -> None:
    @apflow.task
    def stream() -> Iterator[str]:
        yield apflow.current().name
        yield str(threading.get_ident())
        yield str(add(1))

    assert list(stream()) == ["stream", str(threading.get_ident()), "2"]
    with pytest.raises(apflow.OutsideRunError):
        apflow.current()


# -- what is no ordinary error -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_in_a_body_interrupts_the_run_and_goes_on(runtime: Runtime, stop: type[BaseException]) -> None:
    lives = 0

    @apflow.task
    def inner() -> int:
        nonlocal lives
        lives += 1
        if lives == 1:
            raise stop
        return 7

    @apflow.task(checkpoint=True)
    def flow() -> int:
        return add(1) + inner()

    with pytest.raises(stop):
        flow()
    [row] = runtime.wait(runtime.runs.list(name="flow"))
    assert row.interrupted
    assert runtime.wait(runtime.runs.resume(row.id)).result(timeout=30) == 9
    assert runtime.wait(runtime.runs.count(name="add")) == 1


def test_stop_iteration_from_a_body_is_an_error_with_a_cause(runtime: Runtime) -> None:
    @apflow.task
    def exhausted() -> int:
        empty: Iterator[int] = iter(())
        return next(empty)

    with pytest.raises(RuntimeError, match="StopIteration") as caught:
        exhausted()
    assert isinstance(caught.value.__cause__, StopIteration)
    [row] = runtime.wait(runtime.runs.list())
    assert row.status == "failed"
