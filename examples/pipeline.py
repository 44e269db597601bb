"""A task tree sent as JSON: fetch three pages, summarise and merge them, and mail the outcome.

    python examples/pipeline.py

The tree mixes decorated tasks with executors that come with apflow. The web server and the mail server that it talks to
are started here, on ports that are free; both belong to this program alone. The finished tree is drawn with rich.

Needs the mail extra and a mail server to talk to: `pip install '.[email]' aiosmtpd`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import threading
from email import message_from_bytes, policy
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import SMTP
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

import apflow
from apflow import Runtime, TaskCreator, TaskManager

if TYPE_CHECKING:
    from apflow import TaskTreeNode

PAGES = {
    "/tides": "Tides rise and fall twice a day. The moon pulls at the sea.",
    "/winds": "Winds blow from high pressure to low. They turn with the earth.",
    "/clouds": "Clouds are water that the air cannot hold. They carry it inland.",
}

# What an agent would send. `PORT` is where the web server of this program listens.
TREE = """
[
  {"id": "report", "name": "write_report", "dependencies": ["merged"],
   "inputs": {"summaries": {"$from": "merged", "path": "aggregated_result"}}},

  {"id": "merged", "name": "Merge", "schemas": {"method": "aggregate_results_executor"}, "parent_id": "report",
   "inputs": {"strategy": "merge"}, "dependencies": ["tides", "winds", {"id": "clouds", "required": false}]},

  {"id": "get_tides", "name": "Get tides", "schemas": {"method": "rest_executor"}, "parent_id": "merged",
   "inputs": {"url": "http://127.0.0.1:PORT/tides"}},
  {"id": "get_winds", "name": "Get winds", "schemas": {"method": "rest_executor"}, "parent_id": "merged",
   "inputs": {"url": "http://127.0.0.1:PORT/winds"}, "priority": 0},
  {"id": "get_clouds", "name": "Get clouds", "schemas": {"method": "rest_executor"}, "parent_id": "merged",
   "inputs": {"url": "http://127.0.0.1:PORT/clouds"}, "max_attempts": 3, "backoff_base_seconds": 0.1},

  {"id": "tides", "name": "summarise", "parent_id": "merged", "dependencies": ["get_tides"],
   "inputs": {"topic": "tides", "page": {"$from": "get_tides", "path": "response_body"}}, "token_budget": 100},
  {"id": "winds", "name": "summarise", "parent_id": "merged", "dependencies": ["get_winds"],
   "inputs": {"topic": "winds", "page": {"$from": "get_winds", "path": "response_body"}}, "token_budget": 100},
  {"id": "clouds", "name": "summarise", "parent_id": "merged", "dependencies": ["get_clouds"],
   "inputs": {"topic": "clouds", "page": {"$from": "get_clouds", "path": "response_body"}}, "token_budget": 5},

  {"id": "mail", "name": "Mail", "schemas": {"method": "send_email_executor"}, "parent_id": "report",
   "inputs": {"to": "reader@example.com", "subject": "The weather", "body": {"$from": "report"}},
   "dependencies": ["report"]}
]
"""


@apflow.task
async def summarise(topic: str, page: str) -> dict[str, str]:
    """Say in one sentence what a page says; a model would do this."""
    summary = page.partition(".")[0]
    await asyncio.sleep(0.2)
    apflow.report_usage(input=len(page.split()), output=len(summary.split()))
    return {topic: summary}


@apflow.task
def write_report(summaries: dict[str, str]) -> str:
    """Write a line for each topic."""
    return "\n".join(f"{topic}: {summary}" for topic, summary in sorted(summaries.items()))


async def main(folder: Path) -> int:
    """Run the tree against local servers, draw it, and show the mail that arrived."""
    web = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    inbox: list[bytes] = []
    mail = await asyncio.get_running_loop().create_server(partial(SMTP, Inbox(inbox)), "127.0.0.1", 0)
    web_port, mail_port = web.server_address[1], mail.sockets[0].getsockname()[1]
    settings = {
        "rest_executor": {"allow": [f"127.0.0.1:{web_port}"]},
        "send_email_executor": {"host": "127.0.0.1", "port": mail_port, "tls": "none", "from": "apflow@example.com"},
    }
    try:
        async with Runtime(f"sqlite:///{folder}/pipeline.db", settings=settings) as runtime:
            tasks: list[dict[str, Any]] = json.loads(TREE.replace("PORT", str(web_port)))
            creator, manager = TaskCreator(runtime.store), TaskManager(runtime.store)
            tree = await creator.create_task_tree_from_array(tasks)
            tree = await manager.distribute_task_tree(tree)
    finally:
        mail.close()
        web.shutdown()
        web.server_close()
    console = Console(width=110)
    console.print(draw(tree))
    for message in inbox:
        found = message_from_bytes(message, policy=policy.default)
        console.print(f"\nmail to {found['to']}: {found['subject']}\n{found.get_content().strip()}", highlight=False)
    return 0 if tree.task.status == "completed" and inbox else 1


def draw(tree: TaskTreeNode) -> Tree:
    """Return a finished tree as rich shows it: status, executor and time of each task, and errors."""
    marks = {"completed": ("done", "green"), "failed": ("failed", "red"), "cancelled": ("cancelled", "yellow")}
    branches: dict[str, Tree] = {}
    for node in tree.walk():
        task = node.task
        word, colour = marks.get(task.status or "", (task.status or "?", "white"))
        label = Text.assemble((f"{word:<10}", colour), (task.name, "bold"), (f"  {task.id}", "dim"))
        if task.started_at is not None and task.completed_at is not None:
            label.append(f"  {(task.completed_at - task.started_at).total_seconds():.2f} s", "dim")
        if task.token_usage:
            label.append(f"  {task.token_usage['total']} words", "cyan")
        if task.error:
            label.append(f"\n{task.error.partition(':')[0]}", colour)
        above = branches.get(task.parent_id or "")
        branches[task.id] = Tree(label) if above is None else above.add(label)
    return branches[tree.task.id]


class Web(BaseHTTPRequestHandler):
    """Serves the pages."""

    def do_GET(self) -> None:
        """Answer one request."""
        page = PAGES.get(self.path)
        self.send_response(404 if page is None else 200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.end_headers()
        self.wfile.write((page or "").encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Inbox:
    """Takes every mail."""

    def __init__(self, messages: list[bytes]) -> None:
        self._messages = messages

    async def handle_DATA(self, _server: object, _session: object, envelope: Any) -> str:  # noqa: N802 - as above
        """Keep one mail."""
        self._messages.append(envelope.original_content)
        return "250 kept"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as _folder:
        sys.exit(asyncio.run(main(Path(_folder))))
