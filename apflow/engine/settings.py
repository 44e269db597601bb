"""What executors have to know and nobody may store: `Runtime(settings={executor id: {...}})`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apflow.errors import InvalidInputsError
from apflow.runtime import runtime
from apflow.state import current_state

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The settings that inputs may refer to, and how they do.
SECRETS = "secrets"
REFERENCE = "$secret"


def settings_of(executor_id: str) -> Mapping[str, Any]:
    """Return the settings of an executor, out of the runtime of the current run or else the one a call would use."""
    state = current_state()
    found = runtime() if state is None else state.runtime
    return found.settings.get(executor_id, {})


def reveal(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return inputs with the secrets that they name in place; what is stored only has their names.

    Raises:
        InvalidInputsError: The runtime has no secret of a name.
    """
    return {name: _revealed(value) for name, value in inputs.items()}


def secret_names(inputs: Mapping[str, Any]) -> list[str]:
    """Return the names of inputs in which a secret is named: what they will be is not known before."""
    return [name for name, value in inputs.items() if _names_secret(value)]


def _names_secret(value: Any) -> bool:
    if isinstance(value, list):
        return any(_names_secret(one) for one in value)
    if not isinstance(value, dict):
        return False
    return value.keys() == {REFERENCE} or any(_names_secret(one) for one in value.values())


def _revealed(value: Any) -> Any:
    if isinstance(value, list):
        return [_revealed(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.keys() != {REFERENCE}:
        return {name: _revealed(one) for name, one in value.items()}
    name, secrets = value[REFERENCE], settings_of(SECRETS)
    if not isinstance(name, str) or name not in secrets:
        raise InvalidInputsError(
            f'inputs name a secret with {{"{REFERENCE}": ...}} that this runtime does not have; '
            f'give it with Runtime(settings={{"{SECRETS}": {{name: value}}}})'
        )
    return secrets[name]
