"""Where the request of this context went to, for those who have to say where they are."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Scope

_asked: ContextVar[str] = ContextVar("apflow_asked", default="http://localhost/")


def note_address(scope: Scope) -> None:
    """Take down where a request went to, for the rest of this context."""
    host = next((value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"host"), "localhost")
    _asked.set(f"{scope.get('scheme', 'http')}://{host}{scope.get('root_path', '').rstrip('/')}/")


def asked_address() -> str:
    """Return where the request of this context went to: the root of the app, with a slash at its end."""
    return _asked.get()
