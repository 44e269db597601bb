"""Servers that are measured: started as processes on free ports, and stopped afterwards."""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_PROGRAMS = Path(__file__).parent / "programs"
_PATIENCE_SECONDS = 60.0


@asynccontextmanager
async def server(program: str, *arguments: str) -> AsyncIterator[str]:
    """Start one of the programs with a free port and these arguments; yield where it answers, and stop it.

    Raises:
        RuntimeError: It has ended.
        TimeoutError: It has not answered within a minute.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(_PROGRAMS / f"{program}.py"), str(port), *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while not await _answers(port):
                if process.returncode is not None:
                    raise RuntimeError(f"{program} ended with {process.returncode}")
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 10)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        await asyncio.sleep(0.05)
        return False
    writer.close()
    await writer.wait_closed()
    return True
