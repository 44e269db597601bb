"""How tasks are called from outside: as modules of apcore, over MCP and A2A, and from the command line."""
