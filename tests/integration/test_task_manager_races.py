"""What happens to an execution while it is storing something else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import apflow
from apflow.durability import nodes as rows
from apflow.engine import execution
from apflow.errors import StorageError, StorageUnavailableError
from tests.integration.tree_helpers import Gate, bench, ended, task, until

pytestmark = pytest.mark.anyio

gates: list[Gate] = []


@apflow.task(name="tx_at_once")
async def at_once() -> None:
    return None


@apflow.task(name="tx_waits")
async def waits() -> None:
    await gates[0].wait(apflow.current().task_id)


async def test_the_last_node_cannot_be_stored_while_progress_is(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates[:] = [Gate()]
    save, away, back = rows.save_progress, asyncio.Event(), asyncio.Event()

    async def save_slowly(*given: Any) -> None:
        await save(*given)
        away.set()
        gates[0].open()
        await back.wait()

    monkeypatch.setattr(execution, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(rows, "save_progress", save_slowly)
    async with bench(sqlite_url) as made:
        write = made.store.write

        async def fail(*given: Any, **options: Any) -> Any:
            if not away.is_set() or back.is_set():
                return await write(*given, **options)
            asyncio.get_running_loop().call_later(0.05, back.set)
            raise StorageUnavailableError("the test says so")

        await made.create(task("r", "tx_at_once"), task("w", "tx_waits"))
        made.store.write = fail  # type: ignore[method-assign]  # a seam that only this needs
        work = asyncio.create_task(made.manager.execute_task("r"))
        await until(lambda: "w" in gates[0].arrived)
        with pytest.raises(StorageError):
            await ended(work)
