"""The table for people and the JSON for programs."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .measure import Outcome
    from .verdict import Row, Verdict

_NOTES = """\
Medians of interleaved repeats; the ratio is the median of the ratios of the single repeats.
What was committed survives the death of the process on every side. When the power fails, apflow's default
(WAL, synchronous=NORMAL) may lose the last commits; DBOS's default does not, and neither does
durability="full": those rows compare like with like."""


def show(verdicts: Sequence[Verdict], machine: Mapping[str, str]) -> None:
    """Print one line per verdict, how to read them, and what they were measured on."""
    table = Table()
    for heading in ("what", "ours", "reference", "its value", "ratio", "bound", "holds?"):
        table.add_column(heading, justify="left" if heading in {"what", "reference"} else "right")
    for verdict in verdicts:
        table.add_row(*_cells(verdict))
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(table)
    console.print(_NOTES, highlight=False)
    console.print("; ".join(f"{name}: {value}" for name, value in machine.items()), highlight=False)


def as_json(
    verdicts: Sequence[Verdict], results: Mapping[str, Mapping[str, Outcome]], machine: Mapping[str, str]
) -> dict[str, Any]:
    """Return the verdicts with all repeats and what they were measured on; times are in seconds, memory in bytes."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": dict(machine),
        "rows": [asdict(verdict) for verdict in verdicts],
        "repeats": {
            experiment: {side: _repeats(outcome) for side, outcome in outcomes.items()}
            for experiment, outcomes in results.items()
        },
    }


def _repeats(outcome: Outcome) -> str | list[dict[str, float]]:
    return outcome if isinstance(outcome, str) else [asdict(sample) for sample in outcome]


def _cells(verdict: Verdict) -> tuple[str, ...]:
    row = verdict.row
    holds = {True: "yes", False: "[bold red]no[/]", None: "-"}[verdict.holds]
    figure = _not_measured(verdict.reason) if verdict.figure is None else _figure(row, verdict.figure)
    return (
        row.what,
        _value(row, verdict.ours),
        row.against,
        _value(row, verdict.reference),
        figure,
        _bound(row),
        holds,
    )


def _not_measured(reason: str) -> str:
    """Return the first line of the reason; all of it is in the JSON."""
    return escape(f"not measured: {reason.splitlines()[0]}")


def _value(row: Row, seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if row.unit == "bytes":
        return f"{seconds / 1024:,.1f} kB"
    if row.unit == "per second":
        return f"{1 / seconds:,.0f}/s"
    decimals = 3 if seconds < 0.001 else 2 if seconds < 0.01 else 1 if seconds < 0.1 else 0
    return f"{seconds * 1e3:,.{decimals}f} ms"


def _figure(row: Row, figure: float) -> str:
    if row.compare == "adds":
        return f"+{figure * 1e3:.0f} ms"
    return f"{figure:.2f}x" if row.compare == "costs" else f"{figure:.1f}x faster"


def _bound(row: Row) -> str:
    if row.limit is None:
        return "-"
    if row.compare == "adds":
        return f"≤ {row.limit * 1e3:.0f} ms"
    bound = f"≤ {row.limit:g}x" if row.compare == "costs" else f"≥ {row.limit:g}x faster"
    return bound if row.or_rate is None else f"≥ {row.or_rate:,.0f}/s or {bound}"
