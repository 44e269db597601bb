"""`apflow.serve`: tasks as MCP tools and A2A skills, over HTTP, for a desktop client, or inside another app."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from apcore import ModuleError

from apflow import __version__
from apflow.bridge.door import Door
from apflow.bridge.guard import is_loopback
from apflow.bridge.listening import bind, converse, listen, say
from apflow.bridge.site import Plan, Site

if TYPE_CHECKING:
    from collections.abc import Sequence

    from apcore import ACL, ApprovalHandler

    from apflow.bridge.auth import Auth
    from apflow.bridge.door import Target

logger = logging.getLogger(__name__)

Transport = Literal["http", "stdio"]
DEFAULT_NAME = "apflow"
_HIGHEST_PORT = 65535


def serve(
    target: Target = None,
    *,
    mcp: bool = True,
    a2a: bool = True,
    transport: Transport = "http",
    host: str = "127.0.0.1",
    port: int = 8000,
    explorer: bool = False,
    auth: Auth | None = None,
    name: str | None = None,
    tags: Sequence[str] | None = None,
    prefix: str | None = None,
    allow_unauthenticated: bool = False,
    acl: ACL | None = None,
    approval_handler: ApprovalHandler | None = None,
    default_skill: str | None = None,
) -> None:
    """Serve tasks until SIGINT or SIGTERM. See `aserve` for the arguments and the errors.

    Raises:
        RuntimeError: An event loop runs on this thread: write `await apflow.aserve(...)` instead.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise RuntimeError("an event loop runs on this thread; write `await apflow.aserve(...)` instead")
    asyncio.run(
        aserve(
            target,
            mcp=mcp,
            a2a=a2a,
            transport=transport,
            host=host,
            port=port,
            explorer=explorer,
            auth=auth,
            name=name,
            tags=tags,
            prefix=prefix,
            allow_unauthenticated=allow_unauthenticated,
            acl=acl,
            approval_handler=approval_handler,
            default_skill=default_skill,
        )
    )


async def aserve(
    target: Target = None,
    *,
    mcp: bool = True,
    a2a: bool = True,
    transport: Transport = "http",
    host: str = "127.0.0.1",
    port: int = 8000,
    explorer: bool = False,
    auth: Auth | None = None,
    name: str | None = None,
    tags: Sequence[str] | None = None,
    prefix: str | None = None,
    allow_unauthenticated: bool = False,
    acl: ACL | None = None,
    approval_handler: ApprovalHandler | None = None,
    default_skill: str | None = None,
) -> None:
    """Serve tasks until a signal comes or this is cancelled, and tell the address in one line on stderr.

    Interrupted runs are carried on at the start. At the end nothing new is accepted, runs get `shutdown_seconds` of
    their runtime, and what is left is handed back to the next server; a second signal ends the process at once.

    Args:
        target: A registry of apcore, a runtime, a task, a list of tasks, or None for all tasks of the runtime that a
            call made here would use.
        mcp: Serve MCP, over HTTP at `/mcp`.
        a2a: Serve A2A at `/`, its card at `/.well-known/agent-card.json`. Not over stdio.
        transport: `"http"`, or `"stdio"` for a client that starts this program; it needs no authentication.
        host: The address to listen on.
        port: 0 to 65535; 0 is a free one.
        explorer: Serve a page at `/explorer` that lists the tasks and calls them.
        auth: A token of at least 16 characters, whose bearer is the user `bearer`; a mapping of tokens to user ids;
            or an object with `authenticate(headers)`, such as apcore's `JWTAuthenticator`. None asks nobody.
        name: What the server calls itself; None is `apflow`.
        tags: Serve only tasks that have all of these.
        prefix: Serve only tasks whose names begin with this.
        allow_unauthenticated: Listen on a host that others reach, without `auth`.
        acl: Who may call what; None is everybody everything.
        approval_handler: Who approves calls of tasks with the tag `requires_approval`; without one they are refused.
        default_skill: The task that a plain text over A2A goes to; None is the only one there is.

    Raises:
        TypeError: `target` or `auth` is something else.
        ValueError: An argument is out of its range, or others reach `host` and `auth` is None.
        OSError: The address cannot be listened on.
        StorageError: The database cannot be used.
    """
    _check(transport, host, port, auth, allow_unauthenticated=allow_unauthenticated)
    web, called = transport == "http", name or DEFAULT_NAME
    plan = Plan(mcp, a2a and web, explorer and web, auth, called, default_skill)
    door = _open(target, tags, prefix, acl, approval_handler)
    if web:
        await _listen_at(door, plan, host, port)
    else:
        await converse(door, name=plan.name, version=__version__)


def asgi(
    target: Target = None,
    *,
    mcp: bool = True,
    a2a: bool = True,
    explorer: bool = False,
    auth: Auth | None = None,
    name: str | None = None,
    tags: Sequence[str] | None = None,
    prefix: str | None = None,
    acl: ACL | None = None,
    approval_handler: ApprovalHandler | None = None,
    default_skill: str | None = None,
    url: str | None = None,
) -> Site:
    """Return the app that `serve` serves, to be mounted in another one or given to a server of ASGI apps.

    An app that mounts it has to enter its lifespan: `FastAPI(lifespan=app.lifespan)`, or
    `async with app.lifespan():` in a lifespan of one's own. Nobody knows here who can reach it, so give it `auth`
    unless the app around it asks who calls.

    Args:
        target: See `aserve`, as for all arguments but one.
        mcp: See there.
        a2a: See there.
        explorer: See there.
        auth: See there.
        name: See there.
        tags: See there.
        prefix: See there.
        acl: See there.
        approval_handler: See there.
        default_skill: See there.
        url: Where callers reach this app, with the path it is mounted at, as the card of A2A tells them:
            `https://example.com/agents`. None tells each caller the address that its request went to.

    Raises:
        TypeError: `target` or `auth` is something else.
        ValueError: An argument is out of its range.
    """
    address = f"{url.rstrip('/')}/" if url else ""
    plan = Plan(mcp, a2a, explorer, auth, name or DEFAULT_NAME, default_skill, url=address)
    return Site(_open(target, tags, prefix, acl, approval_handler), plan)


async def _listen_at(door: Door, plan: Plan, host: str, port: int) -> None:
    local = is_loopback(host)
    with bind(host, port) as sock:
        number = sock.getsockname()[1]
        address = f"http://[{host}]:{number}" if ":" in host else f"http://{host}:{number}"
        # Where others reach this machine only they know: their requests tell.
        site = Site(door, replace(plan, url=f"{address}/" if local else "", loopback=local))
        parts = {"MCP at /mcp": plan.mcp, "A2A at /": plan.a2a, "the explorer at /explorer": plan.explorer}
        line = f"apflow serves at {address}: {', '.join(part for part, on in parts.items() if on)}"
        await listen(site, sock, lambda: say(line))


def _open(
    target: Target,
    tags: Sequence[str] | None,
    prefix: str | None,
    acl: ACL | None,
    approval_handler: ApprovalHandler | None,
) -> Door:
    if isinstance(tags, str):
        raise TypeError("tags takes a list of strings, not a string")
    try:
        door = Door(target, tags=tags, prefix=prefix, acl=acl, approval_handler=approval_handler)
    except ModuleError as error:  # a name that apcore does not take, or that two tasks have
        raise ValueError(f"these tasks cannot be served together: {error.message}") from None
    if not door.modules():
        logger.warning("there is nothing to serve yet: no task fits; decorate one, or look at `tags` and `prefix`")
    return door


def _check(transport: str, host: str, port: int, auth: Auth | None, *, allow_unauthenticated: bool) -> None:
    if transport not in ("http", "stdio"):
        raise ValueError(f'transport must be "http" or "stdio", got {transport!r}')
    if not isinstance(port, int) or isinstance(port, bool) or not 0 <= port <= _HIGHEST_PORT:
        raise ValueError(f"port must be an int from 0 to {_HIGHEST_PORT}, got {port!r}")
    if transport == "http" and not is_loopback(host) and auth is None and not allow_unauthenticated:
        raise ValueError(
            f"host {host!r} can be reached from other machines, and auth is None: anybody there could call these "
            "tasks. Give auth=, or allow_unauthenticated=True when something before this server asks who calls"
        )
