"""`apflow tasks`: what an app has."""

from __future__ import annotations

import click

from apflow.bridge.cli.database import database_option
from apflow.bridge.cli.options import app_option
from apflow.bridge.cli.output import json_option, write_json, write_table


@click.command("tasks")
@app_option
@database_option
@json_option
def tasks(*, app: str | None, database_url: str | None, as_json: bool) -> None:
    """List the tasks of an app."""
    from apflow.bridge.cli.loading import load
    from apflow.bridge.cli.running import open_door

    found = open_door(load(app, database_url), database_url).modules()
    if as_json:
        write_json(
            [
                {
                    "name": name,
                    "description": module.description,
                    "tags": list(module.tags),
                    "input_schema": module.input_schema.model_json_schema(),
                    "output_schema": module.output_schema.model_json_schema(),
                }
                for name, module in found.items()
            ]
        )
        return
    rows = [(name, " ".join(module.description.split())) for name, module in found.items()]
    write_table(("task", "description"), rows, nothing="this app has no tasks")
