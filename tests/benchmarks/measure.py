"""Interleaved repeats, so that every side meets the same state of the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .sides import NotMeasuredError, Sample, Side

if TYPE_CHECKING:
    from collections.abc import Mapping

Outcome = list[Sample] | str
"""The repeats of one side, or why there are none."""

_WARM_UP = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One scenario on several sides.

    Attributes:
        scenario: What the sides are asked for.
        counts: For each side by name, how many operations make one repeat. Slow sides do fewer.
        repeats: How many repeats each side does; of the two numbers the second is for `--quick`.
    """

    scenario: str
    counts: Mapping[str, int]
    repeats: tuple[int, int]


def run(experiment: Experiment, sides: Mapping[str, Side], *, quick: bool) -> dict[str, Outcome]:
    """Return what each side of the experiment took.

    After a small run that is thrown away the sides take turns, once in this order and once in the other.
    A side that fails is left out from then on.
    """
    outcomes: dict[str, Outcome] = {}
    for name, count in experiment.counts.items():
        warm = _measure(sides[name], experiment.scenario, min(count, _WARM_UP))
        outcomes[name] = warm if isinstance(warm, str) else []
    order = list(experiment.counts)
    for _ in range(experiment.repeats[quick]):
        for name in order:
            outcome = outcomes[name]
            if isinstance(outcome, list):
                sample = _measure(sides[name], experiment.scenario, experiment.counts[name])
                outcomes[name] = sample if isinstance(sample, str) else [*outcome, sample]
        order.reverse()
    return outcomes


def _measure(side: Side, scenario: str, count: int) -> Sample | str:
    try:
        return side.measure(scenario, count)
    except NotMeasuredError as error:
        return str(error)
