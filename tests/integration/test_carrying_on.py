"""What a second life of a run finds: joined children, objects, options, users; and who waits for a slot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

import apflow
from apflow import RetryPolicy, RunInterruptedError, Runtime, RunTimeoutError, SerializationError

pytestmark = pytest.mark.anyio

FAST = RetryPolicy(max_attempts=3, backoff_base_seconds=0.1, jitter=False)

log: list[str] = []


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    log.clear()


@pytest.fixture
async def runtime(sqlite_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(sqlite_url, shutdown_seconds=0.5) as made:
        yield made


@apflow.task
async def double(n: int) -> int:
    log.append(f"double {n}")
    return n * 2


@apflow.task
async def who() -> str | None:
    return apflow.current().user


# -- replaying parents -----------------------------------------------------------------------------------------


async def test_a_replaying_parent_joins_the_child_that_it_submitted(runtime: Runtime) -> None:
    go_on = asyncio.Event()

    @apflow.task
    async def child(n: int) -> int:
        log.append(f"child {n}")
        await go_on.wait()
        return n

    @apflow.task(checkpoint=True, retry=FAST)
    async def flow() -> list[int]:
        runs = [await child.submit(1), await child.submit(1), await child.submit(2)]
        assert len({run.id for run in runs}) == 3
        if apflow.current().attempt == 1:
            raise ConnectionError("away")
        go_on.set()
        return [await run for run in runs]

    assert await flow() == [1, 1, 2]
    assert sorted(log) == ["child 1", "child 1", "child 2"]


async def test_a_submitted_child_that_is_finished_is_not_run_again(runtime: Runtime) -> None:
    @apflow.task(checkpoint=True, retry=FAST)
    async def flow() -> int:
        result = await (await double.submit(4))
        if apflow.current().attempt == 1:
            raise ConnectionError("away")
        return result

    assert await flow() == 8
    assert log == ["double 4"]


@pytest.mark.parametrize("checkpoint", [True, False])
async def test_rows_of_an_earlier_life_do_not_stay_in_progress(runtime: Runtime, checkpoint: bool) -> None:
    lives = 0

    @apflow.task
    async def step(life: int) -> int:
        await apflow.checkpoint({"has": "a row"})
        if life == 1:
            await asyncio.sleep(60)
        return life

    @apflow.task
    async def flow() -> int:
        nonlocal lives
        lives += 1
        return await step(lives)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(flow.with_options(checkpoint=checkpoint)(), 0.1)
    [row] = await runtime.runs.list(name="flow")
    run = await runtime.runs.resume(row.id)
    assert await run == 2
    rows = await runtime.runs.list(name="step")
    assert [(row.result, row.status) for row in rows] == [(2, "completed"), (None, "failed")]


@dataclass
class Shop:
    city: str

    @apflow.task
    async def price(self, item: str) -> str:
        log.append(f"{item} in {self.city}")
        return f"{item}: 1"


class Opaque:
    @apflow.task(name="opaque_price")
    async def price(self, item: str) -> str:
        log.append(f"{item} from an opaque shop")
        return f"{item}: 2"


async def test_methods_are_reused_when_their_object_can_be_recognised(runtime: Runtime) -> None:
    @apflow.task(checkpoint=True, retry=FAST)
    async def flow() -> list[str]:
        # Other objects in each attempt, as after a restart.
        prices = [await Shop("Rome").price("tea"), await Shop("Oslo").price("tea"), await Opaque().price("tea")]
        if apflow.current().attempt == 1:
            raise ConnectionError("away")
        return prices

    assert await flow() == ["tea: 1", "tea: 1", "tea: 2"]
    assert sorted(log) == ["tea from an opaque shop"] * 2 + ["tea in Oslo", "tea in Rome"]


async def test_submit_refuses_a_method_of_an_object_that_cannot_be_stored(runtime: Runtime) -> None:
    with pytest.raises(SerializationError, match="__apflow_key__"):
        await Opaque().price.submit("tea")
    assert await runtime.runs.count() == 0
    assert await (await Shop("Rome").price.submit("tea")) == "tea: 1"


# -- options and users -----------------------------------------------------------------------------------------


async def test_options_of_the_call_survive_a_takeover(sqlite_url: str) -> None:
    @apflow.task
    async def flow() -> None:
        await double(1)
        log.append(f"attempt {apflow.current().attempt} for {apflow.current().user}")
        begun.set()
        await asyncio.sleep(60)

    begun = asyncio.Event()
    policy = RetryPolicy(max_attempts=2, backoff_base_seconds=0.1, jitter=False)
    async with Runtime(sqlite_url, shutdown_seconds=0):
        changed = flow.with_options(timeout=0.5, retry=policy, checkpoint=True, user="ada")
        run = await changed.submit()
        await begun.wait()
    with pytest.raises(RunInterruptedError):
        await run
    async with Runtime(sqlite_url) as second:
        await second.recover()
        with pytest.raises(RunTimeoutError, match=r"0\.5 s"):
            await (await second.runs.resume(run.id))
        row = await second.runs.get(run.id)
        assert row is not None
        assert (row.status, row.attempt_count, row.max_attempts, row.user_id) == ("failed", 2, 2, "ada")
    assert log == ["double 1", "attempt 1 for ada", "attempt 1 for ada", "attempt 2 for ada"]


async def test_children_have_the_user_of_their_parent(sqlite_url: str) -> None:
    @apflow.task
    async def flow() -> list[str | None]:
        return [await who(), await (await who.submit()), await who.with_options(user="cy")()]

    async with Runtime(sqlite_url, user="ada") as runtime:
        assert await flow() == ["ada", "ada", "cy"]
        assert await flow.with_options(user="bob")() == ["bob", "bob", "cy"]
        assert await runtime.runs.count(user="bob") == 3


async def test_children_inherit_checkpoint_unless_they_say_no(runtime: Runtime) -> None:
    @apflow.task
    async def middle(n: int) -> int:
        result = await double(n)
        if n + apflow.current().attempt == 2:
            log.append("middle fails")
            raise ConnectionError("away")
        return result

    @apflow.task(checkpoint=True)
    async def flow() -> int:
        first = await middle.with_options(retry=FAST)(1)
        return first + await middle.with_options(retry=FAST, checkpoint=False)(1)

    assert await flow() == 4
    assert log == ["double 1", "middle fails", "double 1", "middle fails", "double 1"]


# -- slots -----------------------------------------------------------------------------------------------------


async def test_concurrency_bounds_background_roots_and_nothing_else(sqlite_url: str) -> None:
    running, most = 0, 0

    @apflow.task
    async def root(n: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        below = await asyncio.gather(double(n), double(n), (await double.submit(n)))
        direct = await asyncio.gather(*(double(n) for _ in range(3)))
        running -= 1
        return sum(below) + sum(direct)

    @apflow.task
    def plain_root(n: int) -> int:
        return apflow.runtime().wait(double(n))

    async with Runtime(sqlite_url, concurrency=1) as runtime:
        runs = [await root.submit(n) for n in range(5)]
        assert [await run for run in runs] == [12 * n for n in range(5)]
        assert most == 1
        assert await asyncio.gather(*(root(n) for n in range(5))) == [12 * n for n in range(5)]
        assert most == 5
        others = [plain_root.submit(n) for n in range(5)]
        assert [await run for run in others] == [2 * n for n in range(5)]
        assert await runtime.runs.count(status="in_progress") == 0


async def test_many_who_resume_a_run_at_once_share_one_life(database_url: str) -> None:
    lives = 0

    @apflow.task
    async def flow() -> int:
        nonlocal lives
        lives += 1
        await asyncio.sleep(0.05 if lives > 1 else 60)
        return lives

    async with Runtime(database_url) as runtime:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(flow.with_options(key="k")(), 0.05)
        [row] = await runtime.runs.list()
        resumed = asyncio.gather(*(runtime.runs.resume(row.id) for _ in range(10)))
        called = asyncio.gather(*(flow.with_options(key="k")() for _ in range(10)))
        await runtime.recover(everything=True)
        assert [await run for run in await resumed] == await called == [2] * 10
    assert lives == 2
