"""Messages sent with A2A's own client, to a server of apflow's or to one made with A2A's SDK.

Usage: `python -m tests.benchmarks.a2a_side PROGRAM ARGUMENTS...`
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial

from a2a.client import Client, ClientConfig, create_client
from a2a.helpers import get_artifact_text, new_text_message
from a2a.types import Role, SendMessageRequest, TaskState

from .serving import server
from .timing import Samples, one_by_one
from .worker import serve, take_standard_output


async def _send(client: Client, n: int) -> None:
    request = SendMessageRequest(message=new_text_message(f"text {n}", role=Role.ROLE_USER))
    [answer] = [answer async for answer in client.send_message(request)]
    assert answer.task.status.state == TaskState.TASK_STATE_COMPLETED
    assert get_artifact_text(answer.task.artifacts[0]) == f"text {n}"


async def main(program: str, arguments: list[str]) -> None:
    answers = take_standard_output()
    async with server(program, *arguments) as url, await create_client(url, ClientConfig(streaming=False)) as client:

        async def send(count: int) -> Samples:
            return await one_by_one(partial(_send, client), count)

        await serve({"send": send}, answers)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
