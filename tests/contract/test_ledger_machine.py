"""The ledger against a simple model, under whatever order of reservations, usage, ends, expiries and crashes."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from apflow import create_session
from apflow.errors import BudgetNotFoundError
from apflow.governance.accounts import Account, Accounts, Line
from apflow.governance.amounts import Amounts
from apflow.governance.books import AccountRow
from apflow.governance.budgets import Budgets
from apflow.governance.entries import Admission, Event, Hold, Settlement, Who
from apflow.governance.known import Known
from apflow.governance.ledger import Ledger
from apflow.governance.sweep import sweep
from apflow.governance.usage import Usage
from apflow.storage.statements import moment
from apflow.storage.store import Store, Tx
from tests.contract.ledger_rows import NOON, Standing

T = TypeVar("T")
#: An account: its budget, and when its window starts.
Key = tuple[str, datetime | None]
LEASE = timedelta(seconds=30)
LIMIT = 100
RUNS = ("r0", "r1", "r2")
#: Budget: per, scope id, unit, window.
LINES: dict[str, tuple[Any, ...]] = {
    "run": ("run", "r0", "tokens", None),
    "hour": ("user", "ada", "tokens", "1h"),
    "day": ("global", "", "tokens", "1d"),
    "calls": ("global", "", "requests", None),
}
#: A reservation and two around it: more would have no more to tell.
DEEPEST = 3


# -- the model -----------------------------------------------------------------------------------------------


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


# -- the machine ---------------------------------------------------------------------------------------------


class CrashError(Exception):
    """The process dies before its commit."""


@dataclass
class Run:
    """A run as its row has it."""

    epoch: int = 1
    live: bool = True


some_lines = st.lists(st.sampled_from(list(LINES)), min_size=1, max_size=3, unique=True)
some_run = st.sampled_from(RUNS)
#: Which of the latest reservations; None stands for no reservation.
some_hold = st.none() | st.integers(1, 6)
some_tokens = st.integers(0, 70)
some_requests = st.integers(0, 40)
#: What becomes of a transaction. `twice` is committed twice, `again` is rolled back at first.
fates = st.sampled_from(["once", "once", "once", "twice", "again", "crash"])
some_usage = st.tuples(some_lines, some_tokens, some_requests, some_hold, st.integers(0, 12))


class LedgerMachine(RuleBasedStateMachine):
    """Drives the ledger of a real database as runs, sweeps, operators and deployments do."""

    def __init__(self, store: Store, clock: Standing, runner: asyncio.Runner) -> None:
        super().__init__()
        self.store, self.clock, self.runner = store, clock, runner
        self.ledger = Ledger.of(store)
        self.accounts = Accounts()
        self.known = Known()
        self.budgets = Budgets(store, self.ready, self.accounts.limits_changed)
        self.model = Model()
        self.runs = {name: Run() for name in RUNS}
        self.code = dict.fromkeys(LINES, LIMIT)
        self.holds: list[Hold] = []
        self.keys: dict[str, Key] = {}
        self.committed: dict[Key, int] = defaultdict(int)
        self.stored: list[Settlement] = []
        self.number = 0
        clock.time = NOON

    async def ready(self) -> None:
        """Nothing: the store is open."""

    @initialize()
    def begin(self) -> None:
        def empty(tx: Tx) -> None:
            for table in ("budget_accounts", "budget_holds", "usage_events", "decisions", "tasks"):
                tx.execute(f"DELETE FROM apflow_{table}")
            for name in RUNS:
                values = {"id": name, "now": self.store.timestamp(NOON), "lease": self.store.timestamp(NOON + LEASE)}
                tx.execute(
                    "INSERT INTO apflow_tasks (id, name, status, created_at, epoch, lease_expires_at) "
                    "VALUES (:id, 'work', 'in_progress', :now, 1, :lease)",
                    values,
                )

        self.store.write_blocking(empty)

    # -- what rules share ------------------------------------------------------------------------------------

    def write(self, fn: Callable[[Tx], T], fate: str) -> T | None:
        """Run a transaction as its fate says; None when it crashed."""

        def crash(tx: Tx) -> None:
            fn(tx)
            raise CrashError

        if fate in {"again", "crash"}:
            with pytest.raises(CrashError):
                self.store.write_blocking(crash)
            self.agrees()
            if fate == "crash":
                return None
        result = self.store.write_blocking(fn)
        if fate == "twice":
            self.store.write_blocking(fn)
        return result

    def key(self, line: str) -> Key:
        hour = self.clock.time.replace(minute=0, second=0, microsecond=0)
        return line, {"1h": hour, "1d": hour.replace(hour=0), None: None}[LINES[line][3]]

    def at_work(self, lines: list[str]) -> dict[str, Account]:
        """Return the accounts of some budgets as a run finds them."""
        found = {}
        for name in lines:
            per, scope_id, unit, window = LINES[name]
            line = Line(name, per, scope_id, unit, window, "UTC", self.code[name])
            account = self.accounts.at(line, self.clock.time)
            found[account.id] = account
            self.keys[account.id] = self.key(name)
        return found

    def opened(self, lines: list[str]) -> None:
        for name in lines:
            self.model.sheets.setdefault(self.key(name), Sheet(self.code[name]))

    def hold_at(self, place: int | None) -> Hold | None:
        return None if place is None or place > len(self.holds) else self.holds[-place]

    def who(self, run: str) -> Who:
        return Who(run, RUNS[0], run, self.runs[run].epoch, "work", "ada", 1)

    def renew(self) -> None:
        """Renew the leases of the runs that live."""
        live = [name for name in RUNS if self.runs[name].live]
        for name in live:
            self.store.write_blocking(lambda tx, name=name: self.update_run(tx, name))  # type: ignore[misc]

    def update_run(self, tx: Tx, name: str) -> None:
        run = self.runs[name]
        values = {"id": name, "status": "in_progress" if run.live else "completed", "epoch": run.epoch}
        lease = self.store.timestamp(self.clock.time + LEASE) if run.live else None
        sql = "UPDATE apflow_tasks SET status = :status, epoch = :epoch, lease_expires_at = :lease WHERE id = :id"
        assert tx.execute(sql, values | {"lease": lease}) == 1

    def told(self, rows: dict[str, AccountRow]) -> None:
        """What the ledger says of accounts is how they are."""
        for account, row in rows.items():
            key = self.keys[account]
            sheet = self.model.sheets[key]
            assert (row.limit, row.settled, row.overrun) == (sheet.limit, sheet.settled, sheet.overrun)
            assert row.reserved == self.model.held(key)

    # -- runs ------------------------------------------------------------------------------------------------

    @rule(
        run=some_run, lines=some_lines, tokens=some_tokens, requests=some_requests, outer=some_hold, fate=fates,
        declared=st.booleans(),
    )  # fmt: skip
    def reserve(
        self,
        run: str,
        lines: list[str],
        tokens: int,
        requests: int,
        outer: int | None,
        fate: str,
        declared: bool,  # noqa: FBT001 - hypothesis gives it
    ) -> None:
        """A live run wants to hold something, or only to start."""
        if not self.runs[run].live:
            return
        around = self.hold_at(outer)
        if around is not None and len(around.chain()) >= DEEPEST:
            around = None
        needs = Amounts(tokens, 0, requests) if declared else Amounts()
        accounts = self.at_work(lines)
        self.number += 1
        admission = Admission(self.who(run), f"h{self.number}", accounts, needs, around, None, self.clock.time)
        admission.limits = {one: account.line.limit for one, account in accounts.items()}
        if self.write(lambda tx: self.ledger.admit(tx, admission) or True, fate) is None:
            return
        self.opened(lines)
        for key in map(self.key, lines):
            sheet = self.model.sheets[key]
            if not sheet.set_at_run_time and sheet.limit != self.code[key[0]]:
                self.model.resize(key, self.code[key[0]])
        wanted = {self.key(name): needs.of(LINES[name][2]) for name in lines}
        chain = [] if around is None else [hold.id for hold in around.chain()]
        refusing = self.model.refusing(wanted, chain)
        if admission.refusal is not None:
            error = admission.refusal
            key = self.key(str(error.budget))
            assert key in refusing
            assert (error.limit, error.requested) == (self.model.sheets[key].limit, wanted[key])
            assert (error.settled, error.reserved) == (self.model.sheets[key].settled, self.model.held(key))
        else:
            assert not refusing
            self.model.reserve(admission.hold_id, run, self.runs[run].epoch, wanted, chain)
        self.told(admission.rows)
        hold = None if admission.refusal else self.known.granted(admission)
        if hold is not None:
            self.holds.append(hold)

    @rule(
        run=some_run, usage=st.lists(some_usage, max_size=3), ending=some_hold, ends=st.integers(0, 7), fate=fates
    )
    def settle(
        self, run: str, usage: list[tuple[list[str], int, int, int | None, int]], ending: int | None, ends: int, fate: str
    ) -> None:
        """A run, live or not, stores what it has used, and perhaps ends a reservation, or itself."""
        events = []
        for lines, tokens, requests, place, key in usage:
            counted = Usage(input=tokens, total=tokens, requests=requests)
            accounts, hold = self.at_work(lines), self.hold_at(place)
            events.append(Event(f"e{key}", self.who(run), counted, accounts, hold, self.clock.time, "reported"))
        last = self.hold_at(ending)
        settlement = Settlement(events, [] if last is None else [last])
        if ends == 0 and self.runs[run].live:
            settlement.owned = run, self.runs[run].epoch
        if self.write(lambda tx: self.store_settlement(tx, settlement), fate) is None:
            return
        over = False
        for event, (lines, tokens, requests, _, _) in zip(events, usage, strict=True):
            if event.dedupe_key not in self.model.events:
                self.opened(lines)
            chain = [] if event.hold is None else [hold.id for hold in event.hold.chain()]
            over |= self.model.use(event.dedupe_key, tokens, requests, [self.key(one) for one in lines], chain)
        assert (settlement.overrun is not None) is over
        self.end(lambda part: part.of in {hold.id for hold in settlement.ending})
        if settlement.owned is not None:
            self.runs[run].live = False
            self.renew_row(run)
            self.end(lambda part: part.run == run and part.epoch <= self.runs[run].epoch)
        self.told(settlement.rows)
        self.stored.append(settlement)

    def store_settlement(self, tx: Tx, settlement: Settlement) -> bool:
        self.ledger.settle(tx, settlement)
        return True

    def renew_row(self, run: str) -> None:
        self.store.write_blocking(lambda tx: self.update_run(tx, run))

    def end(self, ends: Callable[[Part], bool]) -> int:
        ending = [part for part in self.model.parts if ends(part)]
        self.model.end(ending)
        return len(ending)

    @precondition(lambda self: self.stored)
    @rule(place=st.integers(1, 4))
    def repeat(self, place: int) -> None:
        """A settlement whose commit had an unknown outcome is stored again, after others were."""
        self.write(lambda tx: self.store_settlement(tx, self.stored[-min(place, len(self.stored))]), "once")

    # -- leases ----------------------------------------------------------------------------------------------

    @rule(run=some_run)
    def lapse(self, run: str) -> None:
        """The lease of a run runs out; the others renew theirs."""
        self.clock.time += LEASE + timedelta(seconds=1)
        self.runs[run].live = False
        self.renew()

    @rule(run=some_run, releases=st.booleans(), fate=fates)
    def take_over(self, run: str, releases: bool, fate: str) -> None:  # noqa: FBT001 - hypothesis gives it
        """A run gets another life, with or without the release of what its earlier lives hold."""
        old = self.runs[run]
        now = Run(old.epoch + 1)

        def change(tx: Tx) -> bool:
            self.runs[run] = now
            self.update_run(tx, run)
            if releases:
                self.ledger.release_owned(tx, run, old.epoch)
            return True

        if self.write(change, fate) is None:
            self.runs[run] = old
        elif releases:
            self.end(lambda part: part.run == run and part.epoch <= old.epoch)

    @rule(lines=st.none() | some_lines, fate=fates)
    def sweep(self, lines: list[str] | None, fate: str) -> None:
        """Somebody sweeps everything, or the accounts that refused him."""
        accounts = None if lines is None else list(self.at_work(lines))
        swept = self.write(lambda tx: sweep(tx, self.store, accounts), fate)
        if swept is not None:
            keys = None if lines is None else {self.key(name) for name in lines}
            assert swept == self.end(lambda part: self.dead(part) and (keys is None or part.key in keys))

    def dead(self, part: Part) -> bool:
        run = self.runs[part.run]
        return not run.live or run.epoch != part.epoch

    # -- limits and windows ----------------------------------------------------------------------------------

    @rule(line=st.sampled_from(list(LINES)), limit=st.integers(1, 2 * LIMIT))
    def resize(self, line: str, limit: int) -> None:
        """An operator changes the limit of what runs now."""
        per, scope_id, unit, _ = LINES[line]
        change = self.budgets.set_limit(line, per=per, scope_id=scope_id or None, **{unit: limit})
        if self.key(line) not in self.model.sheets:
            with pytest.raises(BudgetNotFoundError):
                self.runner.run(change)
            return
        (status,) = self.runner.run(change)
        self.model.resize(self.key(line), limit)
        self.model.sheets[self.key(line)].set_at_run_time = True
        sheet = self.model.sheets[self.key(line)]
        assert (status.limit, status.settled, status.overrun) == (limit, sheet.settled, sheet.overrun)

    @rule(line=st.sampled_from(list(LINES)), limit=st.integers(1, 2 * LIMIT))
    def deploy(self, line: str, limit: int) -> None:
        """The code gets another limit; the next run that starts brings it along."""
        self.code[line] = limit

    @rule(time=st.sampled_from([timedelta(hours=1), timedelta(days=1)]))
    def roll(self, time: timedelta) -> None:
        """A window ends; the runs live on."""
        self.clock.time += time
        self.renew()

    # -- what holds all along --------------------------------------------------------------------------------

    @invariant()
    def agrees(self) -> None:
        """The database has what the model has, and keeps every promise by itself."""
        sheets, held, sums, events = self.store.read_blocking(read)
        assert sheets == {
            key: (sheet.limit, sheet.settled, self.model.held(key), sheet.overrun)
            for key, sheet in self.model.sheets.items()
        }
        parts = Counter[tuple[str, Key]]({(part.of, part.key): 0 for part in self.model.parts})
        for part in self.model.parts:
            parts[part.of, part.key] += part.amount
        assert held == dict(parts)
        assert events == tuple(map(sum, zip(*self.model.events.values(), (len(self.model.events), 0), strict=True)))
        used = Counter[str]()
        for key, (limit, settled, reserved, overrun) in sheets.items():
            assert min(settled, reserved, overrun) >= 0
            assert reserved == sums[key]
            assert settled + reserved <= max(limit, self.committed[key])
            self.committed[key] = settled + reserved
            used[key[0]] += settled + overrun
        assert +used == +self.model.used


def read(tx: Tx) -> tuple[dict[Key, Any], dict[tuple[str, Key], int], dict[Key, int], tuple[int, ...]]:
    raise AssertionError
