"""What usage costs: the prices that a program sets, and behind them a price book."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from threading import Lock
from typing import TYPE_CHECKING

from apflow.governance.price_books import GenaiPrices, Price, PriceBook
from apflow.governance.price_rates import Rates
from apflow.governance.usage import Usage, checked_usage, checked_usd, is_storable

if TYPE_CHECKING:
    from decimal import Decimal

__all__ = ["GenaiPrices", "Price", "PriceBook", "Prices"]

_WILD = "*?["


@dataclass(frozen=True, slots=True)
class _Override:
    model: str
    provider: str | None
    rates: Rates

    def fits(self, model: str, provider: str | None) -> bool:
        if self.provider is not None and self.provider != provider:
            return False
        return self.model == model or (self.is_wild and fnmatchcase(model, self.model))

    def rank(self, model: str) -> tuple[bool, int, bool]:
        """Return how closely this fits `model`: by its name, by a longer pattern, for its provider."""
        return self.model == model, len(self.model), self.provider is not None

    @property
    def is_wild(self) -> bool:
        return any(character in self.model for character in _WILD)


class Prices:
    """What models cost, in USD: first the prices that were set here, then those of a price book.

    A model that neither knows has no price, and never the price 0.

    Args:
        book: Where prices come from that were not set; None is genai-prices, if it is installed.
    """

    def __init__(self, book: PriceBook | None = None) -> None:
        self._book: PriceBook = GenaiPrices() if book is None else book
        self._lock = Lock()
        # Replaced as a whole, so that readers need no lock. The one set last comes first.
        self._overrides: tuple[_Override, ...] = ()

    def set(
        self,
        model: str,
        *,
        input: str | Decimal | int,  # noqa: A002 - the word of the public interface
        output: str | Decimal | int,
        cache_read: str | Decimal | int | None = None,
        cache_write: str | Decimal | int | None = None,
        provider: str | None = None,
    ) -> None:
        """Set what a model costs, in USD per million tokens, before any price book.

        Args:
            model: Its name, in any case, or a pattern as in `llama-*`. A name wins over patterns, a longer
                pattern over a shorter one, the last one set over an equal one.
            input: Price of tokens read, 0 to 1,000,000,000. 0 makes them free, here and below.
            output: Price of tokens written.
            cache_read: Price of tokens read from the provider's cache; default: that of `input`.
            cache_write: Price of tokens written to that cache; default: that of `input`.
            provider: Only where the usage names this provider; None is any.

        Raises:
            ValueError: A price is negative, a float or no number, or a name is no text; it names the field.
        """
        read = checked_usd("input", input)
        rates = Rates(
            input=read,
            output=checked_usd("output", output),
            cache_read=read if cache_read is None else checked_usd("cache_read", cache_read),
            cache_write=read if cache_write is None else checked_usd("cache_write", cache_write),
        )
        override = _Override(_name("model", model), None if provider is None else _name("provider", provider), rates)
        with self._lock:
            others = (
                one for one in self._overrides if (one.model, one.provider) != (override.model, override.provider)
            )
            self._overrides = (override, *others)

    def forget_after_fork(self) -> None:
        """Make a lock that no other thread can have held while forking."""
        self._lock = Lock()

    @property
    def loaded(self) -> bool:
        """Whether `price` answers at once; when False, `load` takes up to a second."""
        return not isinstance(self._book, GenaiPrices) or self._book.loaded or not self._book.available

    def load(self) -> None:
        """Load the price book. Without the package that brings it there is nothing to load."""
        if isinstance(self._book, GenaiPrices) and self._book.available:
            self._book.load()

    def price(self, usage: Usage, at: datetime) -> Price | None:
        """Return what `usage` cost at the time `at`, None when its model has no known price.

        A cost that the usage brings along is believed.
        """
        if usage.cost_usd is not None:
            return Price(usage.cost_usd, {}, "reported")
        if usage.model is None:
            return None
        rates = self._rates(usage.model.lower(), None if usage.provider is None else usage.provider.lower())
        if rates is None:
            return self._book.price(usage, at)
        usd = rates.cost(usage)
        return None if usd is None else Price(usd, rates.texts(), "override")

    def knows(self, model: str, provider: str | None = None) -> bool:
        """Return whether tokens read by this model have a price now; without a provider, at whichever provider."""
        if provider is None and any(one.fits(model.lower(), one.provider) for one in self._overrides):
            return True
        return self.price(Usage(input=1, total=1, model=model, provider=provider), datetime.now(UTC)) is not None

    def most(
        self, model: str | None, tokens: int, provider: str | None = None, *, at: datetime | None = None
    ) -> Decimal | None:
        """Return the USD that one call with this many tokens costs at most, None when the model has no known price.

        Args:
            model: The model; None is an unknown one.
            tokens: Tokens of any class, 0 or more.
            provider: Who serves the model; None when unknown.
            at: When; None is now.

        Raises:
            ValueError: `tokens` is negative or no whole number.
        """
        if model is None:
            return None
        usage = checked_usage(model=model, provider=provider, total=tokens)
        price = self.price(usage, at or datetime.now(UTC))
        return None if price is None else price.usd

    def missing(self, model: str | None) -> str:
        """Return what to do about a model without a price, for the text of an error."""
        if model is None:
            return "the usage names no model: report it with model=... or with cost_usd=..."
        line = f"runtime.prices.set({model!r}, input=..., output=...), in USD per million tokens"
        if isinstance(self._book, GenaiPrices) and not self._book.available:
            return f"no price is known for model {model!r}: pip install 'apflow[prices]', or set one: {line}"
        return f"no price is known for model {model!r} (asked: {self._book.name}); set one: {line}"

    def _rates(self, model: str, provider: str | None) -> Rates | None:
        fitting = [override for override in self._overrides if override.fits(model, provider)]
        # The first of equals is the one that was set last.
        return max(fitting, key=lambda override: override.rank(model)).rates if fitting else None


def _name(field: str, value: str) -> str:
    if not is_storable(value):
        raise ValueError(f"{field} must be a text of 1 to 255 characters, not blank")
    return value.lower()
