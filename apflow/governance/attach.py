"""Giving runs their meters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apflow.errors import UserRequiredError
from apflow.governance.meter import Meter

if TYPE_CHECKING:
    from apflow.state import RunState


def attach(state: RunState) -> Meter:
    """Give a run a meter, below that of the run above it.

    Raises:
        UserRequiredError: A budget counts per user, and the run has none.
        PolicyNotFoundError: The runtime does not know a policy of the task.
        TaskDefinitionError: Another task declares another limit for a budget that both share.
    """
    if state.user is None and any(one.per == "user" for one in state.options.budget):
        raise UserRequiredError(state.definition.name)
    if state.options.budget and state.options.budget is state.definition.options.budget:
        state.runtime.governor.declare(state.definition.name, state.options.budget)
    state.meter = Meter(state, None if state.parent is None else state.parent.meter)
    return state.meter


def meter_of(state: RunState) -> Meter:
    """Return the meter of a run; one that nothing governs gets it now."""
    if state.meter is None:
        # The run above may have ended before a thread of this one reports: its budgets count nevertheless.
        parent = None if state.parent is None else meter_of(state.parent)
        with state.runtime.governor.lock:
            if state.meter is None:
                state.meter = Meter(state, parent)
    return state.meter
