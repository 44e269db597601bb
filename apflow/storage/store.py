"""What the rest of apflow knows of a database: short transactions, written once for both kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from apflow.clock import Clock

T = TypeVar("T")
Dialect = Literal["sqlite", "postgresql"]
Durability = Literal["normal", "full"]
Row = tuple[Any, ...]

#: Seconds that a write waits for a database which somebody else has locked, or which went away.
WAIT_SECONDS = 30.0


class Tx(Protocol):
    """One open transaction. SQL has `:name` parameters on both databases."""

    dialect: Dialect

    def execute(self, sql: str, params: Mapping[str, Any] = ...) -> int:
        """Run one statement and return how many rows it changed."""
        ...

    def rows(self, sql: str, params: Mapping[str, Any] = ...) -> list[Row]:
        """Run one query and return all its rows."""
        ...

    def row(self, sql: str, params: Mapping[str, Any] = ...) -> Row | None:
        """Run one query and return its first row, or None."""
        ...


class Store(Protocol):
    """A database that holds runs. `write` and `read` may be called from any thread and any event loop."""

    dialect: Dialect
    url: str
    clock: Clock
    database_clock: bool

    async def open(self) -> None:
        """Connect, and make or upgrade the schema. Does nothing when it is open.

        Raises:
            StorageError: It cannot be reached, written or upgraded.
        """
        ...

    async def write(self, fn: Callable[[Tx], T], *, single: bool = False) -> T:
        """Run `fn` in a transaction and return its result once that is committed.

        `fn` may run again after a commit with an unknown outcome, so it has to be idempotent. It must not block.

        Args:
            fn: Executes statements on the transaction that it is given.
            single: `fn` executes exactly one statement, which saves PostgreSQL two round trips.

        Raises:
            StorageError: Nothing was stored; or whatever `fn` raised, and nothing was stored either.
        """
        ...

    async def read(self, fn: Callable[[Tx], T]) -> T:
        """Run the queries of `fn` on a connection for reading and return its result."""
        ...

    def write_blocking(self, fn: Callable[[Tx], T]) -> T:
        """Do what `write` does from a thread without an event loop, ahead of all queued writes."""
        ...

    def read_blocking(self, fn: Callable[[Tx], T]) -> T:
        """Do what `read` does on the calling thread."""
        ...

    async def changed(self, run_id: str, seen: Any, timeout: float) -> Any:
        """Return when some other process may have changed the run, at the latest after `timeout` seconds.

        Args:
            run_id: The run that is waited for.
            seen: What the last call returned; None the first time, which returns at once.
            timeout: Seconds.
        """
        ...

    def timestamp(self, moment: datetime) -> Any:
        """Return `moment` as the parameter of a statement."""
        ...

    def unwatch(self, run_id: str, seen: Any) -> None:
        """End the waiting that `changed` began."""
        ...

    def forget_after_fork(self) -> None:
        """Begin anew in a forked child: never touch a connection of the parent."""
        ...

    def close(self) -> None:
        """Finish what is queued and close every connection."""
        ...
