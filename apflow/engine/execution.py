"""One execution of a task tree: which node begins when, and what is stored about the tree."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from apflow.cycles import cycles, drawn
from apflow.durability import nodes as rows
from apflow.engine.cancelling import blocked
from apflow.engine.loading import load_scope
from apflow.engine.plan import Node, Plan
from apflow.engine.progress import changed_shares
from apflow.engine.runner import Runner
from apflow.errors import DeadlockError, RunCancelledError, StorageError, TaskTreeError

if TYPE_CHECKING:
    from apflow.state import RunState

#: How many nodes begin together, at most.
BATCH = 64
#: How often the progress of nodes with others inside them is stored.
PROGRESS_SECONDS = 1.0
#: Adding the progress up takes at most one of so many parts of the time.
PROGRESS_SHARE = 20


class Execution:
    """Executes a task, what is inside it, and what those depend on, in this process."""

    def __init__(self, tree: RunState, task_id: str, concurrency: int) -> None:
        self._tree, self._task_id, self._limit = tree, task_id, concurrency
        self._recorder = tree.runtime.recorder
        self._clock = tree.runtime.clock
        # What runs inside another run never waits for a slot: that one may hold the last.
        self._slots = tree.runtime.background.slots if not tree.nested else None
        self._plan = Plan(())
        self._runner = Runner(tree, self._plan)
        self._running: dict[asyncio.Task[None], Node] = {}
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None
        self._untold = False
        self._tell_at = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._suspects: list[Node] = []

    async def run(self) -> dict[str, int]:
        """Run all that can run, and return how many nodes ended in which status.

        Raises:
            FencedError: Another process executes the tree now.
            StorageError: The database failed; the run is interrupted, and carried on later.
        """
        try:
            await self._load()
            await self._dispatch()
            await self._tell()
        except asyncio.CancelledError:
            await self._stop()
            raise
        except BaseException as error:
            if isinstance(error, StorageError):
                self._tree.stopping = self._tree.stopping or "interrupted"
            await self._stop()
            raise
        finally:
            if self._alarm is not None:
                self._alarm.cancel()
        counts = dict.fromkeys(("completed", "failed", "cancelled"), 0)
        for node in self._plan.nodes.values():
            if node.status in counts:
                counts[node.status] += 1
        return counts

    async def _load(self) -> None:
        """Read the graph."""
        nodes = await self._recorder.store.read(lambda tx: load_scope(tx, self._task_id))
        self._check_deadlock(nodes)
        self._plan = Plan(nodes)
        self._runner = Runner(self._tree, self._plan)
        self._tell_at = self._clock.monotonic() + PROGRESS_SECONDS
        if self._tree.recoveries > 1:
            self._suspects = [node for node in nodes if node.status == "in_progress"]

    def _check_deadlock(self, nodes: list[Node]) -> None:
        """Refuse to wait for a node that waits for this.

        Raises:
            DeadlockError: The text names the node.
        """
        above = self._tree.parent
        for node in nodes:
            if above is not None and not node.ended and above.inside(node.id):
                raise DeadlockError(
                    f"task {node.id} cannot wait for itself, and executing task {self._task_id} inside it would; "
                    "make one depend on the other instead"
                )

    # -- which node begins when --------------------------------------------------------------------------------

    async def _dispatch(self) -> None:
        """Begin nodes, the most urgent first, until all have ended."""
        while True:
            self._changed.clear()
            await self._bury()
            if self._failure is not None:
                raise self._failure
            if self._plan.left == 0 and not self._running:
                return
            if self._clock.monotonic() >= self._tell_at:
                await self._tell()
            if self._room() > 0 and self._plan.ready:
                await self._begin(await self._next())
            elif self._running or self._changed.is_set() or self._tree.stopped() is not None:
                await self._wait()
            else:
                await self._break_circle()

    async def _break_circle(self) -> None:
        """Fail what waits for itself: nothing runs, nothing may begin, and something is left."""
        left = {node.id: node for node in self._plan.nodes.values() if not node.ended}
        if not left:
            return
        circle = next(cycles({one: [needed for needed, _ in node.needs] for one, node in left.items()}))
        error = TaskTreeError(f"waits for itself: {drawn(circle)}", circle)
        await rows.give_up(self._recorder, self._tree, [(one, "failed", error) for one in circle])
        self._plan.end_all([left[one] for one in circle], "failed")
        for one in circle:
            self._runner.forget(left[one])

    async def _wait(self) -> None:
        """Wait until a node ends, or until it is time to store progress."""
        if self._untold and self._alarm is None:  # One for many waits: most of them are short.
            left = max(0.0, self._tell_at - self._clock.monotonic())
            self._alarm = asyncio.get_running_loop().call_later(left, self._ring)
        await self._changed.wait()

    def _ring(self) -> None:
        self._alarm = None
        self._changed.set()

    def _room(self) -> int:
        """Return how many nodes may begin now.

        When processes died again and again without any progress, what ran then runs by itself: so the node that kills
        them is the only one that counts another death.
        """
        while self._suspects and self._suspects[-1].ended:
            self._suspects.pop()
        return min(BATCH, (1 if self._suspects else self._limit) - len(self._running))

    async def _next(self) -> list[Node]:
        """Return the nodes that may begin now, the most urgent first; each holds a slot."""
        found: list[Node] = []
        room = self._room()
        while len(found) < room and self._plan.ready:
            if self._slots is not None and not self._slots.try_acquire():
                if found:
                    break
                await self._slots.acquire()
                # While this waited, something more urgent may have become ready, or the last one may be gone.
                if not self._plan.ready:
                    self._slots.release()
                    break
            found.append(self._plan.pop())
        return found

    async def _begin(self, nodes: list[Node]) -> None:
        try:
            await self._runner.begin(nodes)
        except BaseException:
            for _ in nodes:
                self._give_slot()
            raise
        for node in nodes:
            if node.ended:
                self._give_slot()
            else:
                task = asyncio.create_task(self._runner.carry(node))
                self._running[task] = node
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._give_slot()
        self._untold = True
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error
        self._changed.set()

    def _give_slot(self) -> None:
        if self._slots is not None:
            self._slots.release()

    # -- what is stored about the tree -------------------------------------------------------------------------

    async def _bury(self) -> None:
        """Store what can never run any more."""
        dead = self._plan.take_dead()
        if dead:
            ends = [(node.id, "cancelled", blocked(node.id, cause.id, cause.status)) for node, cause in dead]
            await rows.give_up(self._recorder, self._tree, ends)
            for node, _ in dead:
                self._runner.forget(node)

    async def _tell(self) -> None:
        """Store how far the nodes are that have others inside them."""
        before = self._clock.monotonic()
        self._untold = False
        shares = await self._recorder.store.read(lambda tx: changed_shares(tx, self._tree.root_id))
        if shares:
            await rows.save_progress(self._recorder, self._tree, shares)
        now = self._clock.monotonic()
        self._tell_at = now + max(PROGRESS_SECONDS, PROGRESS_SHARE * (now - before))

    async def _stop(self) -> None:
        """Stop the nodes that run, and wait for them; when the tree was cancelled, end those that never began.

        Somebody else who owns the run of the tree now gets the nodes as from a process that ends.
        """
        cancelled = self._tree.stopped() == "cancelled"
        self._runner.stop("cancelled" if cancelled else "interrupted")
        while self._running:
            with contextlib.suppress(asyncio.CancelledError):  # it has to wait all the same
                await asyncio.wait(list(self._running))
        if cancelled:
            await self._bury()
            error = RunCancelledError(self._tree.id)
            left = [node.id for node in self._plan.nodes.values() if not node.ended]
            await rows.give_up(self._recorder, self._tree, [(one, "cancelled", error) for one in left])
            await self._tell()
