"""`apflow runs`: what ran, and what can be done with it."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import click

from apflow.bridge.cli.database import ask, database_option
from apflow.bridge.cli.exits import Failed
from apflow.bridge.cli.options import app_option
from apflow.bridge.cli.output import json_option, time_text, to_json, write_fields, write_json, write_table

if TYPE_CHECKING:
    from apflow.records import RunRecord, RunTree

_STATUSES = ("pending", "in_progress", "interrupted", "completed", "failed", "cancelled")
_CANCELLED = {"cancelled": "cancelled", "in_progress": "asked to stop; the process that runs it sees that shortly"}
run_id = click.argument("run_id", metavar="ID")


@click.group("runs")
def runs() -> None:
    """List runs, look at one, cancel one or carry one on."""


@runs.command("list")
@click.option("--status", type=click.Choice(_STATUSES), help="Only these; interrupted: nobody holds it.")
@click.option("--name", help="Only runs of this task.")
@click.option("--user", help="Only runs of this user.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many at most.")
@click.option("--offset", type=click.IntRange(min=0), default=0, help="How many to skip.")
@database_option
@json_option
def list_(
    *,
    status: str | None,
    name: str | None,
    user: str | None,
    limit: int,
    offset: int,
    database_url: str | None,
    as_json: bool,
) -> None:
    """List runs, the newest first."""
    found = ask(
        database_url,
        lambda runtime: runtime.runs.list(status=status, name=name, user=user, limit=limit, offset=offset),
    )
    if as_json:
        write_json([public(row) for row in found])
        return
    columns = ("id", "task", "status", "user", "started", "seconds")
    rows = [
        (row.id, row.name, status_of(row), row.user_id, time_text(row.started_at or row.created_at), _seconds(row))
        for row in found
    ]
    write_table(columns, rows, nothing="there are no such runs")


@runs.command()
@run_id
@database_option
@json_option
def show(*, run_id: str, database_url: str | None, as_json: bool) -> None:
    """Show all that is known of a run, with the text of its error."""
    row = ask(database_url, lambda runtime: runtime.runs.get(run_id))
    if row is None:
        raise not_there(run_id)
    if as_json:
        write_json(public(row))
        return
    fields: dict[str, object] = {"id": row.id, "task": row.name, "status": status_of(row)}
    for name, value in public(row).items():
        if name not in ("id", "name", "status", "error_info") and value not in (None, False):
            fields[name] = _shown(name, getattr(row, name))
    traceback = (row.error_info or {}).get("traceback")
    fields["traceback"] = "\n".join(traceback) if traceback else None
    write_fields(fields)


@runs.command()
@run_id
@database_option
@json_option
def tree(*, run_id: str, database_url: str | None, as_json: bool) -> None:
    """Show a run with the runs inside it."""
    rows = _levels(ask(database_url, lambda runtime: runtime.runs.tree(run_id)))
    if as_json:
        write_json([{"depth": depth, **public(row)} for depth, row in rows])
        return
    columns = ("task", "status", "seconds", "id")
    table = [("  " * depth + row.name, status_of(row), _seconds(row), row.id) for depth, row in rows]
    write_table(columns, table, nothing="")


@runs.command()
@run_id
@database_option
@json_option
def cancel(*, run_id: str, database_url: str | None, as_json: bool) -> None:
    """Cancel a run and the runs inside it; one that has ended stays as it is.

    What another process runs stops when that process sees it, within its lease: 10 seconds by default.
    """

    async def cancelled(runtime: Any) -> RunRecord | None:
        await runtime.runs.cancel(run_id)
        row: RunRecord | None = await runtime.runs.get(run_id)
        return row

    row = ask(database_url, cancelled)
    if row is None:
        raise not_there(run_id)
    status = status_of(row)
    if as_json:
        write_json({"run_id": run_id, "status": status, "cancel_requested": row.cancel_requested_at is not None})
    else:
        click.echo(_CANCELLED.get(status, f"it has ended already: {status}"))


@runs.command()
@run_id
@app_option
@database_option
@json_option
def resume(*, run_id: str, app: str | None, database_url: str | None, as_json: bool) -> None:
    """Carry an interrupted or failed run on here, wait for it, and write its result."""
    from apflow.bridge.cli.calling import write_result
    from apflow.bridge.cli.resuming import resumed

    with contextlib.redirect_stdout(sys.stderr):
        row = resumed(run_id, app, database_url)
    if as_json:
        write_json({"run_id": run_id, "status": status_of(row), "result": row.result})
    else:
        write_result(row.result)


def not_there(run_id: str) -> Failed:
    """Return the error about a run that does not exist."""
    return Failed("not_found", f"there is no run {run_id!r} in this database; `apflow runs list` has them")


def status_of(row: RunRecord) -> str:
    """Return the status of a run, `interrupted` for one that nobody holds."""
    return "interrupted" if row.interrupted else row.status or "pending"


def public(row: RunRecord) -> dict[str, Any]:
    """Return a run as a JSON object."""
    from dataclasses import fields

    return {one.name: getattr(row, one.name) for one in fields(row)}


def _shown(name: str, value: Any) -> object:
    from datetime import datetime

    if isinstance(value, datetime):
        return time_text(value)
    structured = isinstance(value, dict | list) or name == "result"
    return to_json(value, indent=None) if structured else value


def _seconds(row: RunRecord) -> float | None:
    begun = row.started_at or row.created_at
    if begun is None or row.completed_at is None:
        return None
    return round((row.completed_at - begun).total_seconds(), 3)


def _levels(tree: RunTree) -> list[tuple[int, RunRecord]]:
    """Return the runs of a tree with their depths, parents first: it may be deeper than Python's stack."""
    found, waiting = [], [(0, tree)]
    while waiting:
        depth, one = waiting.pop()
        found.append((depth, one.run))
        waiting += [(depth + 1, child) for child in reversed(one.children)]
    return found
