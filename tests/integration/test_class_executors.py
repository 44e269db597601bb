"""Executor classes as nodes: constructors, schemas, secrets, restoration, cancellation, usage, models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

import apflow
from apflow import Budget, CostPolicy, PolicyAction, RunInterruptedError
from apflow.engine import class_runs
from apflow.engine.executable import ExecutableTask
from apflow.engine.registry import executor_register
from apflow.errors import ExecutorError, TaskTreeError
from tests.integration.tree_helpers import Bench, Gate, bench, column, ended, ref, rows, task, until_stored

pytestmark = pytest.mark.anyio

log: list[Any] = []
gates: list[Gate] = []
QUICK = {"max_attempts": 3, "backoff_strategy": "fixed", "backoff_base_seconds": 0.1}
SETTINGS = {"secrets": {"key": "k-123-secret"}, "tx_echo": {"suffix": "!"}}


@pytest.fixture
async def made(database_url: str) -> AsyncIterator[Bench]:
    log.clear()
    gates[:] = [Gate()]
    async with bench(database_url, settings=SETTINGS) as found:
        yield found


class Base(ExecutableTask):
    name = "Base"
    description = "What the executors of these tests share."

    def get_input_schema(self) -> dict[str, Any]:
        return {"type": "object"}


@executor_register
class Echo(Base):
    """Returns what it was made with and what it was given."""

    id = "tx_echo"

    def __init__(self, greeting: str = "hello", *, times: int = 1) -> None:
        self.made_with = [greeting, times]

    async def execute(self, inputs: dict[str, Any]) -> Any:
        log.append(inputs)
        return [*self.made_with, inputs.get("value"), inputs.get("dependencies")]

    def get_input_schema(self) -> dict[str, Any]:
        value = {"anyOf": [{"type": "integer"}, {"type": "object"}]}
        return {"type": "object", "properties": {"value": value}, "required": ["value"]}


@executor_register
class Odd(Base):
    """Does what its inputs say."""

    id = "tx_odd"

    async def execute(self, inputs: dict[str, Any]) -> Any:
        log.append(inputs)
        match inputs["do"]:
            case "object":
                return object()
            case "tuple":
                return {"x": (1, 2)}
            case "cancelled":
                raise asyncio.CancelledError
            case "never":
                raise ExecutorError("not again", retryable=False)
            case "fail":
                raise ConnectionError("k-123-secret is wrong")
            case "usage":
                return {"text": "hi", "token_usage": {"input": 7, "output": 3, "total": 10}}
            case _:
                return "fine"


@executor_register
class Private(Base):
    """Has inputs that nobody may see afterwards."""

    id = "tx_private"

    async def execute(self, inputs: dict[str, Any]) -> Any:
        log.append(inputs["password"])
        if inputs.get("fails"):
            raise ConnectionError("away")
        return "in"

    def redact(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return inputs | {"password": "***"}


@executor_register
class Kept(Base):
    """Counts up to its target and goes on where it was."""

    id = "tx_kept"
    checkpoint_seconds: ClassVar[float] = 0.02

    def __init__(self) -> None:
        self.state = {"n": 0}

    async def execute(self, inputs: dict[str, Any]) -> Any:
        log.append(("start", self.state["n"]))
        if inputs.get("step_first"):
            self.state["n"] += 1
            await asyncio.sleep(0.1)
        self.state["n"] += 1
        if self.state["n"] < inputs["target"]:
            raise ConnectionError("away")
        if inputs.get("waits"):
            await gates[0].wait("kept")
        return self.state["n"]

    def supports_checkpoint(self) -> bool:
        return True

    def get_checkpoint(self) -> dict[str, Any] | None:
        return self.state

    async def resume_from_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.state = dict(checkpoint)


@executor_register
class Slow(Base):
    """Waits, and tells how it was ended."""

    id = "tx_slow"

    async def execute(self, inputs: dict[str, Any]) -> Any:
        await gates[0].wait("slow")
        return "done"

    async def cancel(self) -> Any:
        log.append("cleaned up")
        if gates[0].arrived == ["slow", "hang"]:
            await asyncio.sleep(60)


@executor_register
class Broken(Base):
    """Cannot even be asked."""

    id = "tx_broken"

    def __init__(self, when: str = "never") -> None:
        if when == "made":
            raise OSError("no")

    async def execute(self, inputs: dict[str, Any]) -> Any:
        return "fine"

    def redact(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if inputs.get("when") == "redacted":
            raise KeyError("no")
        return inputs


@executor_register
class Strict(Base):
    """Has to be made with a table, which its inputs depend on."""

    id = "tx_strict"

    def __init__(self, table: str) -> None:
        self.table = table

    async def execute(self, inputs: dict[str, Any]) -> Any:
        return self.table

    def get_input_schema(self) -> dict[str, Any]:
        return {"type": "object", "required": [self.table]}


async def test_params_go_to_the_constructor(made: Bench) -> None:
    await ended(
        made.execute(
            task("r", "tx_echo", inputs={"value": 1}),
            task("a", "tx_echo", "r", params={"greeting": "hi", "times": 2}, inputs={"value": 2}),
        )
    )
    assert await made.results() == {"r": ["hello", 1, 1, None], "a": ["hi", 2, 2, {"r": ["hello", 1, 1, None]}]}


@pytest.mark.parametrize("params", [{"nothing": 1}, {"greeting": "a", "more": 2}])
async def test_params_that_do_not_fit_the_constructor(made: Bench, params: dict[str, Any]) -> None:
    with pytest.raises(TaskTreeError, match="params of executor tx_echo do not fit its constructor"):
        await made.create(task("r", "tx_echo", params=params, inputs={"value": 1}))
    assert await made.statuses() == {}


async def test_inputs_are_checked_when_a_tree_is_made_and_when_it_runs(made: Bench) -> None:
    with pytest.raises(TaskTreeError, match="value"):
        await made.create(task("r", "tx_echo", inputs={"value": "text"}))
    with pytest.raises(TaskTreeError, match="value"):
        await made.create(task("r", "tx_echo"))
    await ended(
        made.execute(
            task("r", "tx_odd", inputs={"do": "nothing"}),
            task("a", "tx_echo", "r", inputs={"value": ref("r")}),
            task("b", "tx_echo", "a?", inputs={"value": ref("a", default=4)}),
        )
    )
    assert await made.statuses() == {"r": "completed", "a": "failed", "b": "completed"}
    error = str((await made.errors())["a"])
    assert "InvalidInputsError" in error
    assert "fine" not in error


async def test_secrets_are_seen_by_execute_and_stored_nowhere(made: Bench, tmp_path: Path) -> None:
    secret = {"$secret": "key"}
    await ended(
        made.execute(
            task("r", "tx_odd", inputs={"do": "nothing", "deep": [{"auth": secret}], "top": secret}),
            task("a", "tx_odd", inputs={"do": "nothing", "auth": {"$secret": "unknown"}}),
            task("b", "tx_odd", "r", inputs={"do": "nothing", "like": {"$secret": "key", "more": 1}}),
        )
    )
    assert {"do": "nothing", "deep": [{"auth": "k-123-secret"}], "top": "k-123-secret"} in log
    assert await made.statuses() == {"r": "completed", "a": "failed", "b": "completed"}
    stored = await rows(made.store, "SELECT * FROM apflow_tasks")
    assert "k-123-secret" not in repr(stored)
    assert "unknown" not in str((await made.errors())["a"])
    inputs = await column(made.store, "CAST(inputs AS TEXT)")
    assert json.loads(inputs["r"])["top"] == secret


async def test_inputs_are_redacted_once_they_are_not_needed_any_more(made: Bench) -> None:
    await ended(
        made.execute(
            task("r", "tx_private", inputs={"password": "p1"}),
            task("a", "tx_private", inputs={"password": "p2", "fails": True}),
        )
    )
    inputs = {one: json.loads(text) for one, text in (await column(made.store, "CAST(inputs AS TEXT)")).items()}
    assert inputs == {"r": {"password": "***"}, "a": {"password": "p2", "fails": True}}
    await ended(made.manager.execute_task("r"))
    assert sorted(log) == ["p1", "p2", "p2"]


@pytest.mark.parametrize("do", ["object", "tuple"])
async def test_a_result_that_is_no_json_fails_the_node(made: Bench, do: str) -> None:
    outcome = await ended(made.execute(task("r", "tx_odd", inputs={"do": do})))
    assert outcome["status"] == "failed"
    assert "SerializationError" in outcome["error"]
    assert "tx_odd" in outcome["error"]


async def test_an_executor_that_raises_cancelled_error_has_failed(made: Bench) -> None:
    outcome = await ended(
        made.execute(task("r", "tx_odd", inputs={"do": "cancelled"}), task("a", "tx_odd", "r?", inputs={"do": "x"})), 20
    )
    assert outcome["status"] == "failed"
    assert (await made.statuses())["a"] == "completed"


async def test_what_can_be_tried_again_is(made: Bench) -> None:
    await ended(
        made.execute(
            task("r", "tx_odd", inputs={"do": "fail"}, **QUICK), task("a", "tx_odd", inputs={"do": "never"}, **QUICK)
        )
    )
    assert await column(made.store, "attempt_count") == {"r": 3, "a": 1}


async def test_a_constructor_that_raises_is_a_problem_of_its_task(made: Bench) -> None:
    with pytest.raises(TaskTreeError, match=r"tx_broken cannot be asked for its input schema \(OSError\)"):
        await made.create(task("r", "tx_broken"), task("a", "tx_broken", "r", params={"when": "made"}))
    assert await made.statuses() == {}


async def test_no_text_of_inputs_is_kept_when_redacting_them_fails(made: Bench) -> None:
    await ended(made.execute(task("r", "tx_broken", inputs={"when": "redacted", "deep": [{"n": 1, "text": "p"}]})))
    assert await made.statuses() == {"r": "completed"}
    inputs = json.loads((await column(made.store, "CAST(inputs AS TEXT)"))["r"])
    assert inputs == {"when": "***", "deep": [{"n": 1, "text": "***"}]}


async def test_a_class_whose_constructor_wants_arguments_is_asked_with_them(made: Bench) -> None:
    outcome = await ended(made.execute(task("r", "tx_strict", params={"table": "t"}, inputs={"t": 1})))
    assert outcome["result"] == "t"
    with pytest.raises(TaskTreeError, match="'u' is missing"):
        await made.create(task("x", "tx_strict", params={"table": "u"}, inputs={"t": 1}))


# -- restoration -------------------------------------------------------------------------------------------------


async def test_each_attempt_goes_on_where_the_one_before_failed(made: Bench) -> None:
    outcome = await ended(made.execute(task("r", "tx_kept", inputs={"target": 3}, **QUICK)))
    assert outcome["result"] == 3
    assert log == [("start", 0), ("start", 1), ("start", 2)]
    assert await rows(made.store, "SELECT * FROM task_checkpoints") == []


async def test_a_state_that_is_changed_in_place_is_stored_each_time(made: Bench) -> None:
    inputs = {"target": 4, "step_first": True}
    outcome = await ended(made.execute(task("r", "tx_kept", inputs=inputs, **QUICK)))
    assert outcome["result"] == 4
    assert log == [("start", 0), ("start", 2)]


async def test_only_the_last_state_of_an_executor_is_kept(made: Bench) -> None:
    inputs = {"target": 1, "step_first": True, "waits": True}
    await made.create(task("r", "tx_kept", inputs=inputs))
    work = asyncio.create_task(made.manager.execute_task("r"))
    await gates[0].reached()
    states = "SELECT CAST(checkpoint_data AS TEXT) FROM task_checkpoints WHERE task_id = 'r'"

    async def last() -> bool:
        return any("2" in text for (text,) in await rows(made.store, states))

    await until_stored(last)
    assert len(await rows(made.store, states)) == 1
    gates[0].open()
    await ended(work)


async def test_another_process_goes_on_where_this_one_was_left(database_url: str) -> None:
    log.clear()
    gates[:] = [Gate()]
    async with bench(database_url) as first:
        await first.create(task("r", "tx_kept", inputs={"target": 1, "waits": True}))
        work = asyncio.create_task(first.manager.execute_task("r"))
        await gates[0].reached()
        await until_stored(lambda: rows(first.store, "SELECT 1 FROM task_checkpoints WHERE task_id = 'r'"))
    with pytest.raises(RunInterruptedError):
        await ended(work)
    gates[0].open()
    async with bench(database_url) as second:
        assert (await ended(second.manager.execute_task("r")))["result"] == 2
    assert log == [("start", 0), ("start", 1)]


# -- cancellation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hangs", [False, True])
async def test_an_executor_may_clean_up_after_it_was_cancelled(
    made: Bench, hangs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_runs, "CANCEL_SECONDS", 0.1)
    await made.create(task("r", "tx_slow"), task("a", "tx_odd", "r", inputs={"do": "x"}))
    work = asyncio.create_task(made.manager.execute_task("r"))
    await gates[0].reached()
    if hangs:
        gates[0].arrived.append("hang")
    assert (await ended(made.manager.cancel_task("r")))["status"] == "cancelled"
    assert (await ended(work))["status"] == "cancelled"
    assert log == ["cleaned up"]


async def test_an_executor_that_is_only_interrupted_does_not_clean_up(database_url: str) -> None:
    log.clear()
    gates[:] = [Gate()]
    async with bench(database_url) as first:
        await first.create(task("r", "tx_slow"))
        work = asyncio.create_task(first.manager.execute_task("r"))
        await gates[0].reached()
    with pytest.raises(RunInterruptedError):
        await ended(work)
    assert log == []


# -- usage and models --------------------------------------------------------------------------------------------


async def test_usage_in_a_result_is_counted(made: Bench) -> None:
    outcome = await ended(made.execute(task("r", "tx_odd", inputs={"do": "usage"})))
    assert outcome["token_usage"] == {"input": 7, "output": 3, "total": 10}
    assert await rows(made.store, "SELECT run_id, total_tokens FROM apflow_usage_events") == [("r", 10)]


async def test_a_model_that_governance_chose_reaches_the_inputs(database_url: str) -> None:
    log.clear()
    policy = CostPolicy("tx_down", PolicyAction.DOWNGRADE, threshold=0.5, downgrade_chain=["large", "small"])
    async with bench(database_url, policies=[policy]) as made:

        @apflow.task(name="tx_agent", budget=Budget(tokens=100))
        async def agent() -> None:
            apflow.report_usage(input=60, cost_usd=0)
            await made.manager.execute_task("r")

        inputs = {"do": "x", "model": "large"}
        await made.create(
            task("r", "tx_odd", inputs=inputs, cost_policy="tx_down", token_budget=1000),
            task("a", "tx_odd", inputs=inputs),
        )
        await ended(agent())
    assert sorted(one["model"] for one in log) == ["large", "small"]
