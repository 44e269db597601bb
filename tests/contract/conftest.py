"""One store for each kind of database, open and empty."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from apflow import create_session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from apflow import Store


@pytest.fixture(params=["sqlite-file", "sqlite-memory", "postgresql"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """A store that the test may fill."""
    urls = {"sqlite-file": "sqlite_url", "postgresql": "postgres_url"}
    url = request.getfixturevalue(urls[request.param]) if request.param in urls else "sqlite:///:memory:"
    made = create_session(url)
    await made.open()
    yield made
    made.close()
