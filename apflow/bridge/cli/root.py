"""The command `apflow` itself: its options, its commands, and what becomes of their errors."""

from __future__ import annotations

import itertools
import logging
import sys
import traceback
from typing import Any

import click

from apflow.bridge.cli.budgets import budget
from apflow.bridge.cli.database import database
from apflow.bridge.cli.exits import Failed, epilog, failed
from apflow.bridge.cli.output import visible
from apflow.bridge.cli.recovering import recover
from apflow.bridge.cli.running import run
from apflow.bridge.cli.runs import runs
from apflow.bridge.cli.serving import serve
from apflow.bridge.cli.shells import completion
from apflow.bridge.cli.tasks import tasks
from apflow.bridge.cli.usage import usage


class Root(click.Group):
    """The commands. Whatever one raises ends as one line and an exit code."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["apflow.json"] = _wants_json(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            if not ctx.meta["apflow.json"]:
                raise
            raise self._told(ctx, Failed("usage", error.format_message())) from None
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError) as error:
            if isinstance(error, Failed):
                self._told(ctx, error)
            raise
        except KeyboardInterrupt:
            raise self._told(ctx, Failed("stopped", "interrupted")) from None
        except Exception as error:  # noqa: BLE001 - commands end as one line, unless --traceback asks for more
            raise self._told(ctx, failed(error)) from None

    def _told(self, ctx: click.Context, error: Failed) -> Failed:
        error.as_json = ctx.meta["apflow.json"]
        if ctx.params.get("traceback"):
            trace = error.trace or "".join(traceback.format_exception(error))
            click.echo("\n".join(map(visible, trace.split("\n"))), err=True)
        return error


def _wants_json(args: list[str]) -> bool:
    """Whether a program reads the answer. `apflow run` takes its inputs with `--json`."""
    words = [one for one in args if not one.startswith("-")]
    if words[:1] == ["run"]:
        return "--output=json" in args or any(pair == ("--output", "json") for pair in itertools.pairwise(args))
    return "--json" in args


@click.group(cls=Root, epilog=epilog(), context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--traceback", is_flag=True, help="Show where an error was raised.")
@click.version_option(package_name="apflow", prog_name="apflow")
def root(*, traceback: bool) -> None:  # noqa: ARG001 - read where errors are told
    """Call, serve and look after apflow tasks.

    An app is a script or a module that has tasks: app.py, module, or either with :attribute.
    """
    # What is refused is told by the command, and not by the logger too unless the app has set one up.
    logging.getLogger("apflow.bridge.refusals").addHandler(logging.NullHandler())


for _command in (serve, run, runs, tasks, usage, budget, database, recover, completion):
    root.add_command(_command)


def main() -> None:
    """Run the command line of this process: the console script `apflow`."""
    sys.exit(root.main(prog_name="apflow", standalone_mode=True))
