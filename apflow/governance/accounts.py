"""Accounts: what a budget allows one run, user or everybody in one window."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from apflow.governance.windows import window_at

if TYPE_CHECKING:
    from datetime import datetime

    from apflow.governance.amounts import Unit
    from apflow.governance.budget import Per


@dataclass(frozen=True, slots=True)
class Line:
    """One limit of one budget for one run, user or everybody; each of its windows is an account.

    Attributes:
        name: Name of the budget.
        per: Whom it is for.
        scope_id: Id of the run or the user; empty for `"global"`.
        unit: What it counts.
        window: Which calendar window; None has none.
        tz: Time zone of the window.
        limit: What the code says. It is not part of the identity.
    """

    name: str
    per: Per
    scope_id: str
    unit: Unit
    window: str | None
    tz: str
    limit: int = field(compare=False)


class Account:
    """One line in one window, and what this process knew of it last.

    Attributes:
        id: A hash over the line and the start of the window.
        start: When its window starts; None without one.
        end: When its window ends.
        limit, settled, reserved, overrun: As the database had them.
        unflushed: What was reported in this process beyond all holds and is not stored yet.
    """

    __slots__ = ("__weakref__", "end", "id", "limit", "line", "overrun", "reserved", "settled", "start", "unflushed")

    def __init__(self, line: Line, start: datetime | None, end: datetime | None) -> None:
        self.line, self.start, self.end = line, start, end
        self.id = account_id(line, start)
        self.limit, self.settled, self.reserved, self.overrun, self.unflushed = line.limit, 0, 0, 0, 0

    @property
    def left(self) -> int:
        """What nobody has used or holds, as far as this process knows."""
        return self.limit - self.settled - self.reserved - self.overrun - self.unflushed


def account_id(line: Line, start: datetime | None) -> str:
    """Return what identifies an account: everything but its limit."""
    parts = (
        line.name,
        line.per,
        line.scope_id,
        line.unit,
        line.window or "",
        line.tz if line.window else "",
        "" if start is None else start.isoformat(),
    )
    text = "\n".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Accounts:
    """The accounts that this process knows: all runs of one runtime share what they know of one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: WeakValueDictionary[Line, Account] = WeakValueDictionary()

    def at(self, line: Line, now: datetime) -> Account:
        """Return the account of a line in the window that holds `now`."""
        with self._lock:
            found = self._current.get(line)
            if found is None or not _holds(found, now):
                window = window_at(line.window, line.tz, now)
                found = Account(line, window.start, window.end)
                self._current[line] = found
            return found

    def limits_changed(self, limits: dict[str, int]) -> None:
        """Take note of limits that were set at run time, by account id."""
        with self._lock:
            for account in self._current.values():
                if account.id in limits:
                    raised = limits[account.id]
                    fits = min(account.overrun, max(0, raised - account.settled - account.reserved))
                    account.limit, account.settled = raised, account.settled + fits
                    account.overrun -= fits


def _holds(account: Account, now: datetime) -> bool:
    return (account.start is None or account.start <= now) and (account.end is None or now < account.end)
