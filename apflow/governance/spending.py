"""What a run has used: queued when it is reported, judged by what is known, stored soon or with the run's end."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import threading
from collections import deque
from decimal import ROUND_CEILING, Context, Decimal
from typing import TYPE_CHECKING, TypeVar

from apflow import portal
from apflow.durability.replay import word
from apflow.errors import BudgetExhaustedError, StorageError, UnpricedModelError
from apflow.governance.amounts import MOST_USD, NANO
from apflow.governance.entries import Event, Hold, Settlement
from apflow.storage.outlive import outlive

if TYPE_CHECKING:
    from collections.abc import Callable

    from apflow.governance.meter import Meter
    from apflow.governance.usage import Usage
    from apflow.storage.store import Tx

T = TypeVar("T")

logger = logging.getLogger(__name__)

_ROUND_UP = Context(prec=60, rounding=ROUND_CEILING)


class Spending:
    """The part of a meter that counts. Any thread of the run may report.

    Attributes:
        failure: Why the run fails even when its function returns: its own usage did not fit, or has no price.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._state = meter.state
        self._governor = meter.governor
        self._store = meter.governor.store
        self._failure: BudgetExhaustedError | UnpricedModelError | None = None
        self._tentative: BudgetExhaustedError | None = None
        self._suspected: BudgetExhaustedError | None = None
        self._queue: deque[Event] = deque()
        self._ending: list[Hold] = []
        self._seen: set[str] = set()
        self._reported: list[int] = []
        self._guard = threading.Lock()
        self._flusher: asyncio.Task[None] | None = None
        self._asked = False

    # -- reports ---------------------------------------------------------------------------------------------

    def report(self, usage: Usage, source: str = "reported") -> None:
        """Queue usage and judge it by what is known of the accounts, less what is not stored yet.

        Raises:
            BudgetExhaustedError: It does not fit. It is counted nevertheless: the money is spent.
            UnpricedModelError: A budget in dollars is above the run, and the usage has no price.
        """
        meter, now = self._meter, self._store.clock.now()
        key = os.urandom(16).hex() if usage.dedupe is None else word(meter.state.root_id, usage.dedupe)
        if usage.dedupe is not None and not meter.top().spending.is_new(key):
            return
        with self._guard:
            self._reported.append(usage.total)
        event = Event(key, meter.who(), usage, meter.accounts_at(now), meter.innermost(), now, source)
        if meter.in_dollars:
            self._put_price(event)
        error: BudgetExhaustedError | UnpricedModelError | None = self._governor.known.judge(event)
        if usage.dedupe is not None and self._state.owned.epoch > 1:
            error = None  # An earlier life may have reported it; then it counts nothing.
        error = error or self._failure
        with self._guard:
            self._queue.append(event)
        if source != "returned":  # That is stored by the run's end, which follows and judges it.
            self._flush_soon()
        if meter.in_dollars and event.cost_nusd is None:
            self._failure = self._failure or self._unpriced(usage.model)
            raise self._unpriced(usage.model)
        if error is not None:
            raise error

    def returned(self, usage: Usage) -> None:
        """Queue usage that stands in the function's result; the run's end judges it.

        A result that sums up exactly what was reported counts once.
        """
        if not (self._reported and sum(self._reported) == usage.total and usage.dedupe is None):
            with contextlib.suppress(BudgetExhaustedError, UnpricedModelError):
                self.report(usage, "returned")

    def _unpriced(self, model: str | None) -> UnpricedModelError:
        return UnpricedModelError(self._state.id, model, self._governor.prices.missing(model))

    def _put_price(self, event: Event) -> None:
        usage = event.usage
        price = self._governor.prices.price(usage, event.at)
        event.price = price
        event.cost_nusd = None if price is None else min(nano_of(price.usd), MOST_USD * NANO)

    def is_new(self, key: str) -> bool:
        """Whether nobody in this run's tree has reported usage of this name here; from now on somebody has."""
        with self._guard:
            new = key not in self._seen
            self._seen.add(key)
        return new

    def begin_attempt(self) -> None:
        """Forget what earlier attempts reported: a result sums up its own attempt."""
        with self._guard:
            self._reported.clear()

    # -- storing ---------------------------------------------------------------------------------------------

    @property
    def failure(self) -> BudgetExhaustedError | UnpricedModelError | None:
        """Why the run fails even when its function returns; inside a transaction, what that one has found too."""
        return self._failure or self._tentative

    def end(self, hold: Hold) -> None:
        """Have a reservation released with whatever is stored next."""
        self._ending.insert(0, hold)

    @property
    def waits(self) -> bool:
        """Whether something is to be stored."""
        return bool(self._queue or self._ending)

    @property
    def reports(self) -> bool:
        """Whether something that was reported is not stored, or just being stored."""
        return bool(self._queue) or self._flusher is not None

    async def write(
        self, fn: Callable[[Tx], T], *, before: Callable[[Tx], object] | None, single: bool = False, ends: bool = False
    ) -> T:
        """Run a write of the run in one transaction with the settlement of what it has used.

        Args:
            fn: The write; it finds `failure` up to date.
            before: Takes locks on rows of runs, which come first. What it returns does not matter: usage is stored
                even when another process owns the run now.
            single: `fn` executes one statement.
            ends: The owned run ends, so nothing is held for it any more.
        """
        if self._flusher is None and (not self._queue or self._governor.prices.loaded):
            return await self._write(fn, before, single=single, ends=ends)
        # A cancellation is told only after the write was done, as the store does it.
        return await outlive(asyncio.ensure_future(self._write(fn, before, single=single, ends=ends)))

    async def _write(
        self, fn: Callable[[Tx], T], before: Callable[[Tx], object] | None, *, single: bool, ends: bool
    ) -> T:
        await self._price_all()
        # One may have begun while the price book was loaded. On another loop it may itself have to wait for us.
        while self._flusher is not None and self._state.loop is asyncio.get_running_loop():
            await asyncio.wait([self._flusher])
            await self._price_all()
        owned = (self._state.id, self._state.epoch) if ends and self._holds_below() else None
        if not self.waits and owned is None:
            return await self._store.write(fn, single=single)
        return await self._store_settlement(owned, before, fn)

    async def _store_settlement(
        self, owned: tuple[str, int] | None, before: Callable[[Tx], object] | None, fn: Callable[[Tx], T]
    ) -> T:
        """Store what waits now in one transaction with `fn`; what could not be stored waits on."""
        settlement = self._take(owned)
        try:
            result = await self._store.write(self._bind(settlement, before, fn))
        except asyncio.CancelledError as error:  # It says so only after the write has ended, well or badly.
            (self._done if error.__cause__ is None else self._put_back)(settlement)
            raise
        except BaseException:
            self._put_back(settlement)
            raise
        self._done(settlement)
        return result

    def write_blocking(self, fn: Callable[[Tx], T]) -> T:
        """Do what `write` does at the end of a run, from a thread without an event loop."""
        self._price_now()
        settlement = self._take((self._state.id, self._state.epoch) if self._holds_below() else None)
        try:
            result = self._store.write_blocking(self._bind(settlement, None, fn))
        except BaseException:
            self._put_back(settlement)
            raise
        self._done(settlement)
        return result

    def _holds_below(self) -> bool:
        return self._state.owned is self._state and self._state.holding

    def _bind(
        self, settlement: Settlement, before: Callable[[Tx], object] | None, fn: Callable[[Tx], T]
    ) -> Callable[[Tx], T]:
        def bound(tx: Tx) -> T:
            if before is not None:
                before(tx)
            self._governor.ledger.settle(tx, settlement)
            # A commit whose answer got lost has found it already, when nothing is left to count now.
            self._tentative = settlement.overrun or (None if settlement.counted else self._suspected)
            result = fn(tx)
            if settlement.events:
                self._governor.ledger.keep_row_in_step(tx, self._state.id)
            return result

        return bound

    def _take(self, owned: tuple[str, int] | None) -> Settlement:
        with self._guard:
            events, ending = list(self._queue), self._ending
            self._queue.clear()
            self._ending = []
        return Settlement(events, ending, owned)

    def _put_back(self, settlement: Settlement) -> None:
        self._tentative, self._suspected = None, settlement.overrun or self._suspected
        with self._guard:
            self._queue.extendleft(reversed(settlement.events))
            self._ending = settlement.ending + self._ending

    def _done(self, settlement: Settlement) -> None:
        """Learn from a settlement that is committed."""
        self._failure = self._failure or self._tentative or settlement.overrun
        self._tentative = None
        if settlement.events:
            self._suspected = None
        self._governor.known.settled(settlement)

    async def _price_all(self) -> None:
        """Price what was reported where no budget counts dollars; nobody had to wait for the price book then."""
        if any(event.price is None for event in self._queue):
            await self._governor.load_prices()
            self._price_now()

    def _price_now(self) -> None:
        if self._governor.prices.loaded:
            for event in list(self._queue):
                if event.price is None:
                    self._put_price(event)

    # -- in the background -----------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        """Have what is queued stored, unless the run's end does it first."""
        loop = self._state.loop
        with self._guard:
            if self._asked:
                return
            self._asked = True
        if self._state.closed or loop is None or loop.is_closed():
            stored = portal.Spawned(portal.portal.loop(), self._store_reports(), contextvars.Context())
            self._governor.known.await_late(stored.future)
            return
        with contextlib.suppress(RuntimeError):  # The loop was closed just now; what ends the run stores it.
            loop.call_soon_threadsafe(self._begin_flush)

    def _begin_flush(self) -> None:
        if self._queue and self._flusher is None:
            self._flusher = asyncio.ensure_future(self._flush())
        else:
            self._asked = False

    async def catch_up(self) -> None:
        """Store what was reported so far, because what is decided next has to know of it."""
        if self._state.ended:
            return
        if self._state.loop is not asyncio.get_running_loop():
            await self._store_reports()  # That loop may be blocked until this returns.
            return
        if self._flusher is None:
            self._begin_flush()
        if self._flusher is not None:
            await asyncio.wait([self._flusher])

    async def _flush(self) -> None:
        try:
            await self._store_reports()
        finally:
            self._flusher = None

    async def _store_reports(self) -> None:
        writer = self._state.runtime.recorder.writer
        try:
            self._asked = False
            while self._queue:
                await self._price_all()
                await self._store_settlement(None, self._rows(), _nothing)
                writer.rows_stored(self._state)
        except StorageError as error:
            logger.warning("usage of run %s is not stored yet (%s)", self._state.id, type(error).__name__)

    async def close(self) -> None:
        """Store what is left, when nothing more of the run will be written."""
        if self.waits or self._flusher is not None:
            await self.write(_nothing, before=self._rows())
            self._state.runtime.recorder.writer.rows_stored(self._state)

    def _rows(self) -> Callable[[Tx], object] | None:
        """Return what makes sure of the run's row: a child that was cancelled may have none before this."""
        state = self._state
        return None if state.closed and state.stored else state.runtime.recorder.writer.rows_of(state)


def _nothing(_: Tx) -> None:
    """Write nothing but the settlement."""


def nano_of(usd: Decimal) -> int:
    """Return dollars as nano-dollars, rounded up."""
    return int(_ROUND_UP.to_integral_value(_ROUND_UP.multiply(usd, Decimal(NANO))))
