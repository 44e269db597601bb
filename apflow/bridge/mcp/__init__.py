"""Tasks as tools of MCP."""
