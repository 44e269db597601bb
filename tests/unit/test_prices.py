"""What usage costs: prices that were set, the price book, exact arithmetic."""

from __future__ import annotations

import decimal
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from genai_prices import Usage as BookUsage
from genai_prices import calc_price
from hypothesis import given
from hypothesis import strategies as st

from apflow.governance.prices import GenaiPrices, Price, Prices
from apflow.governance.readers import usage_of
from apflow.governance.usage import Usage, checked_usage

AT = datetime(2026, 11, 1, 12, tzinfo=UTC)
BOOK = GenaiPrices()


class NoBook:
    """A price book that knows nothing."""

    name = "empty 1"

    def price(self, usage: Usage, at: datetime) -> Price | None:
        return None


class Unread:
    """A price book that must not be asked."""

    name = "unread 1"

    def price(self, usage: Usage, at: datetime) -> Price | None:
        raise AssertionError("the book was asked")


def usd(price: Price | None) -> Decimal:
    assert price is not None
    return price.usd


# --- the book


def test_a_cached_call_costs_what_the_hand_calculates() -> None:
    # (1000 - 600 - 100) * 3 + 600 * 0.30 + 100 * 3.75 + 200 * 15 = 900 + 180 + 375 + 3000 = 4455 millionths
    usage = checked_usage(model="claude-sonnet-4-5", input=1000, cache_read=600, cache_write=100, output=200)
    price = BOOK.price(usage, AT)
    assert price is not None
    assert price.usd == Decimal("0.004455")
    assert price.unit_prices == {"input": "3", "output": "15", "cache_read": "0.3", "cache_write": "3.75"}
    assert price.book == f"genai-prices {sys.modules['genai_prices'].__version__}"


def test_the_cached_tokens_of_a_chat_completion_cost_the_hand_calculated_cent() -> None:
    response = SimpleNamespace(
        object="chat.completion",
        id="chatcmpl-BxYzQ0123456789abcdef",
        model="gpt-4o",
        usage=SimpleNamespace(
            prompt_tokens=1000,
            completion_tokens=200,
            total_tokens=1200,
            prompt_tokens_details=SimpleNamespace(cached_tokens=600),
            completion_tokens_details=SimpleNamespace(reasoning_tokens=50),
        ),
    )
    # 400 * 2.50 + 600 * 1.25 + 200 * 10 = 1000 + 750 + 2000 = 3750 millionths: the input has the cache in it
    assert usd(Prices().price(usage_of(response), AT)) == Decimal("0.003750")


def test_the_cached_tokens_of_a_message_cost_the_hand_calculated_cent() -> None:
    message = {
        "type": "message",
        "role": "assistant",
        "id": "msg_0123456789abcdefghijkl",
        "model": "claude-sonnet-4-5-20250929",
        "usage": {
            "input_tokens": 300,
            "cache_read_input_tokens": 600,
            "cache_creation_input_tokens": 100,
            "output_tokens": 200,
        },
    }
    # 300 * 3 + 600 * 0.30 + 100 * 3.75 + 200 * 15 = 4455 millionths: the input has no cache in it
    assert usd(Prices().price(usage_of(message), AT)) == Decimal("0.004455")


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        *(("claude-sonnet-4-5", "anthropic"), ("gpt-5-mini", None), ("gemini-2.5-pro", "google"), ("o3", "openai")),
        *(("sonar-pro", "perplexity"), ("text-embedding-3-small", "openai")),
        ("perplexity/sonar-deep-research", "openrouter"),
    ],
)
@given(data=st.data())
def test_a_single_call_costs_what_the_book_says(model: str, provider: str | None, data: st.DataObject) -> None:
    embeds = "embedding" in model
    tokens = st.integers(0, 400_000)
    fresh, output = data.draw(tokens), 0 if embeds else data.draw(tokens)
    read, written = data.draw(tokens), data.draw(tokens)
    reasoning = data.draw(st.integers(0, output))
    said = calc_price(
        BookUsage(
            input_tokens=fresh + read + written,
            cache_read_tokens=read,
            cache_write_tokens=written,
            output_tokens=output,
            output_reasoning_tokens=reasoning,
        ),
        model,
        provider_id=provider,
        genai_request_timestamp=AT,
    )
    usage = checked_usage(
        model=model,
        provider=provider,
        input=fresh + read + written,
        cache_read=read,
        cache_write=written,
        output=output,
        reasoning=reasoning,
    )
    assert usd(BOOK.price(usage, AT)) == said.total_price


def test_the_size_of_the_call_chooses_the_tier() -> None:
    small = checked_usage(model="claude-sonnet-4-5", input=200_000)
    large = checked_usage(model="claude-sonnet-4-5", input=200_001)
    assert usd(BOOK.price(small, AT)) == Decimal("0.6")
    assert usd(BOOK.price(large, AT)) == Decimal("1.200006")
    price = BOOK.price(large, AT)
    assert price is not None
    assert price.unit_prices["input"] == "6"


def test_many_small_calls_are_not_one_large_call() -> None:
    loop = checked_usage(model="claude-sonnet-4-5", input=600_000, requests=30)
    assert usd(BOOK.price(loop, AT)) == Decimal("1.8")


def test_a_price_per_call_is_paid_for_each_call() -> None:
    once = checked_usage(model="sonar-pro", provider="perplexity")
    thrice = checked_usage(model="sonar-pro", provider="perplexity", requests=3)
    assert usd(BOOK.price(once, AT)) > 0
    assert usd(BOOK.price(thrice, AT)) == 3 * usd(BOOK.price(once, AT))


def test_the_time_of_the_call_chooses_the_price() -> None:
    usage = checked_usage(model="o3", input=1_000_000)
    assert usd(BOOK.price(usage, datetime(2025, 1, 1, tzinfo=UTC))) == 10
    assert usd(BOOK.price(usage, AT)) == 2


@pytest.mark.parametrize("provider", ["no-such-provider", "openai", None])
def test_a_provider_that_does_not_list_the_model_does_not_hide_its_price(provider: str | None) -> None:
    usage = checked_usage(model="claude-sonnet-4-5", provider=provider, output=1_000_000)
    assert usd(BOOK.price(usage, AT)) == 15


@pytest.mark.parametrize("model", ["openai/gpt-4o", "openai:gpt-4o", "GPT-4o"])
def test_a_model_is_found_by_its_usual_spellings(model: str) -> None:
    assert usd(BOOK.price(checked_usage(model=model, input=1_000_000), AT)) == Decimal("2.5")


# A model that is listed without prices, one that is priced by the hour, one that has no price for its output.
@pytest.mark.parametrize(
    ("model", "provider"),
    [("gpt-4o", "github-copilot"), ("whisper-1", "openai"), ("text-embedding-3-small", "openai")],
)
def test_tokens_without_a_price_are_not_free(model: str, provider: str) -> None:
    assert BOOK.price(checked_usage(model=model, provider=provider, output=5), AT) is None


def test_an_unknown_model_has_no_price() -> None:
    prices = Prices()
    usage = checked_usage(model="ollama/smol-135m", input=5)
    assert prices.price(usage, AT) is None
    assert not prices.knows("ollama/smol-135m")
    assert prices.most("ollama/smol-135m", 100) is None
    assert prices.price(checked_usage(input=5), AT) is None
    assert prices.most(None, 100) is None


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        # Of 10 tokens of input 8 and 7 came from, went to the cache: 8 * 0.3 + 7 * 3.75
        (Usage(input=10, cache_read=8, cache_write=7, total=10, model="claude-sonnet-4-5"), "0.00002865"),
        (Usage(output=10, reasoning=20, total=10, model="claude-sonnet-4-5"), "0.00015"),
    ],
)
def test_contradictory_counts_are_paid_in_full(usage: Usage, expected: str) -> None:
    assert usd(BOOK.price(usage, AT)) == Decimal(expected)


def test_one_load_serves_many_threads() -> None:
    book = GenaiPrices()
    usage = checked_usage(model="gpt-4o", input=1_000_000)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: usd(book.price(usage, AT)), range(50)))
    assert set(found) == {Decimal("2.5")}


def test_more_models_than_it_remembers_do_not_confuse_the_book() -> None:
    book = GenaiPrices()
    for number in range(1_100):
        assert book.price(Usage(input=1, total=1, model=f"nobody-{number}"), AT) is None
    assert usd(book.price(checked_usage(model="gpt-4o", input=1_000_000), AT)) == Decimal("2.5")


def test_without_the_package_only_set_prices_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    prices = Prices()
    assert prices.loaded
    prices.load()
    assert prices.price(checked_usage(model="gpt-4o", input=1), AT) is None
    assert "pip install 'apflow[prices]'" in prices.missing("gpt-4o")
    prices.set("gpt-4o", input="2.5", output=10)
    assert usd(prices.price(checked_usage(model="gpt-4o", input=1_000_000), AT)) == Decimal("2.5")


def test_loading_is_announced() -> None:
    prices = Prices()
    assert not prices.loaded
    prices.load()
    assert prices.loaded
    assert Prices(NoBook()).loaded


def test_the_hint_names_the_model_and_the_line_to_write() -> None:
    assert "runtime.prices.set('my-model', input=..., output=...)" in Prices().missing("my-model")
    assert "apflow[prices]" not in Prices().missing("my-model")
    assert "asked: empty 1" in Prices(NoBook()).missing("my-model")
    assert "model=" in Prices().missing(None)


# --- prices that were set


def test_set_prices_win_over_the_book() -> None:
    prices = Prices(Unread())
    prices.set("gpt-4o", input=1, output=Decimal("2.5"), cache_read="0.1", cache_write="1.25")
    # (100 - 60 - 10) * 1 + 60 * 0.1 + 10 * 1.25 + 20 * 2.5 = 30 + 6 + 12.5 + 50 = 98.5 millionths
    usage = checked_usage(model="gpt-4o", input=100, cache_read=60, cache_write=10, output=20, reasoning=5)
    unit_prices = {"input": "1", "output": "2.5", "cache_read": "0.1", "cache_write": "1.25"}
    assert prices.price(usage, AT) == Price(Decimal("0.0000985"), unit_prices, "override")


def test_cached_tokens_cost_what_fresh_ones_do_unless_set() -> None:
    prices = Prices(NoBook())
    prices.set("m", input=3, output=0)
    assert usd(prices.price(checked_usage(model="m", input=10, cache_read=4, cache_write=6), AT)) == Decimal("0.00003")


def test_a_price_of_zero_is_free_and_known() -> None:
    prices = Prices(NoBook())
    prices.set("local", input=0, output="0")
    assert usd(prices.price(checked_usage(model="local", input=10, output=10), AT)) == 0
    assert prices.knows("local")
    assert prices.most("local", 1_000) == 0


def test_names_win_over_patterns_and_long_patterns_over_short_ones() -> None:
    prices = Prices(NoBook())
    for model, price in [("llama-3", 1), ("llama-*", 2), ("*", 3), ("ll*", 4), ("x[1]", 5)]:
        prices.set(model, input=price, output=0)
    costs = [prices.most(model, 1_000_000) for model in ("llama-3", "Llama-4", "qwen", "llm", "x[1]", "x1")]
    assert costs == [1, 2, 3, 4, 5, 5]


def test_the_later_price_replaces_the_earlier_one() -> None:
    prices = Prices(NoBook())
    for model, price in [("m", 1), ("m", 2), ("a*", 3), ("*z", 4)]:
        prices.set(model, input=price, output=0)
    assert prices.most("m", 1_000_000) == 2
    assert prices.most("az", 1_000_000) == 4


def test_a_price_can_hold_for_one_provider_only() -> None:
    prices = Prices(NoBook())
    prices.set("m", input=1, output=0)
    prices.set("m", input=2, output=0, provider="Azure")
    prices.set("n", input=3, output=0, provider="azure")
    assert [prices.most("m", 1_000_000, provider) for provider in ("azure", "openai", None)] == [2, 1, 1]
    assert prices.most("n", 1_000_000) is None


@pytest.mark.parametrize("field", ["input", "output", "cache_read", "cache_write"])
@pytest.mark.parametrize(
    ("value", "message"),
    [(0.1, "float"), (-1, "between 0"), ("-0.1", "between 0"), ("NaN", "finite"), (True, "got bool"), ("x", "number")],
)
def test_a_wrong_price_is_refused_by_its_name(field: str, value: Any, message: str) -> None:
    prices = Prices(NoBook())
    given = {"input": 1, "output": 1, field: value}
    with pytest.raises(ValueError, match=rf"^{field} must .*{message}"):
        prices.set("m", **given)
    assert not prices.knows("m")


@pytest.mark.parametrize("model", ["", "  ", "m" * 256, 5])
def test_a_price_needs_the_name_of_a_model(model: Any) -> None:
    with pytest.raises(ValueError, match=r"^model must be a text"):
        Prices(NoBook()).set(model, input=1, output=1)


# --- arithmetic


def test_a_stated_cost_is_believed() -> None:
    usage = checked_usage(model="gpt-4o", input=10, cost_usd="0.5")
    assert Prices(Unread()).price(usage, AT) == Price(Decimal("0.5"), {}, "reported")
    assert usd(Prices(Unread()).price(checked_usage(cost_usd=2), AT)) == 2


def test_tokens_without_a_class_cost_the_dearest_price() -> None:
    prices = Prices(NoBook())
    prices.set("m", input=1, output=5, cache_write=7)
    # 10 * 1 + 10 * 5 + 80 * 7
    assert usd(prices.price(checked_usage(model="m", input=10, output=10, total=100), AT)) == Decimal("0.00062")
    assert usd(prices.price(checked_usage(model="m", total=80), AT)) == Decimal("0.00056")
    assert usd(BOOK.price(checked_usage(model="claude-sonnet-4-5", total=80), AT)) == Decimal("0.0012")


money = st.decimals(0, 1_000, places=6, allow_nan=False, allow_infinity=False)
tokens = st.integers(0, 10_000_000_000)


@given(st.tuples(money, money, money, money), st.tuples(tokens, tokens, tokens, tokens))
def test_the_price_is_the_hand_formula(
    rates: tuple[Decimal, Decimal, Decimal, Decimal], split: tuple[int, int, int, int]
) -> None:
    prices = Prices(NoBook())
    prices.set("m", input=rates[0], cache_read=rates[1], cache_write=rates[2], output=rates[3])
    fresh, read, written, output = split
    usage = checked_usage(
        model="m", input=fresh + read + written, cache_read=read, cache_write=written, output=output, reasoning=output
    )
    # In whole millionths of the price's millionths, without any Decimal arithmetic.
    exact = sum(count * int(rate.scaleb(6)) for count, rate in zip(split, rates, strict=True))
    price = usd(prices.price(usage, AT))
    assert int(price.scaleb(12, decimal.Context(prec=60))) == exact
    assert price == Decimal(exact).scaleb(-12)


@given(st.tuples(*[st.integers(0, 100_000)] * 4))
def test_no_split_of_the_tokens_costs_more_than_the_most(split: tuple[int, int, int, int]) -> None:
    fresh, read, written, output = split
    prices = Prices(BOOK)
    usage = checked_usage(
        model="claude-sonnet-4-5",
        input=fresh + read + written,
        cache_read=read,
        cache_write=written,
        output=output,
    )
    most = prices.most("claude-sonnet-4-5", sum(split), at=AT)
    assert most is not None
    assert usd(prices.price(usage, AT)) <= most


def test_the_most_refuses_a_negative_number_of_tokens() -> None:
    with pytest.raises(ValueError, match="total must be >= 0"):
        Prices(NoBook()).most("m", -1)


def test_the_users_decimal_context_does_not_matter() -> None:
    traps = [decimal.Inexact, decimal.Rounded, decimal.FloatOperation, decimal.Subnormal]
    prices = Prices()
    called = checked_usage(model="claude-sonnet-4-5", input=1000, cache_read=600, cache_write=100, output=200)
    per_call = checked_usage(model="sonar-pro", provider="perplexity", input=7)
    expected = [usd(prices.price(usage, AT)) for usage in (called, per_call)]
    with decimal.localcontext(decimal.Context(prec=1, traps=traps, rounding=decimal.ROUND_UP)):
        prices.set("mine", input="0.123456789", output="1")
        assert usd(prices.price(checked_usage(model="mine", input=3), AT)) == Decimal("0.000000370370367")
        assert [usd(prices.price(usage, AT)) for usage in (called, per_call)] == expected
        with pytest.raises(ValueError, match="input must be an amount"):
            prices.set("mine", input="cheap", output="1")
