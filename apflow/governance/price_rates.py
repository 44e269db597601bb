"""The unit prices of a model and what a usage costs with them, exactly."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow, localcontext
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from apflow.governance.usage import Usage

# Of our own, whatever a user's program has set: prices of at most 40 digits times counts of at most 16 stay exact.
_EXACT: Final = Context(prec=200, traps=[InvalidOperation, DivisionByZero, Overflow])
_MILLION: Final = -6


@dataclass(frozen=True, slots=True)
class Rates:
    """USD per million of each class; None where the class has no price.

    Attributes:
        input: Tokens read, apart from the cached ones.
        output: Tokens written, apart from reasoning.
        cache_read: Tokens read from the cache.
        cache_write: Tokens written to the cache.
        reasoning: Tokens of reasoning; None when they cost what `output` does.
        requests: Calls of the model, for those that charge per call as well.
    """

    input: Decimal | None
    output: Decimal | None
    cache_read: Decimal | None
    cache_write: Decimal | None
    reasoning: Decimal | None = None
    requests: Decimal | None = None

    def cost(self, usage: Usage) -> Decimal | None:
        """Return what `usage` costs in USD, None when it has tokens of a class without a price.

        `((input - cache_read - cache_write) * p_input + cache_read * p_cache_read + cache_write * p_cache_write
        + output * p_output) / 1,000,000`. Tokens of `total` that are neither input nor output cost the dearest
        of these prices. A class that is larger than the one around it is paid in full.
        """
        if not any(price is not None for price in self._of_tokens()):
            return None
        counts = self._counts(usage)
        if any(count and price is None for count, price in counts):
            return None
        with localcontext(_EXACT):
            parts = (count * price for count, price in counts if price is not None)
            return sum(parts, Decimal(0)).scaleb(_MILLION)

    def texts(self) -> dict[str, str]:
        """Return the prices that there are, as decimal text by class."""
        prices = {name: getattr(self, name) for name in self.__slots__}
        return {name: format(price, "f") for name, price in prices.items() if price is not None}

    def _of_tokens(self) -> tuple[Decimal | None, ...]:
        return self.input, self.output, self.cache_read, self.cache_write, self.reasoning

    def _counts(self, usage: Usage) -> tuple[tuple[int, Decimal | None], ...]:
        reasoning = usage.reasoning if self.reasoning is not None else 0
        dearest = max((price for price in self._of_tokens() if price is not None), default=None)
        return (
            (max(0, usage.input - usage.cache_read - usage.cache_write), self.input),
            (usage.cache_read, self.cache_read),
            (usage.cache_write, self.cache_write),
            (max(0, usage.output - reasoning), self.output),
            (reasoning, self.reasoning),
            (unclassed(usage), dearest),
            (usage.requests if self.requests is not None else 0, self.requests),
        )


def unclassed(usage: Usage) -> int:
    """Return the tokens of `total` that are neither input nor output."""
    return max(0, usage.total - usage.input - usage.output)


def per_million(per_thousand: Decimal) -> Decimal:
    """Return the price of a million of what a thousand of costs this."""
    with localcontext(_EXACT):
        return per_thousand * 1000
