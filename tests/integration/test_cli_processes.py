"""The command line as a process: what it imports, writes, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import jwt
import pytest

from tests.integration.cli_app import apflow, command, write_app
from tests.unit.test_house import HEAVY


@pytest.fixture(autouse=True)
def _app(tmp_path: Path) -> None:
    write_app(tmp_path)


@contextmanager
def started(*args: str, until: str, **env: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a command and give it with the line of its standard error that has this text."""
    process = subprocess.Popen(
        command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | env
    )
    try:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if until in line:
                yield process, line
                return
        pytest.fail("".join(lines))
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("args", [["--help"], ["--version"]])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    program = (
        "import sys\n"
        "from apflow.bridge.cli import root\n"
        f"root.main({args!r}, standalone_mode=False)\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = done.stderr.split()

    assert "click" in loaded
    assert HEAVY.isdisjoint(loaded)


def test_the_main_commands_in_a_pipe() -> None:
    done = apflow("run", "app.py:summarise", "--json", "-", stdin='{"topic": "é", "pages": [{"url": "u"}]}')
    assert (done.returncode, done.stdout) == (0, '{"topic": "é", "urls": ["u"], "tone": "dry", "loud": false}\n')
    assert done.stderr == "printed by the task\n"

    for args, code in (
        (["run", "app.py:add", "--json", "{"], 3),
        (["run", "app.py:fails", "--text", "x"], 1),
    ):
        done = apflow(*args)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert "Traceback" not in done.stderr

    for args in (["runs", "list"], ["runs", "list", "--json"]):
        done = apflow(*args)
        assert done.returncode == 0
        assert "\x1b" not in done.stdout + done.stderr
        assert "summarise" in done.stdout
    assert {row["status"] for row in json.loads(done.stdout)} == {"completed", "failed"}


def on_terminal(*args: str) -> str:
    """Return what a command writes to a terminal, on both outputs."""
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    environment |= {"TERM": "xterm-256color", "COLUMNS": "200"}
    text = b""
    with subprocess.Popen(command(*args), stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        try:
            while more := os.read(ours, 100_000):
                text += more
        except OSError:  # so Linux says that nobody has the other end any more
            pass
        finally:
            os.close(ours)
    assert process.returncode == 0, text.decode()
    return text.decode()


def test_a_terminal_gets_tables_with_colours_progress_and_results_over_several_lines(tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    text = on_terminal("run", "app.py:waits", "--output", "json")
    assert "half of it" in text
    assert "50%" in text
    assert '  "result": "went"' in text

    text = on_terminal("runs", "list")
    assert "\x1b[32mcompleted" in text
    assert "waits" in text


def test_ctrl_c_hands_the_run_back_and_it_can_be_resumed(tmp_path: Path) -> None:
    with started("run", "app.py:waits", until="waiting") as (process, _):
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        assert (process.returncode, out) == (130, "")
    [line] = err.splitlines()
    _, _, hint = line.partition("`apflow ")
    arguments = hint.rstrip("`").split()
    assert arguments[:2] == ["runs", "resume"]

    with started("recover", "--app", "app.py", until="waiting") as (process, _):
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        assert process.returncode == 130
        assert "`apflow recover --app app.py`" in err

    (tmp_path / "go").touch()
    done = apflow(*arguments)
    assert (done.returncode, done.stdout) == (0, '"went"\n'), done.stderr


def test_ctrl_c_while_an_app_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text(
        "import sys, time\nprint('loading', flush=True)\ntime.sleep(60)\n", encoding="utf-8"
    )
    with started("run", "long.py:x", until="loading") as (process, _):
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        assert (process.returncode, err) == (130, "apflow: interrupted\n")


def test_what_a_script_had_submitted_is_recovered_from_the_command_line(tmp_path: Path) -> None:
    script = subprocess.run([sys.executable, "app.py", "submit"], capture_output=True, text=True, check=True)
    run_id = script.stdout.split()[-1]
    (tmp_path / "go").touch()

    done = apflow("recover", "--app", "./app.py", "--json")
    assert json.loads(done.stdout)["recovered"] == [{"run_id": run_id, "task": "waits", "status": "completed"}]
    assert "the main part ran" not in done.stderr


def test_nobody_reads_the_items_any_more(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("run", "app.py:count", "--to", "3000", "--stream"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"0\n"
    process.stdout.close()
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait()

    [row] = json.loads(apflow("runs", "list", "--json").stdout)
    assert row["status"] == "completed"


def test_shells_complete_commands_and_tasks() -> None:
    env = {"APFLOW_APP": "app.py", "_APFLOW_COMPLETE": "bash_complete", "COMP_CWORD": "2"}
    done = apflow(COMP_WORDS="apflow run s", **env)
    assert done.stdout.split() == ["plain,says", "plain,scaled", "plain,spends", "plain,summarise"]
    assert done.stderr == ""

    done = apflow(COMP_WORDS="apflow runs ", **env)
    assert "plain,resume" in done.stdout.split()
    assert apflow("completion", "fish").stdout.startswith("function _apflow_completion")
    assert apflow("completion", "powershell").returncode == 2


def test_an_app_is_served_until_ctrl_c() -> None:
    with started("serve", "app.py", "--port", "0", until=" serves at ") as (process, line):
        address = line.split(" serves at ")[1].split(": ")[0].rstrip("/ \n")
        with urllib.request.urlopen(f"{address}/healthz") as answer:  # noqa: S310 - our own server
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        assert out == ""
        assert "Traceback" not in err
        assert "INFO mcp" not in err  # it tells of the end of its sessions
        assert process.returncode in (0, 130)


def test_a_token_comes_from_the_environment() -> None:
    secret = "a-token-of-some-length"  # noqa: S105 - of this test only
    with started(
        "serve", "app.py", "--port", "0", "--engine", "--token-env", "MY_TOKEN", until=" serves at ", MY_TOKEN=secret
    ) as (process, line):
        address = line.split(" serves at ")[1].split(": ")[0].rstrip("/ \n")
        request = urllib.request.Request(f"{address}/mcp", data=b"{}", method="POST")  # noqa: S310 - our own server
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)  # noqa: S310 - our own server
        refused.value.close()
        assert refused.value.code == 401
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        assert secret not in err


def test_web_tokens_need_a_user_and_an_end() -> None:
    key = "a-key-of-this-test-that-has-48-bytes-in-all-....."
    claims = {"sub": "ada", "exp": 4_102_444_800}
    with started("serve", "app.py", "--port", "0", "--jwt-key-env", "MY_KEY", until=" serves at ", MY_KEY=key) as (
        process,
        line,
    ):
        address = line.split(" serves at ")[1].split(": ")[0].rstrip("/ \n")

        def status(of: dict[str, object]) -> int:
            headers = {"Authorization": f"Bearer {jwt.encode(of, key)}"}
            return httpx.get(f"{address}/mcp", headers=headers, trust_env=False).status_code

        assert status(claims) == 406  # known, and asked for something else
        for left_out in claims:
            assert status({name: value for name, value in claims.items() if name != left_out}) == 401
        process.send_signal(signal.SIGINT)
        process.communicate()
