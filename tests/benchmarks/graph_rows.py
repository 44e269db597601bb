"""What is measured of task graphs, and what is promised: the cost of a node does not depend on how many there are."""

from __future__ import annotations

from .measure import Experiment
from .verdict import Row

#: Nodes, the smallest first; of the two the second is for `--quick`. A side by each number runs in `line_up`.
SIZES = ((100, 1_000, 10_000), (100, 2_000))
POSTGRES_SIZES = (100, 2_000)
SHAPES = {"chain": "a chain", "fan_out": "a wide fan-out", "layered": "random layers"}

_GROWS, _GROWS_IN_MEMORY, _WAITS = 1.3, 1.2, 1.25
_SLEEPERS = 50
_REPEATS = (5, 3)


def side(nodes: int, *, postgres: bool = False) -> str:
    """Return the name of the side that runs trees of so many nodes."""
    return f"graph-{nodes}-pg" if postgres else f"graph-{nodes}"


def graph_experiments(*, quick: bool) -> dict[str, Experiment]:
    """Return the experiments by name; each takes turns between small and large trees."""
    sizes = SIZES[quick]
    found = {}
    for shape in SHAPES:
        found[f"graph-{shape}"] = Experiment(scenario=shape, counts={side(n): n for n in sizes}, repeats=_REPEATS)
    for shape in SHAPES:
        counts = {side(n): n for n in sizes[-2:]}
        found[f"graph-{shape}-memory"] = Experiment(scenario=f"{shape}_memory", counts=counts, repeats=(1, 1))
    for kind in ("sleepers", "plain_sleepers"):
        found[f"graph-{kind}"] = Experiment(scenario=kind, counts={side(sizes[0]): _SLEEPERS}, repeats=(5, 2))
    for shape in SHAPES:
        counts = {side(n, postgres=True): n for n in POSTGRES_SIZES}
        found[f"graph-{shape}-pg"] = Experiment(scenario=shape, counts=counts, repeats=(3, 1))
    return found


def graph_rows(*, quick: bool) -> tuple[Row, ...]:
    """Return the lines of the table, in its order."""
    sizes = SIZES[quick]
    rows = []
    for shape in SHAPES:
        rows += [_cost(shape, "execute_cpu", n, limit=_GROWS) for n in sizes[1:]]
        rows.append(_cost(shape, "execute_wall", sizes[-1]))
        rows.append(_cost(shape, "create_cpu", sizes[-1], limit=_GROWS))
        rows += [_against_root(shape, clock, sizes[-1]) for clock in ("cpu", "wall")]
    rows += [_memory(shape, part, *sizes[-2:]) for shape in SHAPES for part in ("execute", "create")]
    rows += [_sleepers(kind, side(sizes[0])) for kind in ("sleepers", "plain_sleepers")]
    for shape in SHAPES:
        rows.append(_cost(shape, "execute_cpu", POSTGRES_SIZES[-1], limit=_GROWS, postgres=True))
        rows.append(_cost(shape, "execute_wall", POSTGRES_SIZES[-1], postgres=True))
    return tuple(rows)


_PARTS = {
    "execute_cpu": "executed, CPU",
    "execute_wall": "executed",
    "create_cpu": "created, CPU",
}


def _cost(shape: str, part: str, nodes: int, *, limit: float | None = None, postgres: bool = False) -> Row:
    small = POSTGRES_SIZES[0] if postgres else SIZES[0][0]
    return Row(
        what=f"node of {SHAPES[shape]}, {nodes:,}, {_PARTS[part]}{', PostgreSQL' if postgres else ''}",
        against=f"the same, {small:,} nodes",
        experiment=f"graph-{shape}-pg" if postgres else f"graph-{shape}",
        ours=side(nodes, postgres=postgres),
        reference=side(small, postgres=postgres),
        part=part,
        reference_part=part,
        compare="costs",
        limit=limit,
    )


def _against_root(shape: str, clock: str, nodes: int) -> Row:
    return Row(
        what=f"node of {SHAPES[shape]}, {nodes:,}, {_PARTS[f'execute_{clock}']}",
        against="root run, same process",
        experiment=f"graph-{shape}",
        ours=side(nodes),
        reference=side(nodes),
        part=f"execute_{clock}",
        reference_part=f"root_{clock}",
        compare="costs",
    )


def _memory(shape: str, part: str, small: int, nodes: int) -> Row:
    return Row(
        what=f"node of {SHAPES[shape]}, {nodes:,}, {part}d, peak memory",
        against=f"the same, {small:,} nodes",
        experiment=f"graph-{shape}-memory",
        ours=side(nodes),
        reference=side(small),
        part=part,
        reference_part=part,
        compare="costs",
        limit=_GROWS_IN_MEMORY,
        unit="bytes",
    )


def _sleepers(kind: str, name: str) -> Row:
    return Row(
        what=f"fan-out and fan-in, {_SLEEPERS} sleeping {'plain ' if kind == 'plain_sleepers' else ''}nodes",
        against="the longest path, bare asyncio",
        experiment=f"graph-{kind}",
        ours=name,
        reference=name,
        reference_part="longest",
        compare="costs",
        limit=_WAITS,
    )
