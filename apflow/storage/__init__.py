"""The database: schema, connections, statements, and values as JSON."""
