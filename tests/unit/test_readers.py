"""Usage read out of the shapes of model libraries, as objects and as mappings.

The call is the same for most of them: 1000 tokens read, 600 of them cached and 100 written to the cache where
the shape can say so; 200 tokens written, 50 of them reasoning.
"""

from __future__ import annotations

import decimal
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, PrivateAttr

from apflow.governance.readers import usage_of, usage_of_response
from apflow.governance.usage import Usage, returned_usage

CHAT_ID = "chatcmpl-AbCdEf0123456789"
CHAT: dict[str, Any] = {
    "id": CHAT_ID,
    "object": "chat.completion",
    "created": 1_790_000_000,
    "model": "gpt-4o-2024-08-06",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {
        "prompt_tokens": 1000,
        "completion_tokens": 200,
        "total_tokens": 1200,
        "prompt_tokens_details": {"cached_tokens": 600, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 50},
    },
}
RESPONSE: dict[str, Any] = {
    "id": "resp_0123456789abcdef0123",
    "object": "response",
    "model": "gpt-5-mini",
    "output": [],
    "usage": {
        "input_tokens": 1000,
        "input_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 100},
        "output_tokens": 200,
        "output_tokens_details": {"reasoning_tokens": 50},
        "total_tokens": 1200,
    },
}
MESSAGE: dict[str, Any] = {
    "id": "msg_0123456789abcdef0123",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5-20250929",
    "content": [],
    "usage": {
        "input_tokens": 300,
        "cache_read_input_tokens": 600,
        "cache_creation_input_tokens": 100,
        "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 0},
        "output_tokens": 200,
    },
}
AI_MESSAGE: dict[str, Any] = {
    "type": "ai",
    "id": "lc_run--0123456789abcdef",
    "content": "hi",
    "response_metadata": {"id": "msg_0123456789abcdef0123", "model_name": "claude-x", "model_provider": "anthropic"},
    "usage_metadata": {
        "input_tokens": 1000,
        "output_tokens": 200,
        "total_tokens": 1200,
        "input_token_details": {"cache_read": 600, "cache_creation": 100},
        "output_token_details": {"reasoning": 50},
    },
}
CREW: dict[str, Any] = {
    "raw": "hi",
    "token_usage": {
        "total_tokens": 1200,
        "prompt_tokens": 1000,
        "cached_prompt_tokens": 600,
        "completion_tokens": 200,
        "reasoning_tokens": 50,
        "cache_creation_tokens": 100,
        "successful_requests": 3,
    },
}
FULL = Usage(1000, 200, 1200, 600, 100, 50)
SHAPES = {
    "chat": (CHAT, Usage(1000, 200, 1200, 600, 0, 50, 1, "gpt-4o-2024-08-06", "openai", None, CHAT_ID)),
    "responses": (RESPONSE, Usage(1000, 200, 1200, 600, 100, 50, 1, "gpt-5-mini", "openai", None, RESPONSE["id"])),
    "message": (MESSAGE, Usage(1000, 200, 1200, 600, 100, 0, 1, MESSAGE["model"], "anthropic", None, MESSAGE["id"])),
    "langchain": (AI_MESSAGE, Usage(1000, 200, 1200, 600, 100, 50, 1, "claude-x", "anthropic", None, MESSAGE["id"])),
    "crew": (CREW, Usage(1000, 200, 1200, 600, 100, 50, 3)),
}


def as_object(value: Any) -> Any:
    """Return a mapping as an object with attributes, as the libraries' models are, all the way down."""
    if isinstance(value, dict):
        return SimpleNamespace(**{name: as_object(inner) for name, inner in value.items()})
    return [as_object(inner) for inner in value] if isinstance(value, list) else value


def as_bytes(value: object) -> bytes:
    return json.dumps(value).encode()


def changed(shape: dict[str, Any], usage: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**shape, "usage": {**shape["usage"], **usage}, **fields}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", [as_object, dict, json.dumps, as_bytes])
def test_a_shape_is_read_in_every_form(shape: str, form: Callable[[Any], object]) -> None:
    source, expected = SHAPES[shape]
    assert usage_of(form(source)) == expected


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (CHAT["usage"], Usage(1000, 200, 1200, 600, 0, 50)),
        (RESPONSE["usage"], FULL),
        (MESSAGE["usage"], Usage(1000, 200, 1200, 600, 100)),
        (AI_MESSAGE["usage_metadata"], FULL),
        (CREW["token_usage"], Usage(1000, 200, 1200, 600, 100, 50, 3)),
        ({"input_tokens": 7, "output_tokens": 2}, Usage(7, 2, 9)),
        ({"prompt_tokens": 7, "completion_tokens": 2}, Usage(7, 2, 9)),
        ({"prompt_tokens": 7, "total_tokens": 7}, Usage(7, 0, 7)),
    ],
)
def test_the_usage_alone_is_read(usage: dict[str, Any], expected: Usage) -> None:
    assert usage_of(usage) == expected
    assert usage_of(as_object(usage)) == expected


def test_our_own_words_are_read() -> None:
    stated = {"input": 10, "output": 5, "cache_read": 2, "model": "m", "cost_usd": "0.1"}
    expected = Usage(10, 5, 15, 2, model="m", cost_usd=Decimal("0.1"))
    assert usage_of(stated) == expected
    assert usage_of({"token_usage": stated}) == expected
    assert usage_of(expected) is expected
    with pytest.raises(ValueError, match="prompt is not a word of usage"):
        usage_of({"input": 1, "prompt": 2})
    with pytest.raises(ValueError, match=r"token_usage\['input'\] must be >= 0"):
        usage_of({"token_usage": {"input": -1}})


# --- the quirks


@pytest.mark.parametrize("form", [as_object, dict])
def test_details_that_are_missing_or_none_are_zero(form: Callable[[Any], object]) -> None:
    chat = changed(CHAT, {"prompt_tokens_details": None, "completion_tokens_details": None})
    assert usage_of(form(chat)).cache_read == 0
    hollow = {"prompt_tokens_details": {"cached_tokens": None}, "completion_tokens_details": {}}
    assert usage_of(form(changed(CHAT, hollow))).reasoning == 0
    assert usage_of(form({**CHAT, "usage": {"prompt_tokens": 3, "completion_tokens": None}})).total == 3
    response = changed(RESPONSE, {"input_tokens_details": None, "output_tokens_details": None})
    assert usage_of(form(response)).input == 1000
    nothing = {"cache_read_input_tokens": None, "cache_creation_input_tokens": None, "cache_creation": None}
    assert usage_of(form(changed(MESSAGE, nothing))).input == 300
    bare = {**AI_MESSAGE, "response_metadata": {}, "usage_metadata": {"input_tokens": 4, "output_tokens": 1}}
    expected = Usage(4, 1, 5, dedupe=AI_MESSAGE["id"])
    assert usage_of(form(bare)) == expected


def test_only_a_message_counts_its_cache_outside_of_the_input() -> None:
    inside = {"input_tokens": 1000, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 1}
    assert usage_of({**inside, "cache_read_input_tokens": 600}).input == 1000
    outside = {"input_tokens": 1000, "output_tokens": 1, "cache_read_input_tokens": 600}
    assert usage_of(outside).input == 1600
    assert usage_of({**outside, "cache_read_input_tokens": 0}).input == 1000
    parts = {"input_tokens": 5, "output_tokens": 1, "cache_creation": {"ephemeral_1h_input_tokens": 40}}
    assert usage_of(parts) == Usage(45, 1, 46, 0, 40)


def test_a_cache_larger_than_the_input_is_added_to_it() -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 600}}
    assert usage_of(usage) == Usage(700, 5, 705, 600)


def test_reasoning_larger_than_the_output_is_added_to_it() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 20}}
    assert usage_of({**usage, "total_tokens": 6}) == Usage(1, 25, 26, reasoning=20)


def test_a_total_beyond_the_parts_is_kept() -> None:
    assert usage_of(changed(CHAT, {"total_tokens": 1500})).total == 1500
    assert usage_of(changed(CHAT, {"total_tokens": 12})).total == 1200


def test_the_parts_of_a_cache_write_replace_its_total_in_langchain() -> None:
    details = {"cache_read": 600, "cache_creation": 0, "ephemeral_5m_input_tokens": 60, "ephemeral_1h_input_tokens": 40}
    assert usage_of({**AI_MESSAGE["usage_metadata"], "input_token_details": details}).cache_write == 100
    doubled = {**details, "cache_creation": 100}
    assert usage_of({**AI_MESSAGE["usage_metadata"], "input_token_details": doubled}).cache_write == 100


def test_whole_floats_of_a_server_are_counts() -> None:
    assert usage_of({"prompt_tokens": 7.0, "completion_tokens": 2}) == Usage(7, 2, 9)


@pytest.mark.parametrize(
    ("usage", "message"),
    [
        ({"prompt_tokens": -1}, "prompt_tokens must be >= 0"),
        ({"prompt_tokens": 1.5}, "prompt_tokens must be a whole number, got float"),
        ({"prompt_tokens": 1, "completion_tokens": True}, "completion_tokens must be a whole number, got bool"),
        ({"input_tokens": 1, "output_tokens": "2"}, "output_tokens must be a whole number, got str"),
        ({"input_tokens": 2**60}, "input must be <= "),
        ({"prompt_tokens": 1, "cost": -0.5}, "cost must be between 0"),
        ({"prompt_tokens": 1, "cost": float("nan")}, "cost must be finite"),
        ({"prompt_tokens": 1, "cost": 1e300}, "cost must be between 0"),
    ],
)
def test_numbers_that_cannot_be_are_refused_by_their_name(usage: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        usage_of(usage)


# --- streams


def test_the_last_chunk_of_a_stream_is_read() -> None:
    chunk = {**CHAT, "object": "chat.completion.chunk", "choices": []}
    assert usage_of(as_object(chunk)).cache_read == 600
    event = {"type": "response.completed", "response": RESPONSE}
    assert usage_of(as_object(event)) == SHAPES["responses"][1]
    delta = {"type": "message_delta", "usage": {"input_tokens": 3, "cache_read_input_tokens": 7, "output_tokens": 2}}
    assert usage_of(delta) == Usage(10, 2, 12, 7)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({**CHAT, "object": "chat.completion.chunk", "usage": None}, "include_usage"),
        ({"type": "message_start", "message": MESSAGE}, "a part of the usage only"),
        ({"type": "message_delta", "usage": {"output_tokens": 2}}, "a part of the usage only"),
        ({"type": "response.created", "response": {**RESPONSE, "usage": None}}, "tells no usage"),
    ],
)
def test_a_part_of_a_stream_is_not_taken_for_the_whole(source: dict[str, Any], message: str) -> None:
    for form in (source, as_object(source)):
        with pytest.raises(TypeError, match=message):
            usage_of(form)


# --- runs of agents


@dataclass
class RunUsage:
    """As pydantic-ai's: the totals of a run."""

    requests: int = 2
    input_tokens: int = 1000
    cache_write_tokens: int = 100
    cache_read_tokens: int = 600
    output_tokens: int = 200
    details: dict[str, int] = field(default_factory=lambda: {"reasoning_tokens": 50})
    cost: Decimal | None = None

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


def model_response(model: str = "gpt-5-mini") -> SimpleNamespace:
    return SimpleNamespace(
        kind="response", model_name=model, provider_name="openai", provider_response_id="resp_1", usage=RunUsage()
    )


class RunResult:
    """As pydantic-ai's: `usage` is a property or, before its second version, a method."""

    run_id = "0198-run"

    def __init__(self, *responses: SimpleNamespace) -> None:
        self._messages = [SimpleNamespace(kind="request"), *responses]

    def new_messages(self) -> list[SimpleNamespace]:
        return self._messages

    def usage(self) -> RunUsage:
        return RunUsage()


class RunResultWithProperty(RunResult):
    usage = property(RunResult.usage)


@pytest.mark.parametrize("kind", [RunResult, RunResultWithProperty])
def test_a_run_of_pydantic_ai_is_read(kind: type[RunResult]) -> None:
    expected = Usage(1000, 200, 1200, 600, 100, 50, 2, "gpt-5-mini", "openai", None, "0198-run")
    assert usage_of(kind(model_response(), model_response())) == expected
    mixed = usage_of(kind(model_response("a"), model_response("b")))
    assert (mixed.model, mixed.provider, mixed.total) == (None, "openai", 1200)


def test_the_parts_of_a_run_of_pydantic_ai_are_read() -> None:
    assert usage_of(RunUsage()) == Usage(1000, 200, 1200, 600, 100, 50, 2)
    assert usage_of(RunUsage(cost=Decimal("0.25"))).cost_usd == Decimal("0.25")
    expected = Usage(1000, 200, 1200, 600, 100, 50, 2, "gpt-5-mini", "openai", None, "resp_1")
    assert usage_of(model_response()) == expected


def agents_run(*models: object, ids: tuple[object, ...] = ("resp_1", "resp_2")) -> SimpleNamespace:
    agents = [SimpleNamespace(model=model) for model in models]
    return SimpleNamespace(
        context_wrapper=SimpleNamespace(usage=as_object({**RESPONSE["usage"], "requests": len(ids)})),
        raw_responses=[SimpleNamespace(response_id=one) for one in ids],
        new_items=[SimpleNamespace(agent=agent) for agent in agents],
        last_agent=agents[-1],
    )


def test_a_run_of_openai_agents_is_read() -> None:
    expected = Usage(1000, 200, 1200, 600, 100, 50, 2, "gpt-5-mini", None, None, "resp_1+resp_2")
    assert usage_of(agents_run("gpt-5-mini", SimpleNamespace(model="gpt-5-mini"))) == expected
    assert usage_of(agents_run("gpt-5-mini", ids=("resp_1",))).dedupe == "resp_1"
    assert usage_of(agents_run("gpt-5-mini", "gpt-5")).model is None
    assert usage_of(agents_run(None)).model is None
    assert usage_of(agents_run("m", ids=("resp_1", None))).dedupe is None
    many = usage_of(agents_run("m", ids=tuple(f"resp_{number:040}" for number in range(20))))
    assert many.dedupe is not None
    assert len(many.dedupe) == 64


def test_tokens_are_at_least_one_call() -> None:
    assert usage_of({**CREW["token_usage"], "successful_requests": 0}).requests == 1
    nothing = {"prompt_tokens": 0, "completion_tokens": 0, "successful_requests": 0}
    assert usage_of(nothing) == Usage(requests=0)


# --- costs, providers, names


class ModelResponse(BaseModel):
    """As litellm's: the usage is an extra field, the cost is hidden."""

    model_config = ConfigDict(extra="allow")
    id: str = CHAT_ID
    object: str = "chat.completion"
    model: str = "claude-sonnet-4-5-20250929"
    _hidden_params: dict[str, Any] = PrivateAttr(default_factory=dict)


ModelResponse.__module__ = "litellm.types.utils"


def litellm(**hidden: Any) -> ModelResponse:
    usage = as_object({**CHAT["usage"], "cache_read_input_tokens": 600, "cache_creation_input_tokens": 100})
    response = ModelResponse(usage=usage)  # type: ignore[call-arg]
    response._hidden_params = hidden
    return response


def test_litellm_states_its_cost_and_its_provider() -> None:
    cost = Decimal("0.004455")
    expected = Usage(1000, 200, 1200, 600, 100, 50, 1, "claude-sonnet-4-5-20250929", "anthropic", cost, CHAT_ID)
    response = litellm(response_cost=0.004455, custom_llm_provider="anthropic")
    assert usage_of(response) == expected
    assert returned_usage(response) == expected


@pytest.mark.parametrize(
    ("cost", "expected"),
    [(None, None), (0.0, None), ("0.5", None), (5.15e-04, Decimal("0.000515")), (1e-30, None)],
)
def test_a_cost_of_nothing_is_no_statement(cost: object, expected: Decimal | None) -> None:
    assert usage_of(litellm(response_cost=cost)).cost_usd == expected


def test_the_users_decimal_context_does_not_change_a_cost() -> None:
    traps = [decimal.Inexact, decimal.Rounded, decimal.FloatOperation]
    with decimal.localcontext(decimal.Context(prec=1, traps=traps)):
        assert usage_of(litellm(response_cost=0.1 + 0.2)).cost_usd == Decimal("0.3")
        with pytest.raises(ValueError, match="cost must be between 0"):
            usage_of(litellm(response_cost=12_345_678_901.5))


def test_an_answer_out_of_the_cache_is_free() -> None:
    assert usage_of(litellm(response_cost=0.0, cache_hit=True)).cost_usd == 0


def test_a_router_states_its_cost_unless_the_provider_is_paid_directly() -> None:
    assert usage_of(changed(CHAT, {"cost": 0.0033789, "is_byok": False})).cost_usd == Decimal("0.0033789")
    assert usage_of(changed(CHAT, {"cost": 0.0001, "is_byok": True})).cost_usd is None
    assert usage_of(changed(CHAT, {"cost": {"total_cost": 1}})).cost_usd is None


@pytest.mark.parametrize(
    ("shape", "model", "provider"),
    [
        *((CHAT, "gpt-4o", "openai"), (CHAT, "o3-mini", "openai"), (CHAT, "llama-3.1-8b", None)),
        *((CHAT, "claude-sonnet-4-5", None), (CHAT, "openai/gpt-4o", None), (CHAT, "gpt-oss-20b", None)),
        *((RESPONSE, "gpt-5", "openai"), (RESPONSE, "qwen-3", None), (MESSAGE, "minimax-m2", None)),
    ],
)
def test_the_provider_is_named_only_when_shape_and_model_agree(
    shape: dict[str, Any], model: str, provider: str | None
) -> None:
    read = usage_of({**shape, "model": model})
    assert (read.model, read.provider) == (model, provider)


@pytest.mark.parametrize("model", [None, "", " ", "m" * 300, 5])
def test_a_name_that_cannot_be_stored_is_unknown(model: object) -> None:
    assert usage_of({**CHAT, "model": model}).model is None


@pytest.mark.parametrize("name", [None, "", " ", 5])
def test_without_an_id_nothing_is_recognised_again(name: object) -> None:
    assert usage_of({**CHAT, "id": name}).dedupe is None


def test_a_short_id_names_a_response_only_with_its_time() -> None:
    first = usage_of({**CHAT, "id": "chatcmpl-17"})
    assert first.dedupe == "chatcmpl-17@1790000000"
    assert usage_of({**CHAT, "id": "chatcmpl-17"}) == first
    assert usage_of({**CHAT, "id": "chatcmpl-17", "created": 1_790_000_001}).dedupe != first.dedupe


def test_an_id_that_cannot_be_stored_is_hashed() -> None:
    names = ["r" * 300, "r" * 301, "r" * 30 + "\x00", "r" * 30 + "\ud800"]
    hashed = {usage_of({**CHAT, "id": name}).dedupe for name in names}
    assert [len(str(one)) for one in hashed] == [64] * 4


# --- what is not a usage


@pytest.mark.parametrize(
    "source",
    [
        *(None, 5, 2.5, [CHAT], range(3), {}, {"answer": 1}, "not json", "5", '"text"'),
        *({"usage": "much"}, {"usage": {}}, {"usage": {"tokens": 5}}, SimpleNamespace(usage=None)),
        SimpleNamespace(usage_metadata=SimpleNamespace(prompt_token_count=5)),
        {"token_usage": None},
    ],
    ids=repr,
)
def test_what_tells_no_usage_is_refused_with_the_line_to_write(source: object) -> None:
    with pytest.raises(TypeError, match=r"apflow\.report_usage\(model=\.\.\., input=\.\.\., output=\.\.\.\)") as caught:
        usage_of(source)
    assert f"builtins.{type(source).__name__}" in str(caught.value) or "SimpleNamespace" in str(caught.value)
    assert "not json" not in str(caught.value)


# --- what a task returns


def of_library(module: str, name: str, **fields: Any) -> object:
    return type(name, (SimpleNamespace,), {"__module__": module})(**fields)


def test_responses_that_a_task_returns_are_recognised() -> None:
    for shape in ("chat", "responses", "message"):
        source, expected = SHAPES[shape]
        assert usage_of_response(as_object(source)) == expected
    for package, name, shape in [
        ("langchain_core.messages.ai", "AIMessage", "langchain"),
        ("crewai.crews.crew_output", "CrewOutput", "crew"),
        ("anthropic.types.message", "Message", "message"),
    ]:
        source, expected = SHAPES[shape]
        assert usage_of_response(of_library(package, name, **vars(as_object(source)))) == expected
    run = of_library("agents.result", "RunResult", **vars(agents_run("gpt-5-mini")))
    assert returned_usage(run) == usage_of(run)


def test_a_subclass_of_a_librarys_response_is_one() -> None:
    base = type("AgentRunResult", (RunResult,), {"__module__": "pydantic_ai.run"})
    result = type("Mine", (base,), {"__module__": "mine"})(model_response())
    read = usage_of_response(result)
    assert read is not None
    assert read.dedupe == "0198-run"


def test_a_librarys_object_without_usage_states_nothing() -> None:
    assert usage_of_response(of_library("langchain_core.messages.ai", "AIMessage", usage_metadata=None)) is None
    assert usage_of_response(of_library("agents.result", "RunResult")) is None
    assert usage_of_response(RunResult(model_response())) is None
    assert usage_of_response(as_object({**CHAT, "object": "list"})) is None
    assert usage_of_response(as_object({**MESSAGE, "role": "user"})) is None
