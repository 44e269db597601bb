"""`map`: one call for each item, at the same time, results in the order of the items."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import TYPE_CHECKING, Any

from apflow import drive

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from apflow.options import Options, TaskDefinition

#: Threads that a `map` of a plain task uses when no `map_limit` is given.
THREADS = 64


async def map_async(
    definition: TaskDefinition,
    options: Options,
    items: Iterable[Any],
    prefix: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> list[Any]:
    """Call an async task once for each item; the first error cancels the rest and is raised."""
    limit = None if options.map_limit is None else asyncio.Semaphore(options.map_limit)

    async def one(item: Any) -> Any:
        if limit is None:
            return await _once(definition, options, (*prefix, item), kwargs)
        async with limit:
            return await _once(definition, options, (*prefix, item), kwargs)

    tasks = [asyncio.ensure_future(one(item)) for item in list(items)]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        unfinished = [task for task in tasks if not task.done()]
        for task in unfinished:
            task.cancel()
        if unfinished:
            await asyncio.gather(*unfinished, return_exceptions=True)


async def _once(definition: TaskDefinition, options: Options, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if definition.colour == "async":
        return await drive.call_async(definition, options, args, kwargs)
    return [item async for item in drive.stream_async(definition, options, args, kwargs)]


def map_sync(
    definition: TaskDefinition,
    options: Options,
    items: Iterable[Any],
    prefix: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> list[Any]:
    """Call a plain task once for each item, on threads; the first error stops the rest and is raised."""
    calls = list(items)
    mapping = _SyncMap(definition, options, prefix, kwargs, calls)
    return mapping.run(min(options.map_limit or THREADS, len(calls)))


class _SyncMap:
    """The threads of one `map`, which take item after item until none is left or one has failed."""

    def __init__(
        self,
        definition: TaskDefinition,
        options: Options,
        prefix: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        items: list[Any],
    ) -> None:
        self._call = (definition, options)
        self._prefix, self._kwargs = prefix, kwargs
        self._futures: list[Future[Any]] = [Future() for _ in items]
        self._todo: Iterator[tuple[Any, Future[Any]]] = iter(list(zip(items, self._futures, strict=True)))
        self._lock = threading.Lock()
        self._failed = threading.Event()

    def run(self, threads: int) -> list[Any]:
        """Return the results in the order of the items."""
        workers = [
            threading.Thread(target=contextvars.copy_context().run, args=(self._work,), name="apflow-map", daemon=True)
            for _ in range(threads)
        ]
        for worker in workers:
            worker.start()
        try:
            done, _ = wait(self._futures, return_when=FIRST_EXCEPTION)
        finally:
            self._failed.set()
        for future in self._futures:
            if future in done and (error := future.exception()) is not None:
                for worker in workers:
                    worker.join()
                raise error
        return [future.result() for future in self._futures]

    def _work(self) -> None:
        while not self._failed.is_set():
            with self._lock:
                item, future = next(self._todo, (None, None))
            if future is None:
                return
            try:
                future.set_result(self._one(item))
            except BaseException as error:  # noqa: BLE001 - it is raised by the thread that called `map`
                future.set_exception(error)
                self._failed.set()

    def _one(self, item: Any) -> Any:
        definition, options = self._call
        args = (*self._prefix, item)
        if definition.colour == "sync":
            return drive.call_sync(definition, options, args, self._kwargs)
        return list(drive.stream_sync(definition, options, args, self._kwargs))
