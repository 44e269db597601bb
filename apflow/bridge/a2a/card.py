"""The agent card: who we are over A2A, and what we can do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from a2a.types.a2a_pb2 import (
    AgentCapabilities,
    AgentCard,
    AgentInterface,
    AgentSkill,
    HTTPAuthSecurityScheme,
    SecurityRequirement,
    SecurityScheme,
    StringList,
)

from apflow.bridge.address import asked_address

if TYPE_CHECKING:
    from apflow.bridge.door import Door

_MODES = ("application/json", "text/plain")
_VERSIONS = ("1.0", "0.3")


def make_card(door: Door, *, name: str, description: str, version: str, url: str, authenticated: bool) -> AgentCard:
    """Return the card, with one skill for each module that there is now.

    Args:
        door: Where the modules are.
        name: Of the agent.
        description: For people and models.
        version: Of the agent.
        url: Where its JSON-RPC is; empty is the address that the caller's request went to.
        authenticated: Whether callers need a bearer token.
    """
    card = AgentCard(
        name=name,
        description=description,
        version=version,
        supported_interfaces=[
            AgentInterface(url=url or asked_address(), protocol_binding="JSONRPC", protocol_version=one)
            for one in _VERSIONS
        ],
        capabilities=AgentCapabilities(streaming=True, push_notifications=False, extended_agent_card=authenticated),
        default_input_modes=_MODES,
        default_output_modes=_MODES,
        skills=[_skill(module_id, module) for module_id, module in door.modules().items()],
    )
    if authenticated:
        card.security_schemes["bearer"].CopyFrom(
            SecurityScheme(http_auth_security_scheme=HTTPAuthSecurityScheme(scheme="bearer"))
        )
        card.security_requirements.append(SecurityRequirement(schemes={"bearer": StringList()}))
    return card


def _skill(module_id: str, module: Any) -> AgentSkill:
    examples = [json.dumps(one.inputs) for one in getattr(module, "examples", None) or ()]
    return AgentSkill(
        id=module_id,
        name=getattr(module, "name", None) or module_id,
        description=getattr(module, "description", None) or module_id,
        tags=getattr(module, "tags", None) or ["task"],
        examples=examples,
        input_modes=_MODES,
        output_modes=_MODES,
    )
