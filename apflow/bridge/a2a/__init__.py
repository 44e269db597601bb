"""Tasks as skills of A2A."""
