"""The reference names every column of the ledger's tables, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlmodel import SQLModel

from apflow.storage.ledger_tables import BudgetAccountModel, BudgetHoldModel, DecisionModel, UsageEventModel

REFERENCE = Path(__file__).parents[2] / "docs" / "reference.md"


@pytest.mark.parametrize("model", [BudgetAccountModel, BudgetHoldModel, UsageEventModel, DecisionModel])
def test_the_reference_names_the_columns_of_the_ledger(model: type[SQLModel]) -> None:
    (row,) = re.findall(rf"^\| `{model.__tablename__}` \|.*\| (.*) \|$", REFERENCE.read_text(), flags=re.MULTILINE)
    named = re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", row))

    assert named == list(model.model_fields)
