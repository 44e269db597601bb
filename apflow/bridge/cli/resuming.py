"""Carrying runs on from the command line: one by its id, or all that nobody holds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from apflow.bridge.cli.calling import interrupted, of_run
from apflow.bridge.cli.exits import Failed, failed
from apflow.bridge.cli.loading import load
from apflow.bridge.cli.running import open_door

if TYPE_CHECKING:
    from collections.abc import Iterable

    from apflow.bridge.cli.loading import App
    from apflow.records import RunRecord
    from apflow.run import Run
    from apflow.runtime import Runtime


def resumed(run_id: str, text: str | None, database_url: str | None) -> RunRecord:
    """Carry a run on and return its row once it has completed.

    Raises:
        Failed: It did not complete.
        ApflowError: It cannot be carried on here.
    """
    app, runtime = _opened(text, database_url)

    async def carried() -> RunRecord:
        async with runtime:
            try:
                run = await runtime.runs.resume(run_id)
                await run
            except asyncio.CancelledError:
                raise await interrupted(runtime, run_id, app) from None
            except Exception as error:  # noqa: BLE001 - a task may raise anything
                raise await of_run(runtime, _failed(error, run_id)) from None
            row = await runtime.runs.get(run_id)
            assert row is not None
            return row

    return asyncio.run(carried())


def recovered(text: str | None, database_url: str | None, *, everything: bool) -> tuple[list[RunRecord], list[str]]:
    """Take over what nobody holds and wait for its end.

    Returns:
        The rows of what was taken over, and the names of the tasks of what this app does not know.
    """
    app, runtime = _opened(text, database_url)

    async def taken() -> tuple[list[RunRecord], list[str]]:
        known, unknown = await _left(runtime, everything=everything)
        async with runtime:
            runs = {run.id: run for run in await runtime.recover(everything=everything)}
            # The runtime looks for itself when it opens, and may have been faster.
            for run_id in known.keys() - runs.keys():
                runs[run_id] = runtime.background.join(run_id, known[run_id])
            try:
                await _all_ended(runs.values())
            except asyncio.CancelledError:
                raise await _interrupted(runtime, app) from None
            rows = [await runtime.runs.get(run_id) for run_id in runs]
        return [row for row in rows if row is not None], unknown

    return asyncio.run(taken())


async def _left(runtime: Runtime, *, everything: bool) -> tuple[dict[str, Any], list[str]]:
    """Return the tasks of runs that nobody holds, by id, and the names of those that are unknown here."""
    from apflow.storage.owners import is_gone

    await runtime.store.open()
    known, unknown = {}, []
    for row in await runtime.recorder.rows.open(accepted_only=not everything):
        if not (row.interrupted or is_gone(row.owner)):
            continue
        definition = runtime.background.definition_of(row)
        if definition is None:
            unknown.append(row.name)
        else:
            known[row.id] = definition
    return known, unknown


async def _all_ended(runs: Iterable[Run[Any]]) -> None:
    """Wait for all; what became of each stands in its row."""

    async def ended(run: Run[Any]) -> None:
        try:
            await run
        except Exception:  # noqa: BLE001 - see above
            return

    await asyncio.gather(*map(ended, runs))


async def _interrupted(runtime: Runtime, app: App) -> Failed:
    made = await interrupted(runtime, "", app)
    text = f"interrupted; `apflow recover --app {app.text}` carries on what is left"
    return Failed("stopped", text, retryable=True, trace=made.trace)


def _opened(text: str | None, database_url: str | None) -> tuple[App, Runtime]:
    app = load(text, database_url)
    return app, open_door(app, database_url).runtime


def _failed(error: Exception, run_id: str) -> Failed:
    """Return what is said of the error of a run: apflow's own in full, any other without its text."""
    from apflow.bridge.refusals import refused
    from apflow.errors import ApflowError

    if isinstance(error, ApflowError):
        return failed(error)
    return failed(refused(error, "the task", run_id))
