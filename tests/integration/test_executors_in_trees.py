"""The aggregate and the mail executor as nodes of task trees."""

from __future__ import annotations

from typing import Any

import pytest

import apflow
from tests.integration.mail_server import SECRET, post_office
from tests.integration.tree_helpers import bench, column, ref, task
from tests.integration.web_server import web_server

pytestmark = pytest.mark.anyio


@apflow.task(name="nodes_number")
async def number(value: int) -> dict[str, int]:
    if value < 0:
        raise ValueError("negative")
    return {"value": value}


def numbers(*values: int) -> list[dict[str, Any]]:
    return [task(f"n{place}", "nodes_number", inputs={"value": value}) for place, value in enumerate(values)]


async def test_a_dependency_that_did_not_complete_is_missing(database_url: str) -> None:
    async with bench(database_url) as made:
        inputs = {"strategy": "mean", "path": "value", "source_task_ids": ["n0", "n1", "n2"]}
        await made.execute(
            *numbers(4, -1, 8), task("mean", "aggregate_results_executor", "n0", "n1?", "n2", inputs=inputs)
        )
        assert (await made.results())["mean"] == {"aggregated_result": 6.0, "count": 2, "missing": ["n1"]}


async def test_a_source_that_is_no_dependency_fails_the_node(database_url: str) -> None:
    async with bench(database_url) as made:
        inputs = {"source_task_ids": ["n0", "n1"]}
        await made.execute(*numbers(1, 2), task("sum", "aggregate_results_executor", "n0", inputs=inputs))
        assert "'n1'" in ((await made.errors())["sum"] or "")


@pytest.mark.parametrize("password", [SECRET, {"$secret": "mail"}])
async def test_a_mail_of_results_with_a_secret_that_does_not_stay(database_url: str, password: Any) -> None:
    async with post_office(auth_require_tls=False) as post:
        post.answers = ["451 4.3.0 later"]
        config = {"host": "127.0.0.1", "port": post.port, "tls": "none", "username": "ada", "password": password}
        settings = {
            "send_email_executor": {"from": "ada@example.com", "allow": ["127.0.0.1"]},
            "secrets": {"mail": SECRET},
        }
        async with bench(database_url, settings=settings) as made:
            await made.execute(
                *numbers(1),
                task("list", "aggregate_results_executor", "n0", inputs={"strategy": "list", "path": "value"}),
                task(
                    "mail",
                    "send_email_executor",
                    "list",
                    inputs={
                        "to": "bob@example.com",
                        "subject": "Numbers",
                        "body": "See below",
                        "attachments": [{"filename": "n.txt", "text": ref("list", "text", default="one")}],
                        "smtp_config": config,
                    },
                    max_attempts=2,
                    backoff_base_seconds=0.1,
                ),
            )
            assert (await made.statuses())["mail"] == "completed", await made.errors()
            first, second = post.mails
            assert first["Message-ID"] == second["Message-ID"] == (await made.results())["mail"]["message_id"]
            stored = await column(made.store, "CAST(inputs AS TEXT)")
            assert SECRET not in stored["mail"]
            assert ("$secret" in stored["mail"]) is isinstance(password, dict)
            assert '"***"' in stored["mail"]
        assert {used for _, used in post.logins} == {SECRET.encode()}


async def test_a_token_that_is_only_named_in_the_inputs_reaches_the_server_and_not_the_database(
    database_url: str,
) -> None:
    with web_server() as web:
        settings = {"rest_executor": {"allow": [f"127.0.0.1:{web.port}"]}, "secrets": {"token": SECRET}}
        async with bench(database_url, settings=settings) as made:
            inputs = {"url": f"http://127.0.0.1:{web.port}/", "auth": {"bearer": {"$secret": "token"}}}
            unknown = {"url": inputs["url"], "auth": {"bearer": {"$secret": "other"}}}
            await made.execute(
                task("asked", "rest_executor", inputs=inputs), task("unknown", "rest_executor", inputs=unknown)
            )
            assert await made.statuses() == {"asked": "completed", "unknown": "failed"}
            assert SECRET not in str(await column(made.store, "CAST(inputs AS TEXT)"))
            assert SECRET not in str(await column(made.store, "CAST(result AS TEXT)"))
        assert [request.headers["authorization"] for request in web.asked] == [f"Bearer {SECRET}"]


async def test_the_sources_of_a_copy_are_the_copies(database_url: str) -> None:
    async with bench(database_url) as made:
        inputs = {"strategy": "sum", "path": "value", "source_task_ids": ["n0", "n1"]}
        inside = [one | {"parent_id": "sum"} for one in numbers(1, 2)]
        await made.execute(task("sum", "aggregate_results_executor", "n0", "n1", inputs=inputs), *inside)
        copied = await made.creator.from_copy("sum")
        outcome = await made.manager.execute_task(copied.task.id)
        assert outcome["result"] == {"aggregated_result": 3, "count": 2, "missing": []}, await made.errors()


async def test_a_default_stands_in_for_what_did_not_complete(database_url: str) -> None:
    async with bench(database_url) as made:
        inputs = {"value": ref("n0", "value", default=7)}
        await made.execute(*numbers(-1), task("after", "nodes_number", "n0?", inputs=inputs))
        assert (await made.results())["after"] == {"value": 7}
