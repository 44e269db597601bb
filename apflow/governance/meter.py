"""The meter of one run: what it may use, what it holds, and what it has used and not yet stored."""

from __future__ import annotations

import logging
import os
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from apflow.errors import UnpricedModelError
from apflow.governance.accounts import Line
from apflow.governance.amounts import Amounts, usd_of
from apflow.governance.choosing import Choice, first_of
from apflow.governance.entries import Admission, Hold, Who
from apflow.governance.policy import PolicyAction, PolicyEngine, policy_for_models
from apflow.governance.spending import Spending, learn
from apflow.governance.stored import stored_options

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from apflow.call import Call, CallNext
    from apflow.context import RunState
    from apflow.errors import BudgetExhaustedError
    from apflow.governance.accounts import Account
    from apflow.governance.governor import Governor
    from apflow.governance.policy import CostPolicy
    from apflow.governance.stored import Above
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
        spending: What the run has used.
    """

    def __init__(self, state: RunState, parent: Meter | None) -> None:
        self.state, self.parent = state, parent
        self.governor: Governor = state.runtime.governor
        self.hold: Hold | None = None
        self.model: str | None = None
        options = state.options
        above = state.above
        self._above = () if above is None else above.lines
        self._lines: tuple[Line, ...] | None = None
        self._accounts: dict[str, Account] = {}
        self._outer = None if parent is None else parent.innermost()
        self._proposed: Admission | None = None
        self._kept: str | None = None
        inherited: tuple[CostPolicy, ...] = (
            parent.policies if parent is not None else () if above is None else above.policies
        )
        self.policies: tuple[CostPolicy, ...] = self._policies(inherited)
        self.needs = options.reserve or _most(*(one.reserved for one in options.budget))
        self.in_dollars: bool = (
            any(one.usd is not None for one in options.budget)
            or any(line.unit == "usd" for line in self._above)
            or (parent is not None and parent.in_dollars)
        )
        self.governs: bool = bool(
            options.budget or self._above or self.policies or (parent is not None and parent.governs)
        )
        self.spending = Spending(self)

    def _policies(self, inherited: tuple[CostPolicy, ...]) -> tuple[CostPolicy, ...]:
        options = self.state.options
        own = self.governor.engine.resolve(options.policy) if options.policy else []
        if options.models and not any(one.action is PolicyAction.DOWNGRADE for one in own):
            own.append(policy_for_models(self.state.definition.name, options.models))
        if not own:
            return inherited
        return tuple(PolicyEngine.ordered([*own, *(one for one in inherited if one not in own)]))

    @property
    def lines(self) -> tuple[Line, ...]:
        """Every limit above this run, its own included."""
        if self._lines is None:
            above = self._above if self.parent is None else self.parent.lines
            self._lines = (*above, *own_lines(self.state))
        return self._lines

    def accounts_at(self, now: datetime) -> dict[str, Account]:
        """Return the accounts above this run in the windows that hold `now`, by id."""
        found = (self.governor.accounts.at(line, now) for line in self.lines)
        # Kept, because what is known of an account is forgotten with the last run that refers to it.
        self._accounts = {account.id: account for account in found}
        return self._accounts

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
        tokens = [one.tokens for one in self.state.options.budget if one.per == "run" and one.tokens is not None]
        estimate = self.needs.usd
        if not estimate and self.needs.tokens and self.governor.prices.loaded:
            most = self.governor.prices.most(_model_of(self.state.arguments), self.needs.tokens)
            return _columns(tokens, self.policies, most)
        return _columns(tokens, self.policies, usd_of(estimate) if estimate else None)

    def stored(self) -> dict[str, Any]:
        """Return what another process needs to govern the run as this one does, as JSON values."""
        lines = self.parent.lines if self.parent is not None else self._above
        policies = () if self.parent is None else self.parent.policies
        return stored_options(self.state.options, lines, policies)

    # -- admission -------------------------------------------------------------------------------------------

    def propose(self) -> Admission:
        """Return the admission of the first attempt, to be decided with the run's start."""
        return self._propose(_model_of(self.state.arguments))

    def _propose(self, asked: str | None) -> Admission:
        choice = Choice(self.policies, asked, self._kept)
        now = self.governor.store.clock.now()
        return Admission(
            who=self.who(),
            hold_id=os.urandom(16).hex(),
            accounts=self.accounts_at(now),
            needs=self.needs,
            outer=self._outer,
            judge=choice.judge if self.policies else None,
            now=now,
            asked=asked,
            chained=choice.chained,
        )

    def admit_in(self, tx: Tx, admission: Admission) -> bool:
        """Decide about an attempt, and store the model that it gets in a row that is there."""
        self.governor.ledger.admit(tx, admission)
        if admission.chained and admission.refusal is None:
            tx.execute(_SET_MODEL, {"id": self.state.id, "model": admission.model or admission.asked})
        return True

    def proposed(self, admission: Admission | None) -> None:
        """Remember what was decided with the run's start; None: the run exists, so nothing was."""
        self._proposed = admission
        if admission is None:
            self._lines = None

    def keep_model(self, model: str | None) -> None:
        """Go on with the model that an earlier life of the run had."""
        self._kept = model

    async def admit(self, call: Call) -> Call:
        """Admit an attempt and return its call with the model that it gets."""
        admission, self._proposed = self._proposed, None
        if admission is not None and admission.asked != call.model:
            self._adopt(admission)
            admission = None
        self._end_attempt()
        if self.spending.waits:
            await self.write(lambda _: None)
        if admission is None:
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
        state = self.state
        writer = state.runtime.recorder.writer
        if state.owned is state or admission.needs or state.options.budget:
            await writer.early(state, lambda tx: writer.holds(tx, state) and self.admit_in(tx, admission))
            return admission
        # Nothing of this run has to be stored for it, unless it gets another model.
        await self.governor.store.write(lambda tx: self.admit_in(tx, admission))
        if admission.model is not None and not state.stored:
            chosen = {"id": state.id, "model": admission.model}
            await writer.early(state, lambda tx: tx.execute(_SET_MODEL, chosen) == 1)
        return admission

    def _adopt(self, admission: Admission) -> None:
        """Know what an admission gave."""
        with self.governor.lock:
            learn(admission.rows, admission.accounts)
        if admission.left:
            accounts = {one: admission.accounts[one] for one in admission.left}
            self.hold = Hold(admission.hold_id, self.state.id, accounts, dict(admission.left), self._outer)
            self.state.owned.holding = True

    def _with_model(self, call: Call, admission: Admission) -> Call:
        model = admission.model or call.model or first_of(self.state.options.models)
        self._kept, self.model = admission.model, model
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
        return await self.spending.write(fn, before=lambda tx: writer.holds(tx, state), single=single, ends=ends)

    def write_blocking(self, fn: Callable[[Tx], T]) -> T:
        """Do what `write` does at the end of the run, on the calling thread."""
        self._end_attempt()
        return self.spending.write_blocking(fn)

    def _end_attempt(self) -> None:
        hold, self.hold = self.hold, None
        self.spending.end(hold)

    async def close(self) -> None:
        """Store what is left, when nothing more of the run will be written."""
        self._end_attempt()
        await self.spending.close()

    @property
    def failure(self) -> BudgetExhaustedError | UnpricedModelError | None:
        """Why the run fails even when its function returns."""
        return self.spending.failure

    async def prepare(self) -> None:
        """Get ready to judge what is reported in dollars."""
        if self.in_dollars:
            await self.governor.load_prices()


def own_lines(state: RunState) -> tuple[Line, ...]:
    """Return the limits that the run's own task declares."""
    scopes = {"run": state.id, "user": state.user or "", "global": ""}
    return tuple(
        Line(one.name or state.definition.name, one.per, scopes[one.per], unit, one.window, one.tz, limit)
        for one in state.options.budget
        for unit, limit in one.limits.items()
    )


def _policies_above(parent: Meter | None, above: Above | None) -> tuple[CostPolicy, ...]:
    if parent is not None:
        return parent.policies
    return () if above is None else above.policies


def _most(*wanted: Amounts) -> Amounts:
    """Return the largest amount of each unit."""
    return Amounts(
        max((one.tokens for one in wanted), default=0),
        max((one.usd for one in wanted), default=0),
        max((one.requests for one in wanted), default=0),
    )


def _model_of(arguments: Any) -> str | None:
    model = arguments.get("model")
    return model if isinstance(model, str) else None


def _columns(tokens: list[int], policies: tuple[CostPolicy, ...], estimate: Any) -> dict[str, Any]:
    return {
        "token_budget": min(tokens, default=None),
        "cost_policy": policies[0].name if policies else None,
        "estimated_cost_usd": None if estimate is None else f"{estimate:.6f}",
    }
