"""Scenarios of the official MCP conformance suite, run against a server."""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .needs import node, suite

#: Those that apply to a server of tools. The others are about prompts, resources, sampling, elicitation and images.
SCENARIOS = (
    "server-initialize",
    "ping",
    "tools-list",
    "tools-call-simple-text",
    "tools-call-error",
    "tools-call-with-progress",
    "json-schema-2020-12",
    "server-sse-multiple-streams",
    "dns-rebinding-protection",
)
#: What these have to hear. The suite itself takes any text: it would pass a server without these tools.
_TEXTS = {
    "tools-call-simple-text": "This is a simple text response for testing.",
    "tools-call-error": "This tool intentionally returns an error for testing",
}
_LONGEST_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one scenario came to.

    Attributes:
        scenario: Its name.
        passed: How many of its checks succeeded.
        checks: How many it has, without those that only inform.
        problems: What the others say.
    """

    scenario: str
    passed: int
    checks: int
    problems: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return self.checks > 0 and self.passed == self.checks


def run(scenario: str, url: str) -> Outcome:
    """Run one scenario against the server.

    Raises:
        NotHereError: The suite cannot be had.
    """
    with tempfile.TemporaryDirectory(prefix="apflow-conformance-") as folder:
        command = [str(node()), str(suite()), "server", "--url", url, "--scenario", scenario, "-o", folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            return Outcome(scenario, 0, 1, (f"it took longer than {_LONGEST_SECONDS} s",))
        found = [json.loads(path.read_text()) for path in Path(folder).glob("*/checks.json")]
    if not found:
        return Outcome(scenario, 0, 1, (done.stderr.strip()[-500:] or "it told nothing",))
    return judge(scenario, found[0])


def judge(scenario: str, checks: list[dict[str, Any]]) -> Outcome:
    """Return what the checks of a scenario, as the suite has written them, say about it."""
    counted = [check for check in checks if check["status"] != "INFO"]
    failed = [check for check in counted if check["status"] != "SUCCESS"]
    problems = [f"{check['id']}: {check.get('errorMessage') or check['description']}" for check in failed]
    passed = len(counted) - len(failed)
    if _TEXTS.get(scenario, "") not in json.dumps(checks):
        return Outcome(scenario, 0, len(counted), (*problems, f"the answer is not {_TEXTS[scenario]!r}"))
    return Outcome(scenario, passed, len(counted), tuple(problems))
