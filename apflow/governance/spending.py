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
from apflow.errors import BudgetExhaustedError, StorageError, UnpricedModelError
from apflow.governance.amounts import NANO
from apflow.governance.books import AccountRow
from apflow.governance.decisions import exhausted, word
from apflow.governance.entries import Event, Hold, Settlement

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from apflow.governance.accounts import Account
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
        self._queue: deque[Event] = deque()
        self._ending: list[Hold] = []
        self._seen: set[str] = set()
        self._reported: list[int] = []
        self._guard = threading.Lock()
        self._flusher: asyncio.Task[None] | None = None
        self._asked = False
        self._closed = False

    # -- reports ---------------------------------------------------------------------------------------------

    def report(self, usage: Usage, source: str = "reported") -> None:
        """Queue usage and judge it by what is known of the accounts, less what is not stored yet.

        Raises:
            BudgetExhaustedError: It does not fit. It is counted nevertheless: the money is spent.
            UnpricedModelError: A budget in dollars is above the run, and the usage has no price.
        """
        meter, now = self._meter, self._store.clock.now()
        key = os.urandom(16).hex() if usage.dedupe is None else word(meter.state.root_id, usage.dedupe)
        with self._guard:
            if key in self._seen:
                return
            self._seen.add(key)
            self._reported.append(usage.total)
        event = Event(key, meter.who(), usage, meter.accounts_at(now), meter.innermost(), now, source)
        if meter.in_dollars:
            self._put_price(event)
        error = self._judge(event)
        self._queue.append(event)
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
        event.cost_nusd = None if price is None else nano_of(price.usd)

    def _judge(self, event: Event) -> BudgetExhaustedError | None:
        """Take the usage off what is known to be held or left; return the error of an account that has too little."""
        error = None
        chain = () if event.hold is None else event.hold.chain()
        with self._governor.lock:
            for one, account in event.accounts.items():
                amount = rest = event.amounts.of(account.line.unit)
                for hold in chain:
                    for held, other in hold.accounts.items():
                        if other.line == account.line:
                            taken = min(rest, hold.left.get(held, 0))
                            hold.left[held] = hold.left.get(held, 0) - taken
                            rest -= taken
                if rest and rest > account.left and error is None:
                    error = exhausted(event.who, account, _row_of(account), amount, model=event.usage.model)
                account.unflushed += rest
                event.beyond[one] = rest
        return error

    # -- storing ---------------------------------------------------------------------------------------------

    @property
    def failure(self) -> BudgetExhaustedError | UnpricedModelError | None:
        """Why the run fails even when its function returns; inside a transaction, what that one has found too."""
        return self._failure or self._tentative

    def end(self, hold: Hold | None) -> None:
        """Have a reservation released with whatever is stored next."""
        if hold is not None:
            self._ending.insert(0, hold)

    @property
    def waits(self) -> bool:
        """Whether something is to be stored."""
        return bool(self._queue or self._ending)

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
        while self._flusher is not None:
            await asyncio.wait([self._flusher])
        owned = (self._state.id, self._state.epoch) if ends and self._holds_below() else None
        if not self.waits and owned is None:
            return await self._store.write(fn, single=single)
        await self._price_all()
        settlement = self._take(owned)
        bound = self._bind(settlement, before, fn)
        try:
            result = await self._store.write(bound)
        except asyncio.CancelledError:  # It says so only after the write was done.
            self._done(settlement)
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
            self._tentative = settlement.overrun
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
        self._tentative = None
        with self._guard:
            self._queue.extendleft(reversed(settlement.events))
            self._ending = settlement.ending + self._ending

    def _done(self, settlement: Settlement) -> None:
        """Learn from a settlement that is committed."""
        self._tentative = None
        self._failure = self._failure or settlement.overrun
        with self._governor.lock:
            for event in settlement.events:
                for one, amount in event.beyond.items():
                    event.accounts[one].unflushed -= amount
                for hold in () if event.hold is None else event.hold.chain():
                    for one in hold.left:
                        hold.left[one] = settlement.left.get((hold.id, one), 0)
            accounts = {one: account for event in settlement.events for one, account in event.accounts.items()}
            accounts |= {one: account for hold in settlement.ending for one, account in hold.accounts.items()}
            learn(settlement.rows, accounts)
        for hold in settlement.ending:
            hold.left.clear()

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
        if self._closed or loop is None or loop.is_closed():
            portal.Spawned(portal.portal.loop(), self._flush(), contextvars.Context())
            return
        with contextlib.suppress(RuntimeError):  # The loop was closed just now; what ends the run stores it.
            loop.call_soon_threadsafe(self._begin_flush)

    def _begin_flush(self) -> None:
        if self._queue and self._flusher is None:
            self._flusher = asyncio.ensure_future(self._flush())
        else:
            self._asked = False

    async def _flush(self) -> None:
        writer = self._state.runtime.recorder.writer
        try:
            self._asked = False
            while self._queue:
                await self._price_all()
                settlement = self._take(None)
                rows = None if self._closed else writer.rows_of(self._state)
                bound = self._bind(settlement, rows, _nothing)
                try:
                    await self._store.write(bound)
                except BaseException:
                    self._put_back(settlement)
                    raise
                writer.rows_stored(self._state)
                self._done(settlement)
        except StorageError as error:
            logger.warning("usage of run %s is not stored yet (%s)", self._state.id, type(error).__name__)
        finally:
            self._flusher = None

    async def close(self) -> None:
        """Store what is left, when nothing more of the run will be written."""
        self._closed = True
        if self.waits or self._flusher is not None:
            await self.write(_nothing, before=None)


def _nothing(_: Tx) -> None:
    """Write nothing but the settlement."""


def _row_of(account: Account) -> AccountRow:
    return AccountRow(account.limit, account.settled, account.reserved, account.overrun, overridden=False)


def learn(rows: Mapping[str, AccountRow], accounts: Mapping[str, Account]) -> None:
    """Take note of what the database said about accounts."""
    for one, row in rows.items():
        account = accounts.get(one)
        if account is not None:
            account.limit, account.settled = row.limit, row.settled
            account.reserved, account.overrun = row.reserved, row.overrun


def nano_of(usd: Decimal) -> int:
    """Return dollars as nano-dollars, rounded up."""
    return int(_ROUND_UP.to_integral_value(_ROUND_UP.multiply(usd, Decimal(NANO))))
