"""Reading the usage out of what model libraries return. None of them is imported: the shape tells.

Read are: chat completions, responses and their last stream events (openai, litellm and the many servers that
speak like them), messages (anthropic), run results and model responses (pydantic-ai), AI messages (LangChain),
run results (OpenAI Agents), crew outputs (CrewAI), the usage objects inside them, and all of these as
mappings or JSON text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from decimal import Context, Decimal
from typing import TYPE_CHECKING, Any, Final, NoReturn

from apflow.governance.usage import Usage, checked_usage, checked_usd, is_storable, stated_usage

if TYPE_CHECKING:
    from collections.abc import Iterable

# Classes whose instances a task may simply return, by the package that they come from.
_RESPONSES: Final = frozenset(
    {
        *(("openai", name) for name in ("ChatCompletion", "Completion", "CreateEmbeddingResponse", "Response")),
        *(("anthropic", name) for name in ("BetaMessage", "Message")),
        *(("pydantic_ai", name) for name in ("AgentRunResult", "ModelResponse", "StreamedRunResult")),
        ("langchain_core", "AIMessage"),
        *(("agents", name) for name in ("RunResult", "RunResultStreaming")),
        *(("crewai", name) for name in ("CrewOutput", "LiteAgentOutput")),
        *(("litellm", name) for name in ("EmbeddingResponse", "ModelResponse", "ResponsesAPIResponse")),
    }
)
_OBJECTS: Final = frozenset({"chat.completion", "chat.completion.chunk", "response", "text_completion"})
_FINAL_EVENTS: Final = frozenset({"response.completed", "response.failed", "response.incomplete"})

_INPUT: Final = ("prompt_tokens", "input_tokens")
_OUTPUT: Final = ("completion_tokens", "output_tokens")
_INPUT_DETAILS: Final = ("prompt_tokens_details", "input_tokens_details", "input_token_details")
_OUTPUT_DETAILS: Final = ("completion_tokens_details", "output_tokens_details", "output_token_details")
_READ: Final = ("cache_read_tokens", "cached_prompt_tokens", "cache_read_input_tokens")
_WRITTEN: Final = ("cache_write_tokens", "cache_creation_tokens", "cache_creation_input_tokens")
_WRITTEN_FOR: Final = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")

# Some servers draw their ids from a thousand numbers; only with its time does such an id name one response.
_SHORT_ID = 20
_OPENAI_MODELS: Final = ("gpt-3", "gpt-4", "gpt-5", "chatgpt-", "o1", "o3", "o4")
# Places of a cost; more than any price needs.
_COST = Decimal("1e-18")
_ROUNDING = Context(prec=60)
_LARGEST_EXPONENT = 20


def usage_of(obj: object) -> Usage:
    """Return the usage that a response, a run result or a usage object of a model library tells.

    `input` of the result includes cached tokens, whether or not the library counts them in. A cache larger
    than the input is taken to be outside it, and reasoning larger than the output likewise: that money was
    spent. The provider is given only when the object, or its shape together with its model's name, says so.

    Args:
        obj: Such an object, a mapping or JSON text with its fields, or a mapping in our own words.

    Raises:
        TypeError: The object tells no usage.
        ValueError: It tells one that cannot be, such as a negative number; the message names the field.
    """
    if isinstance(obj, Usage):
        return obj
    source = _response_of(_parsed(obj))
    for read in (_agents_run, _crew_output, _ai_message, _response, _usage_alone):
        usage = read(source)
        if usage is not None:
            return usage
    return _refuse(obj, "tells no usage that apflow can read")


def usage_of_response(obj: object) -> Usage | None:
    """Return the usage of an object that clearly is a model library's response, None for anything else.

    Nothing of an object of another kind is evaluated: no property, no method.

    Raises:
        ValueError: A response tells a usage that cannot be; the message names the field.
    """
    source: object = None
    if any((cls.__module__.partition(".")[0], cls.__name__) in _RESPONSES for cls in type(obj).__mro__):
        source = obj
    else:
        try:
            fields = object.__getattribute__(obj, "__dict__")
        except AttributeError:
            return None
        if isinstance(fields, dict) and _is_response(fields):
            source = fields
    try:
        return None if source is None else usage_of(source)
    except TypeError:
        return None


def _is_response(fields: dict[str, object]) -> bool:
    kind, named = fields.get("type"), fields.get("object")
    if fields.get("usage") is None:
        return False
    return (isinstance(named, str) and named in _OBJECTS) or (kind == "message" and fields.get("role") == "assistant")


def _parsed(obj: object) -> object:
    if not isinstance(obj, str | bytes | bytearray):
        return obj
    try:
        return json.loads(obj)
    except ValueError:
        return _refuse(obj, "is not the JSON text of a response")


def _response_of(source: object) -> object:
    """Return what a stream's event carries, and anything else as it is."""
    kind = _get(source, "type")
    if not isinstance(kind, str):
        return source
    if kind in _FINAL_EVENTS:
        return _get(source, "response")
    started = kind == "message_start"
    if started or (kind == "message_delta" and _get(_get(source, "usage"), "input_tokens") is None):
        return _refuse(source, "tells a part of the usage only: give the whole message of the stream")
    return source


# --- one function per shape; each returns None when the source has another one


def _agents_run(source: object) -> Usage | None:
    usage = _get(_get(source, "context_wrapper"), "usage")
    if usage is None:
        return None
    ids = [_get(response, "response_id") for response in _get(source, "raw_responses") or ()]
    agents = [_get(item, "agent") for item in _get(source, "new_items") or ()]
    models = [_get(agent, "model") for agent in [*agents, _get(source, "last_agent")] if agent is not None]
    names = [model if isinstance(model, str) else _get(model, "model") for model in models]
    dedupe = "+".join(ids) if ids and all(isinstance(one, str) and one for one in ids) else None
    return _usage(usage, model=_only(names), dedupe=_dedupe(dedupe, None))


def _crew_output(source: object) -> Usage | None:
    usage = _get(source, "token_usage")
    if usage is None:
        return None
    if isinstance(usage, Mapping) and not _is_usage(usage):
        return stated_usage(usage, "token_usage['{}']")
    return _usage(usage) if _is_usage(usage) else None


def _ai_message(source: object) -> Usage | None:
    usage = _get(source, "usage_metadata")
    if not _is_usage(usage):
        return None
    told = _get(source, "response_metadata")
    return _usage(
        usage,
        model=_text(_get(told, "model_name")) or _text(_get(told, "model")),
        provider=_text(_get(told, "model_provider")),
        dedupe=_dedupe(_get(told, "id"), None) or _dedupe(_get(source, "id"), None),
    )


def _response(source: object) -> Usage | None:
    usage = _get(source, "usage")
    if usage is None:
        return None
    if not _is_usage(usage) and callable(usage):
        usage = usage()
    if not _is_usage(usage):
        return None
    model, provider = _model_of(source, usage)
    name = next((one for field in ("id", "provider_response_id", "run_id") if (one := _get(source, field))), None)
    return _usage(
        usage,
        model=model,
        provider=provider,
        dedupe=_dedupe(name, _get(source, "created")),
        hidden=_get(source, "_hidden_params"),
    )


def _usage_alone(source: object) -> Usage | None:
    if _is_usage(source):
        return _usage(source)
    if isinstance(source, Mapping) and not {"input", "output", "total"}.isdisjoint(source) and "usage" not in source:
        return stated_usage(source)
    return None


def _model_of(source: object, usage: object) -> tuple[str | None, str | None]:
    """Return the model and the provider of a response or of a pydantic-ai run."""
    messages = _get(source, "new_messages")
    if callable(messages):
        parts = [message for message in messages() if _get(message, "kind") == "response"]
        return (
            _only([_get(message, "model_name") for message in parts]),
            _only([_get(message, "provider_name") for message in parts]),
        )
    model = _text(_get(source, "model")) or _text(_get(source, "model_name"))
    told = _get(_get(source, "_hidden_params"), "custom_llm_provider") or _get(source, "provider_name")
    if provider := _text(told):
        return model, provider
    if model and _get(source, "type") == "message" and model.startswith("claude"):
        return model, "anthropic"
    speaks_openai = _get(usage, "prompt_tokens") is not None or _get(source, "object") == "response"
    return model, "openai" if model and speaks_openai and model.startswith(_OPENAI_MODELS) else None


# --- the numbers


def _is_usage(source: object) -> bool:
    if source is None or isinstance(source, str | int | float):
        return False
    return any(_is_number(_get(source, name)) for name in (*_INPUT, *_OUTPUT))


def _usage(
    usage: object,
    *,
    model: str | None = None,
    provider: str | None = None,
    dedupe: str | None = None,
    hidden: object = None,
) -> Usage:
    read, written = _count(usage, *_INPUT), _count(usage, *_OUTPUT)
    details = next((one for name in _INPUT_DETAILS if (one := _get(usage, name)) is not None), None)
    cache_read = _count(details, "cached_tokens", "cache_read") or _count(usage, *_READ)
    cache_write = _cache_written(usage, details)
    # Only messages count their cache outside of the input; they have neither details nor prompt tokens.
    apart = ("cache_read_input_tokens", "cache_creation_input_tokens", "cache_creation")
    is_message = details is None and _get(usage, "prompt_tokens") is None
    if (is_message and any(_get(usage, name) is not None for name in apart)) or cache_read + cache_write > read:
        read += cache_read + cache_write
    reasoning = _reasoning(usage)
    if reasoning > written:
        written += reasoning
    total = max(_count(usage, "total_tokens"), read + written)
    return checked_usage(
        model=model,
        provider=provider,
        input=read,
        output=written,
        cache_read=cache_read,
        cache_write=cache_write,
        reasoning=reasoning,
        total=total,
        requests=_requests(usage, total),
        cost_usd=_cost(usage, hidden, total),
        dedupe=dedupe,
    )


def _cache_written(usage: object, details: object) -> int:
    """Return the tokens written to the cache: the total that is told, or the sum of its parts by lifetime."""
    told = _count(details, "cache_write_tokens", "cache_creation", "cache_creation_tokens") or _count(usage, *_WRITTEN)
    parts = [_count(where, name) for where in (details, _get(usage, "cache_creation")) for name in _WRITTEN_FOR]
    return max(told, sum(parts))


def _reasoning(usage: object) -> int:
    details = next((one for name in _OUTPUT_DETAILS if (one := _get(usage, name)) is not None), None)
    return (
        _count(details, "reasoning_tokens", "reasoning")
        or _count(usage, "reasoning_tokens", "output_reasoning_tokens")
        or _count(_get(usage, "details"), "reasoning_tokens")
    )


def _requests(usage: object, total: int) -> int:
    for name in ("requests", "successful_requests"):
        if _is_number(_get(usage, name)):
            return _count(usage, name) or min(total, 1)
    return 1


def _cost(usage: object, hidden: object, total: int) -> Decimal | None:
    """Return the USD that the source says it cost.

    A cost of 0 for tokens means that the source did not know the price, unless it says that its own cache
    answered. Who pays the provider directly is told the fee of the one in between, not the cost.
    """
    told = _get(hidden, "response_cost")
    if told is None and not _get(usage, "is_byok"):
        told = _get(usage, "cost")
    if not _is_number(told):
        return None
    # A float is exact in fifteen digits. Noise behind them would be rounded up to a nano-dollar.
    cost = Decimal(format(told, ".15g") if isinstance(told, float) else told)
    if not cost.is_finite():
        raise ValueError(f"cost must be finite, got {cost}")
    # Far too large amounts are left to the check, which refuses them.
    cost = checked_usd("cost", cost if cost.adjusted() > _LARGEST_EXPONENT else cost.quantize(_COST, context=_ROUNDING))
    return None if not cost and total and _get(hidden, "cache_hit") is not True else cost


def _count(source: object, *names: str) -> int:
    """Return the first of these fields that is told, 0 if none is."""
    for name in names:
        value = _get(source, name)
        if value is None:
            continue
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{name} must be a whole number, got {type(value).__name__}")
        if value < 0:
            raise ValueError(f"{name} must be >= 0, got {value}")
        return value
    return 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


# --- fields and texts


def _get(source: object, name: str) -> Any:
    if source is None:
        return None
    return source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and is_storable(value) else None


def _only(values: Iterable[object]) -> str | None:
    """Return the one text that all values are. Usage summed over several models has no model."""
    distinct = set(map(_text, values))
    return distinct.pop() if len(distinct) == 1 else None


def _dedupe(name: object, created: object) -> str | None:
    """Return the name of a response: its id, made unique by its time when short, hashed when too long."""
    if not isinstance(name, str) or not name.strip():
        return None
    if len(name) < _SHORT_ID and _is_number(created):
        name = f"{name}@{created}"
    return name if is_storable(name) else hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()


def _refuse(obj: object, why: str) -> NoReturn:
    kind = type(obj)
    streamed = "; a streamed chat completion tells it in its last chunk, with stream_options={'include_usage': True}"
    hint = streamed if _get(obj, "object") == "chat.completion.chunk" else ""
    raise TypeError(
        f"{kind.__module__}.{kind.__qualname__} {why}{hint}. "
        "Report it as apflow.report_usage(model=..., input=..., output=...)."
    )
