"""`apflow serve`: an app over MCP and A2A."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import click

from apflow.bridge.cli.database import database_option
from apflow.bridge.cli.exits import Failed

if TYPE_CHECKING:
    from apflow.bridge.cli.loading import App

#: What they say of each request and session would hide what the app says.
_TALKATIVE = ("mcp", "a2a", "uvicorn", "httpx")
#: Whoever has one token can try out shorter keys at leisure (RFC 7518, 3.2).
_KEY_BYTES = 32


@click.command("serve")
@click.argument("app", metavar="APP", envvar="APFLOW_APP")
@click.option("--transport", type=click.Choice(["http", "stdio"]), default="http", show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--mcp/--no-mcp", default=True, help="Tools at /mcp.")
@click.option("--a2a/--no-a2a", default=True, help="Skills at /, and the agent's card.")
@click.option("--explorer", is_flag=True, help="A page to look at the tasks and to call them.")
@click.option("--token-env", metavar="NAME", help="The environment variable with the token that callers have to send.")
@click.option(
    "--jwt-key-env", metavar="NAME", help="The environment variable with the key of callers' JSON web tokens."
)
@click.option("--allow-unauthenticated", is_flag=True, help="Serve everybody, on a host that is not loopback too.")
@click.option("--name", help="What the server is called.")
@click.option("--tag", "tags", multiple=True, help="Only tasks with this tag; may be given again, for both.")
@click.option("--prefix", help="Only tasks whose names begin like this.")
@click.option("--default-skill", help="The task that plain text messages go to, over A2A.")
@click.option("--engine", is_flag=True, help="Also the executors and the task modules: callers can make tasks.")
@database_option
def serve(
    *,
    app: str,
    database_url: str | None,
    engine: bool,
    token_env: str | None,
    jwt_key_env: str | None,
    **options: Any,
) -> None:
    """Serve the tasks of an app over MCP and A2A, until it is stopped.

    Interrupted runs are carried on. Secrets come from environment variables, never from the command line, which other
    users of the machine can read.
    """
    from apflow.bridge.cli.loading import load

    if options["transport"] == "http" and not (token_env or jwt_key_env or options["allow_unauthenticated"]):
        _check_alone(options["host"])
    auth = _auth(token_env, jwt_key_env)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    loaded = load(app, database_url)
    target = _with_engine(loaded) if engine else loaded.target
    _serve(loaded, target, database_url, {**options, "tags": list(options["tags"]) or None, "auth": auth})


def _serve(loaded: App, target: Any, database_url: str | None, options: dict[str, Any]) -> None:
    import apflow
    from apflow.bridge.cli.running import open_door

    open_door(loaded, database_url)  # says what is wrong with the app before anything listens
    try:
        apflow.serve(target, **options)
    except ValueError as error:
        raise Failed("usage", str(error)) from None


def _check_alone(host: str) -> None:
    """Refuse to let other machines in without asking who they are.

    Raises:
        Failed: They would be.
    """
    from apflow.bridge.guard import is_loopback

    if not is_loopback(host):
        raise Failed(
            "usage",
            f"{host} can be reached from other machines, and nobody would be asked who they are; give --token-env or "
            "--jwt-key-env, or --allow-unauthenticated when something in front of this server asks",
        )


def _with_engine(loaded: App) -> Any:
    import apflow

    target = loaded.target if loaded.target is not None else apflow.runtime()
    if not isinstance(target, apflow.Runtime):
        raise Failed("usage", f"--engine needs an app or a runtime, and {loaded.text} is neither; leave it out")
    target.include_engine()
    return target


def _auth(token_env: str | None, jwt_key_env: str | None) -> Any:
    """Return who may call, made of what stands in the environment.

    Raises:
        Failed: Nothing stands there, the key is too short, or both were asked for.
    """
    if token_env and jwt_key_env:
        raise Failed("usage", "--token-env and --jwt-key-env are two ways to know callers; give one")
    name = token_env or jwt_key_env
    if not name:
        return None
    secret = os.environ.get(name)
    if not secret:
        raise Failed("usage", f"the environment variable {name} is empty; put the secret there")
    if token_env:
        return secret
    if len(secret.encode()) < _KEY_BYTES:
        text = f"the key in {name} has less than {_KEY_BYTES} bytes, so it can be guessed; make a longer one"
        raise Failed("usage", text)
    from apcore_mcp.auth import JWTAuthenticator

    return JWTAuthenticator(secret, require_claims=["sub", "exp"])
