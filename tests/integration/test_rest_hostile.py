"""`rest_executor` against servers that echo secrets, flood, and name what is none; and what is logged meanwhile."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from apflow import AddressRefusedError, ExecutorError, InvalidInputsError, Runtime
from apflow.executors.quiet import quiet
from apflow.executors.rest import RestExecutor
from tests.integration.web_server import Asked, Web, web_server

pytestmark = pytest.mark.anyio

SECRET = 'l0ng/"s3cret"'  # noqa: S105 - of nobody
LONG = "a" + "\u0315\u0300" * 10_000


@pytest.fixture
def web() -> Iterator[Web]:
    with web_server() as server:
        yield server


@pytest.fixture
def settings(web: Web) -> dict[str, Any]:
    return {"allow": web.allow}


@pytest.fixture(autouse=True)
async def runtime(sqlite_url: str, settings: dict[str, Any]) -> AsyncIterator[Runtime]:
    secrets = {"mine": SECRET, "short": "abc", "deep": {"pem": ["pr1vate-pem"]}}
    async with Runtime(sqlite_url, settings={"rest_executor": settings, "secrets": secrets}) as made:
        yield made


async def rest(**inputs: Any) -> dict[str, Any]:
    return await RestExecutor().execute(inputs)


def echo(asked: Asked) -> tuple[int, dict[str, str], bytes]:
    """Send back all headers, in the body and in a header."""
    told = json.dumps({"headers": asked.headers, "path": asked.path, "list": [json.dumps(asked.headers)]})
    return 200, {"Content-Type": "application/json", "X-Echo": asked.headers.get("authorization", "")}, told.encode()


async def test_secrets_that_were_sent_do_not_come_back(web: Web, settings: dict[str, Any]) -> None:
    settings["headers"] = {web.url: {"X-Settings": "fr0m-settings", "Authorization": "Bearer t0ken-t0ken"}}
    web.answer = echo
    result = await rest(url=f"{web.url}/l0ng%2F%22s3cret%22", headers={"X-Mine": SECRET, "Cookie": "a=c00kie-c00kie"})
    told = json.dumps(result)
    for secret in ("s3cret", "fr0m-settings", "t0ken-t0ken", "c00kie-c00kie"):
        assert secret not in told
    assert web.asked[0].headers["x-mine"] == SECRET
    body = result["response_body"]
    assert (body["headers"]["authorization"], body["headers"]["x-mine"], body["path"]) == ("Bearer ***", "***", "/***")
    assert result["headers"]["x-echo"] == "Bearer ***"
    assert result["url"] == f"{web.url}/***"


async def test_a_password_does_not_come_back(web: Web) -> None:
    web.answer = lambda asked: (200, {}, base64.b64decode(asked.headers["authorization"].split()[1]))
    result = await rest(url=web.url, auth={"username": "ada", "password": "long passw0rd"})
    assert result["response_body"] == "ada:***"
    web.answer = echo
    result = await rest(url=web.url, auth={"username": "ada", "password": "long passw0rd"})
    assert result["response_body"]["headers"]["authorization"] == "Basic ***"


async def test_secrets_in_names_and_in_bytes_do_not_come_back(web: Web) -> None:
    web.answer = lambda _: (200, {"Content-Type": "application/json"}, json.dumps({SECRET: "pr1vate-pem"}).encode())
    assert (await rest(url=web.url))["response_body"] == {"***": "***"}
    web.answer = lambda _: (200, {"Content-Type": "image/png"}, b"\x89" + SECRET.encode() + b"abc")
    assert base64.b64decode((await rest(url=web.url))["response_body"]) == b"\x89***abc"


async def test_what_is_short_or_harmless_stays(web: Web, settings: dict[str, Any]) -> None:
    settings["headers"] = {web.url: {"Accept": "application/json"}}
    web.answer = echo
    result = await rest(url=f"{web.url}/abc", auth={"bearer": "t0ken"})
    assert result["response_body"]["headers"]["authorization"] == "Bearer t0ken"
    assert result["response_body"]["path"] == "/abc"
    assert result["headers"]["content-type"] == "application/json"


async def test_nothing_of_an_exchange_is_logged(web: Web, caplog: pytest.LogCaptureFixture) -> None:
    web.answer = echo
    with caplog.at_level(logging.DEBUG):
        for name in ("httpcore.http11", "httpcore.connection"):
            logging.getLogger(name).setLevel(logging.DEBUG)
        try:
            await rest(url=f"{web.url}/s3cret", auth={"bearer": "s3cret"})
            logging.getLogger("httpcore.http11").debug("of somebody else")
        finally:
            for name in ("httpcore.http11", "httpcore.connection"):
                logging.getLogger(name).setLevel(logging.NOTSET)
    assert [record.message for record in caplog.records if record.name.startswith("httpcore")] == ["of somebody else"]
    assert "s3cret" not in caplog.text


async def test_only_exchanges_of_ours_are_silent(caplog: pytest.LogCaptureFixture) -> None:
    async def log(name: str | None) -> None:
        logging.getLogger(name).warning("from %s", name)

    with caplog.at_level(logging.DEBUG):
        other = asyncio.create_task(log("client"))
        with quiet():
            await asyncio.gather(*map(log, [None, "client", "mcp.client.streamable_http", "my.own"]))
            await other
        await log(None)
    assert [record.getMessage() for record in caplog.records] == ["from client", "from my.own", "from None"]


async def test_a_flood_of_interim_answers_ends(settings: dict[str, Any]) -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        try:
            while True:
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)
                await writer.drain()
        except ConnectionError:
            writer.close()

    async with await asyncio.start_server(flood, "127.0.0.1", 0) as server:
        settings["allow"] = ["127.0.0.1"]
        with pytest.raises(ExecutorError, match=r"^the connection to 127\.0\.0\.1 failed \(RemoteProtocolError\)$"):
            await rest(url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", timeout=60)


async def test_interim_answers_and_long_headers_are_read(settings: dict[str, Any]) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n")
        writer.write(b"X-Long: " + b"x" * 90_000 + b"\r\n\r\n" + b"y" * 300_000)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        settings["allow"] = ["127.0.0.1"]
        result = await rest(url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    assert len(result["headers"]["x-long"]) == 90_000
    assert len(result["response_body"]) == 300_000


@pytest.mark.parametrize("host", ["xn--a", "xn--0.example.com"])
async def test_a_host_that_looks_like_an_encoded_one_is_refused(web: Web, host: str) -> None:
    with pytest.raises(AddressRefusedError, match="malformed"):
        await rest(url=f"http://{host}/")
    web.answer = lambda _: (302, {"Location": f"http://{host}/"}, b"")
    with pytest.raises(AddressRefusedError, match="malformed"):
        await rest(url=web.url)


async def test_a_url_has_a_longest_length() -> None:
    with pytest.raises(InvalidInputsError, match="8192"):
        await rest(url=f"http://{LONG}")


async def test_a_location_has_a_longest_length(web: Web) -> None:
    web.answer = lambda _: (302, {"Location": f"http://{'a' * 8200}"}, b"")
    with pytest.raises(ExecutorError, match="more than 8192 characters"):
        await rest(url=web.url)


async def test_a_body_in_a_made_up_charset_is_read_as_utf_8(web: Web) -> None:
    web.answer = lambda _: (200, {"Content-Type": "text/plain; charset=punycode"}, b"-" + b"a9z" * 500_000)
    assert len((await rest(url=web.url))["response_body"]) == 1_500_001
