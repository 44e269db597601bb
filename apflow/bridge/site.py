"""The web application: MCP, A2A, the explorer and the health check behind one door."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from apflow import __version__
from apflow.bridge.address import note_address
from apflow.bridge.auth import Authenticated, authenticator
from apflow.bridge.bodies import Limited
from apflow.bridge.draining import Requests
from apflow.bridge.guard import Guarded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Receive, Scope, Send

    from apflow.bridge.auth import Auth
    from apflow.bridge.door import Door

HEALTH = "/healthz"
#: How long answers may take to reach their callers once all runs have ended or were handed back.
ANSWER_SECONDS = 2.0

_NOT_STARTED = (
    "this app was not started: whoever mounts it enters its lifespan, for instance with FastAPI(lifespan=app.lifespan)"
)
_STOPPING = "this server is shutting down"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a site consists of.

    Attributes:
        mcp: Serve MCP at `/mcp`.
        a2a: Serve A2A at `/`.
        explorer: Serve the explorer at `/explorer`.
        auth: Who may call; None asks nobody.
        name: What the server calls itself.
        default_skill: The task that a plain text over A2A goes to.
        url: Where callers reach it, with a slash at its end; empty when their requests tell.
        loopback: It is reached from this machine only.

    Raises:
        ValueError: There is nothing to serve.
    """

    mcp: bool
    a2a: bool
    explorer: bool
    auth: Auth | None = field(repr=False)
    name: str
    default_skill: str | None
    url: str = ""
    loopback: bool = False

    def __post_init__(self) -> None:
        if not (self.mcp or self.a2a or self.explorer):
            raise ValueError("mcp, a2a and explorer are all off, so there is nothing to serve")


class Site(Starlette):
    """What `apflow.asgi` returns: an app that serves tasks, alone or mounted in another one.

    Raises:
        TypeError: `auth` is nothing that can say who calls.
        ValueError: A token of `auth` is too short, or a user id too long.

    Attributes:
        door: What is served.
    """

    def __init__(self, door: Door, plan: Plan) -> None:
        asked = None if plan.auth is None else authenticator(plan.auth)
        self.door = door
        self._parts: list[Any] = []
        self._entered = self._stopped = self._owns_runtime = False
        public = {HEALTH}
        routes: list[BaseRoute] = [Route(HEALTH, _healthy)]
        if plan.mcp:
            routes += self._mcp(plan)
        if plan.explorer:
            from apflow.bridge.explorer import PAGES, explorer_routes

            routes += explorer_routes(door, name=plan.name)
            public.update(PAGES)
        if plan.a2a:
            from apflow.bridge.a2a.app import CARD_PATHS

            routes += self._a2a(plan)
            public.update(CARD_PATHS)
        super().__init__(routes=routes, lifespan=self.lifespan)
        self.router.redirect_slashes = False
        known = Authenticated(Limited(super().__call__), asked, public=frozenset(public))
        self._requests = Requests(known, closed=_NOT_STARTED)
        self._guarded: ASGIApp = Guarded(self._requests, loopback=plan.loopback)

    def __repr__(self) -> str:
        return f"<apflow.asgi of {self.door.runtime!r}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or start and stop with the server."""
        if scope["type"] == "lifespan":
            await super().__call__(scope, receive, send)
            return
        note_address(scope)
        await self._guarded(scope, receive, send)

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:  # noqa: ARG002 - frameworks pass theirs
        """Open the runtime if nobody has, carry interrupted runs on, and serve until this is left.

        Args:
            app: The app whose lifespan this is part of; what it is makes no difference.

        Raises:
            RuntimeError: It was entered before.
            StorageError: The database cannot be used.
        """
        if self._entered:
            raise RuntimeError("this app was started before; make a new one with apflow.asgi(...)")
        self._entered = True
        runtime = self.door.runtime
        async with AsyncExitStack() as stack:
            if not runtime.entered:
                self._owns_runtime = True
                await stack.enter_async_context(runtime)
            await runtime.recover()
            for part in self._parts:
                await stack.enter_async_context(part.running())
            self._requests.open()
            try:
                yield
            finally:
                await self.stop()

    async def stop(self) -> None:
        """Refuse new requests, let runs end within `shutdown_seconds`, hand back what is left, and end all requests.

        Runs in a runtime that somebody else has opened go on in it; only the requests that wait for them end.
        """
        if self._stopped:
            return
        self._stopped = True
        runtime = self.door.runtime
        self._requests.close(_STOPPING)
        if self._owns_runtime:
            await runtime.background.drain(runtime.shutdown_seconds)
            await self._requests.finish(ANSWER_SECONDS)
        else:
            await self._requests.finish(runtime.shutdown_seconds)

    def _mcp(self, plan: Plan) -> list[BaseRoute]:
        from apflow.bridge.mcp.app import McpApp

        app = McpApp(self.door, name=plan.name, version=__version__)
        self._parts.append(app)
        return [Route("/mcp", app), Route("/mcp/", app)]

    def _a2a(self, plan: Plan) -> list[BaseRoute]:
        from apflow.bridge.a2a.app import A2aApp

        app = A2aApp(
            self.door,
            name=plan.name,
            description=f"The tasks of {plan.name}.",
            version=__version__,
            url=plan.url,
            default_skill=plan.default_skill,
            authenticated=plan.auth is not None,
        )
        self._parts.append(app)
        return list(app.routes)


async def _healthy(_request: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})
