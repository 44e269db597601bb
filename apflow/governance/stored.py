"""What governs a run, as JSON values in its row, so that another process governs it alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apflow.governance.accounts import Line
from apflow.governance.amounts import Amounts, usd_of
from apflow.governance.budget import Budget
from apflow.governance.policy import CostPolicy, dump_policy, load_policy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from apflow.options import Options

ABOVE = "above"
_LINE = ("name", "per", "scope_id", "unit", "window", "tz", "limit")


@dataclass(frozen=True, slots=True)
class Above:
    """What runs that are not in this process put above a run that was submitted inside them."""

    lines: tuple[Line, ...]
    policies: tuple[CostPolicy, ...]


def stored_options(options: Options, lines: Sequence[Line], policies: Sequence[CostPolicy]) -> dict[str, Any]:
    """Return the options that a call changed, and what stands above the run."""
    stored: dict[str, Any] = {}
    if "budget" in options.overrides:
        stored["budget"] = [_dump_budget(one) for one in options.budget]
    if "policy" in options.overrides:
        stored["policy"] = [one if isinstance(one, str) else dump_policy(one) for one in options.policy]
    if "models" in options.overrides:
        stored["models"] = list(options.models)
    if "reserve" in options.overrides:
        stored["reserve"] = _dump_amounts(options.reserve)
    if lines or policies:
        stored[ABOVE] = {
            "lines": [[getattr(line, name) for name in _LINE] for line in lines],
            "policies": [dump_policy(one) for one in policies],
        }
    return stored


def load_options(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of `Options` out of what `stored_options` made, and whatever else was stored, as it is."""
    loaded = {name: value for name, value in stored.items() if name != ABOVE}
    if "budget" in loaded:
        loaded["budget"] = tuple(Budget(**one) for one in loaded["budget"])
    if "policy" in loaded:
        loaded["policy"] = tuple(one if isinstance(one, str) else load_policy(one) for one in loaded["policy"])
    if "models" in loaded:
        loaded["models"] = tuple(loaded["models"])
    if "reserve" in loaded:
        reserve = loaded["reserve"]
        loaded["reserve"] = None if reserve is None else Amounts(**reserve)
    return loaded


def load_above(stored: Mapping[str, Any]) -> Above | None:
    """Return what stands above a run that was stored with `stored_options`."""
    above = stored.get(ABOVE)
    if above is None:
        return None
    lines = tuple(Line(*values) for values in above["lines"])
    return Above(lines, tuple(load_policy(one) for one in above["policies"]))


def _dump_budget(budget: Budget) -> dict[str, Any]:
    return {
        "tokens": budget.tokens,
        "usd": None if budget.usd is None else str(budget.usd),
        "requests": budget.requests,
        "per": budget.per,
        "window": budget.window,
        "tz": budget.tz,
        "reserve": None if budget.reserve is None else _readable(budget.reserved),
        "name": budget.name,
    }


def _readable(amounts: Amounts) -> dict[str, Any]:
    return {"tokens": amounts.tokens, "usd": str(usd_of(amounts.usd)), "requests": amounts.requests}


def _dump_amounts(amounts: Amounts | None) -> dict[str, int] | None:
    return None if amounts is None else {"tokens": amounts.tokens, "usd": amounts.usd, "requests": amounts.requests}
