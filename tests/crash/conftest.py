"""Workers that tests start and kill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.processes import Crew, Nursery


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("crash")


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


@pytest.fixture
def crew(nursery: Nursery, database_url: str, tmp_path: Path) -> Iterator[Crew]:
    """Workers on one fresh database, SQLite and PostgreSQL in turn."""
    made = Crew(nursery, database_url, tmp_path)
    yield made
    made.dismiss()


@pytest.fixture
def sqlite_crew(nursery: Nursery, sqlite_url: str, tmp_path: Path) -> Iterator[Crew]:
    """Workers on one fresh SQLite file."""
    made = Crew(nursery, sqlite_url, tmp_path)
    yield made
    made.dismiss()
