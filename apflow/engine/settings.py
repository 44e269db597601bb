"""What executors have to know and nobody may store: `Runtime(settings={executor id: {...}})`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apflow.context import current_state
from apflow.runtime import runtime

if TYPE_CHECKING:
    from collections.abc import Mapping


def settings_of(executor_id: str) -> Mapping[str, Any]:
    """Return the settings of an executor, out of the runtime of the current run or else the one a call would use."""
    state = current_state()
    found = runtime() if state is None else state.runtime
    return found.settings.get(executor_id, {})
