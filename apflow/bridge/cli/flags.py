"""Flags made from the input schema of a task."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from apflow.bridge.cli.exits import Failed
from apflow.bridge.cli.inputs import parse
from apflow.bridge.cli.options import Choice, Kind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

_NAME = re.compile(r"[^\W_]\w*")
_SCALARS = ("integer", "number")


class TaskFlag(click.Option):
    """A flag that is an input of the task.

    Attributes:
        input: Name of the input.
    """

    def __init__(self, flag: str, parameter: str, name: str, *, kind: Kind | None, text: str) -> None:
        """Make it; `kind` None is a switch."""
        declared = f"--{flag}" if kind is not None else f"--{flag}/--no-{flag}"
        super().__init__([declared, parameter], type=kind, default=None, help=text)
        self.input = name


def flags_of(schema: Mapping[str, Any], taken: Collection[str]) -> list[TaskFlag]:
    """Return a flag for each property of a schema.

    A property whose flag is taken gets one that begins with `--arg-`; one whose name makes no flag has none, and
    is only reached through `--json`.

    Args:
        schema: Of the inputs.
        taken: Flags of the command itself, without their dashes.
    """
    definitions = schema.get("$defs", {})
    required = schema.get("required", ())
    used = set(taken)
    found = []
    for number, (name, part) in enumerate(schema.get("properties", {}).items()):
        kind = _kind(part, definitions)
        for flag in (name.replace("_", "-"), f"arg-{name.replace('_', '-')}"):
            names = {flag} if kind is not None else {flag, f"no-{flag}"}
            if _NAME.fullmatch(name) and not names & used:
                used |= names
                text = _help(part, definitions, required=name in required)
                found.append(TaskFlag(flag, f"input_{number}", name, kind=kind, text=text))
                break
    return found


def given_flags(context: click.Context) -> dict[str, Any]:
    """Return the inputs that stand on the command line, by their names."""
    source = click.core.ParameterSource.COMMANDLINE
    return {
        one.input: context.params[one.name]
        for one in context.command.params
        if isinstance(one, TaskFlag) and one.name is not None and context.get_parameter_source(one.name) is source
    }


class Number(Kind):
    """A number: a whole one, or any that JSON has."""

    def __init__(self, *, whole: bool, nullable: bool) -> None:
        self.name = "integer" if whole else "number"
        self._nullable = nullable

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if self._nullable and value == "null":
            return None
        try:
            found = parse(value, "")
        except Failed:
            found = None
        if isinstance(found, bool) or not isinstance(found, int if self.name == "integer" else int | float):
            self.fail(f"{value!r} is no {self.name}", param, ctx)
        return found


class Json(Kind):
    """JSON text. Where a plain string would do too, what is no JSON is one."""

    name = "json"

    def __init__(self, *, or_text: bool) -> None:
        self._or_text = or_text

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            found = parse(value, "it")
        except Failed as error:
            if self._or_text:
                return value
            self.fail(f"{error.message}; lists and objects are written as JSON", param, ctx)
        # A Decimal is a number or a text of one, and only the text has all its digits.
        rounded = isinstance(found, float) and Decimal(value.strip()) != Decimal(repr(found))
        return value if self._or_text and rounded else found


class Values(Choice):
    """One of some values, which stand on the command line as text."""

    def __init__(self, values: Collection[Any]) -> None:
        self._values = {one if isinstance(one, str) else json.dumps(one): one for one in values}
        super().__init__(list(self._values))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self._values[super().convert(value, param, ctx)]


def _kind(part: Mapping[str, Any], definitions: Mapping[str, Any]) -> Kind | None:
    """Return how the text of a flag is read; None for a switch."""
    members = list(_members(part, definitions))
    others = [one for one in members if one.get("type") != "null"]
    if len(others) != 1:
        return Json(or_text=any(one.get("type") == "string" for one in others))
    one, nullable = others[0], len(members) > 1
    values = one.get("enum") or ([one["const"]] if "const" in one else None)
    if values:
        return Values(values)
    kind = one.get("type")
    if kind == "string":
        return click.STRING
    if kind == "boolean":
        return None
    return Number(whole=kind == "integer", nullable=nullable) if kind in _SCALARS else Json(or_text=kind is None)


def _members(part: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield what a value may be: the members of a union, and whatever a reference stands for."""
    seen = set()
    while (reference := part.get("$ref")) is not None and reference not in seen:
        seen.add(reference)
        part = definitions.get(reference.removeprefix("#/$defs/"), {})
    union = part.get("anyOf") or part.get("oneOf")
    if not union:
        yield part
    for member in union or ():
        yield from _members(member, definitions)


def _help(part: Mapping[str, Any], definitions: Mapping[str, Any], *, required: bool) -> str:
    about = part.get("description") or ""
    if not about and "$ref" in part:
        about = definitions.get(part["$ref"].removeprefix("#/$defs/"), {}).get("description", "")
    words = [" ".join(about.split())]
    if required:
        words.append("[required]")
    elif "default" in part:
        words.append(f"[default: {json.dumps(part['default'], ensure_ascii=False)}]")
    return "  ".join(filter(None, words))
