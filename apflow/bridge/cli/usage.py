"""`apflow usage`: what was used, by task, user, model or day."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import click

from apflow.bridge.cli.database import ask, database_option
from apflow.bridge.cli.options import Kind
from apflow.bridge.cli.output import json_option, write_json, write_table

if TYPE_CHECKING:
    from datetime import datetime

_AGO = re.compile(r"(\d{1,6})([hdw])")
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


class Moment(Kind):
    """A moment, or how long ago it was: `2026-11-23`, `2026-11-23T08:00+01:00`, `36h`, `7d`, `2w`. UTC if no zone."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        from datetime import UTC, datetime, timedelta

        ago = _AGO.fullmatch(value)
        try:
            if ago is not None:
                return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
            found = datetime.fromisoformat(value)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time; write 2026-11-23, 2026-11-23T08:00+01:00, 36h, 7d or 2w", param, ctx)
        return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


@click.command("usage")
@click.option("--by", type=click.Choice(["task", "user", "model", "day"]), default="task", show_default=True)
@click.option("--since", type=Moment(), help="The first moment that counts: 2026-11-23, or 7d for a week ago.")
@click.option("--until", type=Moment(), help="The first moment that counts no more.")
@database_option
@json_option
def usage(*, by: Any, since: datetime | None, until: datetime | None, database_url: str | None, as_json: bool) -> None:
    """Report tokens, requests and costs, the most expensive first."""
    if since is not None and until is not None and until < since:
        raise click.UsageError("--until is before --since")
    table = ask(database_url, lambda runtime: runtime.usage.by(by, since, until))
    if as_json:
        write_json(json.loads(table.to_json()))
        return
    columns = (by, "runs", "requests", "input", "output", "tokens", "usd", "unpriced")
    rows = [
        (
            key,
            row.runs,
            row.requests,
            row.input_tokens,
            row.output_tokens,
            row.total_tokens,
            f"{row.cost_usd:f}",
            row.unpriced_events,
        )
        for key, row in [*((row.key or "-", row) for row in table), ("total", table.total)]
    ]
    write_table(columns, rows if len(table) else [], nothing="nothing was used")
