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


class SecretName(dict[str, Any]):
    """`{"$secret": name}` where the author of a task wrote it. The same in a result of another task is plain data."""


def marked(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the inputs that a task is stored with, before results are filled in, with its secrets marked."""
    return {name: _marked(value) for name, value in inputs.items()}


def secret_names(inputs: Mapping[str, Any]) -> list[str]:
    """Return the names of those of `marked` inputs that have a secret in them: it is not known before they are used."""
    return [name for name, value in inputs.items() if _names_secret(value)]


def reveal(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return inputs with secrets where `marked` has found their names; what is stored only has the names.

    All but `dependencies` is a copy.

    Raises:
        InvalidInputsError: The runtime has no secret of a name.
    """
    return {name: value if name == "dependencies" else _revealed(value) for name, value in inputs.items()}


def _marked(value: Any) -> Any:
    if isinstance(value, list):
        return [_marked(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {REFERENCE}:
        return SecretName(value)
    return {name: _marked(one) for name, one in value.items()}


def _names_secret(value: Any) -> bool:
    if isinstance(value, list):
        return any(_names_secret(one) for one in value)
    if not isinstance(value, dict):
        return False
    return isinstance(value, SecretName) or any(_names_secret(one) for one in value.values())


def _revealed(value: Any) -> Any:
    if isinstance(value, list):
        return [_revealed(one) for one in value]
    if not isinstance(value, dict):
        return value
    if not isinstance(value, SecretName):
        return {name: _revealed(one) for name, one in value.items()}
    name, secrets = value[REFERENCE], settings_of(SECRETS)
    if not isinstance(name, str) or name not in secrets:
        raise InvalidInputsError(
            f'inputs name a secret with {{"{REFERENCE}": ...}} that this runtime does not have; '
            f'give it with Runtime(settings={{"{SECRETS}": {{name: value}}}})'
        )
    return secrets[name]
