"""Import apflow and decorate one function."""

from __future__ import annotations

import apflow


@apflow.task
async def noop(n: int) -> int:
    return n
