"""What is measured of calls from outside, and what is promised: a governed call costs little more than a bare one."""

from __future__ import annotations

from .measure import Experiment
from .verdict import Row

_REPEATS = (15, 5)
_CALLS, _AT_ONCE = 100, 400
_PROMISE = 1.3
_FASTMCP = "the SDK's own server, FastMCP"

DOOR_EXPERIMENTS = {
    "mcp": Experiment(
        scenario="call", counts={"mcp": _CALLS, "mcp-budget": _CALLS, "fastmcp": _CALLS}, repeats=_REPEATS
    ),
    "mcp-20": Experiment(
        scenario="calls", counts={"mcp": _AT_ONCE, "mcp-budget": _AT_ONCE, "fastmcp": _AT_ONCE}, repeats=(7, 3)
    ),
    "a2a": Experiment(scenario="send", counts={"a2a": _CALLS, "a2a-sdk": _CALLS}, repeats=_REPEATS),
}

DOOR_ROWS = (
    Row(
        what="a call through MCP, recorded",
        against=_FASTMCP,
        experiment="mcp",
        ours="mcp",
        reference="fastmcp",
        compare="costs",
        limit=_PROMISE,
    ),
    Row(
        what="the same, with a budget",
        against=_FASTMCP,
        experiment="mcp",
        ours="mcp-budget",
        reference="fastmcp",
        compare="costs",
        limit=_PROMISE,
    ),
    Row(
        what="calls through MCP, 20 clients at once",
        against=_FASTMCP,
        experiment="mcp-20",
        ours="mcp",
        reference="fastmcp",
        compare="costs",
        unit="per second",
    ),
    Row(
        what="the same, with a budget",
        against=_FASTMCP,
        experiment="mcp-20",
        ours="mcp-budget",
        reference="fastmcp",
        compare="costs",
        unit="per second",
    ),
    Row(
        what="a message through A2A, recorded",
        against="a2a-sdk, tasks in memory",
        experiment="a2a",
        ours="a2a",
        reference="a2a-sdk",
        compare="costs",
    ),
)
