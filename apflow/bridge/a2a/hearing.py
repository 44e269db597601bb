"""Hears of a run on any thread, and makes news of it for the protocol."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from a2a.types.a2a_pb2 import Part, Task, TaskArtifactUpdateEvent, TaskState

from apflow.bridge.a2a.parts import PROGRESS, agent_message, artifact, item_part, status, update

if TYPE_CHECKING:
    from apflow.state import Progress


def news(task: Task, parts: list[Part], *, append: bool = False, last: bool = False) -> TaskArtifactUpdateEvent:
    """Return the news that the artifact of a task has these parts, or has them too with `append`."""
    return TaskArtifactUpdateEvent(
        task_id=task.id, context_id=task.context_id, artifact=artifact(parts), append=append, last_chunk=last
    )


class Heard:
    """Hears of a run on any thread, and tells of it on the loop; what comes quickly is told at once."""

    def __init__(self, task: Task, module: Any) -> None:
        self.news = asyncio.Event()
        self.streaming = bool(getattr(module, "streaming", False))
        self._task = task
        self._module = module
        self._loop = asyncio.get_running_loop()
        self._progress: Progress | None = None
        self._items: list[Any] = []
        self._told = 0

    def progressed(self, progress: Progress) -> None:
        self._later(self._note_progress, progress)

    def produced(self, item: Any) -> None:
        if self.streaming:
            # What cannot be stored fails the run; it is not for us to say so.
            with suppress(Exception):
                text = self._module.executor.definition.codec.dump_result([item])
                self._later(self._items_add, json.loads(text)[0])

    def _later(self, note: Any, value: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(note, value)

    def _note_progress(self, progress: Progress) -> None:
        self._progress = progress
        self.news.set()

    def _items_add(self, item: Any) -> None:
        self._items.append(item)
        self.news.set()

    def taken(self) -> list[Any]:
        """Return what there is to tell, and forget it."""
        found: list[Any] = []
        if self._progress is not None:
            found.append(self._of_progress(self._progress))
            self._progress = None
        if self._items:
            found.append(news(self._task, [item_part(one) for one in self._items], append=self._told > 0))
            self._told += len(self._items)
            self._items = []
        return found

    def _of_progress(self, progress: Progress) -> Any:
        text = progress.message or f"{progress.done:g} of {progress.total:g}"
        message = agent_message(self._task, [Part(text=text)], PROGRESS)
        event = update(self._task, status(TaskState.TASK_STATE_WORKING, message))
        event.metadata.update({"done": progress.done, "total": progress.total})
        return event

    def has_told(self, value: Any) -> bool:
        """Whether all items of a result have been told."""
        return self._told > 0 and isinstance(value, list) and len(value) == self._told
