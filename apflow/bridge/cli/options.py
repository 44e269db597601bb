"""Options that several commands have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    Choice = click.Choice[Any]
    Kind = click.ParamType[Any]
else:  # They are no generics before click 8.2 and 8.4.
    Choice, Kind = click.Choice, click.ParamType

app_option = click.option(
    "--app",
    envvar="APFLOW_APP",
    metavar="APP",
    is_eager=True,
    help="The app: app.py, module, or either with :attribute.",
)
