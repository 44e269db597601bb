"""`apflow recover`: carries on what died with its process."""

from __future__ import annotations

import contextlib
import sys

import click

from apflow.bridge.cli.database import database_option
from apflow.bridge.cli.exits import Failed
from apflow.bridge.cli.options import app_option
from apflow.bridge.cli.output import json_option, visible, write_json, write_table


@click.command("recover")
@app_option
@click.option("--everything", is_flag=True, help="Also runs that were merely called, and died with their caller.")
@database_option
@json_option
def recover(*, app: str | None, everything: bool, database_url: str | None, as_json: bool) -> None:
    """Take over the runs of an app that nobody holds, and wait for their ends.

    Leaves alone what was cancelled or has failed; `apflow runs resume` carries on a failed one.
    """
    from apflow.bridge.cli.resuming import recovered
    from apflow.bridge.cli.runs import status_of

    with contextlib.redirect_stdout(sys.stderr):
        rows, unknown = recovered(app, database_url, everything=everything)
    if as_json:
        found = [{"run_id": row.id, "task": row.name, "status": status_of(row)} for row in rows]
        write_json({"recovered": found, "unknown": unknown})
    else:
        columns = ("id", "task", "status")
        write_table(columns, [(row.id, row.name, status_of(row)) for row in rows], nothing="nothing to carry on")
        if unknown:
            names = ", ".join(sorted(set(unknown)))
            click.echo(f"left alone, because this app does not have their tasks: {visible(names)}", err=True)
    left = [row for row in rows if row.status != "completed"]
    if left:
        error = Failed("failed", f"{len(left)} of {len(rows)} did not complete; `apflow runs show ID` has more")
        error.shown = as_json
        raise error
