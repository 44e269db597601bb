"""Tools of MCP: one for each module of a door, under a name that clients accept.

Common clients take only names of `A-Z a-z 0-9 _ -`, 64 characters at most, and ids of modules have dots. So a tool is
listed with `-` in place of each dot; ids have no `-`, so that can be read backwards, and a call may use either name.
A name that is still too long ends in `--` and a hash of the whole id instead.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from apcore import ModuleAnnotations
from mcp import types

if TYPE_CHECKING:
    from apflow.bridge.door import Door

_LONGEST = 64
_HASH_BYTES = 8
_CUT = "--"


def tool_name(module_id: str) -> str:
    """Return the name under which a module is listed: at most 64 letters, digits, `_` and `-`."""
    name = module_id.replace(".", "-")
    if len(name) <= _LONGEST:
        return name
    # No id has two dots in a row, so no other name has two of these.
    digest = _CUT + hashlib.blake2b(module_id.encode(), digest_size=_HASH_BYTES).hexdigest()
    return name[: _LONGEST - len(digest)] + digest


class Toolbox:
    """The modules of a door as tools, described once each.

    Args:
        door: Which modules there are.
    """

    def __init__(self, door: Door) -> None:
        self._door = door
        self._made: dict[str, tuple[object, types.Tool]] = {}
        self._cut: dict[str, str] = {}

    def tools(self) -> list[types.Tool]:
        """Return what there is now, in the order of the ids."""
        made = {}
        for module_id, module in self._door.modules().items():
            known = self._made.get(module_id)
            fits = known is not None and known[0] is module
            made[module_id] = known if known is not None and fits else (module, described(module_id, module))
        self._made = made
        return [tool for _, tool in made.values()]

    def module_id(self, name: str) -> str:
        """Return the id of the module that a caller means by this name, whether there is one or not."""
        if _CUT not in name:
            return name.replace("-", ".")
        if name not in self._cut:
            ids = self._door.registry.list()
            self._cut = {tool_name(module_id): module_id for module_id in ids if len(module_id) > _LONGEST}
        return self._cut.get(name, name)


def described(module_id: str, module: Any) -> types.Tool:
    """Return a module as a tool, whatever it leaves out of what apcore asks for."""
    inputs, outputs = _schema(module, "input_schema"), _schema(module, "output_schema")
    return types.Tool(
        name=tool_name(module_id),
        description=getattr(module, "description", None) or None,
        inputSchema={**inputs, "type": "object"},
        # Structured content is always an object, so it cannot fit anything else.
        outputSchema=outputs if outputs.get("type") == "object" else None,
        annotations=_annotations(module_id, getattr(module, "annotations", None)),
    )


def _schema(module: Any, which: str) -> dict[str, Any]:
    found = getattr(module, which, None)
    if found is None:
        return {}
    schema: dict[str, Any] = found if isinstance(found, dict) else found.model_json_schema()
    return schema


def _annotations(module_id: str, given: Any) -> types.ToolAnnotations:
    found = ModuleAnnotations.from_dict(given) if isinstance(given, dict) else given or ModuleAnnotations()
    return types.ToolAnnotations(
        title=module_id,
        readOnlyHint=found.readonly,
        destructiveHint=found.destructive,
        idempotentHint=found.idempotent,
        openWorldHint=found.open_world,
    )
