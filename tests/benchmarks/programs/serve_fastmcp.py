"""Serve the same function with the server of MCP's own SDK: `serve_fastmcp.py PORT`."""

import sys

from mcp.server.fastmcp import FastMCP


async def echo(text: str) -> str:
    """Return the text."""
    return text


if __name__ == "__main__":
    server = FastMCP("bench", host="127.0.0.1", port=int(sys.argv[1]), log_level="ERROR")
    server.tool()(echo)
    server.run(transport="streamable-http")
