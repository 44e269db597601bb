"""Commits of which nobody knows how they ended are done again, and nothing is doubled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

import apflow
from apflow import Runtime

if TYPE_CHECKING:
    from apflow.storage.store import Store, Tx

T = TypeVar("T")

pytestmark = pytest.mark.anyio


@apflow.task
async def double(n: int) -> int:
    return n * 2


@apflow.task(checkpoint=True)
async def quadruple(n: int) -> int:
    return await double(await double(n))


def doubled(store: Store, outcomes: list[Any]) -> None:
    """Run every write twice, as if the answer to its first commit had been lost."""
    write = store.write

    async def twice(fn: Callable[[Tx], T], *, single: bool = False) -> T:
        first = await write(fn, single=single)
        second = await write(fn, single=single)
        outcomes.append((first, second))
        return second

    store.write = twice  # type: ignore[method-assign]  # a seam that only this needs


async def test_writes_that_are_done_twice_change_nothing_twice(database_url: str) -> None:
    outcomes: list[Any] = []
    async with Runtime(database_url, shutdown_seconds=1) as runtime:
        await runtime.store.open()
        doubled(runtime.store, outcomes)
        assert await quadruple(3) == 12
        assert await double.with_options(key="k")(4) == 8
        with pytest.raises(ValueError, match="no"):
            await failing()
        records = await runtime.runs.list()
    assert all(bool(first) == bool(second) for first, second in outcomes)
    assert len(outcomes) >= 7
    assert sorted((record.name.rpartition(".")[2], record.status) for record in records) == [
        *[("double", "completed")] * 3,
        ("failing", "failed"),
        ("quadruple", "completed"),
    ]


@apflow.task
async def failing() -> None:
    raise ValueError("no")


async def test_a_claim_that_is_done_twice(database_url: str) -> None:
    outcomes: list[Any] = []
    async with Runtime(database_url, shutdown_seconds=1):
        with pytest.raises(ValueError, match="no"):
            await failing.with_options(key="again")()
    async with Runtime(database_url, shutdown_seconds=1) as runtime:
        await runtime.store.open()
        doubled(runtime.store, outcomes)
        with pytest.raises(ValueError, match="no"):
            await failing.with_options(key="again")()
        (record,) = await runtime.runs.list()
    assert record.status == "failed"
    assert all(bool(first) == bool(second) for first, second in outcomes)
