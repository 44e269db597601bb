"""Calls a module for a message of A2A, and tells the protocol's server how it goes."""

from __future__ import annotations

import asyncio
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from a2a.server.agent_execution import AgentExecutor
from a2a.types.a2a_pb2 import Task, TaskState
from typing_extensions import override

from apflow.bridge.a2a.ends import skill_of
from apflow.bridge.a2a.hearing import Heard, news
from apflow.bridge.a2a.messages import chosen
from apflow.bridge.a2a.parts import ENDED, result_parts, status, told_status, update
from apflow.bridge.refusals import RefusedError, refused
from apflow.errors import RunNotFoundError

if TYPE_CHECKING:
    from a2a.server.agent_execution import RequestContext
    from a2a.server.events import EventQueue

    from apflow.bridge.a2a.store import A2aTasks
    from apflow.bridge.door import Answer, Door


class Caller(AgentExecutor):
    """Calls modules. The id of a task is that of its run.

    Args:
        door: Where the modules are.
        tasks: Where the tasks are.
        default_skill: The module of messages that name none.
    """

    def __init__(self, door: Door, tasks: A2aTasks, default_skill: str | None) -> None:
        self._door = door
        self._tasks = tasks
        self._default_skill = default_skill
        self._calls: dict[str, asyncio.Task[Answer]] = {}
        self._ended: dict[str, asyncio.Event] = {}
        self._told: weakref.WeakSet[EventQueue] = weakref.WeakSet()

    @override
    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        sent: dict[str, Any] = context.call_context.state["message"]
        known = context.current_task
        metadata = {} if known is None or skill_of(known) is None else {"skillId": skill_of(known)}
        wrong: RefusedError | None = None
        module_id = ""
        inputs: dict[str, Any] = {}
        try:
            given = metadata | (sent.get("metadata") or {})
            module_id, inputs = chosen(self._door, sent["parts"], given, self._default_skill)
        except RefusedError as error:
            wrong = error
        task = Task(id=context.task_id, context_id=context.context_id)
        kept = self._tasks.expect(task.id, begins=known is None and wrong is None)
        if known is None:
            await event_queue.enqueue_event(_submitted(context, module_id))
        if wrong is not None:
            await self._tell([update(task, told_status(wrong, task))], event_queue)
            return
        await event_queue.enqueue_event(update(task, status(TaskState.TASK_STATE_WORKING)))
        # What is called has a task that can be found, whatever happens to this process.
        if await kept:
            await self._call(context, event_queue, task, module_id, inputs)

    async def _call(
        self, context: RequestContext, event_queue: EventQueue, task: Task, module_id: str, inputs: dict[str, Any]
    ) -> None:
        module = self._door.module(module_id)
        heard = Heard(task, module)
        identity = context.call_context.state.get("identity")
        call = asyncio.create_task(
            self._door.call(module_id, inputs, identity=identity, run_id=task.id, listener=heard)
        )
        call.add_done_callback(lambda _: heard.news.set())
        self._calls[task.id], self._ended[task.id] = call, asyncio.Event()
        try:
            while not call.done():
                await heard.news.wait()
                heard.news.clear()
                for event in heard.taken():
                    await event_queue.enqueue_event(event)
            await self._tell(self._end(call, task, heard), event_queue)
        except asyncio.CancelledError:
            # The server stops: the run is carried on, and the task follows it.
            call.cancel()
            self._tasks.drop(task.id)
            raise
        finally:
            self._calls.pop(task.id, None)
            self._ended.pop(task.id).set()

    async def _tell(self, last: list[Any], event_queue: EventQueue) -> None:
        """Tell the last news of a call; who cancels it from then on comes too late."""
        if last[-1].status.state in ENDED:
            self._told.add(event_queue)
        for event in last:
            await event_queue.enqueue_event(event)

    def _end(self, call: asyncio.Task[Answer], task: Task, heard: Heard) -> list[Any]:
        """Return the last news of a task.

        Raises:
            CancelledError: There is none: the run was handed back, and somebody else carries it on.
        """
        if call.cancelled():
            return [update(task, status(TaskState.TASK_STATE_CANCELED))]
        error = call.exception()
        if isinstance(error, RefusedError):
            if error.told.code == "interrupted" and error.run_id is not None:
                raise asyncio.CancelledError
            return [update(task, told_status(error, task))]
        answer = call.result()
        last: list[Any] = []
        try:
            if not heard.has_told(answer.value):
                wraps, streaming = answer.output is not answer.value, heard.streaming
                last.append(news(task, result_parts(answer.output, wraps=wraps, streaming=streaming), last=True))
        except Exception as found:  # noqa: BLE001 - a module that is no task of ours may return what is no JSON
            return [update(task, told_status(refused(found, "a2a", answer.run_id), task))]
        return [*last, update(task, status(TaskState.TASK_STATE_COMPLETED))]

    @override
    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        assert context.task_id is not None
        if event_queue in self._told:
            return
        call, ended = self._calls.get(context.task_id), self._ended.get(context.task_id)
        if call is None or ended is None:
            task = Task(id=context.task_id, context_id=context.context_id)
            await event_queue.enqueue_event(update(task, status(TaskState.TASK_STATE_CANCELED)))
            return
        runs = self._door.runtime.runs
        try:
            await runs.cancel(context.task_id)
        except RunNotFoundError:
            call.cancel()
            await asyncio.wait({call})
            with suppress(RunNotFoundError):  # it may have begun just then
                await runs.cancel(context.task_id)
        await ended.wait()


def _submitted(context: RequestContext, module_id: str) -> Task:
    task = Task(
        id=context.task_id,
        context_id=context.context_id,
        status=status(TaskState.TASK_STATE_SUBMITTED),
        history=[context.message] if context.message is not None else [],
    )
    if module_id:
        task.metadata["skillId"] = module_id
    return task
