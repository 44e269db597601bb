"""The databases that the other tests get are what they say."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import psycopg
import pytest


@pytest.mark.parametrize("_", range(2))
def test_each_test_gets_an_empty_postgresql_database(postgres_url: str, _: int) -> None:
    with psycopg.connect(postgres_url) as connection:
        tables = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
        assert tables == (0,)
        connection.execute("CREATE TABLE left_behind (id int)")


def test_the_database_url_names_the_database_of_its_parameter(
    database_url: str, request: pytest.FixtureRequest
) -> None:
    assert database_url.partition(":")[0] in request.node.name


def test_a_test_works_in_a_folder_of_its_own(tmp_path: Path) -> None:
    assert Path.cwd() == tmp_path
    Path(uuid4().hex).touch()
