"""The databases take the JSON text of arguments and results, and give it back as it was."""

from __future__ import annotations

import sqlite3
from typing import Any

import psycopg
import pytest

from tests.codecs import result_codec

VALUES: list[Any] = [
    "NUL \0, line separators \u2028\u2029 and \N{GRINNING FACE}",
    10**400,
    -0.0,
    [1.5e-300, 1e300, 0.1],
    {"": {"a": None, "b": [True, False]}},
]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    codec = result_codec(Any)
    return [codec.dump_result(value) for value in VALUES] + [result_codec(float).dump_result(float("nan"))]


def test_postgresql_keeps_the_text(postgres_url: str, texts: list[str]) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE stored (position int, value json)")
        for position, text in enumerate(texts):
            connection.execute("INSERT INTO stored VALUES (%s, %s)", (position, text))
        rows = connection.execute("SELECT value::text FROM stored ORDER BY position").fetchall()
    assert [row[0] for row in rows] == texts


def test_sqlite_keeps_the_text_and_reads_it_as_json(texts: list[str]) -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE stored (value TEXT)")
    connection.executemany("INSERT INTO stored VALUES (?)", [(text,) for text in texts])
    rows = connection.execute("SELECT value, json_valid(value) FROM stored ORDER BY rowid").fetchall()
    connection.close()
    assert rows == [(text, 1) for text in texts]
