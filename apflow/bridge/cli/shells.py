"""`apflow completion`: what a shell needs to complete commands, options and names of tasks."""

from __future__ import annotations

import click


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Write the script that teaches a shell to complete this command.

    For bash: `eval "$(apflow completion bash)"` in ~/.bashrc; likewise for zsh. For fish: `apflow completion fish >
    ~/.config/fish/completions/apflow.fish`. With APFLOW_APP set, `apflow run` completes the names of its tasks.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, "apflow", "_APFLOW_COMPLETE").source())
