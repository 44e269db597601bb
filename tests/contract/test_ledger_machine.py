"""The ledger against a simple model, under whatever order of reservations, usage, ends, expiries and crashes."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from apflow import create_session
from apflow.errors import BudgetExhaustedError, BudgetNotFoundError
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
from tests.contract.ledger_model import LINES, Key, Model, Part, Sheet
from tests.contract.ledger_rows import NOON, Standing

LEASE = timedelta(seconds=30)
#: Small, so that what is asked for is often just what is left.
LIMIT = 10
RUNS = ("r0", "r1", "r2")
#: A reservation and two around it: more would have no more to tell.
DEEPEST = 3


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
#: See `hold_at`.
some_hold = st.integers(0, 19)
amounts = st.builds(Amounts, tokens=st.integers(0, 6), usd=st.just(0), requests=st.integers(0, 6))
small = st.builds(Amounts, tokens=st.integers(0, 4), usd=st.just(0), requests=st.integers(0, 4))
#: What becomes of a transaction. `twice` is committed twice, `again` is rolled back at first.
fates = st.sampled_from(["once", "once", "once", "twice", "again", "crash"])
#: On which budgets, how much, off which hold, and its dedupe key.
some_usage = st.tuples(some_lines, small, st.none() | some_hold, st.integers(0, 30))
#: Which life of a run ends: this one or the one before.
some_end = st.sampled_from([None, None, None, 0, 1])


class LedgerMachine(RuleBasedStateMachine):
    """Drives the ledger of a real database as runs, sweeps, operators and deployments do."""

    def __init__(self, store: Store, runner: asyncio.Runner) -> None:
        super().__init__()
        self.store, self.runner = store, runner
        self.clock = cast("Standing", store.clock)
        self.ledger = Ledger(store)
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
        self.clock.time = NOON

    async def ready(self) -> None:
        """Nothing: the store is open."""

    @initialize(reservations=st.lists(st.tuples(some_run, some_lines, amounts), min_size=1, max_size=DEEPEST))
    def begin(self, reservations: list[tuple[str, list[str], Amounts]]) -> None:
        """Empty the database, and begin with reservations inside each other."""
        self.store.write_blocking(empty)
        self.renew()
        for run, lines, needs in reservations:
            self.admit(run, lines, needs, self.holds[-1] if self.holds else None, "once")

    # -- what rules share ------------------------------------------------------------------------------------

    def write(self, fn: Callable[[Tx], object], fate: str) -> bool:
        """Run a transaction as its fate says; False when it crashed."""

        def crash(tx: Tx) -> None:
            fn(tx)
            raise CrashError

        if fate in {"again", "crash"}:
            with pytest.raises(CrashError):
                self.store.write_blocking(crash)
            self.agrees()
            if fate == "crash":
                return False
        self.store.write_blocking(fn)
        if fate == "twice":
            self.store.write_blocking(fn)
        return True

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
        """Return one of the latest reservations: with an even number one that lives, if one does."""
        if place is None or not self.holds:
            return None
        there = {part.of for part in self.model.parts}
        living = [hold for hold in self.holds if hold.id in there]
        among = living if living and place % 2 == 0 else self.holds
        return among[-1 - place // 2 % len(among)]

    def lines_of(self, hold: Hold | None) -> list[str]:
        return [] if hold is None else [self.keys[one][0] for one in hold.accounts]

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
            expected = key, sheet.limit, sheet.settled, self.model.held(key), sheet.overrun
            assert (key, row.limit, row.settled, row.reserved, row.overrun) == expected

    # -- runs ------------------------------------------------------------------------------------------------

    @rule(run=some_run, lines=some_lines, needs=amounts, fate=fates)
    def reserve(self, run: str, lines: list[str], needs: Amounts, fate: str) -> None:
        """A run wants to hold something, or only to start."""
        self.admit(run, lines, needs, None, fate)

    @precondition(lambda self: self.holds)
    @rule(run=some_run, lines=some_lines, needs=amounts, place=some_hold, fate=fates)
    def nest(self, run: str, lines: list[str], needs: Amounts, place: int, fate: str) -> None:
        """A run wants to hold something inside a reservation."""
        around = self.hold_at(place)
        if around is not None and len(around.chain()) < DEEPEST:
            self.admit(run, list(dict.fromkeys([*self.lines_of(around), *lines]))[:3], needs, around, fate)

    def admit(self, run: str, lines: list[str], needs: Amounts, around: Hold | None, fate: str) -> None:
        if not self.runs[run].live:
            self.take_over(run, True, "once")
        accounts = self.at_work(lines)
        self.number += 1
        admission = Admission(self.who(run), f"h{self.number}", accounts, needs, around, None, self.clock.time)
        admission.limits = {one: account.line.limit for one, account in accounts.items()}
        if not self.write(lambda tx: self.ledger.admit(tx, admission), fate):
            return
        self.opened(lines)
        for key in map(self.key, lines):
            sheet = self.model.sheets[key]
            if not sheet.set_at_run_time and sheet.limit != self.code[key[0]]:
                self.model.resize(key, self.code[key[0]])
        wanted = {self.key(name): needs.of(LINES[name][2]) for name in lines}
        refusing = self.model.refusing(wanted, names(around))
        if admission.refusal is not None:
            self.explains(admission.refusal, refusing, wanted)
        else:
            assert not refusing
            self.model.reserve(admission.hold_id, run, self.runs[run].epoch, wanted, names(around))
            self.holds += filter(None, [self.known.granted(admission)])
        self.told(admission.rows)

    def explains(self, error: BudgetExhaustedError, refusing: set[Key], wanted: dict[Key, int]) -> None:
        """A refusal has the numbers of an account that has to refuse."""
        key = self.key(str(error.budget))
        assert key in refusing
        sheet = self.model.sheets[key]
        assert (error.limit, error.settled, error.overrun) == (sheet.limit, sheet.settled, sheet.overrun)
        assert (error.reserved, error.requested) == (self.model.held(key), wanted[key])

    @rule(run=some_run, usage=st.lists(some_usage, min_size=1, max_size=3), ends=some_end, fate=fates)
    def settle(self, run: str, usage: list[Any], ends: int | None, fate: str) -> None:
        """A run, live or not, stores what it has used, and perhaps ends."""
        events = [self.event(run, one, self.hold_at(one[2])) for one in usage]
        owned = None if ends is None else (run, self.runs[run].epoch - ends)
        self.store_settlement(Settlement(events, [], owned), fate)

    @precondition(lambda self: self.holds)
    @rule(place=some_hold, most=st.integers(1, DEEPEST), run=some_run, usage=st.none() | some_usage, fate=fates)
    def release(self, place: int, most: int, run: str, usage: Any, fate: str) -> None:
        """A reservation ends, perhaps with some around it, perhaps with the last that was used of it."""
        hold = self.hold_at(place)
        assert hold is not None
        events = [] if usage is None else [self.event(run, usage, hold)]
        self.store_settlement(Settlement(events, hold.chain()[:most]), fate)

    def event(self, run: str, usage: Any, hold: Hold | None) -> Event:
        """Return usage of a run, on the budgets of its reservation too."""
        lines, used, _, key = usage
        counted = Usage(input=used.tokens, total=used.tokens, requests=used.requests)
        accounts = self.at_work(list(dict.fromkeys([*self.lines_of(hold), *lines])))
        return Event(f"e{key}", self.who(run), counted, accounts, hold, self.clock.time, "reported")

    def store_settlement(self, settlement: Settlement, fate: str) -> None:
        if not self.write(lambda tx: self.ledger.settle(tx, settlement), fate):
            return
        over = False
        for event in settlement.events:
            lines = [account.line.name for account in event.accounts.values()]
            if event.dedupe_key not in self.model.events:
                self.opened(lines)
            used = event.usage.total, event.usage.requests
            over |= self.model.use(event.dedupe_key, *used, list(map(self.key, lines)), names(event.hold))
        assert (settlement.overrun is not None) is over
        ending = {hold.id for hold in settlement.ending}
        self.end(lambda part: part.of in ending)
        if settlement.owned is not None:
            run, epoch = settlement.owned
            if epoch == self.runs[run].epoch:
                self.runs[run].live = False
                self.store.write_blocking(lambda tx: self.update_run(tx, run))
            self.end(lambda part: part.run == run and part.epoch <= epoch)
        self.told(settlement.rows)
        self.stored.append(settlement)

    def end(self, ends: Callable[[Part], bool]) -> int:
        ending = [part for part in self.model.parts if ends(part)]
        self.model.end(ending)
        return len(ending)

    @precondition(lambda self: self.stored)
    @rule(place=st.integers(1, 4))
    def repeat(self, place: int) -> None:
        """A settlement whose commit had an unknown outcome is stored again, after others were."""
        settlement = self.stored[-min(place, len(self.stored))]
        self.write(lambda tx: self.ledger.settle(tx, settlement), "once")

    # -- leases ----------------------------------------------------------------------------------------------

    @rule(run=some_run, releases=st.booleans(), fate=fates)
    def take_over(self, run: str, releases: bool, fate: str) -> None:
        """A run gets another life, with or without the release of what its earlier lives hold."""
        old = self.runs[run]
        now = Run(old.epoch + 1)

        def change(tx: Tx) -> None:
            self.runs[run] = now
            self.update_run(tx, run)
            if releases:
                self.ledger.release_owned(tx, run, old.epoch)

        if not self.write(change, fate):
            self.runs[run] = old
        elif releases:
            self.end(lambda part: part.run == run and part.epoch <= old.epoch)

    @rule(lines=st.none() | some_lines, fate=fates)
    def sweep(self, lines: list[str] | None, fate: str) -> None:
        """Somebody sweeps everything, or the accounts that refused him."""
        accounts = None if lines is None else list(self.at_work(lines))
        swept: list[int] = []
        if self.write(lambda tx: swept.append(sweep(tx, self.store, accounts)), fate):
            keys = None if lines is None else {self.key(name) for name in lines}
            released = self.end(lambda part: self.dead(part) and (keys is None or part.key in keys))
            assert swept == {"twice": [released, 0], "again": [released, released]}.get(fate, [released])

    def dead(self, part: Part) -> bool:
        run = self.runs[part.run]
        return not run.live or run.epoch != part.epoch

    # -- limits and windows ----------------------------------------------------------------------------------

    @rule(line=st.sampled_from(list(LINES)), limit=st.integers(1, 2 * LIMIT), overrun=st.booleans())
    def resize(self, line: str, limit: int, overrun: bool) -> None:
        """An operator changes the limit of what runs now, often because there is overrun."""
        over = [one for one in LINES if (sheet := self.model.sheets.get(self.key(one))) and sheet.overrun]
        line = over[0] if over and overrun else line
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

    @rule(time=st.sampled_from([LEASE + timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)]), dead=some_run)
    def roll(self, time: timedelta, dead: str) -> None:
        """The lease of a run runs out, or a window ends and the runs live on."""
        self.clock.time += time
        if time < timedelta(hours=1):
            self.runs[dead].live = False
        self.renew()

    # -- what holds all along --------------------------------------------------------------------------------

    @invariant()
    def agrees(self) -> None:
        """The database has what the model has, and keeps every promise by itself."""
        sheets, held, events = self.store.read_blocking(read)
        assert sheets == {
            key: (sheet.limit, sheet.settled, self.model.held(key), sheet.overrun)
            for key, sheet in self.model.sheets.items()
        }
        parts = Counter[tuple[str, Key]]({(part.of, part.key): 0 for part in self.model.parts})
        for part in self.model.parts:
            parts[part.of, part.key] += part.amount
        assert held == dict(parts)
        counted = self.model.events.values()
        assert events == (len(counted), sum(tokens for tokens, _ in counted), sum(requests for _, requests in counted))
        used = Counter[str]()
        for key, (limit, settled, reserved, overrun) in sheets.items():
            assert min(settled, reserved, overrun) >= 0
            assert reserved == sum(amount for (_, other), amount in held.items() if other == key)
            assert settled + reserved <= max(limit, self.committed[key])
            self.committed[key] = settled + reserved
            used[key[0]] += settled + overrun
        assert +used == +self.model.used


def empty(tx: Tx) -> None:
    """Leave nothing but one row for each run."""
    for table in ("budget_accounts", "budget_holds", "usage_events", "decisions", "tasks"):
        tx.execute(f"DELETE FROM apflow_{table}")
    for name in RUNS:
        sql = "INSERT INTO apflow_tasks (id, name, status, created_at) VALUES (:id, 'work', 'pending', '2026-03-01')"
        tx.execute(sql, {"id": name})


def names(hold: Hold | None) -> list[str]:
    """Return the names of a reservation and of those around it, the innermost first."""
    return [] if hold is None else [one.id for one in hold.chain()]


class Found(NamedTuple):
    """What the database has."""

    sheets: dict[Key, tuple[int, ...]]
    held: dict[tuple[str, Key], int]
    events: tuple[int, ...]


def read(tx: Tx) -> Found:
    columns = "a.name, a.window_start"
    accounts = tx.rows(f"SELECT {columns}, hard_limit, settled, reserved, overrun FROM apflow_budget_accounts a")
    holds = tx.rows(
        f"SELECT {columns}, h.hold_id, SUM(h.amount), MIN(h.amount) FROM apflow_budget_holds h "
        "JOIN apflow_budget_accounts a ON a.id = h.account_id GROUP BY a.name, a.window_start, h.hold_id"
    )
    assert all(least >= 0 for *_, least in holds)
    events = tx.row(
        "SELECT COUNT(*), COALESCE(SUM(total_tokens), 0), COALESCE(SUM(requests), 0) FROM apflow_usage_events"
    )
    assert events is not None
    return Found(
        {(name, moment(start)): tuple(numbers) for name, start, *numbers in accounts},
        {(of, (name, moment(start))): int(amount) for name, start, of, amount, _ in holds},
        tuple(map(int, events)),
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def machine_store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """An open store whose clock the test sets."""
    url = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    store = create_session(url, clock=Standing())
    asyncio.run(store.open())
    yield store
    store.close()


@pytest.mark.timeout(400)  # Only a failure takes so long: a short example is looked for.
def test_the_ledger_does_what_the_model_does(machine_store: Store) -> None:
    examples = 90 if machine_store.dialect == "sqlite" else 30
    chosen = settings(
        max_examples=examples, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
    )
    with asyncio.Runner() as runner:
        machine: Any = partial(LedgerMachine, machine_store, runner)
        run_state_machine_as_test(machine, settings=chosen)


def test_what_is_left_goes_past_a_reservation_that_has_ended(machine_store: Store) -> None:
    with asyncio.Runner() as runner:
        machine = LedgerMachine(machine_store, runner)
        machine.begin([("r0", ["run"], Amounts(5)), ("r0", ["run"], Amounts(4)), ("r1", ["run"], Amounts(3))])
        outer, middle, inner = machine.holds
        for hold, left in ((middle, 2), (inner, 5)):
            machine.store_settlement(Settlement([], [hold]), "once")
            machine.agrees()
            assert machine_store.read_blocking(read).held[outer.id, ("run", None)] == left
