"""The ledger: admission, settlement and release, each inside a transaction that the caller has opened."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from apflow.governance.amounts import MOST_MICRO, NANO
from apflow.governance.books import AccountRow, Books, HoldRow
from apflow.governance.decisions import exhausted, write_down
from apflow.governance.entries import Admission, Event, Settlement, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from apflow.errors import BudgetExhaustedError
    from apflow.storage.store import Store, Tx

_INSERT_EVENT = """
INSERT INTO apflow_usage_events (dedupe_key, run_id, root_run_id, attempt, task, user_id, provider, model, input_tokens,
  output_tokens, total_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens, requests, cost_nusd,
  unit_prices, price_book, source, created_at)
VALUES (:dedupe_key, :run_id, :root_run_id, :attempt, :task, :user_id, :provider, :model, :input, :output, :total,
  :cache_read, :cache_write, :reasoning, :requests, :cost_nusd, :unit_prices{json}, :price_book, :source, :at)
ON CONFLICT (dedupe_key) DO NOTHING"""

_SUMS = """
SELECT SUM(input_tokens), SUM(output_tokens), SUM(total_tokens),
  SUM(cost_nusd / 1000000000), SUM(cost_nusd % 1000000000) FROM apflow_usage_events
WHERE run_id = :id"""

_ROW_USAGE = "UPDATE apflow_tasks SET token_usage = :usage{jsonb}, actual_cost_usd = :cost WHERE id = :id"


class Ledger:
    """The accounts, holds, usage events and decisions of one database."""

    def __init__(self, store: Store) -> None:
        self._store = store
        postgres = store.dialect == "postgresql"
        self._insert_event = _INSERT_EVENT.replace("{json}", "::json" if postgres else "")
        self._row_usage = _ROW_USAGE.replace("{jsonb}", "::jsonb" if postgres else "")

    # -- admission -------------------------------------------------------------------------------------------

    def admit(self, tx: Tx, admission: Admission) -> None:
        """Decide whether something may start, and reserve what it needs on every account above it, or on none."""
        if admission.done and self._exists(tx, admission.hold_id):
            return  # The answer to an earlier commit of the same got lost.
        admission.refusal, admission.left, admission.done = None, {}, True
        admission.verdict = Verdict()
        admission.warnings.clear()
        # Who holds nothing only looks, so the row of a busy account is not locked for it.
        holds = bool(admission.needs)
        used = [one for one in admission.accounts if one not in admission.fresh]
        books = Books(tx, self._store, used, lock=holds)
        books.open(admission.accounts, admission.now, admission.limits, look=not holds)
        admission.rows = books.accounts
        enclosing: list[HoldRow] = []
        if admission.outer is not None:
            enclosing = books.of_reservations([hold.id for hold in admission.outer.chain()])
        inside = _amounts_by_account(enclosing)
        refused = self._refusing(admission, books, inside)
        if refused is None and admission.judge is not None:
            refused = self._judged(admission, books, inside, admission.judge)
        if refused is None and admission.needs:
            refused = self._reserve(admission, books, enclosing)
            books.save()
        admission.holds = _left(books)
        if refused is not None:
            admission.refusal = self._refusal(admission, refused, books.accounts[refused])
        if refused is not None or admission.verdict.notes:
            write_down(tx, self._store, admission, refused)

    @staticmethod
    def _exists(tx: Tx, hold_id: str) -> bool:
        return tx.row("SELECT 1 FROM apflow_budget_holds WHERE hold_id = :id", {"id": hold_id}) is not None

    @staticmethod
    def _refusing(admission: Admission, books: Books, inside: Mapping[str, int]) -> str | None:
        """Return the account that has too little left for the attempt, if one has."""
        for one in sorted(admission.accounts):
            row = books.accounts[one]
            needed = admission.needs.of(admission.accounts[one].line.unit)
            if row.overrun or max(needed, 1) > row.room + inside.get(one, 0):
                return one
        return None

    @staticmethod
    def _judged(
        admission: Admission, books: Books, inside: Mapping[str, int], judge: Callable[[float], Verdict]
    ) -> str | None:
        """Ask the policies about the fullest account; return it when they refuse."""
        if not admission.accounts:
            return None

        def utilization(one: str) -> float:
            row = books.accounts[one]
            return (row.settled + row.overrun + max(0, row.reserved - inside.get(one, 0))) / row.limit

        admission.fullest = max(sorted(admission.accounts), key=utilization)
        admission.verdict = judge(utilization(admission.fullest))
        admission.model = admission.verdict.model
        return admission.fullest if admission.verdict.refused_by is not None else None

    def _reserve(self, admission: Admission, books: Books, enclosing: Sequence[HoldRow]) -> str | None:
        """Hold what is needed, out of the enclosing holds first; return the account that refuses, and hold nothing."""
        held: list[dict[str, Any]] = []
        reserved: list[tuple[str, int]] = []
        drawn: list[tuple[HoldRow, int]] = []
        for one in sorted(admission.accounts):
            missing = needed = admission.needs.of(admission.accounts[one].line.unit)
            for hold in enclosing:
                if hold.account_id == one and missing and (taken := books.draw(hold, missing)):
                    missing -= taken
                    drawn.append((hold, taken))
                    held.append(self._hold_params(admission, one, taken, hold.id, len(held)))
            if missing:
                if not books.reserve(one, missing):
                    for hold, taken in drawn:
                        hold.amount += taken
                    for other, amount in reserved:
                        books.unreserve(other, amount)
                    return one
                reserved.append((one, missing))
                held.append(self._hold_params(admission, one, missing, None, len(held)))
            if needed:
                admission.left[one] = needed
        for params in held:
            books.insert_hold(params)
        return None

    def _hold_params(
        self, admission: Admission, account: str, amount: int, outer: str | None, number: int
    ) -> dict[str, Any]:
        who = admission.who
        return {
            "id": f"{admission.hold_id}.{number}",
            "hold_id": admission.hold_id,
            "account_id": account,
            "outer_id": outer,
            "run_id": who.run_id,
            "owned_id": who.owned_id,
            "epoch": who.epoch,
            "amount": amount,
            "now": self._store.timestamp(admission.now),
        }

    @staticmethod
    def _refusal(admission: Admission, account_id: str, row: AccountRow) -> BudgetExhaustedError:
        account = admission.accounts[account_id]
        needed = admission.needs.of(account.line.unit)
        policy, reason = admission.verdict.refused_by or (None, None)
        return exhausted(admission.who, account, row, needed, policy=policy, reason=reason, model=admission.asked)

    # -- settlement ------------------------------------------------------------------------------------------

    def settle(self, tx: Tx, settlement: Settlement) -> None:
        """Store usage that is not stored yet, take it off the holds or what is left, and release what ends.

        What fits is settled; the rest is overrun, and `settlement.overrun` says so.
        """
        # In the order of their keys: two runs that report the same must not wait for one another.
        new = {
            id(event)
            for event in sorted(settlement.events, key=lambda one: one.dedupe_key)
            if tx.execute(self._insert_event, self._event_params(event)) == 1
        }
        counted = [event for event in settlement.events if id(event) in new]
        holds = {hold.id: hold for event in counted if event.hold for hold in event.hold.chain()}
        holds |= {hold.id: hold for hold in settlement.ending}
        ids = {one for event in counted for one in event.accounts}
        ids |= {one for hold in holds.values() for one in hold.accounts}
        if settlement.owned is not None:
            ids |= self._accounts_of(tx, settlement.owned)
        books = Books(tx, self._store, ids)
        rows = books.of_reservations(list(holds))
        settlement.counted = counted
        if counted:
            settlement.overrun = None
            books.open({one: event.accounts[one] for event in counted for one in event.accounts}, counted[0].at)
        for event in counted:
            self._settle_event(event, books, rows, settlement)
        ending = {hold.id for hold in settlement.ending}
        books.release([row for row in rows if row.hold_id in ending])
        if settlement.owned is not None:
            books.release(self._held_by(books, settlement.owned))
        books.save()
        settlement.rows = books.accounts
        settlement.left = _left(books)

    def _settle_event(self, event: Event, books: Books, rows: Sequence[HoldRow], settlement: Settlement) -> None:
        chain = [] if event.hold is None else event.hold.chain()
        for one in sorted(event.accounts):
            account = event.accounts[one]
            amount = rest = event.amounts.of(account.line.unit)
            for hold in chain:
                for row in rows if rest else ():
                    held = hold.accounts.get(row.account_id)
                    if row.hold_id == hold.id and held is not None and held.line == account.line and not row.gone:
                        rest -= books.use_hold(row, rest)
            if rest and books.use(one, rest) and settlement.overrun is None:
                settlement.overrun = exhausted(event.who, account, books.accounts[one], amount, model=event.usage.model)

    def _event_params(self, event: Event) -> dict[str, Any]:
        usage, who, price = event.usage, event.who, event.price
        return {
            "dedupe_key": event.dedupe_key,
            "run_id": who.run_id,
            "root_run_id": who.root_id,
            "attempt": who.attempt,
            "task": who.task,
            "user_id": who.user,
            "provider": usage.provider,
            "model": usage.model,
            "input": usage.input,
            "output": usage.output,
            "total": usage.total,
            "cache_read": usage.cache_read,
            "cache_write": usage.cache_write,
            "reasoning": usage.reasoning,
            "requests": usage.requests,
            "cost_nusd": event.cost_nusd,
            "unit_prices": None if price is None or not price.unit_prices else json.dumps(price.unit_prices),
            "price_book": None if price is None else price.book,
            "source": event.source,
            "at": self._store.timestamp(event.at),
        }

    def keep_row_in_step(self, tx: Tx, run_id: str) -> None:
        """Give the run's row the sums of its own events."""
        row = tx.row(_SUMS, {"id": run_id})
        if row is None or row[0] is None:
            return
        read, written, total = (int(value) for value in row[:3])
        usage = json.dumps({"input": read, "output": written, "total": total})
        # The column has twelve digits; the events have them all.
        micro = None if row[3] is None else min(-(-(int(row[3]) * NANO + int(row[4])) // 1_000), MOST_MICRO)
        cost = None if micro is None else f"{micro // 1_000_000}.{micro % 1_000_000:06d}"
        tx.execute(self._row_usage, {"id": run_id, "usage": usage, "cost": cost})

    # -- release ---------------------------------------------------------------------------------------------

    def release_owned(self, tx: Tx, run_id: str, epoch: int) -> None:
        """Release what earlier lives of an owned run still hold, those with an epoch up to `epoch`."""
        ids = self._accounts_of(tx, (run_id, epoch))
        if ids:
            books = Books(tx, self._store, ids)
            books.release(self._held_by(books, (run_id, epoch)))
            books.save()

    @staticmethod
    def _accounts_of(tx: Tx, owned: tuple[str, int]) -> set[str]:
        sql = "SELECT DISTINCT account_id FROM apflow_budget_holds WHERE owned_id = :id AND epoch <= :epoch"
        return {row[0] for row in tx.rows(sql, {"id": owned[0], "epoch": owned[1]})}

    @staticmethod
    def _held_by(books: Books, owned: tuple[str, int]) -> list[HoldRow]:
        # Only those whose account is locked: another one was made since, by whoever owns the run now.
        rows = books.read_holds("owned_id = :id AND epoch <= :epoch", {"id": owned[0], "epoch": owned[1]})
        return [row for row in rows if row.account_id in books.accounts]

    def tokens_of_run(self, tx: Tx, run_id: str) -> tuple[int, int] | None:
        """Return limit and use of the narrowest token account of a run, or None when it has none."""
        sql = (
            "SELECT hard_limit, settled + overrun FROM apflow_budget_accounts "
            "WHERE per = 'run' AND unit = 'tokens' AND scope_id = :id ORDER BY hard_limit - settled - overrun"
        )
        row = tx.row(sql, {"id": run_id})
        return None if row is None else (int(row[0]), int(row[1]))


def _left(books: Books) -> dict[tuple[str, str], int]:
    """Return what is left of each reservation on each account."""
    left: dict[tuple[str, str], int] = {}
    for row in books.holds.values():
        key = row.hold_id, row.account_id
        left[key] = left.get(key, 0) + row.amount
    return left


def _amounts_by_account(holds: Iterable[HoldRow]) -> dict[str, int]:
    found: dict[str, int] = {}
    for hold in holds:
        found[hold.account_id] = found.get(hold.account_id, 0) + hold.amount
    return found
