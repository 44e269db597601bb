"""The protocol's methods over our tasks: what the SDK's handler does not know of runs, owners and restarts."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from a2a.server.agent_execution import SimpleRequestContextBuilder
from a2a.server.request_handlers.default_request_handler_v2 import DefaultRequestHandlerV2
from a2a.server.request_handlers.request_handler import validate_request_params
from a2a.types.a2a_pb2 import TaskArtifactUpdateEvent, TaskState
from a2a.utils.errors import (
    ExtendedAgentCardNotConfiguredError,
    InvalidParamsError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)
from typing_extensions import override

from apflow.bridge.a2a.executor import Caller
from apflow.bridge.a2a.parts import ENDED, status, update
from apflow.bridge.a2a.store import A2aTasks, NewIds
from apflow.errors import RunNotFoundError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from a2a.server.agent_execution.active_task import ActiveTask
    from a2a.server.context import ServerCallContext
    from a2a.server.events import Event
    from a2a.types.a2a_pb2 import (
        AgentCard,
        CancelTaskRequest,
        GetExtendedAgentCardRequest,
        Message,
        SendMessageRequest,
        SubscribeToTaskRequest,
        Task,
    )

    from apflow.bridge.door import Door

#: A task that waits for approval is forgotten here after that time, and read from the database when it goes on.
_PARKED_SECONDS = 60.0
#: How much longer than a lease we wait for another process to see that a run was cancelled.
_GRACE_SECONDS = 5.0
_LONGEST_ID = 255


class Handler(DefaultRequestHandlerV2):
    """Answers the methods of the protocol.

    Args:
        door: Where the modules and the runs are.
        card: Returns the agent card as it is now.
        default_skill: The module of messages that name none.
        authenticated: Whether callers are known, and may ask for the card again.
    """

    def __init__(
        self, door: Door, card: Callable[[], AgentCard], *, default_skill: str | None, authenticated: bool
    ) -> None:
        self._door = door
        self._card = card
        self._authenticated = authenticated
        self._tasks = A2aTasks(door)
        self._cancelling: dict[str, asyncio.Task[Task]] = {}
        super().__init__(
            agent_executor=Caller(door, self._tasks, default_skill),
            task_store=self._tasks,
            agent_card=card(),
            request_context_builder=SimpleRequestContextBuilder(task_id_generator=NewIds(self._tasks)),
            interrupted_task_timeout=_PARKED_SECONDS,
        )

    # -- messages --------------------------------------------------------------------------------------------

    @override
    async def on_message_send(self, params: SendMessageRequest, context: ServerCallContext) -> Message | Task:
        await self._check(params, context)
        answer: Message | Task = await super().on_message_send(params, context)
        return answer

    @override
    async def on_message_send_stream(
        self, params: SendMessageRequest, context: ServerCallContext
    ) -> AsyncGenerator[Event, None]:
        await self._check(params, context)
        async for event in super().on_message_send_stream(params, context):
            yield event

    async def _check(self, params: SendMessageRequest, context: ServerCallContext) -> None:
        """Refuse a message about a task that is not the caller's, or that needs no more messages."""
        message = params.message
        if len(message.context_id) > _LONGEST_ID or "\0" in message.context_id:
            raise InvalidParamsError(message=f"contextId must have at most {_LONGEST_ID} characters, and no NUL")
        for task_id in message.reference_task_ids:
            if await self._tasks.get(task_id, context) is None:
                raise TaskNotFoundError
        if message.task_id:
            task = await self._tasks.get(message.task_id, context)
            if task is None:
                raise TaskNotFoundError
            if task.status.state != TaskState.TASK_STATE_INPUT_REQUIRED:
                raise UnsupportedOperationError(message="this task takes no more messages; send one without a task id")

    # -- tasks -----------------------------------------------------------------------------------------------

    @validate_request_params
    @override
    async def on_cancel_task(self, params: CancelTaskRequest, context: ServerCallContext) -> Task:
        task = await self._tasks.get(params.id, context)
        if task is None:
            raise TaskNotFoundError
        if task.status.state in ENDED:
            raise TaskNotCancelableError
        if await self._active(params.id) is not None:
            task = await self._cancel_here(params.id, context)
        elif task.status.state == TaskState.TASK_STATE_INPUT_REQUIRED:
            task.status.CopyFrom(status(TaskState.TASK_STATE_CANCELED))
            await self._tasks.store(task, context.user.user_name)
        else:
            task = await self._cancel_run(params.id, context)
        if task.status.state in ENDED and task.status.state != TaskState.TASK_STATE_CANCELED:
            raise TaskNotCancelableError
        return task

    async def _cancel_here(self, task_id: str, context: ServerCallContext) -> Task:
        """Cancel the call of a task once for all who ask: a second time would keep the SDK from closing streams."""
        cancelling = self._cancelling.get(task_id)
        if cancelling is None:
            cancelling = asyncio.create_task(self._cancel_local(task_id, context))
            self._cancelling[task_id] = cancelling
            cancelling.add_done_callback(lambda done: self._cancelled(task_id, done))
        await asyncio.wait({cancelling})
        return cancelling.result()

    def _cancelled(self, task_id: str, cancelling: asyncio.Task[Task]) -> None:
        del self._cancelling[task_id]
        if not cancelling.cancelled():
            cancelling.exception()  # Who asked may have left.

    async def _cancel_run(self, task_id: str, context: ServerCallContext) -> Task:
        """Cancel the run of a task that no call here answers for; another process may take until its next renewal."""
        runtime = self._door.runtime
        try:
            await runtime.runs.cancel(task_id)
        except RunNotFoundError:
            raise TaskNotCancelableError from None
        # How it ends is read from its row.
        with suppress(Exception):
            async with asyncio.timeout(runtime.lease_seconds + _GRACE_SECONDS):
                await runtime.recorder.claims.wait_for_end(task_id)
        task = await self._tasks.get(task_id, context)
        if task is None:
            raise TaskNotFoundError
        return task

    @validate_request_params
    @override
    async def on_subscribe_to_task(
        self, params: SubscribeToTaskRequest, context: ServerCallContext
    ) -> AsyncGenerator[Event, None]:
        if await self._active(params.id) is not None:
            async for event in super().on_subscribe_to_task(params, context):
                yield event
            return
        task = await self._tasks.get(params.id, context)
        if task is None:
            raise TaskNotFoundError
        if task.status.state in ENDED:
            raise UnsupportedOperationError(message="this task has ended; get it instead")
        yield task
        async for event in self._followed(task, context):
            yield event

    async def _followed(self, task: Task, context: ServerCallContext) -> AsyncGenerator[Event, None]:
        """Wait for the run of a task that no call here answers for, and yield how it ended."""
        with suppress(Exception):  # How it ended is read from its row.
            await self._door.runtime.background.join(task.id, None)
        now = await self._tasks.get(task.id, context)
        if now is not None and now.status.state in ENDED:
            for one in now.artifacts:
                yield TaskArtifactUpdateEvent(task_id=now.id, context_id=now.context_id, artifact=one, last_chunk=True)
            yield update(now, now.status)

    async def _active(self, task_id: str) -> ActiveTask | None:
        """Return what makes the call of a task here, or None."""
        active = await self._active_task_registry.get(task_id)
        return None if active is None or active.is_finished else active

    @override
    async def aclose(self) -> None:
        await super().aclose()
        if self._cancelling:
            await asyncio.wait(list(self._cancelling.values()))

    # -- the card --------------------------------------------------------------------------------------------

    @override
    async def on_get_extended_agent_card(self, params: GetExtendedAgentCardRequest, context: ServerCallContext) -> Any:
        if not self._authenticated:
            raise ExtendedAgentCardNotConfiguredError
        return self._card()
