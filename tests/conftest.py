"""Fixtures that all tests share: a clean place to work in, the event loop, and databases."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from hypothesis import settings

from apflow import definition
from tests.postgres_server import fresh_database, start_bundled, stop_bundled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from apflow.options import TaskDefinition

ROOT = Path(__file__).parent.parent
_OURS = (str(ROOT / "tests"), str(ROOT / "examples"))
SERVER_FOLDER = pytest.StashKey[Path]()

# How long an example takes says more about the machine than about the code.
settings.register_profile("apflow", deadline=None)
settings.load_profile("apflow")

# Programs that tests start find `apflow` and `tests` wherever they are started.
os.environ["PYTHONPATH"] = str(ROOT)


class WorkerNode(Protocol):
    """What pytest-xdist tells of a worker process that it is about to start."""

    workerinput: dict[str, Any]
    config: pytest.Config


def pytest_configure(config: pytest.Config) -> None:
    """Choose one folder for the PostgreSQL server that all worker processes of this run share."""
    if hasattr(config, "workerinput"):
        config.stash[SERVER_FOLDER] = Path(config.workerinput["server_folder"])
        return
    config.stash[SERVER_FOLDER] = Path(tempfile.mkdtemp(prefix="apflow-tests-"))
    # Ended by `timeout`, say, the run stops its server as it does on Ctrl-C. What a test forks ends at once.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerNode) -> None:
    """Tell a worker process the folder of the server."""
    node.workerinput["server_folder"] = str(node.config.stash[SERVER_FOLDER])


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the server when the last worker is done, even one that crashed."""
    if not hasattr(config, "workerinput"):
        stop_bundled(config.stash[SERVER_FOLDER])


@pytest.fixture(autouse=True)
def _clean_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the caller's database or leaves one in the project's folder."""
    monkeypatch.delenv("APFLOW_DATABASE_URL", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def _tasks_of_the_module(request: pytest.FixtureRequest) -> Iterator[None]:
    """A module of tests sees its own tasks and those of modules that it imports: two of one name would be ambiguous."""
    before = _known_tasks()
    mine = _modules_behind(request.module)
    for name, there in list(definition._known.items()):
        left = {key: one for key, one in there.items() if one.fn.__module__ in mine or one.origin.startswith("apflow.")}
        definition._known[name] = left
        if not left:
            del definition._known[name]
    yield
    definition._known.clear()
    definition._known.update(before)


@pytest.fixture(autouse=True)
def _own_tasks() -> Iterator[None]:
    """No test sees the tasks that another test has made."""
    before = _known_tasks()
    yield
    definition._known.clear()
    definition._known.update(before)


def _modules_behind(module: ModuleType) -> set[str]:
    """Return the names of a module of tests and of what it takes from this project's other modules, at any remove."""
    found: set[str] = set()
    waiting = [module.__name__]
    while waiting:
        name = waiting.pop()
        if name not in found and not name.startswith(("apflow.", "tests.conftest")):
            found.add(name)
            values = list(vars(sys.modules[name]).values()) if name == module.__name__ or _is_ours(name) else []
            behind = (one.__name__ if isinstance(one, ModuleType) else _module_of(one) for one in values)
            waiting += [one for one in behind if _is_ours(one)]
    return found


def _module_of(value: object) -> str:
    found = getattr(value, "__module__", None)
    return found if isinstance(found, str) else ""


def _is_ours(name: str) -> bool:
    module = sys.modules.get(name)
    return module is not None and str(getattr(module, "__file__", None) or "").startswith(_OURS)


def _known_tasks() -> dict[str, dict[tuple[str, str, str], TaskDefinition]]:
    return {name: dict(there) for name, there in definition._known.items()}


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgres_server(pytestconfig: pytest.Config) -> str:
    """URL of a server where tests may create databases."""
    given = os.environ.get("APFLOW_TEST_POSTGRES_URL")
    return given or start_bundled(pytestconfig.stash[SERVER_FOLDER])


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """URL of a fresh, empty PostgreSQL database."""
    with fresh_database(postgres_server) as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """URL of a SQLite database whose file is not there yet."""
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """URL of a fresh, empty database, on SQLite and on PostgreSQL in turn."""
    name = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    url: str = request.getfixturevalue(name)
    return url
