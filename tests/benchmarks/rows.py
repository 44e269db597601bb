"""What is measured, and what the design promises about it."""

from __future__ import annotations

from typing import Literal

from .measure import Experiment
from .verdict import Row

EXPERIMENTS = {
    "root": Experiment(scenario="root", counts={"apflow": 300, "floor": 300, "dbos": 60}, repeats=(9, 3)),
    "child": Experiment(scenario="child", counts={"apflow": 300, "floor": 300, "dbos": 60}, repeats=(9, 3)),
    "gather": Experiment(scenario="gather", counts={"apflow": 1000, "dbos": 1000}, repeats=(3, 1)),
    "import": Experiment(scenario="import", counts={"import": 1, "bare": 1}, repeats=(21, 7)),
    "first": Experiment(scenario="first", counts={"apflow-first": 1, "dbos-first": 1}, repeats=(9, 3)),
    "sync": Experiment(scenario="sync_root", counts={"apflow": 200, "floor": 200, "dbos": 60}, repeats=(7, 3)),
    "map": Experiment(scenario="map", counts={"apflow": 200, "dbos": 200}, repeats=(5, 2)),
    "full": Experiment(scenario="root", counts={"apflow-full": 100, "floor-full": 100, "dbos": 60}, repeats=(7, 3)),
    "pg-root": Experiment(scenario="root", counts={"apflow-pg": 100, "dbos-pg": 60}, repeats=(7, 3)),
    "pg-child": Experiment(scenario="child", counts={"apflow-pg": 100, "dbos-pg": 60}, repeats=(7, 3)),
    "pg-gather": Experiment(scenario="gather", counts={"apflow-pg": 1000, "dbos-pg": 1000}, repeats=(3, 1)),
    "governed": Experiment(
        scenario="root",
        counts={"ungoverned": 100, "run": 100, "global": 100, "three": 100, "three-used": 100},
        repeats=(25, 9),
    ),
    "pg-governed": Experiment(scenario="root", counts={"ungoverned-pg": 100, "global-pg": 100}, repeats=(7, 3)),
    "reserve": Experiment(scenario="reserve", counts={"hot": 300, "hot-floor": 300}, repeats=(9, 3)),
    "reserve-100": Experiment(scenario="reserve_100", counts={"hot": 1000, "hot-floor": 1000}, repeats=(5, 2)),
    "reserve-4": Experiment(scenario="reserve", counts={"hot-4": 1000, "hot-floor-4": 1000}, repeats=(5, 2)),
}

_TWO_COMMITS, _ONE_COMMIT = "sqlite3, the same two commits", "sqlite3, one committed insert"
_DBOS, _DBOS_PG = "DBOS, SQLite", "DBOS, PostgreSQL"
_NO_BUDGET = "the same without a budget"


def _floor(what: str, experiment: str, against: str, *, limit: float | None = None) -> Row:
    return Row(
        what=what,
        against=against,
        experiment=experiment,
        ours="apflow",
        reference="floor",
        compare="costs",
        limit=limit,
    )


def _dbos(what: str, experiment: str, *, limit: float | None = None) -> Row:
    return Row(what=what, against=_DBOS, experiment=experiment, ours="apflow", reference="dbos", limit=limit)


def _governed(budgets: str, ours: str, *, limit: float | None = None) -> Row:
    return Row(
        what=f"root run, {budgets}",
        against=_NO_BUDGET,
        experiment="governed",
        ours=ours,
        reference="ungoverned",
        compare="costs",
        limit=limit,
    )


def _reserve(how: str, experiment: str, against: str, *, processes: str = "") -> Row:
    return Row(
        what=f"reserve and release on one account, {how}",
        against=against,
        experiment=experiment,
        ours=f"hot{processes}",
        reference=f"hot-floor{processes}",
        compare="costs",
        unit="per second",
    )


def _postgres(what: str, experiment: str, unit: Literal["seconds", "per second"] = "seconds") -> Row:
    return Row(what=what, against=_DBOS_PG, experiment=experiment, ours="apflow-pg", reference="dbos-pg", unit=unit)


ROWS = (
    _floor("root run", "root", _TWO_COMMITS, limit=3),
    _floor("child run, checkpoint=True", "child", _ONE_COMMIT, limit=4),
    Row(
        what="1,000 root runs, one gather",
        against=_DBOS,
        experiment="gather",
        ours="apflow",
        reference="dbos",
        limit=25,
        or_rate=5000,
        unit="per second",
    ),
    _dbos("root run", "root", limit=10),
    _dbos("child run, checkpoint=True", "child", limit=10),
    Row(
        what="import and one decoration",
        against="bare interpreter",
        experiment="import",
        ours="import",
        reference="bare",
        compare="adds",
        limit=0.060,
    ),
    Row(
        what="process start to first result, fresh file",
        against=_DBOS,
        experiment="first",
        ours="apflow-first",
        reference="dbos-first",
        compare="costs",
        limit=0.7,
    ),
    _floor("sync root run", "sync", _TWO_COMMITS),
    _dbos("sync root run", "sync"),
    _dbos("map of 200 items, per item", "map"),
    Row(
        what='root run, durability="full"',
        against="sqlite3, the same, synchronous=FULL",
        experiment="full",
        ours="apflow-full",
        reference="floor-full",
        compare="costs",
    ),
    Row(
        what='root run, durability="full"',
        against=_DBOS,
        experiment="full",
        ours="apflow-full",
        reference="dbos",
    ),
    _postgres("root run, PostgreSQL", "pg-root"),
    _postgres("child run, PostgreSQL", "pg-child"),
    _postgres("1,000 root runs, one gather, PostgreSQL", "pg-gather", "per second"),
    _governed("a budget per run", "run", limit=1.6),
    _governed("a global budget", "global", limit=1.6),
    _governed("budgets per run, user and global", "three"),
    _governed("the same three, reserved and used", "three-used"),
    Row(
        what="root run, a global budget, PostgreSQL",
        against=_NO_BUDGET,
        experiment="pg-governed",
        ours="global-pg",
        reference="ungoverned-pg",
        compare="costs",
    ),
    _reserve("one at a time", "reserve", _TWO_COMMITS),
    _reserve("100 at once", "reserve-100", f"{_TWO_COMMITS}, one at a time"),
    _reserve("4 processes", "reserve-4", f"{_TWO_COMMITS}, 4 processes", processes="-4"),
)
