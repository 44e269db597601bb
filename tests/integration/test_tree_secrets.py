"""Secrets are used where the author of a task names them, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import pytest

import apflow
from apflow.engine import nodes
from apflow.engine.executable import ExecutableTask
from apflow.engine.registry import executor_register
from apflow.errors import TaskTreeError
from tests.integration.tree_helpers import Bench, bench, ended, ref, rows, task

pytestmark = pytest.mark.anyio

SHOWN = "k-987-secret"
NAMED = {"$secret": "key"}
seen: list[dict[str, Any]] = []


@pytest.fixture
async def made(database_url: str) -> AsyncIterator[Bench]:
    seen.clear()
    async with bench(database_url, settings={"secrets": {"key": SHOWN}}) as found:
        yield found


@apflow.task(name="ts_page")
async def page() -> dict[str, Any]:
    return {"body": {"$secret": "key"}, "other": {"$secret": "unknown"}}


@apflow.task(name="ts_plain")
async def plain(value: int = 1) -> int:
    return value


@executor_register
class Seen(ExecutableTask):
    """Remembers its inputs."""

    id = "ts_seen"
    name = "Seen"
    description = "Remembers its inputs."
    secret_inputs: ClassVar[tuple[str, ...] | None] = ("auth", "either", "body")

    def __init__(self, *, table: str = "t") -> None:
        self.table = table

    async def execute(self, inputs: dict[str, Any]) -> Any:
        seen.append(inputs)

    def get_input_schema(self) -> dict[str, Any]:
        return {"type": "object", "description": self.table}


async def test_a_result_names_no_secret(made: Bench) -> None:
    inputs = {
        "auth": NAMED,
        "body": ref("r", "body"),
        "either": ref("r", "nowhere", default=NAMED),
    }
    await ended(
        made.execute(
            task("r", "ts_page"),
            task("a", "ts_seen", "r", inputs=inputs),
            task("b", "aggregate_results_executor", "r", inputs={"strategy": "list"}),
        )
    )
    answer = {"body": NAMED, "other": {"$secret": "unknown"}}
    assert seen == [{"auth": SHOWN, "either": SHOWN, "body": NAMED, "dependencies": {"r": answer}}]
    assert (await made.results())["b"]["aggregated_result"] == [answer]
    assert SHOWN not in repr(await rows(made.store, "SELECT * FROM apflow_tasks"))


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("ts_seen", {"dependencies": {"x": NAMED}}),
        ("ts_seen", {"elsewhere": [NAMED]}),
        ("aggregate_results_executor", {"path": NAMED}),
    ],
)
async def test_secrets_and_results_that_a_task_may_not_write(made: Bench, name: str, inputs: dict[str, Any]) -> None:
    with pytest.raises(TaskTreeError, match=r"use another name|names a secret"):
        await made.create(task("r", name, inputs=inputs))


async def test_results_that_nobody_asks_for_are_not_parsed(made: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []

    def loads(text: str) -> Any:
        parsed.append(text)
        return json.loads(text)

    replaced = type("Json", (), {"loads": staticmethod(loads), "dumps": staticmethod(json.dumps)})
    monkeypatch.setattr(nodes, "json", replaced)
    await ended(made.execute(task("r", "ts_plain"), task("a", "ts_plain", "r"), task("b", "ts_seen", "r")))
    assert parsed == ["1"]
