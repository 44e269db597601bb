"""One call of a task from the command line, from its inputs to what is written of its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from apflow.bridge.cli.exits import Failed, failed
from apflow.bridge.cli.inputs import read_inputs
from apflow.bridge.cli.output import to_json
from apflow.bridge.cli.running import open_door
from apflow.told import INTERNAL

if TYPE_CHECKING:
    from typing import TextIO

    from apflow.bridge.cli.loading import App
    from apflow.bridge.door import Answer, Door
    from apflow.runtime import Runtime
    from apflow.state import Progress

#: How long a plain function gets to notice Ctrl-C before its run is handed back without it.
HURRY_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be called, and how.

    Attributes:
        flags: Inputs that stand on the command line.
        given_json: What `--json` was given.
        stream: Items are written as they come.
        envelope: An object is written that has the run, its status, and its result or error.
    """

    app: App
    module_id: str
    flags: dict[str, Any]
    given_json: str | None
    key: str | None
    user: str | None
    approve: bool
    stream: bool
    envelope: bool
    database_url: str | None


def carry_out(order: Order) -> None:
    """Call a task and write its result.

    Raises:
        Failed: It has none.
    """
    if order.stream and order.envelope:
        raise Failed("usage", "--stream writes items, --output json one object; leave one out")
    try:
        answer = _answered(order)
    except Failed as error:
        if order.envelope:
            _write_envelope(error.error["run_id"], _status(error), error=error.error)
            error.shown = True
        raise
    if order.envelope:
        _write_envelope(answer.run_id, "completed", result=answer.value)
    elif not order.stream:
        write_result(answer.value)


def write_result(value: Any) -> None:
    """Write a result: over several lines for people, on one for pipes."""
    sys.stdout.write(to_json(value, indent=2 if sys.stdout.isatty() else None) + "\n")


def _write_envelope(run_id: str | None, status: str, **end: Any) -> None:
    write_result({"run_id": run_id, "status": status, **end})


def _status(error: Failed) -> str:
    words = {"cancelled": "cancelled", "interrupted": "interrupted", "stopped": "interrupted"}
    return words.get(error.error["code"], "failed" if error.error["run_id"] else "refused")


def _answered(order: Order) -> Answer:
    door = open_door(order.app, order.database_url, approve=order.approve)
    module = door.module(order.module_id)
    inputs = read_inputs(order.given_json) | order.flags
    schema = module.input_schema.model_json_schema()
    missing = [name for name in schema.get("required", ()) if name not in inputs]
    if missing:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise Failed("invalid_input", f"{order.module_id} needs {named}; or give them with --json")
    shown = Shown(module, sys.stdout if order.stream else None)
    with contextlib.redirect_stdout(sys.stderr), shown:
        answer = asyncio.run(_call(order, door, inputs, shown))
    if order.stream:
        shown.rest(answer.value)
    return answer


async def _call(order: Order, door: Door, inputs: dict[str, Any], shown: Shown) -> Answer:
    from apcore import Identity

    identity = None if order.user is None else Identity(id=order.user)
    # Known before the run is, so that it can be named when somebody presses Ctrl-C.
    run_id = _new_id()
    async with door.runtime as runtime:
        try:
            return await door.call(
                order.module_id, inputs, identity=identity, key=order.key, run_id=run_id, listener=shown
            )
        except asyncio.CancelledError:
            raise await interrupted(runtime, run_id, order.app, order.key) from None
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends as one line
            raise await of_run(runtime, failed(error)) from None


def _new_id() -> str:
    import uuid

    return str(uuid.UUID(bytes=os.urandom(16)))


async def interrupted(runtime: Runtime, run_id: str, app: App, key: str | None = None) -> Failed:
    """Return what Ctrl-C says; the run is handed back when the runtime is left, and nobody waits for it."""
    runtime.shutdown_seconds = min(runtime.shutdown_seconds, HURRY_SECONDS)
    row = await runtime.runs.get(run_id)
    if row is not None:
        text = f"interrupted; carry run {run_id} on with `apflow runs resume {run_id} --app {app.text}`"
        return Failed("stopped", text, run_id=run_id, retryable=True)
    if key is not None:
        return Failed("stopped", "interrupted; the same command with the same --key carries the run on", retryable=True)
    return Failed("stopped", "interrupted before the run had begun", retryable=True)


async def of_run(runtime: Runtime, error: Failed) -> Failed:
    """Add what the row of a failed run knows: the type of its error, which remote callers do not get, and a trace."""
    known = error.error
    row = None if known["run_id"] is None else await runtime.runs.get(known["run_id"])
    if row is None or not row.error_info:
        return error
    trace = "\n".join(row.error_info.get("traceback", ())) or error.trace
    text = known["message"]
    if known["code"] == INTERNAL:
        text = text.replace("the task failed", f"the task failed with {row.error_info['type']}", 1)
    return Failed(
        known["code"], text, details=known["details"], run_id=row.id, retryable=known["retryable"], trace=trace
    )


class Shown:
    """Shows what a run tells of itself: progress on a terminal, and items as lines of JSON.

    Args:
        module: Knows the form of its items.
        out: Where items are written; None writes none.
    """

    def __init__(self, module: Any, out: TextIO | None) -> None:
        self._module = module
        self._out = out
        self._lock = threading.Lock()
        self._items = 0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def progressed(self, progress: Progress) -> None:
        """Show how far the run is. Called on any thread."""
        if self._bar is None:
            return
        from rich.markup import escape

        with self._lock:
            if self._task is None:
                self._task = self._bar.add_task("", total=progress.total)
            about = escape(progress.message)
            self._bar.update(self._task, completed=progress.done, total=progress.total, description=about)

    def produced(self, item: Any) -> None:
        """Write an item. Called on any thread."""
        if self._out is None:
            return
        text = self._module.executor.definition.codec.dump_result([item])
        with self._lock:
            self._items += 1
            # Nobody reads any more, as behind `head`: the run goes on, since others may want its result.
            with contextlib.suppress(OSError):
                self._write(json.loads(text)[0])

    def rest(self, value: Any) -> None:
        """Write what did not come as an item: those of a run that was finished before, or the one result."""
        streaming = getattr(self._module, "streaming", False) and isinstance(value, list)
        for item in value[self._items :] if streaming else [value]:
            self._write(item)

    def _write(self, value: Any) -> None:
        assert self._out is not None
        self._out.write(to_json(value, indent=None) + "\n")
        self._out.flush()
