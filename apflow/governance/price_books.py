"""Where unit prices come from: the protocol, and the book that the package genai-prices brings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from apflow.governance.price_rates import Rates, per_million, unclassed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from decimal import Decimal

    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

    from apflow.governance.usage import Usage

# How many models a book remembers: their names come from users.
_REMEMBERED = 1_000


@dataclass(frozen=True, slots=True)
class Price:
    """What a usage costs, and why.

    Attributes:
        usd: The cost in USD, exact.
        unit_prices: USD per million by class (`input`, `cache_read`, `cache_write`, `output`, and where they
            have a price of their own `reasoning` and `requests`), as decimal text.
        book: Name and version of the book; `override` for a price that was set, `reported` for a cost that
            the usage brought along.
    """

    usd: Decimal
    unit_prices: dict[str, str]
    book: str


class PriceBook(Protocol):
    """Where unit prices come from."""

    @property
    def name(self) -> str:
        """Name and version of the book, such as `genai-prices 0.2.3`."""
        ...

    def price(self, usage: Usage, at: datetime) -> Price | None:
        """Return what `usage` cost at the time `at`, None when its model has no known price.

        Tokens of `usage.total` that are neither input nor output cost the dearest of the model's prices. Called
        from any thread.
        """
        ...


class GenaiPrices:
    """The prices that come with the package genai-prices (extra `prices`), which is imported on first use."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._snapshot: Callable[[], DataSnapshot] | None = None
        self._name: str | None = None
        # Finding a model, and above all not finding it, takes a part of a millisecond.
        self._found: tuple[DataSnapshot | None, dict[tuple[str, str | None], ModelInfo | None]] = None, {}

    @cached_property
    def available(self) -> bool:
        """Whether the package is installed. It is looked for once: that takes a good part of a millisecond."""
        from importlib.util import find_spec

        return find_spec("genai_prices") is not None

    @property
    def loaded(self) -> bool:
        """Whether `price` answers without importing anything."""
        return self._snapshot is not None

    @property
    def name(self) -> str:
        """Name and version of the package."""
        if self._name is None:
            from importlib.metadata import version

            self._name = f"genai-prices {version('genai-prices')}"
        return self._name

    def load(self) -> None:
        """Import the package, which takes up to a second. It is safe to call this from several threads.

        Raises:
            ImportError: The package is not installed.
        """
        with self._lock:
            if self._snapshot is None:
                from genai_prices.data_snapshot import get_snapshot

                get_snapshot()
                self._snapshot = get_snapshot

    def price(self, usage: Usage, at: datetime) -> Price | None:
        """Return what `usage` cost at the time `at`, None when its model has no known price.

        Where the price depends on the size of the input, that of the average call decides. A model that is
        listed without prices is an unknown one: nothing here is taken to be free.
        """
        if usage.model is None or not self.available:
            return None
        found = self._find(usage.model, usage.provider)
        if found is None:
            return None
        calls = max(1, usage.requests)
        rates = _rates(found.get_prices(at), -(-(usage.input + unclassed(usage)) // calls))
        usd = rates.cost(usage)
        return None if usd is None else Price(usd, rates.texts(), self.name)

    def _find(self, model: str, provider: str | None) -> ModelInfo | None:
        if self._snapshot is None:
            self.load()
        assert self._snapshot is not None
        snapshot = self._snapshot()
        of, found = self._found
        if of is not snapshot:
            self._found = of, found = snapshot, {}
        try:
            return found[model, provider]
        except KeyError:
            known = _look_up(snapshot, model, provider)
        if len(found) >= _REMEMBERED:
            found.clear()
        found[model, provider] = known
        return known


def _look_up(snapshot: DataSnapshot, model: str, provider: str | None) -> ModelInfo | None:
    for name, by in _spellings(model, provider):
        try:
            return snapshot.find_provider_model(name, None, by, None)[1]
        except LookupError:
            continue
    return None


def _spellings(model: str, provider: str | None) -> Iterator[tuple[str, str | None]]:
    """Yield how a model may be listed: by its provider, by its name alone, by the provider in its name."""
    if provider is not None:
        yield model, provider
    yield model, None
    for separator in ("/", ":"):
        prefix, found, rest = model.partition(separator)
        if found and prefix and rest:
            yield rest, prefix


def _rates(price: ModelPrice, size: int) -> Rates:
    """Return the unit prices of a call with `size` tokens of input; uncached prices stand in for missing ones."""
    read, written = _at(price.input_mtok, size), _at(price.output_mtok, size)
    cache_read, cache_write = _at(price.cache_read_mtok, size), _at(price.cache_write_mtok, size)
    per_thousand = _at(price.requests_kcount, size)
    return Rates(
        input=read,
        output=written,
        cache_read=read if cache_read is None else cache_read,
        cache_write=read if cache_write is None else cache_write,
        reasoning=_at(price.output_reasoning_mtok, size),
        requests=None if per_thousand is None else per_million(per_thousand),
    )


def _at(price: Decimal | TieredPrices | None, size: int) -> Decimal | None:
    """Return the price for a call with `size` tokens of input: a tier holds beyond its start, for every token."""
    from genai_prices.types import TieredPrices

    if not isinstance(price, TieredPrices):
        return price
    return next((tier.price for tier in reversed(price.tiers) if size > tier.start), price.base)
