"""Flags from schemas, exit codes, and what is safe to write to a terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from apflow.bridge.cli.exits import MEANINGS, Failed, epilog
from apflow.bridge.cli.flags import flags_of, given_flags
from apflow.bridge.cli.inputs import read_inputs
from apflow.bridge.cli.output import to_json, visible

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"


def given(schema: dict[str, Any], *args: str, taken: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return what flags of this schema make of a command line."""
    found: dict[str, Any] = {}

    @click.pass_context
    def callback(context: click.Context, /, **_: object) -> None:
        found.update(given_flags(context))

    command = click.Command("x", params=list(flags_of(schema, taken)), callback=callback)
    done = CliRunner().invoke(command, args)
    assert done.exit_code == 0, done.output
    return found


def one(part: dict[str, Any], *args: str, **definitions: Any) -> Any:
    return given({"properties": {"x": part}, "$defs": definitions}, *args)["x"]


@pytest.mark.parametrize(
    ("part", "text", "value"),
    [
        ({"type": "string"}, "null", "null"),
        ({"type": "string", "format": "date-time"}, "2026-01-01", "2026-01-01"),
        ({"type": "integer"}, "-3", -3),
        ({"type": "number"}, "1e3", 1000.0),
        ({"type": "number"}, "1", 1),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "null", None),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "null", "null"),
        ({"anyOf": [{"type": "number"}, {"type": "string"}]}, "0.12345678901234567890", "0.12345678901234567890"),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "3", 3),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "three", "three"),
        ({"anyOf": [{"type": "integer"}, {"type": "array"}]}, "[3]", [3]),
        ({"type": "array"}, "[]", []),
        ({"type": "object"}, '{"a": null}', {"a": None}),
        ({}, "3", 3),
        ({}, "three", "three"),
        ({"enum": ["a", "b"]}, "b", "b"),
        ({"enum": [1, 2]}, "2", 2),
        ({"const": "only"}, "only", "only"),
        ({"$ref": "#/$defs/Other"}, "7", 7),
        ({"anyOf": [{"$ref": "#/$defs/Other"}, {"type": "null"}]}, "7", 7),
    ],
)
def test_the_text_of_a_flag_is_read_by_its_schema(part: dict[str, Any], text: str, value: object) -> None:
    found = one(part, "--x", text, Other={"type": "integer"})

    assert found == value
    assert type(found) is type(value)


def test_switches_have_two_sides_and_what_is_not_given_is_left_out() -> None:
    schema = {"properties": {"loud": {"type": "boolean", "default": True}, "n_times": {"type": "integer"}}}

    assert given(schema) == {}
    assert given(schema, "--no-loud", "--n-times", "2") == {"loud": False, "n_times": 2}
    assert given(schema, "--loud") == {"loud": True}


def test_names_that_are_taken_or_make_no_flag() -> None:
    schema = {
        "properties": {
            "key": {"type": "string"},
            "no_x": {"type": "string"},
            "x": {"type": "boolean"},
            "_hidden": {"type": "string"},
            "with space": {"type": "string"},
            "a_b": {"type": "string"},
            "a-b": {"type": "string"},
        }
    }
    flags = {flag.input: flag.opts[0] for flag in flags_of(schema, {"key"})}

    assert flags == {"key": "--arg-key", "no_x": "--no-x", "x": "--arg-x", "a_b": "--a-b"}


def test_inputs_are_a_json_object() -> None:
    assert read_inputs(None) == {}
    assert read_inputs('{"a": [1]}') == {"a": [1]}
    for text in ("[]", "3", "null", '"x"', "true", "", "{", '{"a": Infinity}', "[" * 100_000, "@.", "@none"):
        with pytest.raises(Failed) as caught:
            read_inputs(text)
        assert caught.value.exit_code == 3


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"\xff")
    with pytest.raises(Failed, match="no text in UTF-8"):
        read_inputs(f"@{tmp_path / 'x.json'}")


def test_nothing_steers_the_terminal() -> None:
    assert visible("plain é") == "plain é"
    assert visible("\x1b[31m\n\x07\u202e") == "\\x1b[31m\\n\\x07\\u202e"
    assert to_json({"a": "\udc80"}, indent=None)  # half of a surrogate pair can be written


def test_no_json_steers_a_terminal() -> None:
    given = {"a": "\x1b[31m \x9b31m \x7f \u202e \u2028", "é": "👩‍👧"}
    text = to_json(given)
    assert not set(text) & set("\x1b\x9b\x7f\u202e\u2028")
    assert json.loads(text) == given
    assert "👩‍👧" in text


def test_the_page_and_the_help_have_all_exit_codes() -> None:
    rows = dict(re.findall(r"^\| (\d+) \| (.+?) \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE))

    assert {int(code): meaning for code, meaning in rows.items()} == MEANINGS
    assert all(meaning in epilog() for meaning in MEANINGS.values())
