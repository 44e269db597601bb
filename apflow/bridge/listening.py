"""A server on a port, or on the standard streams, until a signal or a cancellation ends it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

import uvicorn

from apflow.background import HAND_BACK_SECONDS
from apflow.bridge.site import ANSWER_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from apflow.bridge.door import Door
    from apflow.bridge.site import Site

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Server(uvicorn.Server):
    """A uvicorn that leaves signals to us, and tells when it answers."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing."""
        yield


async def listen(site: Site, sock: socket.socket, ready: Callable[[], None]) -> None:
    """Serve an app until a signal comes or the caller is cancelled, then stop in an orderly way.

    Args:
        site: The app.
        sock: Bound to an address.
        ready: Called once requests are answered.

    Raises:
        StorageError: The database cannot be used.
    """
    await until_stopped(lambda stop: _listen(site, sock, ready, stop))


async def _listen(site: Site, sock: socket.socket, ready: Callable[[], None], stop: asyncio.Event) -> None:
    patience = 2 * site.door.runtime.shutdown_seconds + HAND_BACK_SECONDS + 2 * ANSWER_SECONDS
    config = uvicorn.Config(
        site,
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=int(patience),
    )
    server = _Server(config, ready)
    async with site.lifespan():
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            server.should_exit = True
            await site.stop()
            await serving


async def converse(door: Door, *, name: str, version: str) -> None:
    """Serve MCP to the program that has started this one, over the standard streams, until it closes them.

    Args:
        door: What is served.
        name: What the server calls itself.
        version: The version that it tells.

    Raises:
        StorageError: The database cannot be used.
    """
    await until_stopped(lambda stop: _converse(door, name, version, stop))


async def _converse(door: Door, name: str, version: str, stop: asyncio.Event) -> None:
    from apflow.bridge.mcp.stdio import run_stdio

    runtime = door.runtime
    async with contextlib.AsyncExitStack() as stack:
        if not runtime.entered:
            await stack.enter_async_context(runtime)
        await runtime.recover()
        talking = asyncio.create_task(run_stdio(door, name=name, version=version))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({talking, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        talking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await talking


async def until_stopped(work: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    """Run something that stops when its event is set: at the first signal, or when this is cancelled.

    It runs in a task of its own, so that cancelling does not cut its orderly end short. A second signal ends the
    process as if nobody had caught it: what it leaves is taken over like that of any process that died.
    """
    stop = asyncio.Event()
    task = asyncio.create_task(work(stop))
    with _signals(stop):
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.done():
                raise
            stop.set()
            await _end_of(task)
            raise


async def _end_of(task: asyncio.Task[None]) -> None:
    """Wait for a task whatever the cancel scopes around this do; cancelling this once more cancels the task."""
    import anyio

    with anyio.CancelScope(shield=True):
        await task


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    """Set an event at the first signal, and let the next one do what it does by itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    former = {number: signal.getsignal(number) for number in SIGNALS}

    def caught() -> None:
        stop.set()
        for number in SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in SIGNALS:
        loop.add_signal_handler(number, caught)
    try:
        yield
    finally:
        for number, handler in former.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address; port 0 is a free one.

    Raises:
        OSError: There is no such address, or somebody has it.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE)
    # `localhost` is both; most clients try the old family first, or only that.
    family, kind, proto, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    sock = socket.socket(family, kind, proto)  # asyncio sends small packets at once only where it knows the protocol
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def say(line: str) -> None:
    """Tell whoever has started the server; the standard output belongs to protocols."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
