"""The commands that look after runs, from inside this process."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from apflow import Runtime
from tests.integration.cli_app import at_home, call


@pytest.fixture(autouse=True)
def _app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_home(tmp_path, monkeypatch)


def found(*args: str) -> Any:
    done = call(*args, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def run_id_of(*args: str) -> str:
    run_id: str = json.loads(call("run", *args, "--output", "json").stdout)["run_id"]
    return run_id


def test_runs_are_listed_the_newest_first_and_filtered() -> None:
    first, second = run_id_of("add", "--a", "1"), run_id_of("fails", "--text", "x")

    assert [row["id"] for row in found("runs", "list")] == [second, first]
    assert [row["id"] for row in found("runs", "list", "--status", "failed")] == [second]
    assert [row["id"] for row in found("runs", "list", "--name", "add")] == [first]
    assert [row["id"] for row in found("runs", "list", "--limit", "1", "--offset", "1")] == [first]
    text = call("runs", "list").stdout
    assert text.splitlines()[0].split() == ["ID", "TASK", "STATUS", "USER", "STARTED", "SECONDS"]
    assert first in text


def test_a_run_is_shown_with_its_error() -> None:
    run_id = run_id_of("fails", "--text", "\x1b[31mred")

    text = call("runs", "show", run_id).stdout
    assert "ValueError: hidden \\x1b[31mred" in text
    assert "traceback\n  Traceback" in text
    assert "\x1b" not in text
    shown = found("runs", "show", run_id)
    assert (shown["id"], shown["inputs"]) == (run_id, {"text": "\x1b[31mred"})
    assert shown["error_info"]["type"] == "ValueError"


def test_a_tree_has_the_runs_inside() -> None:
    run_id = run_id_of("outer", "--a", "1")

    assert [(row["depth"], row["name"]) for row in found("runs", "tree", run_id)] == [(0, "outer"), (1, "inner")]
    assert [line.split()[:2] for line in call("runs", "tree", run_id).stdout.splitlines()[1:]] == [
        ["outer", "completed"],
        ["inner", "completed"],
    ]


@pytest.mark.parametrize("command", ["show", "tree", "cancel", "resume"])
def test_what_is_not_there_is_said(command: str) -> None:
    run_id_of("add", "--a", "1")
    done = call("runs", command, "no-such-run", "--json")

    assert (done.exit_code, done.stdout) == (4, "")
    assert json.loads(done.stderr.splitlines()[-1])["code"] == "not_found"


@pytest.mark.parametrize(
    "args",
    [["runs", "list"], ["runs", "tree", "x"], ["usage"], ["budget", "list"], ["db", "current"]],
    ids=" ".join,
)
def test_looking_makes_no_database(tmp_path: Path, args: list[str]) -> None:
    done = call(*args)

    assert done.exit_code == 4
    assert "there is no database" in done.stderr
    assert not list(tmp_path.glob("*.db*"))


async def _interrupt(tmp_path: Path, name: str, accepted: bool = True) -> str:
    """Leave a run behind that a program of this app had begun, and return its id."""
    from apflow.bridge.cli.loading import load

    task = getattr(load("app.py").module, name)
    async with Runtime("sqlite:///apflow.db", shutdown_seconds=0):
        if accepted:
            return str((await task.submit()).id)
        caller = asyncio.ensure_future(task())
        run_id = None
        while run_id is None:
            await asyncio.sleep(0.01)
            with closing(sqlite3.connect(tmp_path / "apflow.db")) as database:
                [run_id] = database.execute("SELECT max(id) FROM apflow_tasks").fetchone()
        caller.cancel()
        await asyncio.wait([caller])
        return str(run_id)


def test_an_interrupted_run_is_resumed(tmp_path: Path) -> None:
    run_id = asyncio.run(_interrupt(tmp_path, "waits"))
    assert [row["id"] for row in found("runs", "list", "--status", "interrupted")] == [run_id]

    (tmp_path / "go").touch()
    assert found("runs", "resume", run_id) == {"run_id": run_id, "status": "completed", "result": "went"}
    assert call("runs", "resume", run_id).stdout == '"went"\n'
    assert call("runs", "cancel", run_id).stdout == "it has ended already: completed\n"


def test_resuming_a_run_that_fails_again_says_so() -> None:
    run_id = run_id_of("fails", "--text", "x")
    done = call("runs", "resume", run_id)

    assert (done.exit_code, done.stdout) == (1, "")
    assert "the task failed with ValueError" in done.stderr


def test_what_the_app_does_not_know_is_not_resumed(tmp_path: Path) -> None:
    run_id = asyncio.run(_interrupt(tmp_path, "waits"))
    (tmp_path / "other.py").write_text("import apflow\n", encoding="utf-8")
    # The tasks of `app.py` are known in this process, so only the file that they stand in tells them apart.
    from apflow import definition

    definition._known.clear()
    done = call("runs", "resume", run_id, "--app", "other.py")

    assert done.exit_code == 1
    assert "does not know task 'waits'" in done.stderr
    assert found("recover", "--app", "other.py") == {"recovered": [], "unknown": ["waits"]}
    assert "left alone" in call("recover", "--app", "other.py").stderr


def test_a_cancelled_run_is_not_resumed(tmp_path: Path) -> None:
    run_id = asyncio.run(_interrupt(tmp_path, "waits"))

    assert found("runs", "cancel", run_id) == {"run_id": run_id, "status": "cancelled", "cancel_requested": False}
    assert call("runs", "resume", run_id).exit_code == 7


def test_recover_carries_on_what_is_left(tmp_path: Path) -> None:
    run_id = asyncio.run(_interrupt(tmp_path, "waits"))
    (tmp_path / "go").touch()

    assert found("recover") == {
        "recovered": [{"run_id": run_id, "task": "waits", "status": "completed"}],
        "unknown": [],
    }
    assert call("recover").stderr.splitlines()[-1] == "nothing to carry on"


def test_recover_leaves_calls_alone_unless_everything_is_asked_for(tmp_path: Path) -> None:
    run_id = asyncio.run(_interrupt(tmp_path, "waits", accepted=False))
    (tmp_path / "go").touch()

    assert found("recover")["recovered"] == []
    assert [row["run_id"] for row in found("recover", "--everything")["recovered"]] == [run_id]


def test_usage_is_reported() -> None:
    call("run", "spends", "--tokens", "7", "--user", "ada")

    report = found("usage", "--by", "user")
    assert [(row["key"], row["total_tokens"]) for row in report["rows"]] == [("ada", 7)]
    assert found("usage", "--until", "1d")["rows"] == []
    assert found("usage", "--since", "2000-01-01")["total"]["runs"] == 1
    lines = call("usage").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["TASK", "spends", "total"]


@pytest.mark.parametrize("args", [["--since", "soon"], ["--since", "99999999w"], ["--since", "1d", "--until", "2d"]])
def test_wrong_times_are_wrong_usage(args: list[str]) -> None:
    assert call("usage", *args).exit_code == 2


def test_budgets_are_listed_and_shown() -> None:
    call("run", "spends", "--tokens", "7", "--user", "ada")
    call("run", "spends", "--tokens", "2", "--user", "bob")

    budgets = found("budget", "list")
    assert [(one["scope_id"], one["settled"], one["left"]) for one in budgets] == [("ada", 7, 3), ("bob", 2, 8)]
    assert [one["scope_id"] for one in found("budget", "list", "--limit", "1")] == ["ada"]
    assert found("budget", "list", "--per", "global") == []
    assert [one["scope_id"] for one in found("budget", "show", "daily", "--scope-id", "bob", "--history")] == ["bob"]
    assert "left    3" in call("budget", "show", "daily").stdout
    assert "daily" in call("budget", "list").stdout
    assert call("budget", "show", "nope").exit_code == 4


def test_tasks_are_listed_with_their_schemas() -> None:
    by_name = {one["name"]: one for one in found("tasks")}

    assert by_name["add"]["input_schema"]["required"] == ["a"]
    assert by_name["summarise"]["description"] == "Summarise a topic."
    assert "Summarise a topic." in call("tasks").stdout
    assert [one["name"] for one in found("tasks", "--app", "app.py:ONLY_ADD")] == ["add"]


def test_the_schema_is_shown_and_upgraded(database_url: str) -> None:
    if database_url.startswith("postgresql"):
        assert found("db", "current", "--database-url", database_url)["state"] == "empty"
    made = found("db", "upgrade", "--database-url", database_url)

    assert made["state"] == "current"
    assert found("db", "current", "--database-url", database_url) == made
    assert f"version   {made['version']}\n" in call("db", "current", "--database-url", database_url).stdout


def test_a_newer_and_an_older_schema_are_told_apart(tmp_path: Path) -> None:
    call("db", "upgrade")
    with closing(sqlite3.connect(tmp_path / "apflow.db")) as database:
        database.execute("UPDATE apflow_alembic_version SET version_num = '999'")
        database.commit()
        assert found("db", "current")["state"] == "newer"
        assert call("db", "upgrade").exit_code == 9
        assert call("runs", "list").exit_code == 9
        database.execute("DROP TABLE apflow_alembic_version")
        database.commit()
    assert found("db", "current") | {"known": ""} == {
        "database": "sqlite",
        "version": None,
        "known": "",
        "state": "older",
    }


def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "apflow.db").write_text("nothing of that kind, and longer than a header" * 10, encoding="utf-8")

    for args in (["db", "current"], ["runs", "list"]):
        done = call(*args)
        assert done.exit_code == 9
        assert done.stderr.count("\n") == 1


def test_a_password_is_never_shown() -> None:
    url = "postgresql://ada:pass-9@127.0.0.1:1/name?connect_timeout=1"
    for args in (["db", "current"], ["db", "current", "--json"]):
        done = call(*args, "--database-url", url)
        assert done.exit_code == 9
        assert "pass-9" not in done.output
    assert "pass-9" not in call("db", "current", "--database-url", "mysql://ada:pass-9@host/name").output


def test_wrong_usage_is_json_for_programs() -> None:
    done = call("runs", "list", "--json", "--limit", "0")

    assert done.exit_code == 2
    assert json.loads(done.stderr)["code"] == "usage"
    assert call("runs", "list", "--limit", "0").stderr.startswith("Usage:")
