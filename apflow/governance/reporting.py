"""`report_usage` and `reserve`, for the current run or the one of a context."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from apflow.errors import OutsideRunError
from apflow.governance.amounts import amounts
from apflow.governance.attach import meter_of
from apflow.governance.reserving import Reservation
from apflow.governance.usage import checked_usage
from apflow.state import current_state

if TYPE_CHECKING:
    from decimal import Decimal

    from apflow.governance.usage import Usage
    from apflow.state import RunState


class ReportUsage:
    """What `ctx.report_usage` is: `apflow.report_usage` for one run."""

    __module__ = "apflow"

    def __init__(self, state: RunState) -> None:
        self._state = state

    def __call__(
        self,
        response: object = None,
        /,
        *,
        model: str | None = None,
        provider: str | None = None,
        input: int = 0,  # noqa: A002 - the word of the public interface
        output: int = 0,
        cache_read: int = 0,
        cache_write: int = 0,
        reasoning: int = 0,
        requests: int = 1,
        cost_usd: str | Decimal | int | None = None,
        dedupe: str | None = None,
    ) -> None:
        """Count what a model has used. See `apflow.report_usage`."""
        meter = meter_of(self._state)
        if response is not None:
            if input or output or cache_read or cache_write or reasoning or requests != 1:
                raise ValueError("report_usage takes a response or numbers, not both")
            from apflow.governance.readers import usage_of

            usage = usage_of(response)
            given = {"model": model, "provider": provider, "cost_usd": cost_usd, "dedupe": dedupe}
            stated = {name: value for name, value in given.items() if value is not None}
            checked = checked_usage(**stated)  # type: ignore[arg-type]
            usage = _with(usage, {name: getattr(checked, name) for name in stated})
        else:
            usage = checked_usage(
                model=model,
                provider=provider,
                input=input,
                output=output,
                cache_read=cache_read,
                cache_write=cache_write,
                reasoning=reasoning,
                requests=requests,
                cost_usd=cost_usd,
                dedupe=dedupe,
            )
        if usage.model is None:
            usage = _with(usage, {"model": meter.asked_model()})
        meter.spending.report(usage)


class Reserve:
    """What `ctx.reserve` is: `apflow.reserve` for one run."""

    __module__ = "apflow"

    def __init__(self, state: RunState) -> None:
        self._state = state

    def __call__(self, *, tokens: int = 0, usd: str | Decimal | int = 0, requests: int = 0) -> Reservation:
        """Return the reservation. See `apflow.reserve`."""
        needs = amounts({"tokens": tokens, "usd": usd, "requests": requests})
        if not needs:
            raise ValueError("reserve needs an amount: tokens=, usd= or requests=")
        self._state.check_alive()
        return Reservation(meter_of(self._state), needs)


def _with(usage: Usage, changes: dict[str, Any]) -> Usage:
    return replace(usage, **changes) if changes else usage


def report_usage(
    response: object = None,
    /,
    *,
    model: str | None = None,
    provider: str | None = None,
    input: int = 0,  # noqa: A002 - the word of the public interface
    output: int = 0,
    cache_read: int = 0,
    cache_write: int = 0,
    reasoning: int = 0,
    requests: int = 1,
    cost_usd: str | Decimal | int | None = None,
    dedupe: str | None = None,
) -> None:
    """Count what a model has used, for the current run and every budget above it. Does not block.

    Give either the response of a client library (OpenAI, Anthropic, pydantic-ai, LangChain, OpenAI Agents, CrewAI,
    LiteLLM, or a dict of the same shape), or the numbers. It is stored within moments, at the latest when the run ends.

    Args:
        response: What the library returned. Its id makes it count once.
        model: The model; that of the response, or `ctx.model`, by default.
        provider: Who serves it, such as `"openai"`.
        input: Tokens read, those from and to the provider's cache included.
        output: Tokens written, reasoning included.
        cache_read: How many of `input` came from the cache.
        cache_write: How many of `input` were written to the cache.
        reasoning: How many of `output` were reasoning.
        requests: Calls of the model.
        cost_usd: What it cost, when that is known: a string such as `"0.0125"`, a Decimal or an int. Otherwise it is
            priced.
        dedupe: A word that names this usage: reported again within the same tree of runs, it counts once.

    Raises:
        BudgetExhaustedError: A hard limit is passed. The usage is counted nevertheless, and if the function goes on
            as if nothing had happened, its run fails.
        UnpricedModelError: A budget in dollars is above the run, and nobody knows what the model costs.
        ValueError: A number is negative, no whole number, or contradicts another one.
        TypeError: The response is of no known shape.
        OutsideRunError: There is no current run.
    """
    ReportUsage(_current("apflow.report_usage()"))(
        response,
        model=model,
        provider=provider,
        input=input,
        output=output,
        cache_read=cache_read,
        cache_write=cache_write,
        reasoning=reasoning,
        requests=requests,
        cost_usd=cost_usd,
        dedupe=dedupe,
    )


def reserve(*, tokens: int = 0, usd: str | Decimal | int = 0, requests: int = 0) -> Reservation:
    """Hold an amount on every budget above the current run for a block: `async with apflow.reserve(tokens=500):`.

    It draws on what enclosing reservations still hold, and takes only what is missing from what is left. Usage that is
    reported inside is taken off it first; at the end of the block the rest goes back. In a plain function write `with`.

    Args:
        tokens: Input plus output tokens.
        usd: Dollars: a string such as `"0.05"`, a Decimal or an int.
        requests: Calls of a model.

    Raises:
        BudgetExhaustedError: On entering: it does not fit. A function may catch this and do with less.
        ValueError: There is no amount, or one is negative.
        RunCancelledError: The run has to stop.
        OutsideRunError: There is no current run.
    """
    return Reserve(_current("apflow.reserve()"))(tokens=tokens, usd=usd, requests=requests)


def _current(what: str) -> RunState:
    state = current_state()
    if state is None:
        raise OutsideRunError(what)
    return state
