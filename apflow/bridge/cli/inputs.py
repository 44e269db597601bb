"""Inputs of a task that come as JSON: on the command line, from a file, or from the standard input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from apflow.bridge.cli.exits import Failed


def read_inputs(given: str | None) -> dict[str, Any]:
    """Return the object that `--json` gives: JSON text, `@file`, or `-` for the standard input.

    Raises:
        Failed: It cannot be read, is no JSON, or no object.
    """
    if given is None:
        return {}
    where, text = "--json", given
    try:
        if given == "-":
            where = "the standard input"
            text = sys.stdin.read()
        elif given.startswith("@"):
            where = given[1:]
            text = Path(where).read_text(encoding="utf-8")
    except OSError as error:
        raise Failed("invalid_input", f"{where} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Failed("invalid_input", f"{where} is no text in UTF-8") from None
    found = parse(text, where)
    if not isinstance(found, dict):
        raise Failed("invalid_input", f'{where} has to be a JSON object, such as {{"name": 1}}, not {_kind(found)}')
    return found


def parse(text: str, where: str) -> Any:
    """Return what JSON text says.

    Raises:
        Failed: It is none; the error says where it stops being one, and nothing of the text.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise Failed("invalid_input", f"{where} is no JSON: {error.msg} at {place}") from None
    except (ValueError, RecursionError) as error:
        why = "too deep" if isinstance(error, RecursionError) else "a number that JSON does not have"
        raise Failed("invalid_input", f"{where} is no JSON: {why}") from None


def _refuse(name: str) -> Any:
    raise ValueError(name)


def _kind(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
