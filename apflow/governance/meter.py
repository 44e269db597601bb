"""The meter of one run: what it may use, what it holds, and what it has used and not yet stored."""

from __future__ import annotations

import logging
import os
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from apflow.durability.rows import UNGOVERNED
from apflow.errors import UnpricedModelError
from apflow.governance.amounts import MOST_MICRO, MOST_TOKENS, NOTHING, Amounts, usd_of
from apflow.governance.choosing import Choice, first_of
from apflow.governance.entries import Admission, Hold, Who
from apflow.governance.policy import PolicyAction, PolicyEngine, policy_for_models
from apflow.governance.spending import Spending
from apflow.governance.standing import Standing
from apflow.governance.stored import stored_options

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from decimal import Decimal

    from apflow.call import Call, CallNext
    from apflow.errors import BudgetExhaustedError
    from apflow.governance.accounts import Account
    from apflow.governance.budget import Budget
    from apflow.governance.governor import Governor
    from apflow.governance.policy import CostPolicy
    from apflow.state import RunState
    from apflow.storage.store import Tx

T = TypeVar("T")

logger = logging.getLogger(__name__)

_SET_MODEL = "UPDATE apflow_tasks SET model = :model WHERE id = :id"

#: The innermost `reserve` block that this code is in.
block: ContextVar[Hold | None] = ContextVar("apflow_reserve", default=None)


async def budget_layer(call: Call, call_next: CallNext) -> Any:
    """Admit an attempt, with the model that governance gives it. Its settlement is stored with its outcome.

    Raises:
        BudgetExhaustedError: A budget above the run, or a policy, does not allow it.
        UnpricedModelError: A budget in dollars is above it, and nobody knows what its model costs.
    """
    meter = call.state.meter
    assert meter is not None
    return await call_next(await meter.admit(call))


class Meter:
    """What governs one run. A run that nothing governs has one once it reports usage.

    Attributes:
        hold: The reservation of the attempt that runs.
        model: What the attempt that runs was given: chosen by governance, or asked for.
        kept: What governance chose; it stays for the run's other attempts and lives.
    """

    def __init__(self, state: RunState, parent: Meter | None) -> None:
        self.state, self.parent = state, parent
        self.governor: Governor = state.runtime.governor
        self.standing: Standing = Standing(state, None if parent is None else parent.standing)
        self.hold: Hold | None = None
        self.model: str | None = None
        options = state.options
        above = state.above
        above_lines = () if above is None else above.lines
        self._outer = None if parent is None else parent.innermost()
        self._proposed: Admission | None = None
        self.kept: str | None = None
        inherited: tuple[CostPolicy, ...] = (
            parent.policies if parent is not None else () if above is None else above.policies
        )
        self.policies: tuple[CostPolicy, ...] = self._policies(inherited)
        self.needs = _most(options.budget) if options.reserve is None else options.reserve
        self.in_dollars: bool = (
            any(one.usd is not None for one in options.budget)
            or any(line.unit == "usd" for line in above_lines)
            or (parent is not None and parent.in_dollars)
        )
        self.governs: bool = bool(
            options.budget or above_lines or self.policies or (parent is not None and parent.governs)
        )
        self._spending: Spending | None = None

    def _policies(self, inherited: tuple[CostPolicy, ...]) -> tuple[CostPolicy, ...]:
        options = self.state.options
        own = self.governor.engine.resolve(options.policy) if options.policy else []
        if options.models and not any(one.action is PolicyAction.DOWNGRADE for one in own):
            own.append(policy_for_models(self.state.definition.name, options.models))
        self._own_policies = tuple(own)
        if not own:
            return inherited
        return tuple(PolicyEngine.ordered([*own, *(one for one in inherited if one not in own)]))

    @property
    def spending(self) -> Spending:
        """What the run has used."""
        if self._spending is None:
            with self.governor.lock:
                if self._spending is None:
                    self._spending = Spending(self)
        return self._spending

    @property
    def wants_prices(self) -> bool:
        """Whether its start has to know what models cost: to judge it, or to estimate what it reserves."""
        estimates = self.needs.tokens and not self.needs.usd and _model_of(self.state.arguments) is not None
        return self.in_dollars or bool(estimates)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to settle or to release when the run ends."""
        state = self.state
        held = self.hold is not None or (self._proposed is not None and bool(self._proposed.left))
        return self._spending is None and not held and not (state.owned is state and state.holding)

    def top(self) -> Meter:
        """Return the meter of the outermost run that this process knows."""
        meter = self
        while meter.parent is not None:
            meter = meter.parent
        return meter

    def accounts_at(self, now: datetime) -> dict[str, Account]:
        """Return the accounts above this run in the windows that hold `now`, by id."""
        return self.standing.accounts_at(now)

    def innermost(self) -> Hold | None:
        """Return the reservation that usage is taken off first: a `reserve` block, the attempt's, or one around it."""
        inner = block.get()
        if inner is not None and inner.run_id == self.state.id:
            return inner
        return self.hold or self._outer

    def asked_model(self) -> str | None:
        """Return the model of the run: what governance gave it, or what it was called with."""
        return self.model or _model_of(self.state.arguments)

    def who(self) -> Who:
        """Return who it is in the ledger's words."""
        state = self.state
        owned = state.owned
        return Who(
            state.id, state.root_id, owned.id, owned.epoch, state.definition.name, state.user, max(1, state.attempt)
        )

    def columns(self) -> dict[str, Any]:
        """Return what of it stands in the run's row."""
        budgets = self.state.options.budget
        if not budgets and not self.policies and not self.needs:
            return UNGOVERNED
        tokens = [one.tokens for one in budgets if one.per == "run" and one.tokens is not None]
        estimate = self.needs.usd
        if not estimate and self.needs.tokens and self.governor.prices.loaded:
            most = self.governor.prices.most(_model_of(self.state.arguments), self.needs.tokens)
            return _columns(tokens, self.policies, most)
        return _columns(tokens, self.policies, usd_of(estimate) if estimate else None)

    def stored(self) -> dict[str, Any]:
        """Return what another process needs to govern the run as this one does, as JSON values."""
        above = self.state.above
        if self.parent is None and above is None and not self.state.options.overrides:
            return {}
        lines = self.standing.above()
        policies = () if self.parent is None else self.parent.policies
        return stored_options(self.state.options, lines, policies)

    # -- admission -------------------------------------------------------------------------------------------

    def propose(self) -> Admission:
        """Return the admission of the first attempt, to be decided with the run's start."""
        admission = self._propose(_model_of(self.state.arguments))
        if self.state.options.budget:
            admission.fresh = self.standing.fresh()
        return admission

    def _propose(self, asked: str | None) -> Admission:
        admission = self.admission(self.needs, self._outer, asked)
        admission.limits = self.standing.limits()
        if self.policies:
            choice = Choice(self.policies, self._own_policies, self._given(), asked, self.kept)
            admission.judge, admission.chained = choice.judge, choice.chained
        return admission

    def admission(self, needs: Amounts, outer: Hold | None, asked: str | None) -> Admission:
        """Return what asks the accounts above this run, and no policy.

        Args:
            needs: What it wants to hold.
            outer: The reservation around it.
            asked: The model, for the record of a refusal.
        """
        now = self.governor.store.clock.now()
        return Admission(
            who=self.who(),
            hold_id=os.urandom(16).hex(),
            accounts=self.accounts_at(now),
            needs=needs,
            outer=outer,
            judge=None,
            now=now,
            asked=asked,
        )

    def _given(self) -> frozenset[str]:
        """Return the models that governance gave to the runs above this one."""
        above = self.parent
        given: frozenset[str] = frozenset()
        while above is not None:
            given |= {above.kept} if above.kept is not None else set()
            above = above.parent
        return given

    def admit_in(self, tx: Tx, admission: Admission) -> bool:
        """Decide about an attempt, and store the model that it gets in a row that is there."""
        self.governor.ledger.admit(tx, admission)
        if admission.chained and admission.refusal is None:
            model = admission.model or admission.asked or first_of(self.state.options.models)
            tx.execute(_SET_MODEL, {"id": self.state.id, "model": model})
        return True

    def proposed(self, admission: Admission | None) -> None:
        """Remember what was decided with the run's start; None: the run exists, so nothing was."""
        self._proposed = admission
        if admission is None:
            self.standing.forget()

    def keep_model(self, model: str | None) -> None:
        """Go on with the model that an earlier life of the run had."""
        self.kept = model

    async def admit(self, call: Call) -> Call:
        """Admit an attempt and return its call with the model that it gets."""
        admission = self._proposed
        if admission is not None and admission.asked == call.model:
            self._proposed = None
        else:
            admission = None
        if self.wants_prices:
            await self.governor.load_prices()
        self._end_attempt()
        if self._spending is not None:
            self._spending.begin_attempt()
        if self._spending is not None and self._spending.waits:
            await self.settle()
        if admission is None:
            await self.catch_up()
            admission = await self._admitted(call.model)
        if admission.refusal is not None and await self.governor.sweep(admission.accounts):
            admission = await self._admitted(call.model)
        for warning in admission.warnings:
            logger.warning("task %s: %s", self.state.definition.name, warning)
        if admission.refusal is not None:
            raise admission.refusal
        self._adopt(admission)
        return self._with_model(call, admission)

    async def _admitted(self, asked: str | None) -> Admission:
        admission = self._propose(asked)
        try:
            await self._admit(admission)
        except BaseException:
            # It may be committed nevertheless: so it is when a cancellation is told.
            self._proposed = admission
            self._end_attempt()
            raise
        return admission

    async def _admit(self, admission: Admission) -> None:
        state = self.state
        writer = state.runtime.recorder.writer
        if state.owned is state or admission.needs or (state.options.budget and not self.standing.rowless):
            await writer.early(state, lambda tx: writer.holds(tx, state) and self.admit_in(tx, admission))
            return
        # Nothing of this run has to be stored for it, unless it gets another model.
        await self.governor.store.write(lambda tx: self.admit_in(tx, admission))
        if admission.model is not None and not state.stored:
            chosen = {"id": state.id, "model": admission.model}
            await writer.early(state, lambda tx: tx.execute(_SET_MODEL, chosen) == 1)

    def _adopt(self, admission: Admission) -> None:
        """Know what an admission gave."""
        self.hold = self.governor.known.granted(admission)
        if self.hold is not None and self.state.owned is not self.state:
            self.state.owned.holding = True

    def _with_model(self, call: Call, admission: Admission) -> Call:
        model = admission.model or call.model or first_of(self.state.options.models)
        self.kept, self.model = admission.model, model
        if self.in_dollars and model is not None and not self.governor.prices.knows(model):
            raise UnpricedModelError(self.state.id, model, self.governor.prices.missing(model))
        if model is None or model == call.model:
            return call
        arguments = call.arguments
        if isinstance(arguments.get("model", 0), str | None):
            arguments = {**arguments, "model": model}
        return replace(call, arguments=arguments, model=model)

    # -- what the recorder asks ------------------------------------------------------------------------------

    async def write(self, fn: Callable[[Tx], T], *, single: bool = False, ends: bool = False) -> T:
        """Run a write of the run together with the settlement of what it has used.

        Args:
            fn: The write.
            single: It executes one statement.
            ends: The attempt has ended, so what it holds is released.
        """
        if ends:
            self._end_attempt()
        state = self.state
        writer = state.runtime.recorder.writer
        return await self.spending.write(fn, before=writer.ours(state), single=single, ends=ends)

    async def settle(self) -> None:
        """Store what waits, without anything else."""
        await self.write(lambda _: None)

    def write_blocking(self, fn: Callable[[Tx], T]) -> T:
        """Do what `write` does at the end of the run, on the calling thread."""
        self._end_attempt()
        return self.spending.write_blocking(fn)

    def _end_attempt(self) -> None:
        if self._proposed is not None:  # It was admitted with its start, and never began.
            self._adopt(self._proposed)
            self._proposed = None
        hold, self.hold = self.hold, None
        if hold is not None:
            self.spending.end(hold)

    async def close(self) -> None:
        """Store what is left, when nothing more of the run will be written."""
        self._end_attempt()
        if self._spending is not None:
            await self._spending.close()

    @property
    def failure(self) -> BudgetExhaustedError | UnpricedModelError | None:
        """Why the run fails even when its function returns."""
        return None if self._spending is None else self._spending.failure

    async def prepare(self) -> None:
        """Get ready to judge whether the run may start, and what it reports in dollars."""
        if self.wants_prices:
            await self.governor.load_prices()
        await self.catch_up()

    async def catch_up(self) -> None:
        """Store what this run and those above it have reported: what is decided next has to know of it."""
        meter: Meter | None = self
        while meter is not None:
            spending = meter._spending  # noqa: SLF001 - asking for the property would make one
            if spending is not None and spending.reports:
                await spending.catch_up()
            meter = meter.parent


def _most(budgets: tuple[Budget, ...]) -> Amounts:
    """Return the largest amount of each unit that one of them reserves for an attempt."""
    wanted = [one.reserved for one in budgets if one.reserve is not None]
    if not wanted:
        return NOTHING
    return Amounts(
        max(one.tokens for one in wanted), max(one.usd for one in wanted), max(one.requests for one in wanted)
    )


def _model_of(arguments: Any) -> str | None:
    model = arguments.get("model")
    return model if isinstance(model, str) else None


def _columns(tokens: list[int], policies: tuple[CostPolicy, ...], estimate: Decimal | None) -> dict[str, Any]:
    limit = min(tokens, default=MOST_TOKENS + 1)
    return {
        "token_budget": limit if limit <= MOST_TOKENS else None,
        "cost_policy": policies[0].name if policies else None,
        "estimated_cost_usd": None if estimate is None else f"{min(estimate, usd_of(MOST_MICRO * 1_000)):.6f}",
    }
