"""Usage on its way in: what is reported or returned, where it is counted, and what of it stops a run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

import apflow
from apflow import Budget, BudgetExhaustedError, OutsideRunError, RetryPolicy, RunCancelledError, Runtime
from apflow.call import Call, CallNext
from apflow.errors import RunTimeoutError

pytestmark = pytest.mark.anyio

FAST = RetryPolicy(max_attempts=3, backoff_base_seconds=0.1, jitter=False)
TABLES = ("apflow_budget_accounts", "apflow_budget_holds", "apflow_usage_events", "apflow_decisions")


@pytest.fixture
async def runtime(database_url: str) -> AsyncIterator[Runtime]:
    async with Runtime(database_url, user="ada", shutdown_seconds=0.5) as made:
        yield made


def tokens(read: int, written: int = 0) -> dict[str, int]:
    return {"input": read, "output": written, "total": read + written}


async def total(runtime: Runtime) -> int:
    return (await runtime.usage.by("user")).total.total_tokens


async def events(runtime: Runtime, columns: str) -> list[tuple[Any, ...]]:
    sql = f"SELECT {columns} FROM apflow_usage_events ORDER BY created_at, dedupe_key"
    return [tuple(row) for row in await runtime.store.read(lambda tx: tx.rows(sql))]


async def usage_of(runtime: Runtime, name: str) -> list[Any]:
    """Return the usage in the rows of the runs of a task, the newest first."""
    return [row.token_usage for row in await runtime.runs.list(name=name)]


# -- what is written ---------------------------------------------------------------------------------------------


async def test_a_run_that_reports_nothing_writes_nothing_into_the_ledger(runtime: Runtime) -> None:
    @apflow.task
    async def child(n: int) -> int:
        return n

    @apflow.task(checkpoint=True, retry=FAST)
    async def plain() -> list[int]:
        return [await child(1), await child(2)]

    assert await plain() == [1, 2]
    for table in TABLES:
        row = await runtime.store.read(lambda tx, table=table: tx.row(f"SELECT COUNT(*) FROM {table}"))  # type: ignore[misc]
        assert row == (0,), table
    [row] = await runtime.runs.list(name="plain")
    assert (row.token_usage, row.actual_cost_usd, row.estimated_cost_usd, row.cost_policy) == (None, None, None, None)


async def test_a_run_without_a_budget_is_counted(runtime: Runtime) -> None:
    @apflow.task
    async def plain() -> None:
        apflow.report_usage(model="m", provider="p", input=10, output=5, cache_read=4, cache_write=3, reasoning=2)
        apflow.current().report_usage(input=1, requests=3)

    await plain()
    assert await usage_of(runtime, "plain") == [tokens(11, 5)]
    columns = "input_tokens, output_tokens, total_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens"
    assert sorted(await events(runtime, f"{columns}, requests, model, provider, source, user_id, attempt, task")) == [
        (1, 0, 1, 0, 0, 0, 3, None, None, "reported", "ada", 1, "plain"),
        (10, 5, 15, 4, 3, 2, 1, "m", "p", "reported", "ada", 1, "plain"),
    ]


async def test_the_row_is_in_step_with_the_events(runtime: Runtime) -> None:
    runtime.prices.set("m", input="2", output="10")

    @apflow.task(budget=[Budget(tokens=1000), Budget(tokens=500, name="tight"), Budget(usd="0.01")])
    async def work() -> str:
        apflow.report_usage(model="m", input=100, output=20)
        apflow.report_usage(model="m", input=1, cost_usd="0.0000005")
        return apflow.current().task_id

    run_id = await work.with_options(reserve={"tokens": 50, "usd": "0.004"})()
    columns = "token_usage, actual_cost_usd, estimated_cost_usd, token_budget, cost_policy"
    sql = f"SELECT {columns} FROM apflow_tasks WHERE id = :id"
    row = await runtime.store.read(lambda tx: tx.row(sql, {"id": run_id}))
    assert row is not None
    record = await runtime.runs.get(run_id)
    assert record is not None
    assert record.token_usage == tokens(101, 20)
    # 100 * 2 + 20 * 10 = 400 micro-dollars; the column has six decimals, and half a micro-dollar is rounded up.
    assert record.actual_cost_usd == Decimal("0.000401")
    assert (record.estimated_cost_usd, int(row[3]), row[4]) == (Decimal("0.004"), 500, None)
    assert sorted(await events(runtime, "cost_nusd, price_book")) == [(500, "reported"), (400_000, "override")]


async def test_an_estimate_is_the_most_that_the_reserved_tokens_can_cost(runtime: Runtime) -> None:
    runtime.prices.set("m", input="2", output="10")

    @apflow.task(budget=Budget(tokens=1000, reserve=500))
    async def work(model: str = "m") -> None: ...

    runtime.prices.load()
    await work()
    [row] = await runtime.runs.list(name="work")
    assert row.estimated_cost_usd == Decimal("0.005")


# -- returned ----------------------------------------------------------------------------------------------------


@apflow.task(budget=1000)
async def returns(usage: Any) -> dict[str, Any]:
    return {"text": "done", "token_usage": usage}


async def test_a_result_tells_its_usage(runtime: Runtime) -> None:
    result = await returns(tokens(30, 12))
    assert result["text"] == "done"
    assert await usage_of(runtime, "returns") == [tokens(30, 12)]
    assert await events(runtime, "source, total_tokens") == [("returned", 42)]


@pytest.mark.parametrize(
    ("usage", "named"),
    [
        ({"input": -1}, r"token_usage\['input'\] must be >= 0, got -1"),
        ({"output": 1.5}, r"token_usage\['output'\] must be a whole number"),
        ({"input": 5, "output": 5, "total": 9}, r"token_usage\['total'\]"),
        ({"inputs": 5}, r"token_usage\['inputs'\]"),
        ([1, 2], "token_usage must be a mapping"),
    ],
)
async def test_a_wrong_usage_fails_the_run(runtime: Runtime, usage: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        await returns(usage)
    [row] = await runtime.runs.list(name="returns")
    assert (row.status, row.token_usage) == ("failed", None)
    assert row.error_info["type"] == "ValueError"
    assert await total(runtime) == 0


async def test_a_result_that_sums_up_what_was_reported_counts_once(runtime: Runtime) -> None:
    @apflow.task
    async def both(returned: int) -> dict[str, Any]:
        apflow.report_usage(input=10)
        apflow.report_usage(output=5)
        return {"token_usage": {"total": returned}}

    await both(15)
    assert await total(runtime) == 15
    await both(7)
    assert await total(runtime) == 15 + 15 + 7


@dataclass
class Completion:
    """A response as a client library makes it."""

    id: str
    model: str
    usage: dict[str, int]
    object: str = "chat.completion"


async def test_a_returned_response_object_is_counted(runtime: Runtime) -> None:
    @apflow.task
    async def calls(number: int) -> Completion:
        return Completion(f"chatcmpl-{number:024}", "gpt-4o", {"prompt_tokens": number, "completion_tokens": 1})

    await calls(5)
    assert await events(runtime, "source, input_tokens, model, provider") == [("returned", 5, "gpt-4o", "openai")]


# -- response objects --------------------------------------------------------------------------------------------


def space(**fields: Any) -> SimpleNamespace:
    inside = {name: space(**value) if isinstance(value, dict) else value for name, value in fields.items()}
    return SimpleNamespace(**inside)


CHAT = {
    "id": "chatcmpl-abcdefghijklmnop",
    "object": "chat.completion",
    "model": "gpt-4o",
    "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
    | {"prompt_tokens_details": {"cached_tokens": 600}, "completion_tokens_details": {"reasoning_tokens": 40}},
}
RESPONSE = {
    "id": "resp_abcdefghijklmnopqrstuvw",
    "object": "response",
    "model": "gpt-4o",
    "usage": {"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100}
    | {"input_tokens_details": {"cached_tokens": 600}, "output_tokens_details": {"reasoning_tokens": 40}},
}
MESSAGE = {
    "id": "msg_abcdefghijklmnopqrstuvw",
    "type": "message",
    "role": "assistant",
    "model": "claude-x",
    "usage": {"input_tokens": 300, "output_tokens": 100}
    | {"cache_read_input_tokens": 600, "cache_creation_input_tokens": 100},
}
AI_MESSAGE = {
    "id": "run--abcdefghijklmnopqrstuvw",
    "response_metadata": {"model_name": "gpt-4o"},
    "usage_metadata": {"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100}
    | {"input_token_details": {"cache_read": 600}, "output_token_details": {"reasoning": 40}},
}
PYDANTIC_AI = {
    "run_id": "abcdefghijklmnopqrstuvwxyz",
    "usage": {"input_tokens": 1000, "output_tokens": 100, "cache_read_tokens": 600, "requests": 2},
}
OURS = {"input": 1000, "output": 100, "cache_read": 600, "model": "gpt-4o"}


@pytest.mark.parametrize("kind", ["object", "dict"])
@pytest.mark.parametrize(
    ("response", "counted"),
    [
        pytest.param(CHAT, (1000, 100, 600, 0, 1, "gpt-4o"), id="openai chat"),
        pytest.param(RESPONSE, (1000, 100, 600, 0, 1, "gpt-4o"), id="openai responses"),
        pytest.param(MESSAGE, (1000, 100, 600, 100, 1, "claude-x"), id="anthropic"),
        pytest.param(AI_MESSAGE, (1000, 100, 600, 0, 1, "gpt-4o"), id="langchain"),
        pytest.param(PYDANTIC_AI, (1000, 100, 600, 0, 2, None), id="pydantic-ai"),
    ],
)
async def test_each_shape_of_response_is_counted_once(
    runtime: Runtime, kind: str, response: dict[str, Any], counted: tuple[Any, ...]
) -> None:
    @apflow.task
    async def asks() -> None:
        told = space(**response) if kind == "object" else response
        apflow.report_usage(told)
        apflow.report_usage(told)

    await asks()
    columns = "input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, requests, model"
    assert await events(runtime, columns) == [counted]
    assert await usage_of(runtime, "asks") == [tokens(1000, 100)]


async def test_numbers_beside_a_response_are_refused_and_names_are_taken(runtime: Runtime) -> None:
    @apflow.task
    async def asks() -> None:
        with pytest.raises(ValueError, match="a response or numbers, not both"):
            apflow.report_usage(OURS, input=5)
        with pytest.raises(TypeError, match="tells no usage"):
            apflow.report_usage(object())
        apflow.report_usage(OURS, model="mine", provider="me", cost_usd="0.5")

    await asks()
    assert await events(runtime, "model, provider, cost_nusd, input_tokens") == [("mine", "me", 500_000_000, 1000)]


# -- numbers that cannot be --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "named"),
    [
        *(({name: -1}, f"^{name} must be >= 0") for name in ("input", "output", "cache_read", "reasoning", "requests")),
        ({"input": 1.5}, r"^input must be a whole number"),
        ({"input": True}, r"^input must be a whole number"),
        ({"output": "7"}, r"^output must be a whole number"),
        ({"input": 1, "cache_read": 2}, r"^cache_read"),
        ({"output": 1, "reasoning": 2}, r"^reasoning"),
        ({"cost_usd": 0.5}, r"^cost_usd must be exact"),
        ({"cost_usd": "-1"}, r"^cost_usd must be between"),
        ({"model": ""}, r"^model must be"),
        ({"dedupe": 7}, r"^dedupe must be"),
    ],
)
async def test_a_bad_report_is_refused_by_name(runtime: Runtime, values: dict[str, Any], named: str) -> None:
    @apflow.task(budget=1000)
    async def work() -> str:
        with pytest.raises(ValueError, match=named):
            apflow.report_usage(**values)
        return "went on"

    assert await work() == "went on"
    assert await events(runtime, "input_tokens") == []


async def test_a_report_belongs_to_a_run() -> None:
    with pytest.raises(OutsideRunError, match=r"apflow\.report_usage\(\)"):
        apflow.report_usage(input=1)
    with pytest.raises(OutsideRunError, match=r"apflow\.reserve\(\)"):
        apflow.reserve(tokens=1)


# -- where it counts ---------------------------------------------------------------------------------------------


async def test_usage_of_a_child_counts_on_every_budget_above_it(runtime: Runtime) -> None:
    @apflow.task(budget=100)
    async def leaf() -> None:
        apflow.report_usage(input=30)

    @apflow.task
    async def middle() -> None:
        apflow.report_usage(input=3)
        await leaf()

    @apflow.task(budget=[Budget(tokens=200), Budget(tokens=1000, per="user"), Budget(requests=50, per="global")])
    async def root() -> str:
        await asyncio.gather(middle(), middle())
        apflow.report_usage(input=4)
        return apflow.current().task_id

    root_id = await root()
    [of_run] = await runtime.budgets.explain("run", root_id)
    [of_user] = await runtime.budgets.explain("user", "ada")
    [of_all] = await runtime.budgets.explain("global")
    assert (of_run.settled, of_user.settled, of_all.settled) == (70, 70, 5)
    for row in await runtime.runs.list(name="leaf"):
        [of_leaf] = await runtime.budgets.explain("run", row.id)
        assert (of_leaf.name, of_leaf.settled) == ("leaf", 30)
    # A row has the run's own usage.
    assert await usage_of(runtime, "leaf") == [tokens(30)] * 2
    assert await usage_of(runtime, "middle") == [tokens(3)] * 2
    assert await usage_of(runtime, "root") == [tokens(4)]
    assert await total(runtime) == 70


@pytest.mark.parametrize("kind", ["async in async", "plain in async", "plain in plain"])
async def test_a_child_is_refused_when_its_parent_has_used_everything(runtime: Runtime, kind: str) -> None:
    @apflow.task
    async def child() -> str:
        return "admitted"

    @apflow.task
    def plain_child() -> str:
        return "admitted"

    @apflow.task(budget=100)
    async def parent() -> str:
        apflow.report_usage(input=100)
        with pytest.raises(BudgetExhaustedError) as caught:
            await child() if kind == "async in async" else plain_child()
        return f"{caught.value.budget} {caught.value.settled} {caught.value.overrun}"

    @apflow.task(budget=100, name="parent")
    def plain_parent() -> str:
        apflow.report_usage(input=100)
        with pytest.raises(BudgetExhaustedError) as caught:
            plain_child()
        return f"{caught.value.budget} {caught.value.settled} {caught.value.overrun}"

    result = await asyncio.to_thread(plain_parent) if kind == "plain in plain" else await parent()
    assert result == "parent 100 0"


async def test_a_submitted_child_counts_above_after_its_parent_and_its_process(database_url: str) -> None:
    begun, gate = asyncio.Event(), asyncio.Event()
    ids: list[str] = []

    @apflow.task
    async def child() -> None:
        begun.set()
        await gate.wait()
        apflow.report_usage(input=50)

    @apflow.task(budget=[Budget(tokens=100), Budget(requests=5, per="user")])
    async def parent() -> str:
        ids.append((await child.submit()).id)
        return apflow.current().task_id

    async with Runtime(database_url, user="ada", shutdown_seconds=0):
        parent_id = await parent()
        await begun.wait()
    gate.set()
    async with Runtime(database_url) as other:
        await other.recover()
        await (await other.runs.resume(ids[0]))
        [of_parent] = await other.budgets.explain("run", parent_id)
        [of_user] = await other.budgets.explain("user", "ada")
    assert (of_parent.settled, of_user.settled) == (50, 1)


async def test_a_dedupe_key_counts_once_in_a_tree(runtime: Runtime) -> None:
    @apflow.task
    async def child() -> None:
        apflow.report_usage(input=10, dedupe="one")
        apflow.report_usage(input=1, dedupe="two")

    @apflow.task(budget=1000)
    async def parent() -> str:
        apflow.report_usage(input=10, dedupe="one")
        apflow.report_usage(input=10, dedupe="one")
        await child()
        await child()
        return apflow.current().task_id

    first = await parent()
    assert await total(runtime) == 11
    [status] = await runtime.budgets.explain("run", first)
    assert (status.settled, status.reserved) == (11, 0)
    await parent()
    assert await total(runtime) == 22


async def test_a_replayed_child_reports_nothing_again_and_a_retry_is_new_usage(runtime: Runtime) -> None:
    @apflow.task
    async def child() -> int:
        apflow.report_usage(input=10)
        return 1

    @apflow.task(checkpoint=True, retry=FAST, budget=1000)
    async def parent() -> int:
        apflow.report_usage(input=100)
        result = await child()
        if apflow.current().attempt < 3:
            raise ValueError("again")
        return result

    await parent()
    assert await usage_of(runtime, "child") == [tokens(10)]
    assert await usage_of(runtime, "parent") == [tokens(300)]
    assert sorted(await events(runtime, "task, attempt, input_tokens")) == [
        *(("child", 1, 10), ("parent", 1, 100), ("parent", 2, 100), ("parent", 3, 100))
    ]


# -- from where it comes -----------------------------------------------------------------------------------------


async def test_reports_from_threads_and_tasks(runtime: Runtime) -> None:
    @apflow.task(budget=1000)
    async def work() -> None:
        async def in_a_task() -> None:
            apflow.report_usage(input=2)

        await asyncio.gather(
            *(asyncio.to_thread(apflow.report_usage, input=1) for _ in range(8)),
            *(asyncio.create_task(in_a_task()) for _ in range(8)),
        )

    await work()
    assert await usage_of(runtime, "work") == [tokens(24)]


async def test_reports_from_plain_functions_and_generators(runtime: Runtime) -> None:
    @apflow.task(budget=1000)
    def plain() -> None:
        apflow.report_usage(input=1)

    @apflow.task(budget=1000)
    async def stream() -> AsyncIterator[int]:
        for number in (10, 20):
            apflow.report_usage(input=number)
            yield number

    @apflow.task(budget=1000)
    def plain_stream() -> Iterator[int]:
        for number in (100, 200):
            apflow.report_usage(input=number)
            yield number

    await asyncio.to_thread(plain)
    plain()
    await asyncio.to_thread(plain.submit().result, timeout=30)
    assert [item async for item in stream()] == [10, 20]
    assert await asyncio.to_thread(lambda: list(plain_stream())) == [100, 200]
    assert await usage_of(runtime, "plain") == [tokens(1)] * 3
    assert await usage_of(runtime, "stream") == [tokens(30)]
    assert await usage_of(runtime, "plain_stream") == [tokens(300)]
    assert await total(runtime) == 333


async def test_a_thread_that_outlives_its_run_is_still_counted(runtime: Runtime) -> None:
    go = threading.Event()
    threads: list[asyncio.Task[None]] = []

    @apflow.task(budget=Budget(tokens=1000, per="user"))
    async def work() -> str:
        def late() -> None:
            go.wait(10)
            apflow.report_usage(input=7)

        threads.append(asyncio.create_task(asyncio.to_thread(late)))
        apflow.report_usage(input=1)
        return apflow.current().task_id

    run_id = await work()
    go.set()
    await asyncio.gather(*threads)
    for _ in range(200):
        if await total(runtime) == 8:
            break
        await asyncio.sleep(0.02)
    assert await total(runtime) == 8
    [status] = await runtime.budgets.explain("user", "ada")
    assert status.settled == 8
    record = await runtime.runs.get(run_id)
    assert record is not None
    assert (record.status, record.token_usage) == ("completed", tokens(8))


@pytest.mark.parametrize("end", ["cancelled", "timed out", "failed"])
async def test_usage_of_a_run_that_ends_badly_is_counted(runtime: Runtime, end: str) -> None:
    reported = asyncio.Event()

    @apflow.task(budget=Budget(tokens=1000, per="user"), timeout=0.1 if end == "timed out" else 60)
    async def work() -> None:
        apflow.report_usage(input=7)
        reported.set()
        if end == "failed":
            raise KeyError("no")
        try:
            await asyncio.sleep(60)
        finally:
            apflow.report_usage(input=3)

    run = await work.submit()
    await reported.wait()
    if end == "cancelled":
        await run.cancel()
    error = {"cancelled": RunCancelledError, "timed out": RunTimeoutError, "failed": KeyError}[end]
    with pytest.raises(error):
        await run
    used = 7 if end == "failed" else 10
    assert await usage_of(runtime, "work") == [tokens(used)]
    [status] = await runtime.budgets.explain("user", "ada")
    assert (status.settled, status.reserved) == (used, 0)


# -- stopping ----------------------------------------------------------------------------------------------------


async def test_a_report_beyond_the_limit_raises_and_is_counted(runtime: Runtime) -> None:
    @apflow.task(budget=100, retry=FAST)
    async def work() -> None:
        apflow.report_usage(input=60)
        apflow.report_usage(input=60)

    with pytest.raises(BudgetExhaustedError) as caught:
        await work()
    error = caught.value
    assert (error.scope, error.budget, error.unit, error.limit) == ("run", "work", "tokens", 100)
    assert (error.requested, error.policy, error.window_end, error.retry_at) == (60, None, None, None)
    for number in ("100 tokens", "60 tokens"):
        assert number in str(error)
    assert "runtime.budgets.set_limit('work'" in str(error)
    [row] = await runtime.runs.list(name="work")
    assert (row.status, row.attempt_count, row.token_usage) == ("failed", 1, tokens(120))
    [status] = await runtime.budgets.explain("run", row.id)
    assert (status.settled, status.overrun, status.left) == (100, 20, 0)


@pytest.mark.parametrize("kind", ["run", "child"])
async def test_a_swallowed_refusal_is_raised_at_the_end(runtime: Runtime, kind: str) -> None:
    executed: list[int] = []
    seen: list[str] = []

    async def looks(call: Call, call_next: CallNext) -> Any:
        try:
            result = await call_next(call)
        except Exception as error:
            seen.append(type(error).__name__)
            raise
        seen.append("returned")
        return result

    @apflow.task(budget=100, retry=5, middleware=[looks])
    async def stubborn() -> str:
        executed.append(apflow.current().attempt)
        with pytest.raises(BudgetExhaustedError):
            apflow.report_usage(input=130)
        return "done all the same"

    @apflow.task
    async def parent() -> None:
        await stubborn()

    with pytest.raises(BudgetExhaustedError) as caught:
        await (stubborn() if kind == "run" else parent())
    assert (caught.value.settled, caught.value.overrun, caught.value.requested) == (100, 30, 130)
    assert executed == [1]
    # Middleware is inside of what stores the run: it sees the function return.
    assert seen == ["returned"]
    [row] = await runtime.runs.list(name="stubborn")
    assert (row.status, row.result, row.attempt_count) == ("failed", "done all the same", 1)
    assert row.error_info["type"] == "apflow.BudgetExhaustedError"


async def test_a_refusal_inside_another_exception_is_not_tried_again(runtime: Runtime) -> None:
    executed: list[int] = []

    @apflow.task(budget=100, retry=FAST)
    async def wraps() -> None:
        executed.append(apflow.current().attempt)
        try:
            apflow.report_usage(input=130)
        except BudgetExhaustedError as error:
            raise RuntimeError("could not") from error

    with pytest.raises(BudgetExhaustedError):
        await wraps()
    assert executed == [1]
    [row] = await runtime.runs.list(name="wraps")
    assert row.status == "failed"


async def test_no_error_names_the_user(runtime: Runtime) -> None:
    @apflow.task(budget=Budget(tokens=100, per="user"))
    async def work() -> None:
        apflow.report_usage(input=130, dedupe="private-word")

    for _ in range(2):
        with pytest.raises(BudgetExhaustedError) as caught:
            await work.with_options(user="grace-hopper")()
        assert "grace" not in str(caught.value)
        assert "private" not in str(caught.value)
        assert caught.value.scope == "user"


async def test_a_run_can_see_what_is_left(runtime: Runtime) -> None:
    seen: list[Any] = []

    @apflow.task
    async def child() -> None:
        seen.append(apflow.current().budget.remaining())
        apflow.report_usage(input=30)

    @apflow.task(budget=[Budget(tokens=100), Budget(tokens=500, per="user"), Budget(usd="1", per="user")])
    async def work() -> None:
        budget = apflow.current().budget
        assert (budget.remaining(), budget.remaining("usd"), budget.remaining("requests")) == (100, Decimal(1), None)
        apflow.report_usage(input=20, cost_usd="0.25")
        assert (budget.remaining("tokens"), budget.remaining("usd")) == (80, Decimal("0.75"))
        with pytest.raises(ValueError, match="unit must be one of tokens, usd, requests"):
            budget.remaining("words")  # type: ignore[arg-type]
        assert budget.utilization("tokens") == pytest.approx(0.2)
        assert budget.utilization("requests") == 0.0

    @apflow.task(budget=100)
    async def parent() -> None:
        apflow.report_usage(input=20)
        await child()
        seen.append(apflow.current().budget.remaining())

    await work()
    await parent()
    assert seen == [80, 50]


async def test_a_child_that_overspends_fails_and_its_parent_may_go_on(runtime: Runtime) -> None:
    @apflow.task(budget=10)
    async def child() -> None:
        apflow.report_usage(input=20)

    @apflow.task(budget=1000)
    async def parent() -> str:
        with pytest.raises(BudgetExhaustedError):
            await child()
        return "went on"

    assert await parent() == "went on"
    [row] = await runtime.runs.list(name="parent")
    assert row.status == "completed"
    assert await total(runtime) == 20
