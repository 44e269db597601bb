"""Tasks over A2A: the agent card, and JSON-RPC in both generations of the protocol."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from a2a.server.routes.agent_card_routes import create_agent_card_routes
from starlette.routing import Route

from apflow.bridge.a2a.card import make_card
from apflow.bridge.a2a.handler import Handler
from apflow.bridge.a2a.rpc import Rpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from a2a.types.a2a_pb2 import AgentCard
    from starlette.routing import BaseRoute

    from apflow.bridge.door import Door

CARD_PATHS = ("/.well-known/agent-card.json", "/.well-known/agent.json")


class A2aApp:
    """Serves the modules of a door to agents.

    Args:
        door: Where the modules are.
        name: Of the agent.
        description: What it is good for, for people and models.
        version: Of the agent.
        url: Where callers reach the JSON-RPC route, as the card says it.
        default_skill: The module of messages that name none; None is the only one, if there is just one.
        authenticated: Whether callers need a bearer token; the card says so.
    """

    def __init__(
        self,
        door: Door,
        *,
        name: str,
        description: str,
        version: str,
        url: str,
        default_skill: str | None,
        authenticated: bool,
    ) -> None:
        self._card = partial(
            make_card,
            door,
            name=name,
            description=description,
            version=version,
            url=url,
            authenticated=authenticated,
        )
        self._handler = Handler(door, self._card, default_skill=default_skill, authenticated=authenticated)

    @property
    def routes(self) -> list[BaseRoute]:
        """The routes: the card, and JSON-RPC at `/`."""
        card = self._card()
        cards = [
            one for path in CARD_PATHS for one in create_agent_card_routes(card, card_modifier=self._now, card_url=path)
        ]
        return [*cards, Route("/", Rpc(self._handler).answer, methods=["POST"])]

    async def _now(self, _: AgentCard) -> AgentCard:
        return self._card()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Leave no call open at the end. The runs go on, until their runtime hands them back."""
        try:
            yield
        finally:
            await self._handler.aclose()
