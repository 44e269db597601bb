"""Accounts: what a budget allows one run, user or everybody in one window."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from apflow.governance.windows import window_at

if TYPE_CHECKING:
    from datetime import datetime

    from apflow.governance.amounts import Unit
    from apflow.governance.budget import Per

#: How many shared accounts are kept in mind without a run that uses them.
RECENT = 256


class Line:
    """One limit of one budget for one run, user or everybody; each of its windows is an account.

    Two lines are equal when they stand for the same, whatever their limits are.

    Attributes:
        name: Name of the budget.
        per: Whom it is for.
        scope_id: Id of the run or the user; empty for `"global"`.
        unit: What it counts.
        window: Which calendar window; None has none.
        tz: Time zone of the window.
        limit: What the code says.
    """

    __slots__ = ("_identity", "limit", "name", "per", "scope_id", "tz", "unit", "window")

    def __init__(  # noqa: PLR0917 - in the order in which they are stored
        self, name: str, per: Per, scope_id: str, unit: Unit, window: str | None, tz: str, limit: int
    ) -> None:
        self.name, self.per, self.scope_id, self.unit = name, per, scope_id, unit
        self.window, self.tz, self.limit = window, tz, limit
        self._identity = (name, per, scope_id, unit, window, tz if window else "")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Line) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)


class Account:
    """One line in one window, and what this process knew of it last.

    Attributes:
        id: A hash over the line and the start of the window.
        start: When its window starts; None without one.
        end: When its window ends.
        lazy: It has no row before something is used or held.
        limit, settled, reserved, overrun: As the database had them.
        unflushed: What was reported in this process beyond all holds and is not stored yet.
        heard: How often this process has heard of it from its own commits.
    """

    __slots__ = (
        "__weakref__",
        "end",
        "heard",
        "id",
        "lazy",
        "limit",
        "line",
        "overrun",
        "reserved",
        "settled",
        "start",
        "unflushed",
    )

    def __init__(self, line: Line, start: datetime | None, end: datetime | None) -> None:
        self.line, self.start, self.end = line, start, end
        self.id = account_id(line, start)
        self.lazy = False
        self.limit, self.settled, self.reserved, self.overrun, self.unflushed = line.limit, 0, 0, 0, 0
        self.heard = 0

    @property
    def left(self) -> int:
        """What nobody has used or holds, as far as this process knows."""
        return self.limit - self.settled - self.reserved - self.overrun - self.unflushed


def account_id(line: Line, start: datetime | None) -> str:
    """Return what identifies an account: everything but its limit."""
    window = "" if start is None else f"{line.window} {line.tz} {start.isoformat()}"
    # Names and scope ids may hold anything, so one has its length in front and the other comes last.
    text = f"{len(line.name)}:{line.name}|{line.per}|{line.unit}|{window}|{line.scope_id}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Accounts:
    """The accounts that this process knows: all runs of one runtime share what they know of one."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._current: WeakValueDictionary[Line, Account] = WeakValueDictionary()
        # So that a budget which is used by one run after the other is not forgotten in between.
        self._recent: deque[Account] = deque(maxlen=RECENT)
        self._of_runs: WeakValueDictionary[str, Account] = WeakValueDictionary()

    def at(self, line: Line, now: datetime) -> Account:
        """Return the account of a line in the window that holds `now`."""
        # The lock is for `live` too: a dictionary must not grow while it is listed.
        with self._lock:
            if line.per == "run":  # Only the runs of one tree have it.
                fresh = _account(line, now)
                shared = self._of_runs.setdefault(fresh.id, fresh)
                shared.line = line
                return shared
            found = self._current.get(line)
            if found is None or not is_current(found, now):
                found = _account(line, now)
                self._current[line] = found
                self._recent.append(found)
            elif found.line.limit != line.limit:  # The code has changed: a cell of a notebook, say, was run again.
                found.line = line
            return found

    def live(self) -> list[Account]:
        """Return the accounts that runs refer to, or did a moment ago."""
        with self._lock:
            return [*self._current.values(), *self._of_runs.values()]

    def limits_changed(self, limits: dict[str, int]) -> None:
        """Take note of limits that were set at run time, by account id."""
        with self._lock:
            of_runs = [found for one in limits if (found := self._of_runs.get(one)) is not None]
            for account in [*self._current.values(), *of_runs]:
                if account.id in limits:
                    account.limit = limits[account.id]
                    fits = fitting(account.limit, account.settled, account.reserved, account.overrun)
                    account.settled, account.overrun = account.settled + fits, account.overrun - fits

    def forget_after_fork(self) -> None:
        """Begin anew: other threads may have held the lock, and what was to be stored is the parent's business."""
        self._begin()


def fitting(limit: int, settled: int, reserved: int, overrun: int) -> int:
    """Return how much of an overrun is none under a new limit, and has to be settled."""
    return min(overrun, max(0, limit - settled - reserved))


def is_current(account: Account, now: datetime) -> bool:
    """Whether the window of an account holds `now`."""
    return (account.start is None or account.start <= now) and (account.end is None or now < account.end)


def _account(line: Line, now: datetime) -> Account:
    if line.window is None:
        return Account(line, None, None)
    window = window_at(line.window, line.tz, now)
    return Account(line, window.start, window.end)
