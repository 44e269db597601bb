"""`apflow run` from inside this process: inputs, results, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from apflow.bridge.cli import root
from apflow.bridge.cli.exits import MEANINGS
from tests.integration.cli_app import at_home, call


@pytest.fixture(autouse=True)
def _app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_home(tmp_path, monkeypatch)


def words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def value(*args: str, stdin: str | None = None) -> Any:
    done = call("run", *args, stdin=stdin)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("args", "result"),
    [
        (["add", "--a", "1"], 3),
        (["add", "--a", "-1", "--b=-2"], -3),
        (["add", "--json", '{"a": 3.0}'], 5),
        (["add", "--json", '{"a": 3, "b": 9}', "--b", "1"], 4),
        (["echo_list", "--items", "[1, 2]"], [1, 2]),
        (["echo_object", "--data", '{"x": 1}'], {"x": 1}),
        (["echo_model", "--page", '{"url": "u"}'], {"url": "u", "words": 0}),
        (["later", "--at", "2026-01-01T00:00:00Z"], "2026-01-02T00:00:00Z"),
        (["later", "--days", "0", "--at", "2026-01-01T00:00:00+02:00"], "2026-01-01T00:00:00+02:00"),
        (["half", "--amount", "0.2469135780246913578024691357"], "0.1234567890123456789012345678"),
        (["half", "--amount", "3"], "1.5"),
        (["scaled", "--x", "1"], [1.0, None, 5]),
        (["scaled", "--x", "1e3", "--name", "null", "--n", "null"], [1000.0, "null", None]),
        (["scaled", "--x", "-0.5", "--name", "--odd"], [-0.5, "--odd", 5]),
        (["reserved", "--arg-json", "1", "--arg-help", "h", "--arg-app", "b"], [1, "h", "b"]),
        (["count", "--to", "3"], [0, 1, 2]),
        (["outer", "--a", "4"], 8),
        (["wipe", "--approve"], "wiped"),
        (["app.py:add", "--a", "1"], 3),
        (["add", "--app", "app.py:ONLY_ADD", "--a", "1"], 3),
        (["app:add", "--a", "1"], 3),
    ],
    ids=words,
)
def test_a_task_is_called(args: list[str], result: object) -> None:
    assert value(*args) == result


def test_switches_choices_and_models() -> None:
    found = value("summarise", "--topic", "tides", "--pages", '[{"url": "u"}]', "--tone", "warm", "--loud")

    assert found == {"topic": "tides", "urls": ["u"], "tone": "warm", "loud": True}
    assert value("summarise", "--topic", "é", "--no-loud")["topic"] == "é"


def test_inputs_from_a_file_and_from_the_standard_input(tmp_path: Path) -> None:
    (tmp_path / "inputs.json").write_text('{"a": 20}', encoding="utf-8")

    assert value("add", "--json", "@inputs.json") == 22
    assert value("add", "--json", "-", stdin='{"a": 30, "b": 0}') == 30


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["fails", "--text", "secret-1"], 1, "the task failed with ValueError; `apflow runs show "),
        (["says", "--code", "own_word"], 1, "as you wish"),
        ([], 2, "Usage"),
        (["add", "--a", "1", "surplus"], 2, "surplus"),
        (["add", "--a", "1", "--output", "xml"], 2, "--output"),
        (["add", "--json"], 2, "--json"),
        (["count", "--to", "1", "--stream", "--output", "json"], 2, "--stream"),
        (["add", "--json", "{"], 3, "--json is no JSON"),
        (["add", "--json", "[1]"], 3, "has to be a JSON object"),
        (["add", "--json", '{"a": NaN}'], 3, "a number that JSON does not have"),
        (["add", "--json", "@missing.json"], 3, "missing.json cannot be read"),
        (["add"], 3, "needs --a"),
        (["add", "--b", "1"], 3, "needs --a"),
        (["add", "--a", "x"], 3, "'--a': 'x' is no integer"),
        (["add", "--a", "1.5"], 3, "is no integer"),
        (["add", "--a", "true"], 3, "is no integer"),
        (["add", "--a"], 3, "--a"),
        (["add", "--c", "1"], 3, "--c"),
        (["add", "--json", '{"a": "3"}'], 3, "a"),
        (["add", "--json", '{"a": 1, "zz": 1}'], 3, "zz"),
        (["echo_list", "--items", "[1"], 3, "lists and objects are written as JSON"),
        (["echo_list", "--items", '["x"]'], 3, "items"),
        (["echo_model", "--page", "{}"], 3, "url"),
        (["summarise", "--topic", "x", "--tone", "loud"], 3, "'dry', 'warm'"),
        (["later", "--at", "tomorrow"], 3, "at"),
        (["nope"], 4, "there is no task 'nope' in app.py"),
        (["ad"], 4, "did you mean 'add'?"),
        (["add", "--app", "missing.py"], 4, "the app missing.py cannot be read"),
        (["add", "--app", "no_such_module_here"], 4, "there is no module 'no_such_module_here'"),
        (["add", "--app", "app.py:missing"], 4, "there is no 'missing' in app.py"),
        (["add", "--app", "app.py:Page"], 4, "can be served"),
        (["summarise", "--app", "app.py:ONLY_ADD"], 4, "it has add"),
        (["spends", "--tokens", "1"], 5, "name one with --user"),
        (["spends", "--tokens", "11", "--user", "ada"], 5, "10"),
        (["wipe"], 6, "--approve"),
        (["hangs"], 8, "longer than 0.01 s"),
        (["add", "--a", "1", "--database-url", "mysql://host/name"], 2, "'mysql'"),
        (["add", "--a", "1", "--database-url", "sqlite:////proc/apflow/test.db"], 9, "database"),
    ],
    ids=words,
)
def test_exit_codes(args: list[str], code: int, text: str) -> None:
    done = call("run", *args)

    assert (done.exit_code, done.stdout) == (code, "")
    assert text in done.stderr
    assert code == 2 or done.stderr.strip().count("\n") == 0
    assert code in MEANINGS
    assert "secret-1" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_used_key_with_other_inputs_is_invalid_and_with_the_same_ones_replayed() -> None:
    assert value("add", "--a", "1", "--key", "k") == 3
    assert value("add", "--a", "1", "--key", "k") == 3
    assert call("run", "add", "--a", "2", "--key", "k").exit_code == 3
    assert len(json.loads(call("runs", "list", "--json").stdout)) == 1


def test_the_envelope_has_the_run_and_its_end() -> None:
    done = value("add", "--a", "1", "--output", "json")
    assert done == {"run_id": done["run_id"], "status": "completed", "result": 3}

    for args, code, status in (
        (["fails", "--text", "x"], "internal", "failed"),
        (["add"], "invalid_input", "refused"),
        (["spends", "--tokens", "11", "--user", "ada"], "budget_exhausted", "failed"),
    ):
        failed = call("run", *args, "--output=json")
        answer = json.loads(failed.stdout)
        assert failed.exit_code == {"internal": 1, "invalid_input": 3, "budget_exhausted": 5}[code]
        assert failed.stderr == ""
        assert failed.stdout.count("\n") == 1
        assert (answer["status"], answer["error"]["code"]) == (status, code)
        assert answer["run_id"] == answer["error"]["run_id"]


def test_an_error_before_the_task_is_known_is_json_too() -> None:
    done = call("run", "nope", "--output", "json")

    assert (done.exit_code, done.stdout) == (4, "")
    assert json.loads(done.stderr)["code"] == "not_found"


def test_items_are_written_as_they_come_and_again_when_the_run_is_found_by_its_key() -> None:
    for _ in range(2):
        done = call("run", "count", "--to", "3", "--stream", "--key", "k")
        assert (done.exit_code, done.stdout) == (0, "0\n1\n2\n"), done.stderr
    assert call("run", "add", "--a", "1", "--stream").stdout == "3\n"


def test_prints_go_to_the_standard_error() -> None:
    done = call("run", "summarise", "--topic", "x")

    assert "printed by the task" in done.stderr
    assert json.loads(done.stdout)["topic"] == "x"


def test_help_has_the_flags_of_the_task() -> None:
    done = call("run", "summarise", "--help")

    assert done.exit_code == 0
    words = " ".join(done.stdout.split())
    assert "Summarise a topic." in words
    assert "--topic TEXT What it is about. [required]" in words
    assert "--pages JSON [default: null]" in words
    assert '--tone [dry|warm] [default: "dry"]' in words
    assert "--loud / --no-loud [default: false]" in words


def test_help_of_run_lists_the_tasks_and_stays_usable_when_the_app_is_broken() -> None:
    assert "Summarise a topic." in call("run", "--help").stdout
    assert call("run", "--app", "missing.py", "--help").exit_code == 0


def test_the_user_is_recorded() -> None:
    value("add", "--a", "1", "--user", "ada")

    [row] = json.loads(call("runs", "list", "--user", "ada", "--json").stdout)
    assert (row["user_id"], row["accepted"]) == ("ada", True)


def test_traceback_shows_where_the_task_failed() -> None:
    done = call("--traceback", "run", "fails", "--text", "x")

    assert done.exit_code == 1
    assert "ValueError: hidden x" in done.stderr


def test_no_traceback_steers_a_terminal() -> None:
    done = call("--traceback", "run", "fails", "--text", "\x9b31m\x07")
    assert "\\x9b31m\\x07" in done.stderr
    assert not set(done.stderr) & set("\x9b\x07")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import apflow\n1 / 0\n", "ZeroDivisionError at {path}:2"),
        ("import apflow\nx = = 1\n", "SyntaxError at {path}:2: invalid syntax"),
        ("import no_such_thing\n", "ModuleNotFoundError at {path}:1: No module named 'no_such_thing'"),
        ("\nraise SystemExit(0)\n", "SystemExit at {path}:2"),
        (
            "import apflow\n@apflow.task(name='A b')\ndef f() -> int: return 1\n",
            "TaskDefinitionError at {path}:2: 'A b' cannot be a task's name",
        ),
    ],
)
def test_an_app_that_cannot_be_loaded_says_where(tmp_path: Path, source: str, text: str) -> None:
    (tmp_path / "broken.py").write_text(source, encoding="utf-8")
    done = call("run", "x", "--app", "broken.py")

    assert done.exit_code == 1
    assert text.format(path=tmp_path / "broken.py") in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_module_that_lacks_another_one_is_not_missing_itself(tmp_path: Path) -> None:
    (tmp_path / "cli_needy.py").write_text("import no_such_thing\n", encoding="utf-8")
    done = call("run", "x", "--app", "cli_needy")

    assert done.exit_code == 1
    assert "No module named 'no_such_thing'" in done.stderr


def test_an_app_that_configures_its_database_refuses_another_one(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import apflow\napflow.configure('sqlite:///own.db')\n" + (tmp_path / "app.py").read_text()
    )

    assert value("add", "--app", "own.py", "--a", "1") == 3
    assert (tmp_path / "own.db").exists()
    assert call("run", "add", "--app", "own.py", "--a", "1", "--database-url", "sqlite:///other.db").exit_code == 2


def test_without_an_app_the_error_says_how_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APFLOW_APP")
    done = call("run", "add", "--a", "1")

    assert done.exit_code == 4
    assert "--app app.py" in done.stderr


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["app.py", "--host", "0.0.0.0"], "--token-env"),  # noqa: S104 - it must not be listened on
        (["app.py", "--token-env", "NO_SUCH_NAME"], "NO_SUCH_NAME"),
        (["app.py", "--token-env", "A", "--jwt-key-env", "B"], "give one"),
        (["app.py", "--jwt-key-env", "APFLOW_APP"], "32 bytes"),
        (["app.py:ONLY_ADD", "--engine"], "--engine"),
        (["app.py", "--no-mcp", "--no-a2a"], "mcp"),
        (["app.py:Page"], "can be served"),
    ],
)
def test_what_cannot_be_served_is_refused(args: list[str], text: str) -> None:
    done = call("serve", *args)

    assert done.exit_code == (4 if args == ["app.py:Page"] else 2), done.stderr
    assert text in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_the_command_is_a_click_group() -> None:
    assert isinstance(root, click.Group)
    assert set(root.commands) == {
        *("budget", "completion", "db", "recover", "run", "runs", "serve", "tasks", "usage"),
    }
