"""The demo's bill: what apflow charged, held against what the model was really paid for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from kill_and_resume import Journal
from rich.box import SIMPLE_HEAD
from rich.table import Table

import apflow

_CHARGED = (
    "SELECT run_id, sum(total_tokens), count(*) FROM apflow_usage_events WHERE root_run_id = :root GROUP BY run_id"
)


@dataclass(frozen=True)
class Bill:
    """What one run, with everything below it, was charged.

    Attributes:
        budget: Its token budget, as the ledger has it.
        decisions: Who was downgraded or blocked, the first one first.
        charged: Tokens by run id, the sums of the usage events.
        reports: How many usage events there are.
        paid: Tokens by run id, as the journal has them, which apflow never reads.
        entered: How often the body of each run was entered.
    """

    budget: apflow.BudgetStatus
    decisions: list[apflow.Decision]
    charged: Counter[str]
    reports: int
    paid: Counter[str]
    entered: Counter[str]

    @classmethod
    async def of(cls, runtime: apflow.Runtime, journal: Journal, since: datetime) -> Bill:
        """Read the bill of the run whose body was entered first."""
        executions = journal.executions()
        root = executions[0].run_id
        rows = await runtime.store.read(lambda tx: tx.rows(_CHARGED, {"root": root}))
        [budget] = await runtime.budgets.explain("run", root)
        decisions = await runtime.budgets.decisions(since=since)
        paid: Counter[str] = Counter()
        for entry in executions:
            paid[entry.run_id] += entry.tokens or 0
        return cls(
            budget=budget,
            decisions=[one for one in reversed(decisions) if one.root_run_id == root],
            charged=Counter({run_id: int(tokens) for run_id, tokens, _ in rows}),
            reports=sum(reports for _, _, reports in rows),
            paid=paid,
            entered=Counter(entry.run_id for entry in executions),
        )

    @property
    def charged_twice(self) -> int:
        """Tokens that were charged and that nobody has paid."""
        return (self.charged - self.paid).total()

    def faults(self) -> list[str]:
        """Return what is wrong with it, in sentences.

        A step that was killed between the model's answer and its report is entered again, and was paid and not
        charged. That is the one way in which the two may differ.
        """
        found = []
        if self.budget.settled != self.charged.total() or self.budget.overrun or self.budget.reserved:
            found.append(f"the ledger has {self.budget}, and the usage events add up to {self.charged.total()}")
        found += [
            f"run {run_id} was charged {self.charged[run_id]} tokens and paid {self.paid[run_id]}"
            for run_id, times in self.entered.items()
            if self.charged[run_id] > self.paid[run_id] or (times == 1 and self.charged[run_id] != self.paid[run_id])
        ]
        return found

    def lines(self, unit: str) -> list[str]:
        """Return the budget and the decisions about it, a line each."""
        one = self.budget
        used = f"{one.settled} used in {self.reports} reports, {one.reserved} held, {one.left} left"
        lines = [f"budget     {one.limit} {unit} for the run: {used}"]
        for made in self.decisions:
            what = f"got {made.model_to}" if made.model_to else f"wanted {made.requested}"
            lines.append(f"{made.action:9}  {made.task} {what} when {made.settled} of {made.hard_limit} were used")
        return lines


async def usage_table(runtime: apflow.Runtime, since: datetime, unit: str) -> Table:
    """Return what was used since then, by task and by model, with the total."""
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, expand=True, show_footer=True)
    by_task, by_model = await runtime.usage.by("task", since=since), await runtime.usage.by("model", since=since)
    total = by_task.total
    shown.add_column(f"what was used ({unit})", "total", no_wrap=True, ratio=1)
    footers = (total.requests, total.input_tokens, total.output_tokens, f"{total.cost_usd:.6f}")
    for heading, footer in zip(("requests", "input", "output", "made-up USD"), footers, strict=True):
        shown.add_column(heading, str(footer), no_wrap=True, min_width=8, justify="right")
    for table in (by_task, by_model):
        for row in table:
            counts = (row.requests, row.input_tokens, row.output_tokens, f"{row.cost_usd:.6f}")
            shown.add_row(f"{table.group} {row.key}", *map(str, counts))
        shown.add_section()
    return shown
