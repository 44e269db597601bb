"""Nodes of task trees, and runs below them, as tests need them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from apflow.storage.store import Store
from tests.contract.ledger_rows import add_task

#: An owner whose process nobody here can look for: its lease decides.
ELSEWHERE = "elsewhere:0:1:1:00"


async def add_node(store: Store, task_id: str, *needs: Any, **values: Any) -> None:
    """Add a node that waits to be begun and depends on `needs`."""
    base: dict[str, Any] = {"kind": "node", "epoch": 0, "status": "pending"}
    if needs:
        base["dependencies"] = json.dumps(needs)
    await add_task(store, task_id, **(base | values))


async def add_child(store: Store, task_id: str, parent_id: str, **values: Any) -> None:
    """Add a run that the function of another one has started."""
    await add_task(store, task_id, **({"kind": "child", "parent_id": parent_id} | values))


def running(seconds: float = 3600, owner: str = ELSEWHERE) -> dict[str, Any]:
    """Return the columns of a run whose lease ends in so many seconds."""
    ends = datetime.now(UTC) + timedelta(seconds=seconds)
    return {"status": "in_progress", "epoch": 1, "owner": owner, "lease_expires_at": ends}


async def left(store: Store) -> str:
    """Return the ids of all tasks that there are, sorted and joined."""
    rows = await store.read(lambda tx: tx.rows("SELECT id FROM apflow_tasks"))
    return " ".join(sorted(row[0] for row in rows))
