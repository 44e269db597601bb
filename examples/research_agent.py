"""An agent is killed with SIGKILL halfway and finishes in another process: no finished step is repeated or paid again.

`./scripts/demo` runs this. It starts a worker process (this script with `--worker`), in which the agent below
reads the project's own pages, summarises each one in a child run and combines the summaries. It has a budget of
tokens: once half of it is used, the steps get a cheaper model, and a second opinion for which there is too little
left is refused. The parent process watches the database, kills the worker in the middle of a step, starts another
one, and shows what each of the two really did and what the whole has used.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import local_model
from bill import Bill, usage_table
from kill_and_resume import JOURNAL, Journal, Play
from local_model import NO_MODEL, NO_MODEL_SHORT, SMOLLM2, SMOLLM2_SHORT
from rich.console import Console

import apflow
from apflow import CostPolicy, PolicyAction

PROJECT = Path(__file__).resolve().parent.parent
FEWEST_PAGES, MOST_PAGES = 3, 7
LOOK = "SELECT name, status, attempt_count, completed_at, token_usage, result FROM apflow_tasks"

#: What the run may use for each of its steps, in the model's tokens or in words.
ALLOWANCE = {SMOLLM2: 250, NO_MODEL: 130}
SECOND_OPINION_TAKES = 2_000
THRIFT = [
    CostPolicy(f"thrift-{model}", PolicyAction.DOWNGRADE, threshold=0.5, downgrade_chain=[model, short])
    for model, short in ((SMOLLM2, SMOLLM2_SHORT), (NO_MODEL, NO_MODEL_SHORT))
]


@apflow.task(retry=2)
async def summarise(page: str, model: str) -> str:
    """Summarise one page."""
    Journal.of_this_process().enter(f"summarise {page}")
    text = await asyncio.to_thread(local_model.excerpt, Path(page))
    return await ask(model, text, "Summarize the text above in one sentence.")


@apflow.task(retry=2)
async def combine(texts: list[str], model: str) -> str:
    """Make one text of the summaries."""
    Journal.of_this_process().enter("combine")
    return await ask(model, "\n".join(texts), "Combine the notes above into one short summary.")


@apflow.task
async def second_opinion(text: str, model: str) -> str:
    """Think it over, at length."""
    Journal.of_this_process().enter("second opinion")
    return await ask(model, text, "Discuss the text above.")


@apflow.task(checkpoint=True, retry=2)
async def research(pages: list[str], model: str) -> str:
    """Read all pages and say what they are about."""
    Journal.of_this_process().enter("research")
    await apflow.progress(0, len(pages) + 1, "reading")
    thrift = f"thrift-{model}"
    summaries = await summarise.with_options(map_limit=2, policy=thrift).map(pages, model=model)
    await apflow.progress(len(pages), len(pages) + 1, "combining")
    combined = await combine.with_options(policy=thrift)(summaries, model)
    try:
        return await second_opinion.with_options(reserve=SECOND_OPINION_TAKES)(combined, model)
    except apflow.BudgetExhaustedError as error:
        print(f"does without a second opinion: it needs {error.requested}, {error.remaining} are left", flush=True)
        return combined


async def ask(model: str, text: str, instruction: str) -> str:
    """Ask the model in a thread, so that the event loop stays free, and report what the answer took."""
    answer = await asyncio.to_thread(local_model.ask, model, text, instruction)
    Journal.of_this_process().pay(answer.usage["prompt_tokens"] + answer.usage["completion_tokens"])
    apflow.report_usage(answer.usage, model=model)
    return answer.text


async def work(key: str, pages: list[str], model: str) -> None:
    """Be the worker. The first one starts the run; with the same key, any later one carries it on."""
    print(f"model {model} is ready after {local_model.load(model):.1f} s", flush=True)
    async with apflow.Runtime(policies=THRIFT) as runtime:
        runtime.prices.set("*", input="0.20", output="0.80")  # Made up, in dollars per million: the model is free.
        runtime.prices.set("*-short", input="0.10", output="0.40")
        budget = ALLOWANCE[model] * (len(pages) + 1)
        await research.with_options(key=key, budget=budget, runtime=runtime)(pages, model)


async def show(arguments: argparse.Namespace, folder: Path) -> bool:
    """Kill a worker, let another finish; return whether no finished step was repeated and the bill is right."""
    began = datetime.now(UTC)
    pages = pages_in(arguments.docs)
    url = arguments.database_url or f"sqlite:///{folder / 'research.db'}"
    os.environ |= {"APFLOW_DATABASE_URL": url, JOURNAL: str(folder / "journal.db")}
    command = [
        sys.executable,
        __file__,
        "--worker",
        f"demo-{secrets.token_hex(4)}",
        f"--docs={arguments.docs}",
    ]
    command += ["--fast"] if arguments.fast else []
    async with apflow.Runtime() as runtime:
        play = Play(Console(), runtime, Journal.of_this_process(), command, steps=len(pages) + 1)
        unit = "words" if arguments.fast else "tokens"
        repeated = await play.kill_and_resume(kill_at=len(pages) // 2, unit=unit)
        fair = repeated is not None and await settle_up(play, began, unit)
    if arguments.keep:
        client = f"sqlite3 {url.removeprefix('sqlite:///')}" if url.startswith("sqlite") else "psql ... -c"
        print(f"kept in {folder}; look with:\n  {client} {LOOK!r}")
    if repeated is None:
        return False
    print(f"finished steps repeated: {repeated}")
    return repeated == 0 and fair


async def settle_up(play: Play, began: datetime, unit: str) -> bool:
    """Show what was used, and return whether the ledger agrees with its own events and with the journal."""
    bill = await Bill.of(play.runtime, play.journal, began)
    play.console.print(await usage_table(play.runtime, began, unit))
    for line in [*bill.lines(unit), *bill.faults()]:
        play.console.print(line, markup=False, highlight=False, soft_wrap=True)
    print(f"\n{unit} charged twice: {bill.charged_twice}")
    return not bill.faults()


def pages_in(folder: Path) -> list[str]:
    """Return the pages to read: README and docs/, or else whatever Markdown there is.

    Raises:
        FileNotFoundError: There are too few to be interrupted in the middle.
    """
    pages = [page for page in (folder / "README.md",) if page.exists()] + sorted(folder.glob("docs/**/*.md"))
    if len(pages) < FEWEST_PAGES:
        pages = sorted(folder.glob("*.md")) + sorted(folder.glob("[!.]*/**/*.md"))
    if len(pages) < FEWEST_PAGES:
        raise FileNotFoundError(f"{folder} has {len(pages)} Markdown pages; the demo needs {FEWEST_PAGES}")
    return [os.path.relpath(page) for page in pages[:MOST_PAGES]]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="demo", description="Kill an agent halfway and watch it finish.")
    parser.add_argument("--fast", action="store_true", help="use no model: pick sentences and count words")
    parser.add_argument("--keep", action="store_true", help="keep the database and say where it is")
    parser.add_argument("--database-url", metavar="URL", help="use this database, such as postgresql://...")
    parser.add_argument("--docs", type=Path, default=PROJECT, help="folder whose Markdown pages are read")
    parser.add_argument("--worker", metavar="KEY", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Run the demo, or one worker of it, and return the exit status."""
    arguments = parse()
    model = NO_MODEL if arguments.fast else SMOLLM2
    if arguments.worker:
        asyncio.run(work(arguments.worker, pages_in(arguments.docs), model))
        return 0
    folder = Path(tempfile.mkdtemp(prefix="apflow-demo-"))
    try:
        local_model.require(model)
        return 0 if asyncio.run(show(arguments, folder)) else 1
    except (local_model.ModelMissingError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        if not arguments.keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
