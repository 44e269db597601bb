"""From a URL to a store."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

from apflow.clock import SystemClock

if TYPE_CHECKING:
    from apflow.clock import Clock
    from apflow.storage.store import Durability, Store

DEFAULT_URL = "sqlite:///apflow.db"
_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def create_session(url: str | None = None, *, clock: Clock | None = None, durability: Durability = "normal") -> Store:
    """Return the store of a database; it connects on first use.

    Args:
        url: `sqlite:///path`, `sqlite:///:memory:`, or any libpq URI such as `postgresql://host/name`. None is
            `APFLOW_DATABASE_URL`, else `sqlite:///apflow.db` in the working directory.
        clock: Where the time comes from; None is the machine's, and PostgreSQL's own for leases.
        durability: `"normal"` survives any crash of the process; `"full"` survives a power failure too.

    Raises:
        ValueError: The URL is of no known kind.
        MissingExtraError: PostgreSQL needs `apflow[postgres]`.
    """
    store: Store
    url = url or os.environ.get("APFLOW_DATABASE_URL") or DEFAULT_URL
    if url.startswith("sqlite"):
        from apflow.storage.sqlite_store import SQLiteStore

        store = SQLiteStore(url, clock=clock or SystemClock(), durability=durability)
    elif url.startswith(("postgresql://", "postgres://", "postgresql+psycopg://")):
        from apflow.storage.postgres import PostgresStore

        store = PostgresStore(url, clock=clock or SystemClock(), durability=durability, database_clock=clock is None)
    else:
        scheme = url.split(":", 1)[0]
        raise ValueError(f"no database of kind {scheme!r}: the URL begins with sqlite:/// or postgresql://")
    _stores.add(store)
    return store


def _forget_all() -> None:
    for store in list(_stores):
        store.forget_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
