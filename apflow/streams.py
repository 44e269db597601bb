"""Calling a task that is a generator: its items stream to the caller, and the list of them is the result."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from typing import TYPE_CHECKING, Any

from apflow import portal
from apflow.calls import onion, prepare

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable, Iterator, Mapping

    from apflow.call import Call
    from apflow.options import Options, TaskDefinition
    from apflow.state import Listener, RunState

_END: Any = object()


def stream_async(
    definition: TaskDefinition, options: Options, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> AsyncGenerator[Any, None]:
    """Call an async generator task. Its body runs in a task of its own and waits for its consumer at each item."""
    return _stream_async(prepare(definition, options, definition.codec.bind(args, kwargs)))


async def _stream_async(call: Call) -> AsyncGenerator[Any, None]:
    await call.state.runtime.ready()
    hand_over = _HandOver(call.state)
    producer = asyncio.ensure_future(hand_over.produce(call))
    try:
        while (item := await hand_over.next()) is not _END:
            yield item
        result = await producer
        if not call.state.items_streamed:
            for item in result:
                yield item
    finally:
        if not producer.done():
            producer.cancel()
            await asyncio.wait({producer})
            if not producer.cancelled():
                producer.exception()  # The consumer has left: nobody asks.


class _HandOver:
    """Passes items one by one: the body goes on when the consumer asks for the next."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._items: asyncio.Queue[Any] = asyncio.Queue()
        self._wanted = asyncio.Semaphore(0)
        self._asked = False

    async def next(self) -> Any:
        """Return the next item, or `_END`."""
        self._wanted.release()
        return await self._items.get()

    async def produce(self, call: Call) -> Any:
        """Send the call through the onion and return the list of items."""
        try:
            return await onion(call.state.runtime, call, self._endpoint)
        finally:
            self._items.put_nowait(_END)

    async def _endpoint(self, call: Call) -> list[Any]:
        args, kwargs = call.task.codec.call_with(call.arguments)
        collected: list[Any] = []
        source = call.task.fn(*args, **kwargs)
        async with _closing(source):
            while (item := await self._advance(aiter(source))) is not _END:
                collected.append(item)
                self._state.items_streamed = True
                self._items.put_nowait(item)
        return collected

    async def _advance(self, source: AsyncIterator[Any]) -> Any:
        """Wait until an item is wanted and return it. A failed attempt leaves its wish to the next one."""
        if not self._asked:
            await self._wanted.acquire()
            self._asked = True
        item = await anext(source, _END)
        self._asked = False
        return item


@contextlib.asynccontextmanager
async def _closing(source: Any) -> AsyncGenerator[None, None]:
    """Close an async generator whatever happens; an async iterator has nothing to close."""
    try:
        yield
    finally:
        if hasattr(source, "aclose"):
            await source.aclose()


async def collect_async(source: AsyncIterable[Any], listener: Listener | None) -> list[Any]:
    """Return all items. The listener is told of each as it comes."""
    async with _closing(source):
        if listener is None:
            return [item async for item in source]
        items = []
        async for item in source:
            items.append(item)
            listener.produced(item)
        return items


def collect_sync(source: Iterable[Any], listener: Listener | None) -> list[Any]:
    """Return all items. See `collect_async`."""
    if listener is None:
        return list(source)
    items = []
    for item in source:
        items.append(item)
        listener.produced(item)
    return items


def stream_sync(
    definition: TaskDefinition, options: Options, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Generator[Any, None, None]:
    """Call a plain generator task. Its body runs on the thread that asks for the items."""
    call = prepare(definition, options, definition.codec.bind(args, kwargs))
    return _stream_sync(call, _Puller(call.state))


def _stream_sync(call: Call, puller: _Puller) -> Generator[Any, None, None]:
    onion = portal.start_on_portal(_pull(call, puller))
    puller.attach(onion)
    try:
        yield from puller.items()
    finally:
        puller.leave()


async def _pull(call: Call, puller: _Puller) -> Any:
    """Run the onion on the portal's loop; each attempt's body is a job that the consumer pulls items from."""
    from apflow.calls import run_body

    await call.state.runtime.ready()
    call.state.bodies = puller

    async def endpoint(call: Call) -> Any:
        args, kwargs = call.task.codec.call_with(call.arguments)
        return await run_body(call, lambda: iter(call.task.fn(*args, **kwargs)))

    return await onion(call.state.runtime, call, endpoint)


class _Puller:
    """Runs the generator's body on the consumer's thread, item by item, in the context of its run."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._thread = portal.CallerThread()
        self._onion: portal.Spawned[Any] | None = None
        self._consumer = 0

    def start(self, job: portal.Job) -> None:
        """Take the body of an attempt."""
        self._thread.start(job)

    def attach(self, onion: portal.Spawned[Any]) -> None:
        """Know what to wait for."""
        self._onion = onion
        self._thread.follow(onion)

    def items(self) -> Iterator[Any]:
        """Yield what the body yields; raise what the onion raises."""
        assert self._onion is not None
        self._consumer = threading.get_ident()
        while (job := self._thread.next_job()) is not None:
            yield from self._run(job)
        result = self._onion.future.result()
        if not self._state.items_streamed:
            yield from result

    def _run(self, job: portal.Job) -> Iterator[Any]:
        collected: list[Any] = []
        source: Any = None
        try:
            source = job.context.run(job.body)
            while (item := job.context.run(next, source, _END)) is not _END:
                collected.append(item)
                self._state.items_streamed = True
                yield item
        except Exception as error:  # noqa: BLE001 - it goes through the onion
            job.fail(error)
        except BaseException as error:  # Ctrl-C, or the consumer has left
            if hasattr(source, "close"):
                job.context.run(source.close)
            job.abandon(error)
            raise
        else:
            job.finish(collected)

    def leave(self) -> None:
        """Interrupt the run when the consumer stops before its end."""
        onion = self._onion
        if onion is not None and not onion.future.done():
            onion.cancel()
            # The garbage collector may call this on any thread, in the middle of anything: it must not wait there.
            if self._consumer == threading.get_ident():
                concurrent.futures.wait([onion.future], timeout=self._state.runtime.shutdown_seconds)
