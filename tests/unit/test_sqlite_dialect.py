from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apflow.storage.sqlite import SQLiteDialect

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_memory_is_the_default() -> None:
    assert SQLiteDialect.get_connection_string() == "sqlite:///:memory:"
    assert SQLiteDialect.get_connection_string(":memory:") == "sqlite:///:memory:"


def test_shared_memory_keeps_its_name() -> None:
    name = "file:shared?mode=memory&cache=shared&uri=true"
    assert SQLiteDialect.get_connection_string(name) == f"sqlite:///{name}"


def test_a_file_is_named_by_its_absolute_path() -> None:
    assert SQLiteDialect.get_connection_string("/data/apflow.db") == "sqlite:////data/apflow.db"
    assert SQLiteDialect.get_connection_string("apflow.db") == f"sqlite:///{Path.cwd() / 'apflow.db'}"


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        SQLiteDialect.get_connection_string("")


def test_only_dicts_and_lists_become_text() -> None:
    data = {"inputs": {"a": [1, None]}, "dependencies": ["b"], "name": "n", "progress": 0.5, "error": None}
    assert SQLiteDialect.normalize_data(data) == {
        "inputs": '{"a": [1, null]}',
        "dependencies": '["b"]',
        "name": "n",
        "progress": 0.5,
        "error": None,
    }


@given(st.dictionaries(st.text(), JSON.filter(lambda value: not isinstance(value, str) or value[:1] not in "{[")))
def test_what_goes_in_comes_out(data: dict[str, Any]) -> None:
    before = repr(data)
    normalized = SQLiteDialect.normalize_data(data)
    assert SQLiteDialect.denormalize_data(normalized) == data
    assert repr(data) == before


@pytest.mark.parametrize("text", ["42", "true", "null", "1e5", '"quoted"', "{not json", "[1, 2", ""])
def test_a_string_that_is_no_object_or_array_stays_a_string(text: str) -> None:
    assert SQLiteDialect.denormalize_data({"error": text}) == {"error": text}


def test_pragmas_take_effect_on_a_connection(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "apflow.db")
    for statement in SQLiteDialect.get_pragma_statements():
        connection.execute(statement)

    def pragma(name: str) -> object:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]

    assert pragma("journal_mode") == "wal"
    assert pragma("synchronous") == 1
    assert pragma("cache_size") == -64000
    assert pragma("foreign_keys") == 1
    assert pragma("busy_timeout") == 5000
    connection.close()


def test_a_pooled_connection_is_checked_before_use() -> None:
    assert SQLiteDialect.get_engine_kwargs() == {"pool_pre_ping": True}
