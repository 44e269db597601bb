"""The reference names every column of the tables of the ledger and of A2A, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlmodel import SQLModel

from apflow.storage.ledger_tables import BudgetAccountModel, BudgetHoldModel, DecisionModel, UsageEventModel
from apflow.storage.tables import A2aTaskModel

REFERENCE = Path(__file__).parents[2] / "docs" / "reference.md"


@pytest.mark.parametrize("model", [A2aTaskModel, BudgetAccountModel, BudgetHoldModel, UsageEventModel, DecisionModel])
def test_the_reference_names_the_columns(model: type[SQLModel]) -> None:
    (row,) = re.findall(rf"^\| `{model.__tablename__}` \|.*\| (.*) \|$", REFERENCE.read_text(), flags=re.MULTILINE)
    named = re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", row))

    assert named == list(model.model_fields)
