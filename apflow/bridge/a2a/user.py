"""Who calls over A2A, as the SDK wants to know it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from a2a.auth.user import User
from typing_extensions import override

if TYPE_CHECKING:
    from apcore import Identity


class CallingUser(User):
    """The identity of a request; without one, somebody who was not asked.

    Args:
        identity: As the guard of the server has found it.
    """

    def __init__(self, identity: Identity | None) -> None:
        self._identity = identity

    @property
    @override
    def is_authenticated(self) -> bool:
        return self._identity is not None

    @property
    @override
    def user_name(self) -> str:
        return "" if self._identity is None else self._identity.id
