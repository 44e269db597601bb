"""`apflow run`: calls a task as any other door does, with flags made from its schema."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

import click

from apflow.bridge.cli.database import database_option
from apflow.bridge.cli.exits import Failed
from apflow.bridge.cli.flags import TaskFlag, flags_of
from apflow.bridge.cli.loading import HOW, load
from apflow.bridge.cli.options import app_option
from apflow.bridge.cli.output import visible

if TYPE_CHECKING:
    from apflow.bridge.cli.loading import App
    from apflow.bridge.door import Door


class Tasks(click.Group):
    """The tasks of an app, each as a command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the task; what says where it is may stand behind it."""
        name, rest = args[0], args[1:]
        for option, parameter in (("--app", "app"), ("--database-url", "database_url")):
            ctx.params[parameter] = _peek(rest, option) or ctx.params.get(parameter)
        command = self.get_command(ctx, name)
        return (None if command is None else command.name), command, rest

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of a task.

        Raises:
            Failed: There is none, or its app cannot be loaded.
        """
        text, _, name = cmd_name.rpartition(":")
        try:
            app, door = _opened(ctx, text or ctx.params.get("app") or os.environ.get("APFLOW_APP"))
            return _command(app, door, name)
        except Failed:
            if ctx.resilient_parsing:
                return None
            raise

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the tasks, as far as it is known where they are."""
        # `--help` comes before what stands in the environment.
        text = ctx.params.get("app") or os.environ.get("APFLOW_APP")
        try:
            return list(_opened(ctx, text)[1].modules()) if text else []
        except Failed:
            return []


def _peek(args: list[str], option: str) -> str | None:
    for number, one in enumerate(args):
        if one == option and number + 1 < len(args):
            return args[number + 1]
        if one.startswith(f"{option}="):
            return one.partition("=")[2]
    return None


def _opened(ctx: click.Context, text: str | None) -> tuple[App, Door]:
    """Return the app and a door to it, loaded once for each command."""
    kept = ctx.meta.setdefault("apflow.apps", {})
    if text not in kept:
        app = load(text, ctx.params.get("database_url"))
        kept[text] = app, open_door(app, ctx.params.get("database_url"))
    found: tuple[App, Door] = kept[text]
    return found


def open_door(app: App, database_url: str | None, *, approve: bool = False) -> Door:
    """Return the door to the tasks of an app.

    Raises:
        Failed: What the app names cannot be called, or it has configured another database than this one.
    """
    from apcore.approval import AutoApproveHandler

    from apflow.bridge.door import Door

    try:
        door = Door(app.target, approval_handler=AutoApproveHandler() if approve else None)
    except (TypeError, ValueError) as error:
        raise Failed("not_found", f"{app.text}: {error}") from None
    if database_url is not None and door.runtime.store.url != database_url:
        raise Failed("usage", f"the app {app.text} has configured its own database; leave --database-url out")
    return door


def _command(app: App, door: Door, name: str) -> click.Command:
    from apflow.kinds import Task

    found = getattr(app.module, name, None) if name.isidentifier() else None
    module_id = name if door.module(name) is not None or not isinstance(found, Task) else found.name
    module = door.module(module_id)
    if module is None:
        raise Failed("not_found", f"there is no task {name!r} in {app.text}; {_known(door, name)}")
    own = _own_options()
    taken = {flag.lstrip("-") for one in own for flag in (*one.opts, *one.secondary_opts)} | {"help"}
    return TaskCommand(
        module_id,
        params=[*flags_of(module.input_schema.model_json_schema(), taken), *own],
        callback=functools.partial(_run, app, module_id),
        help=visible(" ".join(module.description.split())),
        short_help=visible(" ".join(module.description.split())),
        epilog="What stands on the command line wins over --json. Lists, objects and unions are written as JSON.",
    )


def _known(door: Door, name: str) -> str:
    from difflib import get_close_matches

    names = list(door.modules())
    if near := get_close_matches(name, names, n=1):
        return f"did you mean {near[0]!r}?"
    return f"it has {', '.join(names)}" if names else "it has no tasks"


class TaskCommand(click.Command):
    """A task as a command. What is wrong with its own flags is wrong with its inputs."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line.

        Raises:
            Failed: The task does not take that.
        """
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            own = {
                flag for one in self.params if isinstance(one, TaskFlag) for flag in (*one.opts, *one.secondary_opts)
            }
            option = getattr(error, "option_name", None)
            unknown = isinstance(error, click.NoSuchOption) or f"--{str(option).lstrip('-')}" in own
            if unknown or isinstance(getattr(error, "param", None), TaskFlag):
                text = error.format_message().rstrip(".")
                raise Failed("invalid_input", f"{text}; `apflow run {self.name} --help` has its flags") from None
            raise


def _own_options() -> list[click.Option]:
    """Return the options that every task has."""
    json_text = click.Option(
        ["--json", "given_json"],
        metavar="JSON",
        help="The inputs as a JSON object: its text, @FILE, or - for the standard input.",
    )
    return [
        json_text,
        click.Option(["--key"], help="Idempotency key: calls with the same one are one run."),
        click.Option(["--user"], help="In whose name the task is called; budgets per user count for it."),
        click.Option(["--approve"], is_flag=True, help="Approve the call of a task that requires approval."),
        click.Option(["--stream"], is_flag=True, help="Write each item of a generator when it comes, one JSON a line."),
        click.Option(
            ["--output"],
            type=click.Choice(["result", "json"]),
            default="result",
            help="Write the result alone, or an object with run_id, status and result or error.",
        ),
        click.Option(["--app"], metavar="APP", help="The app, also from APFLOW_APP."),
        click.Option(["--database-url"], metavar="URL", help="Its database, instead of APFLOW_DATABASE_URL."),
    ]


def _run(app: App, module_id: str, /, **values: Any) -> None:
    from apflow.bridge.cli.calling import Order, carry_out
    from apflow.bridge.cli.flags import given_flags

    context = click.get_current_context()
    assert context.parent is not None
    order = Order(
        app=app,
        module_id=module_id,
        flags=given_flags(context),
        given_json=values["given_json"],
        key=values["key"],
        user=values["user"],
        approve=values["approve"],
        stream=values["stream"],
        envelope=values["output"] == "json",
        database_url=context.parent.params["database_url"],
    )
    carry_out(order)


@click.group(
    cls=Tasks,
    subcommand_metavar="TASK [FLAGS]",
    options_metavar="[--app APP]",
    no_args_is_help=True,
    epilog=f"TASK is a task's name, or app.py:name. For the rest: {HOW}. With the app known, "
    "`apflow run TASK --help` shows the flags of the task.",
)
@app_option
@database_option
def run(app: str | None, database_url: str | None) -> None:
    """Call a task and write its result as JSON."""
