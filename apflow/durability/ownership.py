"""Who runs a run: the lease that its owner keeps alive."""

from __future__ import annotations

import functools
import logging
import threading
from typing import TYPE_CHECKING, Any

from apflow.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from apflow.state import RunState
    from apflow.storage.statements import Statements
    from apflow.storage.store import Store, Tx

logger = logging.getLogger(__name__)

CHUNK = 200
RENEWALS_PER_LEASE = 3


class LeaseKeeper:
    """Renews the leases of the runs that this runtime holds, from a thread, ahead of all other writes.

    The renewal also tells which runs were taken over by somebody else, and which were asked to be cancelled.
    """

    def __init__(self, store: Store, owner: str, lease_seconds: float, housekeeping: Callable[[], None]) -> None:
        self.owner = owner
        self.held: dict[str, RunState] = {}
        self._store = store
        self._lease_seconds = lease_seconds
        self._housekeeping = housekeeping
        self._statements: Statements | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._stop = threading.Event()

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name="apflow-leases", daemon=True)
                    self._thread.start()

    def hold(self, state: RunState) -> None:
        """Keep the lease of this run alive from now on."""
        self.held[state.id] = state
        if self._thread is None:
            self.start()

    def drop(self, state: RunState) -> None:
        """Keep it no longer."""
        if self.held.get(state.id) is state:
            del self.held[state.id]

    def close(self) -> None:
        self._stop.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(self._lease_seconds)

    def _work(self) -> None:
        self._tidy()
        ticks = 0
        while not self._stop.wait(self._lease_seconds / RENEWALS_PER_LEASE):
            ticks += 1
            try:
                self.renew()
            except Exception as error:  # noqa: BLE001 - without this thread every run here would be taken over
                logger.warning("leases were not renewed (%s); they are tried again", type(error).__name__)
            if ticks % RENEWALS_PER_LEASE == 0:
                self._tidy()

    def _tidy(self) -> None:
        try:
            self._housekeeping()
        except Exception as error:  # noqa: BLE001 - the leases matter more; it is tried again at the next tick
            logger.warning("housekeeping failed with %s and is tried again", type(error).__name__)

    def renew(self) -> None:
        """Renew all leases now."""
        states = list(self.held.values())
        for start in range(0, len(states), CHUNK):
            chunk = {state.id: state for state in states[start : start + CHUNK]}
            try:
                rows = self._store.write_blocking(functools.partial(self._renew_in, list(chunk)))
            except StorageError as error:
                logger.warning("leases were not renewed (%s); they are tried again", type(error).__name__)
                continue
            found = {row[0]: row[1:] for row in rows}
            for run_id, state in chunk.items():
                if self.held.get(run_id) is state:
                    self._judge(state, found.get(run_id))

    def _renew_in(self, ids: list[str], tx: Tx) -> list[tuple[Any, ...]]:
        from apflow.storage.statements import Statements, lease_params

        if self._statements is None:
            self._statements = Statements.of(self._store)
        names = ", ".join(f":i{number}" for number in range(len(ids)))
        params = {f"i{number}": run_id for number, run_id in enumerate(ids)}
        params |= lease_params(self._store, self._lease_seconds) | {"owner": self.owner}
        tx.execute(
            f"UPDATE apflow_tasks SET lease_expires_at = {self._statements.lease} "
            f"WHERE id IN ({names}) AND owner = :owner AND status = 'in_progress'",
            params,
        )
        return tx.rows(
            f"SELECT id, owner, epoch, status, cancel_requested_at FROM apflow_tasks WHERE id IN ({names})", params
        )

    def _judge(self, state: RunState, row: tuple[Any, ...] | None) -> None:
        """Stop a run that is no longer ours, or that somebody wants cancelled."""
        if row is None or row[0] != self.owner or row[1] != state.epoch:
            state.stop("fenced")
        elif row[3] is not None:
            state.stop("cancelled")
