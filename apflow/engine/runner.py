"""Nodes of one tree, from their rows to their ends."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import TYPE_CHECKING

from apflow import portal
from apflow.calls import as_call
from apflow.durability import nodes as rows
from apflow.engine.loading import Details, load_details
from apflow.engine.nodes import make_state
from apflow.engine.plan import ENDED, Node, Plan
from apflow.engine.results import Results
from apflow.errors import ApflowError, ExecutorError, FencedError, StorageError
from apflow.storage.owners import is_gone
from apflow.submission import run_collected

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from apflow.state import RunState

logger = logging.getLogger(__name__)

#: How many of the next nodes are read from the database at once.
AHEAD = 64
#: How many are kept for nodes that have not ended, at most.
MOST_DETAILS = 512


class Runner:
    """Begins nodes, carries them to their ends, and knows what they need for that."""

    def __init__(self, tree: RunState, plan: Plan) -> None:
        self._tree, self._plan = tree, plan
        self._recorder = tree.runtime.recorder
        self._store = tree.runtime.store
        self._details: dict[str, Details] = {}
        self._results = Results(plan)
        self._states: dict[str, RunState] = {}
        self._again: set[str] = set()
        self._stopping: str | None = None
        self._stopped = asyncio.Event()

    def stop(self, reason: str) -> None:
        """Stop what runs, and what is about to."""
        self._stopping = reason
        self._stopped.set()
        for state in list(self._states.values()):
            state.stop(reason)

    def forget(self, node: Node) -> None:
        """Let go of what only this node needed; it has ended."""
        self._states.pop(node.id, None)
        self._details.pop(node.id, None)
        self._results.release(node)

    # -- beginning -------------------------------------------------------------------------------------------

    async def begin(self, nodes: Sequence[Node]) -> None:
        """Store that these nodes run here now; what cannot run has ended afterwards.

        Raises:
            FencedError: Another process owns the run of the tree now.
            RunCancelledError: Somebody has cancelled the run of the tree.
            StorageError: Nothing of what this stored stays begun.
        """
        pending = [node for node in nodes if node.status == "pending"]
        results = await self._read(pending)
        states = [state for node in pending if (state := await self._made(node, results))]
        seen = {state.id: self._details[state.id].updated_at for state in states}
        try:
            for some in _together(states):
                began = await rows.begin(self._recorder, self._tree, some, seen)
                for state in began:
                    self._states[state.id] = state
                    self._recorder.keeper.hold(state)
                self._again.update(state.id for state in began if state.epoch > 1)
        except BaseException:
            for state in states:
                await self._let_go(state.id)
            raise
        for state in states:
            self._plan.nodes[state.id].status = "in_progress"

    async def _let_go(self, node_id: str) -> None:
        """Hand back a node that was begun and has not run, if it was."""
        state = self._states.pop(node_id, None)
        if state is not None:
            self._recorder.keeper.drop(state)
            await self._recorder.writer.release(state)

    async def _made(self, node: Node, results: Mapping[str, str | None], begun: int | None = None) -> RunState | None:
        """Return the run of a node; None when it could not be made, which is stored.

        Args:
            node: The node.
            results: What `_read` returned.
            begun: The epoch of one that an earlier life began, and that nobody holds.
        """
        try:
            return make_state(self._tree, node, self._details[node.id], results)
        except Exception as error:  # a schema or a constructor of the user's may raise anything
            if isinstance(error, StorageError | FencedError):
                raise
            if await rows.give_up(self._recorder, self._tree, [(node.id, "failed", error)], begun=begun):
                self._plan.end(node, "failed")
                self.forget(node)
            else:  # Somebody else has it.
                node.status = "in_progress"
            return None

    async def _read(self, nodes: Sequence[Node]) -> dict[str, str | None]:
        """See that `_details` has what these nodes run, and the next ones if need be.

        Returns:
            The results that they may use, as JSON text by id.
        """
        missing = [node for node in nodes if node.id not in self._details]
        if missing:
            room = AHEAD if len(self._details) < MOST_DETAILS else 0
            ahead = [one for one in self._plan.next(missing[-1], room) if one.id not in self._details]
            ids = list(dict.fromkeys(one.id for one in (*missing, *ahead)))
            self._details |= await self._store.read(lambda tx: load_details(tx, ids))
        return await self._results.of(nodes, self._store)

    # -- carrying --------------------------------------------------------------------------------------------

    async def carry(self, node: Node) -> None:
        """Bring a node to its end: the one that `begin` began, or by taking it over, or by waiting for who has it."""
        while self._stopping is None and self._tree.stopped() is None and not node.ended:
            state = self._states.get(node.id)
            status = await (self._join(node) if state is None else self._run(node, state))
            if status is not None:
                self._plan.end(node, status)
                self.forget(node)
        await self._let_go(node.id)  # it may have begun, and has to stop before it ran

    async def _run(self, node: Node, state: RunState) -> str | None:
        """Send a node through the onion and return how it ended; None when it was interrupted."""
        try:
            if node.id in self._again:
                self._again.discard(node.id)
                await self._recorder.claims.load_earlier(state)
            call = as_call(state)
            if state.definition.colour in ("sync", "stream"):
                state.bodies = portal.OwnThread()
                work = portal.Spawned(portal.portal.loop(), run_collected(call, None), contextvars.copy_context())
                await asyncio.shield(asyncio.wrap_future(work.future))
            else:
                await run_collected(call, None)
        except asyncio.CancelledError:
            await self._fail_stray(state)
        except StorageError:
            if state.stored_as is None:
                raise
        except Exception as error:  # noqa: BLE001 - it is stored, and belongs to nobody here
            logger.info("task %s of executor %s ended with %s", node.id, node.executor, type(error).__name__)
        finally:
            self._states.pop(node.id, None)
        if state.stored_as == "completed":
            self._results.keep(node.id, state.result)
        return state.stored_as

    async def _fail_stray(self, state: RunState) -> None:
        """Fail a node whose function raised CancelledError by itself; others would wait for it forever.

        Raises:
            asyncio.CancelledError: It was not by itself: this task is cancelled.
        """
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError
        error = ExecutorError("raised CancelledError, and nobody had cancelled it")
        await rows.give_up(self._recorder, self._tree, [(state.id, "failed", error)], begun=state.epoch)

    async def _join(self, node: Node) -> str | None:
        """Take over a node that nobody holds, or wait for whoever does; None when it is to be looked at again."""
        row = await self._recorder.rows.get(node.id)
        if row is None:
            return "cancelled"
        if row.status in ENDED:
            return row.status
        node.status, node.epoch = row.status, row.epoch or 0
        if row.status == "pending":
            self._details.pop(node.id, None)  # it may have been changed
            await self.begin([node])
            return None
        if not (row.interrupted or is_gone(row.owner)):
            await self._wait_elsewhere(node)
            return None
        state = await self._made(node, await self._read([node]), row.epoch)
        if state is None:
            return None
        try:
            if await self._recorder.claims.take(state, row, new_allowance=False):
                self._states[node.id] = state
        except ApflowError:
            if state.stored_as is None:
                raise
            return state.stored_as
        return None

    async def _wait_elsewhere(self, node: Node) -> None:
        """Wait until whoever has a node has ended it or let go of it, or until this has to stop."""
        work = self._recorder.claims.wait_for_end(node.id), self._stopped.wait()
        tasks = [asyncio.ensure_future(one) for one in work]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # what it raises belongs to who runs it


def _together(states: Sequence[RunState]) -> list[list[RunState]]:
    """Return the states in the order given, in pieces that begin in one transaction.

    One that a budget governs is alone: the accounts of two would be locked in the order of the nodes.
    """
    pieces: list[list[RunState]] = []
    for state in states:
        if state.meter is None and pieces and pieces[-1][0].meter is None:
            pieces[-1].append(state)
        else:
            pieces.append([state])
    return pieces
