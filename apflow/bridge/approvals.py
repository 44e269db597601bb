"""Approvals that come later count for the call that they were asked for, once, and for no other one."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from apcore.builtin_steps import BuiltinApprovalGate
from apcore.errors import ApprovalPendingError

if TYPE_CHECKING:
    from apcore.pipeline import PipelineContext, StepResult

TOKEN = "_approval_token"  # noqa: S105 - the name that apcore gives to the input
#: So many calls are remembered that wait; who comes back after that is asked about anew.
_MOST_WAITING = 10_000


class ApprovalGate(BuiltinApprovalGate):
    """Asks the handler about an approval by its id only for the caller, the module and the inputs it was asked for.

    A handler is told nothing but the id then. Any other call that names it is one that the handler is asked about anew.

    Args:
        gate: apcore's own, whose handler and policy count.
    """

    def __init__(self, gate: BuiltinApprovalGate) -> None:
        super().__init__(handler=gate.handler, policy=gate.policy)
        self._waiting: dict[tuple[str, str], None] = {}

    async def execute(self, ctx: PipelineContext) -> StepResult:
        given = ctx.inputs.get(TOKEN)
        known = isinstance(given, str) and self._taken(given, ctx)
        if isinstance(given, str) and not known:
            ctx.inputs = _without(ctx.inputs)
        try:
            return await super().execute(ctx)
        except Exception as error:
            later = error.approval_id if isinstance(error, ApprovalPendingError) else None
            for one in {later, given if known else None} - {None}:
                self._keep(str(one), ctx)
            raise

    def _taken(self, token: str, ctx: PipelineContext) -> bool:
        """Whether an approval was asked for this very call; nobody else finds it from now on."""
        waiting = (token, _call_of(ctx))
        found = waiting in self._waiting
        self._waiting.pop(waiting, None)
        return found

    def _keep(self, token: str, ctx: PipelineContext) -> None:
        self._waiting[token, _call_of(ctx)] = None
        if len(self._waiting) > _MOST_WAITING:
            del self._waiting[next(iter(self._waiting))]


def _without(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name != TOKEN}


def _call_of(ctx: PipelineContext) -> str:
    """Return a hash that stands for the caller, the module and the inputs of a call."""
    identity = None if ctx.context is None else ctx.context.identity
    user = None if identity is None else identity.id
    text = json.dumps([user, ctx.module_id, _without(ctx.inputs)], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()
