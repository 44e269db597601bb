"""Which module a message over A2A is for, and what inputs it brings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from apflow.bridge.refusals import refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from apflow.bridge.door import Door


def chosen(
    door: Door, parts: Sequence[Mapping[str, Any]], metadata: Mapping[str, Any], default_skill: str | None
) -> tuple[str, dict[str, Any]]:
    """Return the id of a module, and its inputs.

    Args:
        door: Where the modules are.
        parts: Of the message, as the caller sent them: JSON, so that integers are exact.
        metadata: Of the message; `skillId` names the module.
        default_skill: The module of messages that name none; None is the only one there is.

    Raises:
        RefusedError: The message says something else than one module and its inputs.
    """
    module_id = _skill(door, metadata, default_skill)
    if len(parts) != 1:
        raise refusal(
            "invalid_input", f"a message has one part here, the inputs of the skill; this one has {len(parts)}"
        )
    part = parts[0]
    if "data" in part:
        data = part["data"]
        if not isinstance(data, dict):
            raise refusal("invalid_input", "the data of a message have to be an object, the inputs of the skill")
        return module_id, data
    text = part.get("text")
    if not isinstance(text, str):
        raise refusal("invalid_input", "a message has a text or data here, no file")
    inputs = _json_object(text)
    return module_id, {_only_text(door, module_id): text} if inputs is None else inputs


def _skill(door: Door, metadata: Mapping[str, Any], default_skill: str | None) -> str:
    named = metadata.get("skillId")
    if named is not None:
        if not isinstance(named, str) or door.module(named) is None:
            raise refusal("not_found", "there is no skill of this name here; the agent card lists what there is")
        return named
    if default_skill is not None:
        return default_skill
    known = list(door.modules())
    if len(known) != 1:
        raise refusal(
            "invalid_input", "name a skill in the metadata of the message, as skillId; the agent card lists them"
        )
    return known[0]


def _json_object(text: str) -> dict[str, Any] | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _only_text(door: Door, module_id: str) -> str:
    """Return the property that a plain text is for: the one that is required and a text, else the only one."""
    module = door.module(module_id)
    schema = {} if module is None else module.input_schema.model_json_schema()
    properties = schema.get("properties", {})
    texts = [name for name in schema.get("required", ()) if properties.get(name, {}).get("type") == "string"]
    found = texts if len(texts) == 1 else list(properties)
    if len(found) != 1:
        raise refusal("invalid_input", f"{module_id} takes more than one text; send its inputs as data, or as JSON")
    return str(found[0])
