"""Looking at runs, pruning them, and handles of runs that are not of this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import apflow
from apflow import Run, RunActiveError, RunFailedError, RunNotFoundError, Runtime

pytestmark = pytest.mark.anyio


@pytest.fixture
async def runtime(database_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(database_url, user="ada", shutdown_seconds=1) as made:
        yield made


@apflow.task
async def half(n: int) -> int:
    if n % 2:
        raise ValueError("odd")
    return n // 2


@apflow.task(checkpoint=True)
async def halves(n: int) -> list[int]:
    return await half.map([n, n * 2])


@apflow.task
async def letters(word: str) -> AsyncIterator[str]:
    for letter in word:
        yield letter


async def test_list_and_count_choose_and_page(runtime: Runtime) -> None:
    for n in (2, 4, 6):
        await half.with_options(user="bob" if n == 4 else None)(n)
    with pytest.raises(ValueError, match="odd"):
        await half(1)
    assert await runtime.runs.count() == 4
    assert await runtime.runs.count(status="failed") == 1
    assert await runtime.runs.count(user="bob", name="half") == 1
    assert [row.inputs["n"] for row in await runtime.runs.list(status="completed", user="ada")] == [6, 2]
    assert [row.inputs["n"] for row in await runtime.runs.list(limit=2, offset=1)] == [6, 4]
    assert repr((await runtime.runs.list(limit=1))[0]).startswith("<apflow.RunRecord half ")


@pytest.mark.parametrize("bad", [{"limit": 0}, {"offset": -1}, {"status": "done"}])
async def test_list_refuses_what_it_does_not_know(runtime: Runtime, bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"status|limit"):
        await runtime.runs.list(**bad)


async def test_a_run_that_is_not_there(runtime: Runtime) -> None:
    assert await runtime.runs.get("nobody") is None
    for action in (runtime.runs.tree, runtime.runs.cancel, runtime.runs.resume, runtime.runs.delete):
        with pytest.raises(RunNotFoundError, match="nobody"):
            await action("nobody")
    with pytest.raises(RunNotFoundError):
        await Run[int](runtime, "nobody", None)
    with pytest.raises(RunNotFoundError):
        _ = Run[int](runtime, "nobody", None).status


async def test_a_part_of_a_run_is_not_resumed_or_cancelled_by_itself(runtime: Runtime) -> None:
    await halves(4)
    [child, _] = await runtime.runs.list(name="half")
    with pytest.raises(RunActiveError, match="part of run"):
        await runtime.runs.resume(child.id)
    await runtime.runs.cancel(child.id)
    assert (await runtime.runs.tree(child.id)).run.status == "completed"


async def test_prune_deletes_old_trees_with_all_that_is_in_them(runtime: Runtime) -> None:
    await halves(4)
    assert await runtime.prune(older_than=timedelta(hours=1)) == 0
    assert await runtime.prune(older_than=datetime.now(UTC) + timedelta(seconds=5)) == 3
    assert await runtime.runs.count() == 0
    with pytest.raises(ValueError, match="time zone"):
        await runtime.prune(older_than=datetime(2026, 1, 1))  # noqa: DTZ001 - that is the point
    with pytest.raises(ValueError, match="negative"):
        await runtime.prune(older_than=timedelta(seconds=-1))


async def test_prune_keeps_trees_in_which_something_is_left_to_end(runtime: Runtime) -> None:
    await halves(4)
    await runtime.store.write(
        lambda tx: tx.execute("UPDATE apflow_tasks SET status = 'in_progress' WHERE name = 'half'")
    )
    assert await runtime.prune(older_than=timedelta(0)) == 0


async def test_handles_read_the_database_for_runs_of_others(runtime: Runtime, database_url: str) -> None:
    done = await half.submit(4)
    failed = await half.submit(3)
    assert await done == 2
    with pytest.raises(ValueError, match="odd"):
        await failed
    async with Runtime(database_url) as other:
        again = await other.runs.resume(done.id)
        assert repr(again) == f"<apflow.Run half {done.id}>"
        assert (again.status, again.progress, await again) == ("completed", None, 2)
        assert await Run[int](other, done.id, None) == 2
        with pytest.raises(RunFailedError, match="ValueError: odd") as caught:
            await Run[int](other, failed.id, None)
        assert caught.value.error_type == "ValueError"


def test_handles_of_others_from_plain_code(sqlite_url: str) -> None:
    with Runtime(sqlite_url) as runtime:
        done = runtime.wait(half.submit(8))
        assert done.result(10) == 4
        assert Run[int](runtime, done.id, half.definition).result(10) == 4


async def test_progress_is_kept_on_the_row_and_by_the_handle(runtime: Runtime) -> None:
    @apflow.task
    async def reads() -> None:
        await apflow.progress(1, 4, "first page")

    run = await reads.submit()
    await run
    assert run.progress is not None
    assert (run.progress.done, run.progress.total, run.progress.message) == (1, 4, "first page")


@pytest.mark.parametrize(
    "bad",
    [
        {"concurrency": 0},
        {"lease_seconds": 0.5},
        {"lease_seconds": float("nan")},
        {"shutdown_seconds": -1},
        {"durability": "some"},
        {"recovery_limit": -1},
    ],
)
def test_a_runtime_refuses_values_out_of_range(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Runtime("sqlite:///:memory:", **bad)


@pytest.mark.parametrize("url", ["mysql://host/db", "sqlite:/one-slash"])
def test_a_runtime_refuses_urls_of_other_kinds(url: str) -> None:
    with pytest.raises(ValueError, match="sqlite:///"):
        Runtime(url)


# -- what is deep, and what was cancelled while nobody ran it --------------------------------------------------


async def test_a_tree_may_be_deeper_than_pythons_stack(runtime: Runtime) -> None:
    await runtime.ready()
    levels = 10_000
    chain = (
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :levels) INSERT INTO apflow_tasks "
        "(id, name, kind, parent_id) SELECT 'n' || i, 'deep', 'child', CASE WHEN i > 1 THEN 'n' || (i - 1) END FROM n"
    )
    await runtime.store.write(lambda tx: tx.execute(chain, {"levels": levels}))
    tree = await runtime.runs.tree("n1")
    assert [row.id for row in tree.walk()] == [f"n{number}" for number in range(1, levels + 1)]
    while tree.children:
        [tree] = tree.children
    assert tree.run.id == f"n{levels}"


async def test_runs_that_are_inside_each_other_make_a_tree_all_the_same(runtime: Runtime) -> None:
    await runtime.ready()
    await runtime.store.write(
        lambda tx: tx.execute("INSERT INTO apflow_tasks (id, name, parent_id) VALUES ('a', 'x', 'b'), ('b', 'x', 'a')")
    )
    assert [row.id for row in (await runtime.runs.tree("b")).walk()] == ["b", "a"]


async def test_what_is_cancelled_while_nobody_runs_it_says_so_like_any_other(runtime: Runtime) -> None:
    stream = letters("ab")
    assert await anext(stream) == "a"
    await stream.aclose()
    [row] = await runtime.runs.list()
    assert row.interrupted
    await runtime.runs.cancel(row.id)
    [row] = await runtime.runs.list(status="cancelled")
    assert row.error_info["type"] == "apflow.RunCancelledError"
    assert row.error == f"apflow.RunCancelledError: {row.error_info['message']}"
    assert row.id in row.error_info["message"]
