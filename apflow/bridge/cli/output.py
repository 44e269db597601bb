"""What commands write: tables on a terminal, aligned text in a pipe, JSON for programs."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON, for programs.")


def visible(text: str) -> str:
    """Return a text in which nothing steers the terminal: what cannot be printed is escaped."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def to_json(value: Any, *, indent: int | None = 2) -> str:
    """Return a value as JSON text: times in ISO 8601, decimals as text, records as objects."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
    text = json.dumps(value, indent=indent, default=_plain, ensure_ascii=encoding != "utf8")
    # Half of a surrogate pair is no text that could be encoded.
    text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    # JSON escapes some of what steers terminals, not all. Outside its strings there is nothing but ASCII and new lines.
    return _STEERING.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


#: Control characters beyond those of JSON, and what ends lines or turns the direction of text.
_STEERING = re.compile(r"[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def write_json(value: Any) -> None:
    """Write a value as JSON."""
    click.echo(to_json(value))


def _plain(value: Any) -> Any:
    from dataclasses import fields, is_dataclass
    from datetime import date

    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: getattr(value, one.name) for one in fields(value)}
    return value.isoformat() if isinstance(value, date) else str(value)


def write_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, nothing: str) -> None:
    """Write rows below their headings.

    Args:
        columns: The headings.
        rows: Texts and numbers; None is an empty cell.
        nothing: What is said when there are no rows, on the standard error: there is nothing to read.
    """
    if not rows:
        click.echo(nothing, err=True)
        return
    cells = [["" if cell is None else visible(str(cell)) for cell in row] for row in rows]
    right = [all(isinstance(row[number], int | float | None) for row in rows) for number in range(len(columns))]
    if sys.stdout.isatty():
        _rich_table(columns, cells, right)
        return
    widths = [max(len(line[number]) for line in (list(columns), *cells)) for number in range(len(columns))]
    for line in ([name.upper() for name in columns], *cells):
        padded = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        ]
        click.echo("  ".join(padded).rstrip())


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, to_right in zip(columns, right, strict=True):
        table.add_column(name, justify="right" if to_right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    Console(file=sys.stdout).print(table)


_STYLES = {"completed": "green", "failed": "red", "cancelled": "dim", "interrupted": "yellow", "in_progress": "cyan"}


def write_fields(fields: Mapping[str, object]) -> None:
    """Write names with their values, one a line; a text of several lines stands below its name."""
    shown = {name: value for name, value in fields.items() if value is not None}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        lines = [visible(line) for line in str(value).split("\n")]
        if len(lines) == 1:
            click.echo(f"{name.ljust(width)}  {lines[0]}".rstrip())
        else:
            click.echo(name)
            for line in lines:
                click.echo(f"  {line}")


def time_text(moment: datetime | None) -> str | None:
    """Return a moment in UTC, to the second."""
    from datetime import UTC

    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
