"""A simple model of budgets: what is promised, without a database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

#: An account: its budget, and when its window starts.
Key = tuple[str, datetime | None]
#: Budget: per, scope id, unit, window.
LINES: dict[str, tuple[Any, ...]] = {
    "run": ("run", "r0", "tokens", None),
    "hour": ("user", "ada", "tokens", "1h"),
    "day": ("global", "", "tokens", "1d"),
    "calls": ("global", "", "requests", None),
}


@dataclass(eq=False)
class Part:
    """What a reservation has on one account, and from which part of an enclosing one it was taken."""

    of: str
    key: Key
    run: str
    epoch: int
    amount: int
    source: Part | None


@dataclass
class Sheet:
    """What was used of an account. What is held of it is what its parts say."""

    limit: int
    settled: int = 0
    overrun: int = 0
    set_at_run_time: bool = False


@dataclass
class Model:
    """The rules of budgets, as they are promised."""

    sheets: dict[Key, Sheet] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    used: Counter[str] = field(default_factory=Counter)
    events: dict[str, tuple[int, int]] = field(default_factory=dict)

    def held(self, key: Key) -> int:
        return sum(part.amount for part in self.parts if part.key == key)

    def room(self, key: Key) -> int:
        sheet = self.sheets[key]
        return max(0, sheet.limit - sheet.settled - self.held(key))

    def resize(self, key: Key, limit: int) -> None:
        """Overrun that fits after a raise was within the limit after all."""
        sheet = self.sheets[key]
        sheet.limit = limit
        fits = min(sheet.overrun, self.room(key))
        sheet.settled, sheet.overrun = sheet.settled + fits, sheet.overrun - fits

    def refusing(self, needs: dict[Key, int], around: list[str]) -> set[Key]:
        """An account refuses after an overrun, or when the need, or at least 1, is neither left nor held around it."""
        inside = Counter[Key]()
        for part in self.parts:
            inside[part.key] += part.amount if part.of in around else 0
        return {
            key
            for key, need in needs.items()
            if self.sheets[key].overrun or max(need, 1) > self.room(key) + inside[key]
        }

    def reserve(self, name: str, run: str, epoch: int, needs: dict[Key, int], around: list[str]) -> None:
        """Take from the innermost reservation first, and from the account what they do not have."""
        for key, need in needs.items():
            missing = need
            for source in [part for of in around for part in self.parts if (part.of, part.key) == (of, key)]:
                taken = min(missing, source.amount)
                if taken:
                    source.amount -= taken
                    missing -= taken
                    self.parts.append(Part(name, key, run, epoch, taken, source))
            if missing:
                self.parts.append(Part(name, key, run, epoch, missing, None))

    def use(self, event: str, tokens: int, requests: int, keys: Iterable[Key], around: list[str]) -> bool:
        """Count usage once; whatever window a hold was made in, it pays there. Return whether some did not fit."""
        if event in self.events:
            return False
        self.events[event] = tokens, requests
        over = False
        for key in keys:
            rest = requests if LINES[key[0]][2] == "requests" else tokens
            self.used[key[0]] += rest
            for part in [part for of in around for part in self.parts if part.of == of and part.key[0] == key[0]]:
                paid = min(rest, part.amount)
                part.amount -= paid
                rest -= paid
                self.sheets[part.key].settled += paid
            fits = min(rest, self.room(key))
            self.sheets[key].settled += fits
            self.sheets[key].overrun += rest - fits
            over |= rest > fits
        return over

    def end(self, ending: list[Part]) -> None:
        """What is left of a part goes back to the nearest one around it that stays, or to the account."""
        self.parts = [part for part in self.parts if part not in ending]
        for part in ending:
            source = part.source
            while source is not None and source not in self.parts:
                source = source.source
            if source is not None:
                source.amount += part.amount
