"""Executors that only some processes have: those that import this module."""

from __future__ import annotations

from typing import Any

import apflow
from apflow.engine.registry import executor_register
from tests.crash.effects import gate
from tests.crash.tree_flows import Named, act


@apflow.task
async def rare_brew(name: str) -> str:
    act("brews")
    await gate()
    return name


@executor_register
class RareMix(Named):
    id = "rare_mix"

    async def execute(self, inputs: dict[str, Any]) -> int:
        act("mixes")
        number: int = inputs["number"]
        return number
