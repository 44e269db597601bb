"""`reserve`: a block inside a run that holds an amount before it spends it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Self

from apflow import portal
from apflow.errors import StorageError
from apflow.governance.meter import block

if TYPE_CHECKING:
    from types import TracebackType

    from apflow.governance.amounts import Amounts
    from apflow.governance.entries import Admission, Hold
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
        self._entered = False

    async def __aenter__(self) -> Self:
        self._enter(await self._acquire(self._meter.innermost()))
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

    async def _acquire(self, outer: Hold | None) -> Hold | None:
        """Reserve, drawing on `outer` first, or raise.

        Raises:
            BudgetExhaustedError: It does not fit.
            RuntimeError: It was entered before.
        """
        if self._entered:
            raise RuntimeError("a reservation is used once; call reserve() again for another block")
        self._entered = True
        meter = self._meter
        await meter.catch_up()
        admission = meter.admission(self._needs, outer, meter.model)
        if not admission.accounts:
            return None
        await self._write(admission)
        if admission.refusal is not None and await meter.governor.sweep(admission.accounts):
            admission = meter.admission(self._needs, outer, meter.model)
            await self._write(admission)
        if admission.refusal is not None:
            raise admission.refusal
        return meter.governor.known.granted(admission)

    async def _write(self, admission: Admission) -> None:
        state = self._meter.state
        writer = state.runtime.recorder.writer
        meter = self._meter
        state.owned.holding = True
        try:
            await writer.early(state, lambda tx: writer.holds(tx, state) and meter.admit_in(tx, admission))
        except BaseException as error:
            # It may be committed nevertheless: so it is when a cancellation is told.
            hold = meter.governor.known.granted(admission)
            if hold is not None:
                meter.spending.end(hold)
                if isinstance(error, asyncio.CancelledError):  # The function may catch it, and try with less.
                    with contextlib.suppress(StorageError):
                        await meter.settle()
            raise

    async def _release(self) -> None:
        if self._hold is not None:
            self._meter.spending.end(self._hold)
            await self._meter.settle()
