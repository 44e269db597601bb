"""`rest_executor` against a real server: what it sends, what it returns, what it takes."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import apflow
from apflow import AddressRefusedError, ExecutorError, InvalidInputsError, Runtime
from apflow.executors.rest import RestExecutor
from tests.integration.web_server import Web, web_server

pytestmark = pytest.mark.anyio

USER = "ada:s3cret"


@pytest.fixture
def web() -> Iterator[Web]:
    with web_server() as server:
        yield server


@pytest.fixture
def settings(web: Web) -> dict[str, Any]:
    return {"allow": web.allow}


@pytest.fixture(autouse=True)
async def runtime(sqlite_url: str, settings: dict[str, Any]) -> AsyncIterator[Runtime]:
    async with Runtime(sqlite_url, settings={"rest_executor": settings}) as made:
        yield made


async def rest(**inputs: Any) -> dict[str, Any]:
    return await RestExecutor().execute(inputs)


def answer(web: Web, content: bytes, kind: str = "text/plain", status: int = 200, **headers: str) -> None:
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    web.answer = lambda _: (status, {"Content-Type": kind, **more}, content)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_methods(web: Web, method: str) -> None:
    result = await rest(url=f"{web.url}/a", method=method)
    assert [(asked.method, asked.path, asked.body) for asked in web.asked] == [(method, "/a", b"")]
    assert result["status_code"] == 200
    assert result["response_body"] == ""


async def test_get_is_the_method_and_json_is_parsed(web: Web) -> None:
    answer(web, b'{"a": [1, 2.5, null]}', "application/json; charset=utf-8", X_More="yes")
    result = await rest(url=f"{web.url}/a")
    assert web.asked[0].method == "GET"
    assert result["response_body"] == {"a": [1, 2.5, None]}
    assert result["headers"]["x-more"] == "yes"
    assert result["url"] == f"{web.url}/a"
    assert result.keys() == {"status_code", "response_body", "headers", "url"}


@pytest.mark.parametrize("content", [b"not json", b'{"a": NaN}', b"1e999", b'"\\ud800"', b"[" * 100_000])
async def test_json_that_cannot_be_stored_stays_text(web: Web, content: bytes) -> None:
    answer(web, content, "application/problem+json")
    assert (await rest(url=web.url))["response_body"] == content.decode()


@pytest.mark.parametrize(
    ("kind", "content", "text"),
    [
        ("text/html", "gr\u00fcn".encode(), "gr\u00fcn"),
        ("text/html; charset=latin-1", "gr\u00fcn".encode("latin-1"), "gr\u00fcn"),
        ("text/plain", b"\xff!", "\ufffd!"),
        ("application/yaml", b"a: 1", "a: 1"),
        ("image/svg+xml", b"<svg/>", "<svg/>"),
        ("application/octet-stream", b"abc", None),
        ("image/png", b"\x89PNG", None),
        ("application/x-unknown", b"\xff\xfe", None),
        ("text/plain", b"a\0b", None),
    ],
)
async def test_text_is_text_and_anything_else_base64(web: Web, kind: str, content: bytes, text: str | None) -> None:
    answer(web, content, kind)
    result = await rest(url=web.url)
    if text is None:
        assert base64.b64decode(result["response_body"]) == content
        assert result["encoding"] == "base64"
    else:
        assert result["response_body"] == text
        assert "encoding" not in result


async def test_query_is_added_to_the_one_of_the_url(web: Web) -> None:
    await rest(url=f"{web.url}/a?x=%2F#part", query={"q": "a b&c", "n": [1, 2.5], "yes": True, "api_key": "k3y"})
    assert web.asked[0].path == "/a?x=%2F&q=a+b%26c&n=1&n=2.5&yes=true&api_key=k3y"


async def test_the_resulting_url_has_no_values_of_the_query(web: Web) -> None:
    result = await rest(url=f"{web.url}/a?x=1234", query={"y": "5678"})
    assert result["url"] == f"{web.url}/a?x=***&y=***"


@pytest.mark.parametrize(
    ("given", "kind", "body"),
    [
        ({"json": {"a": "gr\u00fcn"}}, "application/json", '{"a":"gr\u00fcn"}'.encode()),
        ({"json": None}, "application/json", b"null"),
        ({"body": "gr\u00fcn"}, "text/plain; charset=utf-8", "gr\u00fcn".encode()),
        ({"form": {"a": "b c", "n": [1, 2]}}, "application/x-www-form-urlencoded", b"a=b+c&n=1&n=2"),
        ({"json": [], "headers": {"content-type": "application/x+json"}}, "application/x+json", b"[]"),
    ],
)
async def test_bodies(web: Web, given: dict[str, Any], kind: str, body: bytes) -> None:
    await rest(url=web.url, method="PUT", **given)
    assert (web.asked[0].headers["content-type"], web.asked[0].body) == (kind, body)


async def test_headers_and_authorization(web: Web) -> None:
    await rest(url=web.url, headers={"X-One": " 1 ", "user-agent": "me"}, auth={"bearer": "t0ken"})
    await rest(url=web.url, auth={"username": "ada", "password": "p\u00e4ss"})
    first, second = (asked.headers for asked in web.asked)
    assert (first["x-one"], first["user-agent"], first["authorization"]) == ("1", "me", "Bearer t0ken")
    assert first["host"] == f"127.0.0.1:{web.port}"
    assert second["authorization"] == "Basic " + base64.b64encode("ada:p\u00e4ss".encode()).decode()


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "ftp://example.com"},
        {"url": "example.com"},
        {"url": "http://"},
        {"url": "http://example.com:x/"},
        {"url": "http://example.com/a\nb"},
        {"url": f"http://{USER}@example.com/"},
        {"url": f"http://{USER[4:]}@example.com/"},
        {"url": "http://example.com/\x01"},
        {"url": "file:///etc/passwd"},
        {"json": 1, "body": "a"},
        {"body": "a", "form": {}},
        {"method": "TRACE"},
        {"timeout": 0},
        {"timeout": 601},
        {"max_bytes": 0},
        {"header": {}},
        {"headers": {"X": "a\r\ns3cret: 1"}},
        {"headers": {"X\n": "s3cret"}},
        {"headers": {"Host": "s3cret"}},
        {"headers": {"Transfer-Encoding": "chunked"}},
        {"headers": {"Content-Length": "5"}},
        {"headers": {"X": "gr\u00fcn s3cret"}},
        {"headers": {"Authorization": "s3cret"}, "auth": {"bearer": "s3cret"}},
        {"auth": {"bearer": "a\r\ns3cret: 1"}},
        {"auth": {"username": "a:s3cret", "password": ""}},
        {"auth": {"username": "ada"}},
        {"query": {"a": {}}},
    ],
)
async def test_wrong_inputs_are_refused_and_nothing_is_sent(web: Web, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputsError) as caught:
        await rest(**{"url": web.url, **wrong})
    assert "s3cret" not in str(caught.value)
    assert web.connections == 0


@pytest.mark.parametrize(("status", "retryable"), [(500, True), (503, True), (429, True), (408, True), (404, False)])
async def test_a_status_is_a_result_unless_it_shall_raise(web: Web, status: int, *, retryable: bool) -> None:
    answer(web, b"words of the server", status=status)
    assert (await rest(url=web.url))["status_code"] == status
    with pytest.raises(ExecutorError, match=rf"^127\.0\.0\.1 answered with status {status}$") as caught:
        await rest(url=web.url, raise_for_status=True)
    assert caught.value.retryable is retryable


@pytest.mark.parametrize("how", ["timeout", "cancelled"])
async def test_who_waits_no_longer_closes_the_connection(settings: dict[str, Any], how: str) -> None:
    waiting, closed = asyncio.Event(), asyncio.Event()

    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        waiting.set()
        await reader.read()
        closed.set()
        writer.close()

    async with await asyncio.start_server(never_answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        settings["allow"] = [f"127.0.0.1:{port}"]
        url = f"http://127.0.0.1:{port}/?token=s3cret"
        if how == "timeout":
            with pytest.raises(ExecutorError, match=r"^127\.0\.0\.1 gave no answer within 0\.3 s$") as caught:
                await rest(url=url, timeout=0.3)
            assert caught.value.retryable is True
        else:
            calling = asyncio.create_task(rest(url=url))
            await waiting.wait()
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
        await closed.wait()


async def test_a_body_that_takes_too_long_is_not_waited_for(web: Web) -> None:
    web.answer = lambda _: (200, {"Content-Length": "100"}, b"only a part")
    with pytest.raises(ExecutorError, match="gave no answer within"):
        await rest(url=web.url, timeout=0.3)


async def test_a_server_that_is_not_there(web: Web, settings: dict[str, Any]) -> None:
    settings["allow"] = ["127.0.0.1"]
    with pytest.raises(ExecutorError, match=r"^the connection to 127\.0\.0\.1 failed \(ConnectError\)$") as caught:
        await rest(url="http://127.0.0.1:1/s3cret?a=s3cret")
    assert caught.value.retryable is True


async def test_a_server_that_speaks_something_else(web: Web) -> None:
    web.answer = lambda _: (200, {"Content-Length": "1 s3cret"}, b"")
    with pytest.raises(ExecutorError, match=r"^the connection to 127\.0\.0\.1 failed \(RemoteProtocolError\)$"):
        await rest(url=web.url)


async def test_sizes_are_limited(web: Web, settings: dict[str, Any]) -> None:
    answer(web, b"x" * 1000)
    assert len((await rest(url=web.url, max_bytes=1000))["response_body"]) == 1000
    with pytest.raises(ExecutorError, match=r"^the answer is larger than 999 bytes$"):
        await rest(url=web.url, max_bytes=999)
    settings["max_bytes"] = 500
    with pytest.raises(ExecutorError, match="larger than 500 bytes"):
        await rest(url=web.url, max_bytes=1000)
    assert (await rest(url=web.url, method="HEAD"))["status_code"] == 200


async def test_the_size_counts_without_a_length_too(web: Web) -> None:
    body = b"".join(b"400\r\n" + b"x" * 0x400 + b"\r\n" for _ in range(3)) + b"0\r\n\r\n"
    web.answer = lambda _: (200, {"Transfer-Encoding": "chunked"}, body)
    assert (await rest(url=web.url, max_bytes=3072))["response_body"] == "x" * 3072
    with pytest.raises(ExecutorError, match="larger than 3071 bytes"):
        await rest(url=web.url, max_bytes=3071)


async def test_packed_answers_are_unpacked(web: Web) -> None:
    answer(web, gzip.compress(b"first ") + gzip.compress(b"second"), Content_Encoding="gzip")
    result = await rest(url=web.url)
    assert result["response_body"] == "first second"
    assert "content-encoding" not in result["headers"]
    assert web.asked[0].headers["accept-encoding"] == "gzip"


async def test_a_bomb_is_not_unpacked(web: Web) -> None:
    answer(web, gzip.compress(b"0" * 50_000_000), Content_Encoding="gzip")
    with pytest.raises(ExecutorError, match="larger than 100000 bytes"):
        await rest(url=web.url, max_bytes=100_000)


@pytest.mark.parametrize(
    ("encoding", "content", "retryable"),
    [
        ("gzip", b"no gzip", True),
        ("gzip", gzip.compress(b"whole" * 100)[:-9], True),
        ("br", b"x", False),
        ("gzip, gzip", gzip.compress(gzip.compress(b"x")), False),
        ("deflate", zlib.compress(b"x"), False),
    ],
)
async def test_broken_and_unknown_packing(web: Web, encoding: str, content: bytes, *, retryable: bool) -> None:
    answer(web, content, Content_Encoding=encoding)
    with pytest.raises(ExecutorError, match="the answer") as caught:
        await rest(url=web.url)
    assert caught.value.retryable is retryable


async def test_secret_headers_of_an_answer_are_masked(web: Web) -> None:
    answer(web, b"", Set_Cookie="s3cret", WWW_Authenticate="s3cret", Proxy_Authenticate="s3cret", X_Api_Key="s3cret")
    result = await rest(url=web.url)
    assert "s3cret" not in json.dumps(result)
    assert result["headers"]["set-cookie"] == "***"


async def test_headers_of_the_settings_go_to_their_origin_only(web: Web, settings: dict[str, Any]) -> None:
    here, other = {"X-Api-Key": "k3y", "X-Tenant": "a"}, {"X-Other": "1"}
    settings["headers"] = {f"http://127.0.0.1:{web.port}/": here, "https://example.com": other}
    await rest(url=web.url, headers={"x-tenant": "b"})
    assert web.asked[0].headers["x-api-key"] == "k3y"
    assert web.asked[0].headers["x-tenant"] == "a"
    assert "x-other" not in web.asked[0].headers


@pytest.mark.parametrize(
    "wrong",
    [
        {"allow": ["*"]},
        {"headers": {"example.com": {}}},
        {"headers": {"https://example.com/path": {}}},
        {"headers": {"https://example.com": {"X": "a\nb"}}},
        {"max_bytes": 0},
        {"timeout": "30"},
    ],
)
async def test_wrong_settings_are_told(web: Web, settings: dict[str, Any], wrong: dict[str, Any]) -> None:
    settings |= wrong
    with pytest.raises(ValueError, match=rf"^(setting )?{next(iter(wrong))}"):
        await rest(url=web.url)
    assert web.connections == 0


async def test_a_run_sends_its_key_with_what_is_not_repeatable(web: Web) -> None:
    @apflow.task
    async def send_all() -> str:
        for method, more in (("POST", {}), ("PATCH", {}), ("PUT", {}), ("POST", {"idempotency": False})):
            await rest(url=web.url, method=method, **more)
        await rest(url=web.url, method="POST", headers={"idempotency-key": "mine"})
        return apflow.current().idempotency_key

    key = await send_all()
    await rest(url=web.url, method="POST")
    assert [asked.headers.get("idempotency-key") for asked in web.asked] == [key, key, None, None, "mine", None]


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        ({"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}, (3, 4, 7)),
        ({"type": "message", "usage": {"input_tokens": 3, "output_tokens": 4}}, (3, 4, 7)),
        ({"token_usage": {"input": 3, "output": 4, "total": 7}}, (3, 4, 7)),
        ({"usage": {"input_tokens": -3}}, None),
        ({"usage": "much"}, None),
        ([1], None),
    ],
)
async def test_usage_is_passed_on_when_asked_for(web: Web, body: Any, usage: tuple[int, int, int] | None) -> None:
    answer(web, json.dumps(body).encode(), "application/json")
    assert "token_usage" not in await rest(url=web.url)
    told = (await rest(url=web.url, usage=True)).get("token_usage")
    assert told == (None if usage is None else dict(zip(("input", "output", "total"), usage, strict=True)))


async def test_proxies_of_the_environment_are_not_used(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert (await rest(url=web.url))["status_code"] == 200


async def test_without_the_setting_nothing_here_is_open(web: Web, settings: dict[str, Any]) -> None:
    settings.clear()
    with pytest.raises(AddressRefusedError, match="loopback"):
        await rest(url=f"{web.url}/s3cret")
    assert web.connections == 0
