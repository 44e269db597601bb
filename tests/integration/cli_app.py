"""An app as its users write one, and how tests use the command line on it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
from click.testing import CliRunner, Result

from apflow import definition
from apflow.bridge.cli import root

runtimes: Any = import_module("apflow.runtime")  # the name in the package is the function

APP = '''
import asyncio, datetime, enum, os, sys
from collections.abc import AsyncIterator
from decimal import Decimal

from pydantic import BaseModel

import apflow


class Tone(enum.Enum):
    DRY = "dry"
    WARM = "warm"


class Page(BaseModel):
    url: str
    words: int = 0


@apflow.task
async def summarise(topic: str, pages: list[Page] | None = None, tone: Tone = Tone.DRY, loud: bool = False) -> dict:
    """Summarise a topic.

    Args:
        topic: What it is about.
    """
    print("printed by the task")
    return {"topic": topic, "urls": [page.url for page in pages or ()], "tone": tone.value, "loud": loud}


@apflow.task
def add(a: int, b: int = 2) -> int:
    return a + b


@apflow.task
async def echo_model(page: Page) -> Page:
    return page


@apflow.task
async def echo_list(items: list[int]) -> list[int]:
    return items


@apflow.task
async def echo_object(data: dict[str, int]) -> dict[str, int]:
    return data


@apflow.task
async def later(at: datetime.datetime, days: int = 1) -> datetime.datetime:
    return at + datetime.timedelta(days=days)


@apflow.task
async def half(amount: Decimal) -> Decimal:
    return amount / 2


@apflow.task
async def scaled(x: float, name: str | None = None, n: int | None = 5) -> list[float | str | None]:
    return [x, name, n]


@apflow.task
async def reserved(json: int, help: str, app: str = "a") -> list[int | str]:
    return [json, help, app]


@apflow.task
async def fails(text: str) -> str:
    raise ValueError("hidden " + text)


@apflow.task
async def says(code: str) -> str:
    raise apflow.PublicError("as you wish", code=code)


@apflow.task(timeout=0.01)
async def hangs() -> None:
    await asyncio.sleep(60)


@apflow.task(budget=apflow.Budget(tokens=10, per="user", name="daily"))
async def spends(tokens: int) -> int:
    apflow.report_usage(model="tiny", input=tokens, output=0)
    return tokens


@apflow.task(tags=("requires_approval",))
async def wipe() -> str:
    return "wiped"


@apflow.task
async def count(to: int) -> AsyncIterator[int]:
    for number in range(to):
        yield number


@apflow.task
async def outer(a: int) -> int:
    return await inner(a)


@apflow.task
async def inner(a: int) -> int:
    return a * 2


@apflow.task
async def waits() -> str:
    """Wait until there is a file called `go`."""
    await apflow.progress(1, 2, "half of it")
    print("waiting", flush=True)
    while not os.path.exists("go"):
        await asyncio.sleep(0.01)
    return "went"


ONLY_ADD = [add]

if __name__ == "__main__":
    if sys.argv[1:] == ["submit"]:
        async def main() -> None:
            run = await waits.submit()
            print(run.id, flush=True)
            os._exit(0)
        asyncio.run(main())
    raise SystemExit("the main part ran")
'''


def at_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare a test that calls commands inside its own process."""
    write_app(folder)
    monkeypatch.setenv("APFLOW_APP", "app.py")
    monkeypatch.setattr(runtimes, "_default", [])
    monkeypatch.setattr(definition, "_watchers", WeakSet())  # registries of other tests' runtimes
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("__main__", "__mp_main__"):
        monkeypatch.setitem(sys.modules, name, sys.modules["__main__"])


def call(*args: str, stdin: str | None = None) -> Result:
    """Run a command inside this process."""
    runtimes._default.clear()  # a command finds no runtime: it is a process of its own
    return CliRunner().invoke(root, args, input=stdin, prog_name="apflow")


def write_app(folder: Path) -> Path:
    """Write the app into a folder and return its path."""
    path = folder / "app.py"
    path.write_text(APP, encoding="utf-8")
    return path


def command(*args: str) -> list[str]:
    """Return the command line of a process that runs `apflow`."""
    return [sys.executable, "-m", "apflow", *args]


def apflow(*args: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run `apflow` in a process of its own, in the current folder."""
    environment = os.environ | env
    return subprocess.run(command(*args), input=stdin, capture_output=True, text=True, env=environment, check=False)
