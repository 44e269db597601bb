"""`apflow budget`: what budgets have left, and who holds what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from apflow.bridge.cli.database import ask, database_option
from apflow.bridge.cli.exits import Failed
from apflow.bridge.cli.output import json_option, time_text, write_fields, write_json, write_table

if TYPE_CHECKING:
    from apflow.governance.statuses import BudgetStatus
    from apflow.runtime import Runtime

_SCOPES = ("run", "user", "global")


@click.group("budget")
def budget() -> None:
    """Look at budgets: what was used, what is held, what is left."""


@budget.command("list")
@click.option("--per", type=click.Choice(_SCOPES), help="Only budgets of runs, of users, or of all.")
@click.option("--scope-id", help="Only those of this run or user.")
@click.option("--history", is_flag=True, help="Windows that are over, too.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many at most.")
@database_option
@json_option
def list_(
    *, per: str | None, scope_id: str | None, history: bool, limit: int, database_url: str | None, as_json: bool
) -> None:
    """List budgets, the fullest first."""
    found = _found(database_url, {"per": per, "scope_id": scope_id}, history=history, limit=limit)
    if as_json:
        write_json(found)
        return
    columns = ("budget", "per", "of", "unit", "window", "limit", "used", "held", "left", "resets")
    write_table(columns, [_row(one) for one in found], nothing="no budget was used yet")


@budget.command()
@click.argument("name")
@click.option("--scope-id", help="Only that of this run or user.")
@click.option("--history", is_flag=True, help="Windows that are over, too.")
@database_option
@json_option
def show(*, name: str, scope_id: str | None, history: bool, database_url: str | None, as_json: bool) -> None:
    """Show a budget by its name (the task's, when it has none of its own), and who holds what of it."""
    found = _found(database_url, {"name": name, "scope_id": scope_id}, history=history, limit=1_000)
    if not found:
        raise Failed("not_found", f"no budget {name!r} was used yet; `apflow budget list` has those that were")
    if as_json:
        write_json(found)
        return
    for number, one in enumerate(found):
        if number:
            click.echo()
        write_fields(_fields(one))


def _found(database_url: str | None, wanted: dict[str, str | None], *, history: bool, limit: int) -> list[BudgetStatus]:
    async def asked(runtime: Runtime) -> list[BudgetStatus]:
        from apflow.governance.statuses import statuses

        await runtime.ready()
        given = {column: value for column, value in wanted.items() if value is not None}
        conditions = [f"{column} = :{column}" for column in given]
        params: dict[str, Any] = {**given, "limit": limit}
        if not history:
            conditions.append("(window_end IS NULL OR window_end > :now)")
            params["now"] = runtime.store.timestamp(runtime.store.clock.now())
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        chosen = (
            f"SELECT id FROM apflow_budget_accounts {where} "
            "ORDER BY (settled + reserved + overrun) * 1.0 / hard_limit DESC, id LIMIT :limit"
        )
        # The outer SELECT has holds beside the accounts, so only the inner one can be limited.
        clause = f"WHERE a.id IN (SELECT id FROM ({chosen}) chosen)"
        return await runtime.store.read(lambda tx: statuses(tx, clause, params))

    return sorted(ask(database_url, asked), key=lambda one: -one.utilization)


def _row(one: BudgetStatus) -> tuple[object, ...]:
    return (
        one.name,
        one.per,
        one.scope_id,
        one.unit,
        one.window,
        one.limit,
        one.settled + one.overrun,
        one.reserved,
        one.left,
        time_text(one.window_end),
    )


def _fields(one: BudgetStatus) -> dict[str, object]:
    holds = [
        f"{hold.amount} by run {hold.run_id} ({hold.task or 'not begun'}), since {time_text(hold.since)}"
        for hold in one.holds
    ]
    return {
        "budget": one.name,
        "per": one.per,
        "of": one.scope_id,
        "unit": one.unit,
        "window": one.window,
        "limit": one.limit,
        "used": one.settled + one.overrun,
        "overrun": one.overrun or None,
        "held": one.reserved,
        "left": one.left,
        "filled": f"{one.utilization:.1%}",
        "resets": time_text(one.window_end),
        "holds": "\n".join(["", *holds])[1:] or None,
    }
