"""The accounts and holds that one transaction works on.

Every transaction of the ledger takes its locks in one order: rows of runs, usage events, accounts by ascending id.
Whoever has locked an account owns all holds on it. On SQLite a writing transaction has the whole database locked.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from apflow.errors import StorageError
from apflow.governance.accounts import fitting

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from datetime import datetime

    from apflow.governance.accounts import Account
    from apflow.storage.store import Store, Tx

_INSERT_ACCOUNT = """
INSERT INTO apflow_budget_accounts (id, name, per, scope_id, unit, period, tz, window_start, window_end, hard_limit,
  settled, reserved, overrun, overridden, created_at)
VALUES (:id, :name, :per, :scope_id, :unit, :period, :tz, :window_start, :window_end, :hard_limit, 0, 0, 0, :no, :now)
ON CONFLICT (id) DO NOTHING"""

_SET_LIMIT = """
UPDATE apflow_budget_accounts SET hard_limit = :hard_limit, settled = settled + :fits, overrun = overrun - :fits
WHERE id = :id"""

#: The one statement that lets `settled + reserved` grow, so that no path can pass the limit.
_RESERVE = """
UPDATE apflow_budget_accounts SET reserved = reserved + :amount
WHERE id = :id AND settled + reserved + :amount <= hard_limit AND overrun = 0"""

_SETTLE = """
UPDATE apflow_budget_accounts SET settled = settled + :direct + :held, reserved = reserved - :held - :freed,
  overrun = overrun + :over
WHERE id = :id AND (:direct = 0 OR settled + reserved - :freed + :direct <= hard_limit)"""

_INSERT_HOLD = """
INSERT INTO apflow_budget_holds
  (id, hold_id, account_id, outer_id, run_id, owned_id, epoch, granted, amount, created_at)
VALUES (:id, :hold_id, :account_id, :outer_id, :run_id, :owned_id, :epoch, :amount, :amount, :now)"""

_MOVE_HOLDS = "UPDATE apflow_budget_holds SET outer_id = :outer_id WHERE account_id = :account_id AND outer_id = :id"

_HOLD_COLUMNS = "id, hold_id, account_id, outer_id, run_id, amount"


@dataclass(slots=True)
class AccountRow:
    """An account as the database has it, and what this transaction adds to it."""

    limit: int
    settled: int
    reserved: int
    overrun: int
    overridden: bool
    direct: int = 0
    held: int = 0
    freed: int = 0
    over: int = 0

    @property
    def room(self) -> int:
        """What may still be settled or reserved."""
        return max(0, self.limit - self.settled - self.reserved)


@dataclass(slots=True)
class HoldRow:
    """A hold as the database has it."""

    id: str
    hold_id: str
    account_id: str
    outer_id: str | None
    run_id: str
    amount: int
    changed: bool = False
    gone: bool = False


@lru_cache(maxsize=64)
def _in(count: int, prefix: str = "p") -> str:
    return ", ".join(f":{prefix}{number}" for number in range(count))


def numbered(values: Iterable[str], prefix: str = "p") -> dict[str, Any]:
    """Return parameters for `IN (...)`."""
    return {f"{prefix}{number}": value for number, value in enumerate(values)}


def placeholders(values: Collection[str], prefix: str = "p") -> str:
    """Return what stands between the brackets of `IN (...)`."""
    return _in(len(values), prefix)


class Books:
    """Locked accounts, the holds on them that matter, and what becomes of both.

    Args:
        tx: The transaction.
        store: Where it happens; knows the time.
        ids: The accounts, in any order.
        lock: Whether the accounts may change.
    """

    def __init__(self, tx: Tx, store: Store, ids: Collection[str], *, lock: bool = True) -> None:
        self._tx = tx
        self._store = store
        self.accounts: dict[str, AccountRow] = {}
        self.holds: dict[str, HoldRow] = {}
        self._read(sorted(ids), lock=lock)

    def _read(self, ids: list[str], *, lock: bool) -> None:
        if ids:
            self.accounts |= read_accounts(self._tx, ids, lock=lock)

    def open(
        self,
        accounts: Mapping[str, Account],
        now: datetime,
        limits: Mapping[str, int] | None = None,
        *,
        look: bool = False,
    ) -> None:
        """Insert the accounts that are missing, and give those whose limit the code has changed the new one.

        Args:
            accounts: What is needed, by id.
            now: What time it is.
            limits: What the code says now, by account; an account that is not in there keeps the limit that it has.
            look: Nothing is used or held, so accounts that can do without a row get none.
        """
        said = limits or {}
        if missing := [one for one in sorted(accounts) if one not in self.accounts]:
            there = [one for one in missing if not self._insert(accounts[one], now, said.get(one), look=look)]
            self._read(there, lock=True)
        if changed := [one for one in said if self._differs(one, said[one])]:
            self._read(sorted(changed), lock=True)
        for one in sorted(changed):
            row, limit = self.accounts[one], said[one]
            if self._differs(one, limit):
                fits = fitting(limit, row.settled, row.reserved, row.overrun)
                self._tx.execute(_SET_LIMIT, {"id": one, "hard_limit": limit, "fits": fits})
                row.limit, row.settled, row.overrun = limit, row.settled + fits, row.overrun - fits

    def _insert(self, account: Account, now: datetime, limit: int | None, *, look: bool) -> bool:
        """Insert an account; False when it is there already."""
        limit = account.line.limit if limit is None else limit
        if not (look and account.lazy):
            params = self._account_params(account, now) | {"hard_limit": limit}
            if self._tx.execute(_INSERT_ACCOUNT, params) != 1:
                return False
        self.accounts[account.id] = AccountRow(limit, 0, 0, 0, overridden=False)
        return True

    def _differs(self, account_id: str, limit: int) -> bool:
        row = self.accounts.get(account_id)
        return row is not None and row.limit != limit and not row.overridden

    def _account_params(self, account: Account, now: datetime) -> dict[str, Any]:
        line, timestamp = account.line, self._store.timestamp
        return {
            "id": account.id,
            "name": line.name,
            "per": line.per,
            "scope_id": line.scope_id,
            "unit": line.unit,
            "period": line.window,
            "tz": line.tz,
            "window_start": None if account.start is None else timestamp(account.start),
            "window_end": None if account.end is None else timestamp(account.end),
            "no": False,
            "now": timestamp(now),
        }

    # -- holds -----------------------------------------------------------------------------------------------

    def read_holds(self, where: str, params: Mapping[str, Any]) -> list[HoldRow]:
        """Read the holds that `where` names, as far as they are not known yet."""
        found = []
        for values in self._tx.rows(
            f"SELECT {_HOLD_COLUMNS} FROM apflow_budget_holds WHERE {where} ORDER BY id", params
        ):
            row = self.holds.setdefault(values[0], HoldRow(*values))
            found.append(row)
        return found

    def of_reservations(self, hold_ids: Collection[str]) -> list[HoldRow]:
        """Read all rows of some reservations, in the order of `hold_ids`."""
        if not hold_ids:
            return []
        found = self.read_holds(f"hold_id IN ({placeholders(hold_ids)})", numbered(hold_ids))
        place = {one: number for number, one in enumerate(hold_ids)}
        return sorted(found, key=lambda row: (place[row.hold_id], row.id))

    def reserve(self, account_id: str, amount: int) -> bool:
        """Reserve an amount if it fits; this update decides."""
        if self._tx.execute(_RESERVE, {"id": account_id, "amount": amount}) != 1:
            return False
        self.accounts[account_id].reserved += amount
        return True

    def unreserve(self, account_id: str, amount: int) -> None:
        """Take back what `reserve` did in this transaction."""
        row = self.accounts[account_id]
        row.freed += amount
        row.reserved -= amount

    def insert_hold(self, params: Mapping[str, Any]) -> None:
        """Insert one row of a reservation."""
        self._tx.execute(_INSERT_HOLD, params)

    def draw(self, hold: HoldRow, most: int) -> int:
        """Take up to `most` out of a hold and return how much that was."""
        taken = min(hold.amount, most)
        if taken:
            hold.amount -= taken
            hold.changed = True
        return taken

    def release(self, holds: Iterable[HoldRow]) -> None:
        """End holds: what is left of each goes back to the enclosing hold that stays, or to the account."""
        ending = {hold.id: hold for hold in holds if not hold.gone}
        self._read_outer(ending)
        for hold in ending.values():
            outer = self._staying(hold, ending)
            if outer is not None:
                outer.amount += hold.amount
                outer.changed = True
            else:
                row = self.accounts[hold.account_id]
                row.freed += hold.amount
                row.reserved -= hold.amount
        for hold in ending.values():
            hold.amount, hold.gone = 0, True

    def _read_outer(self, ending: Mapping[str, HoldRow]) -> None:
        wanted = {hold.outer_id for hold in ending.values() if hold.outer_id is not None}
        while wanted := {one for one in wanted if one not in self.holds}:
            ids = sorted(wanted)
            found = self.read_holds(f"id IN ({placeholders(ids)})", numbered(ids))
            wanted = {hold.outer_id for hold in found if hold.outer_id is not None}

    def _staying(self, hold: HoldRow, ending: Mapping[str, HoldRow]) -> HoldRow | None:
        outer_id = hold.outer_id
        while outer_id is not None:
            outer = self.holds.get(outer_id)
            if outer is None:
                return None
            if not outer.gone and outer.id not in ending:
                return outer
            outer_id = outer.outer_id
        return None

    def _pass_on(self, hold: HoldRow) -> None:
        """Give holds that were drawn from one that ends before them the hold around it."""
        outer = self._staying(hold, {})
        if outer is not None:
            self._tx.execute(_MOVE_HOLDS, {"id": hold.id, "account_id": hold.account_id, "outer_id": outer.id})

    # -- usage -----------------------------------------------------------------------------------------------

    def use_hold(self, hold: HoldRow, most: int) -> int:
        """Settle up to `most` out of a hold and return how much that was."""
        taken = self.draw(hold, most)
        row = self.accounts[hold.account_id]
        row.held += taken
        row.settled += taken
        row.reserved -= taken
        return taken

    def use(self, account_id: str, amount: int) -> int:
        """Settle what fits, put the rest into the overrun, and return the rest."""
        row = self.accounts[account_id]
        fits = min(amount, row.room)
        row.direct += fits
        row.settled += fits
        row.over += amount - fits
        row.overrun += amount - fits
        return amount - fits

    # -- the end ---------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write what has changed.

        Raises:
            StorageError: An account is not as it was locked; nothing is stored.
        """
        for hold in sorted(self.holds.values(), key=lambda one: one.id):
            if hold.gone:
                self._pass_on(hold)
                self._tx.execute("DELETE FROM apflow_budget_holds WHERE id = :id", {"id": hold.id})
            elif hold.changed:
                changed = {"id": hold.id, "amount": hold.amount}
                self._tx.execute("UPDATE apflow_budget_holds SET amount = :amount WHERE id = :id", changed)
        for one, row in sorted(self.accounts.items()):
            if row.direct or row.held or row.freed or row.over:
                params = {"id": one, "direct": row.direct, "held": row.held, "freed": row.freed, "over": row.over}
                if self._tx.execute(_SETTLE, params) != 1:
                    raise StorageError("the ledger changed under its lock; nothing was stored")
                row.direct = row.held = row.freed = row.over = 0


def read_accounts(tx: Tx, ids: Collection[str], *, lock: bool = False) -> dict[str, AccountRow]:
    """Return accounts by id; locked in the order of their ids, if they may change."""
    locking = " FOR NO KEY UPDATE" if lock and tx.dialect == "postgresql" else ""
    sql = (
        "SELECT id, hard_limit, settled, reserved, overrun, overridden FROM apflow_budget_accounts "
        f"WHERE id IN ({placeholders(ids)}) ORDER BY id{locking}"
    )
    return {
        one: AccountRow(limit, settled, reserved, overrun, bool(overridden))
        for one, limit, settled, reserved, overrun, overridden in tx.rows(sql, numbered(ids))
    }
