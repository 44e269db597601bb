"""`reserve`: a block inside a run that holds an amount before it spends it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

from apflow import portal
from apflow.governance.entries import Admission, Hold
from apflow.governance.meter import block
from apflow.governance.spending import learn

if TYPE_CHECKING:
    from types import TracebackType

    from apflow.governance.amounts import Amounts
    from apflow.governance.meter import Meter


class Reservation:
    """Holds an amount on every budget above the run: `async with`, or `with` in a plain function.

    What is reported inside is taken off it; what is left when the block ends goes back.
    """

    __module__ = "apflow"

    def __init__(self, meter: Meter, needs: Amounts) -> None:
        self._meter = meter
        self._needs = needs
        self._hold: Hold | None = None
        self._outer: Hold | None = None

    async def __aenter__(self) -> Self:
        hold = await self._acquire()
        self._enter(hold)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        await self._release()

    def __enter__(self) -> Self:
        self._enter(portal.run_blocking(self._acquire(self._meter.innermost())))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        portal.run_blocking(self._release())

    def _enter(self, hold: Hold | None) -> None:
        self._outer = block.get()
        self._hold = hold
        if hold is not None:
            block.set(hold)

    def _leave(self) -> None:
        # Not with a token: a generator may be left in another context than it was entered in.
        if self._hold is not None:
            block.set(self._outer)

    async def _acquire(self, outer: Hold | None = None) -> Hold | None:
        """Reserve, or raise.

        Raises:
            BudgetExhaustedError: It does not fit.
        """
        meter = self._meter
        admission = self._propose(outer or meter.innermost())
        if not admission.accounts:
            return None
        await self._write(admission)
        if admission.refusal is not None and await meter.governor.sweep(admission.accounts):
            admission = self._propose(outer or meter.innermost())
            await self._write(admission)
        if admission.refusal is not None:
            raise admission.refusal
        with meter.governor.lock:
            learn(admission.rows, admission.accounts)
        accounts = {one: admission.accounts[one] for one in admission.left}
        meter.state.owned.holding = True
        return Hold(admission.hold_id, meter.state.id, accounts, dict(admission.left), admission.outer)

    def _propose(self, outer: Hold | None) -> Admission:
        meter = self._meter
        now = meter.governor.store.clock.now()
        return Admission(
            who=meter.who(),
            hold_id=os.urandom(16).hex(),
            accounts=meter.accounts_at(now),
            needs=self._needs,
            outer=outer,
            judge=None,
            now=now,
            asked=meter.model,
        )

    async def _write(self, admission: Admission) -> None:
        state = self._meter.state
        writer = state.runtime.recorder.writer
        meter = self._meter
        await writer.early(state, lambda tx: writer.holds(tx, state) and meter.admit_in(tx, admission))

    async def _release(self) -> None:
        if self._hold is not None:
            self._meter.spending.end(self._hold)
            await self._meter.write(_nothing)


def _nothing(_: object) -> None:
    """Write nothing but the settlement."""
