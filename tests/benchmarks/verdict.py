"""What a promise says, and whether the measurements keep it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .measure import Outcome
    from .sides import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        what: What is compared.
        against: With what.
        experiment: The experiment it comes from.
        ours: Our side in that experiment.
        reference: The other side.
        compare: The figure is ours / reference (`costs`), reference / ours (`faster`) or ours - reference
            in seconds (`adds`).
        limit: The bound of the figure: at least this for `faster`, at most for the others. None when nothing
            is promised.
        or_rate: Operations per second with which the promise is kept whatever the figure.
        unit: What is measured, and printed: the seconds of one operation, operations per second, or the bytes of one.
        part: Which of the parts of our side's samples is compared; None is the median.
        reference_part: The same of the other side.
    """

    what: str
    against: str
    experiment: str
    ours: str
    reference: str
    compare: Literal["costs", "faster", "adds"] = "faster"
    limit: float | None = None
    or_rate: float | None = None
    unit: Literal["seconds", "per second", "bytes"] = "seconds"
    part: str | None = None
    reference_part: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a row came to.

    Attributes:
        row: The row.
        ours: Median of our repeats in seconds or bytes, None when not measured.
        reference: The same of the other side.
        figure: Median of the figures of the single repeats, None when one side was not measured.
        holds: Whether the promise is kept; None when nothing is promised or it cannot be told.
        reason: Why something was not measured, else empty.
    """

    row: Row
    ours: float | None
    reference: float | None
    figure: float | None
    holds: bool | None
    reason: str


def judge(row: Row, outcomes: Mapping[str, Outcome]) -> Verdict:
    """Return what the outcomes of the row's experiment say about it."""
    ours, reference = outcomes[row.ours], outcomes[row.reference]
    our_median, reference_median = _median(ours, row.part), _median(reference, row.reference_part)
    figure = _figure(row, ours, reference)
    return Verdict(
        row=row,
        ours=our_median,
        reference=reference_median,
        figure=figure,
        holds=_holds(row, our_median, figure),
        reason="; ".join(dict.fromkeys(outcome for outcome in (ours, reference) if isinstance(outcome, str))),
    )


def _median(outcome: Outcome, part: str | None) -> float | None:
    return None if isinstance(outcome, str) else statistics.median(_value(sample, part) for sample in outcome)


def _value(sample: Sample, part: str | None) -> float:
    return sample.median if part is None else sample.parts[part]


def _figure(row: Row, ours: Outcome, reference: Outcome) -> float | None:
    """Return the median over the repeats: neighbours in time are compared with each other."""
    if isinstance(ours, str) or isinstance(reference, str):
        return None
    pairs = [
        (_value(mine, row.part), _value(other, row.reference_part)) for mine, other in zip(ours, reference, strict=True)
    ]
    if row.compare == "adds":
        return statistics.median(mine - other for mine, other in pairs)
    if row.compare == "costs":
        return statistics.median(mine / other for mine, other in pairs)
    return statistics.median(other / mine for mine, other in pairs)


def _holds(row: Row, ours: float | None, figure: float | None) -> bool | None:
    if row.limit is None or ours is None:
        return None
    if row.or_rate is not None and 1 / ours >= row.or_rate:
        return True
    if figure is None:
        return None
    return figure >= row.limit if row.compare == "faster" else figure <= row.limit
