"""Where `rest_executor` connects to, and where it does not: closed addresses, redirects, names that change."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpcore
import pytest

from apflow import AddressRefusedError, ExecutorError, InvalidInputsError, Runtime
from apflow.executors.rest import RestExecutor
from tests.integration.web_server import Web, web_server

pytestmark = pytest.mark.anyio

USER = "ada:s3cret"

PUBLIC = "8.8.8.8"
NAME = "api.example.com"


@pytest.fixture
def web() -> Iterator[Web]:
    with web_server() as server:
        yield server


@pytest.fixture
def other() -> Iterator[Web]:
    with web_server() as server:
        yield server


@pytest.fixture
def settings() -> dict[str, Any]:
    return {}


@pytest.fixture(autouse=True)
async def runtime(sqlite_url: str, settings: dict[str, Any]) -> AsyncIterator[Runtime]:
    async with Runtime(sqlite_url, settings={"rest_executor": settings}) as made:
        yield made


async def rest(**inputs: Any) -> dict[str, Any]:
    return await RestExecutor().execute(inputs)


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What `NAME` resolves to, one address for each time that somebody asks."""
    found: dict[str, list[str]] = {NAME: []}

    def look_up(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found[host].pop(0), port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return found


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Where connections were tried; public addresses do not answer."""
    tried: list[tuple[str, int]] = []
    connect: Callable[..., Any] = httpcore.AnyIOBackend.connect_tcp

    async def note(self: httpcore.AnyIOBackend, host: str, port: int, *more: Any) -> Any:
        tried.append((host, port))
        if not host.startswith("127."):
            raise httpcore.ConnectError
        return await connect(self, host, port, *more)

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", note)
    return tried


def redirect(web: Web, location: str, status: int = 302) -> None:
    """Answer the path `/` with a redirect and everything else with `here`."""
    web.answer = lambda asked: (status, {"Location": location}, b"") if asked.path == "/" else (200, {}, b"here")


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0x7f.1", "127.0.0.1.", "0"),
        *("[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]"),
        *("localhost", "LOCALHOST.", "127\u30020\u30020\u30021", "\uff11\uff12\uff17.0.0.1", "\u24c1ocalhost"),
        *(
            "169.254.169.254",
            "10.0.0.1",
            "100.64.0.1",
            "[fd00:ec2::254]",
            "[fe80::1]",
            "[fe80::1%25eth0]",
            "%31%32%37.1",
        ),
    ],
)
async def test_closed_addresses_in_any_form(web: Web, connected: list[tuple[str, int]], host: str) -> None:
    with pytest.raises(AddressRefusedError) as caught:
        await rest(url=f"http://{host}:{web.port}/s3cret?a=s3cret", auth={"bearer": "s3cret"})
    assert "s3cret" not in str(caught.value)
    assert caught.value.retryable is False
    assert connected == []
    assert web.connections == 0


async def test_a_name_that_resolves_to_a_closed_address(web: Web, resolver: dict[str, list[str]]) -> None:
    resolver[NAME] = ["127.0.0.1"]
    with pytest.raises(AddressRefusedError, match=rf"{NAME} are refused: its address is loopback"):
        await rest(url=f"http://{NAME}:{web.port}/")
    assert web.connections == 0


async def test_the_connection_goes_to_the_address_that_was_checked(
    web: Web, resolver: dict[str, list[str]], connected: list[tuple[str, int]]
) -> None:
    resolver[NAME] = [PUBLIC, "127.0.0.1", "127.0.0.1"]
    with pytest.raises(ExecutorError, match=f"the connection to {NAME} failed"):
        await rest(url=f"http://{NAME}:{web.port}/")
    assert connected == [(PUBLIC, web.port)]
    assert resolver[NAME] == ["127.0.0.1", "127.0.0.1"]
    assert web.connections == 0


async def test_the_server_is_asked_by_its_name(
    web: Web, settings: dict[str, Any], resolver: dict[str, list[str]], connected: list[tuple[str, int]]
) -> None:
    settings["allow"], resolver[NAME] = [NAME], ["127.0.0.1"]
    await rest(url=f"http://{NAME.upper()}.:{web.port}/")
    assert web.asked[0].headers["host"] == f"{NAME}:{web.port}"
    assert connected == [("127.0.0.1", web.port)]
    assert resolver[NAME] == []


async def test_the_certificate_is_asked_for_by_name(settings: dict[str, Any], resolver: dict[str, list[str]]) -> None:
    greetings = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greetings.append(await reader.read(4096))
        writer.close()

    settings["allow"], resolver[NAME] = [NAME], ["127.0.0.1"]
    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
        with pytest.raises(ExecutorError, match=f"the connection to {NAME} failed"):
            await rest(url=f"https://{NAME}:{server.sockets[0].getsockname()[1]}/")
    assert NAME.encode() in greetings[0]


async def test_the_next_address_is_tried(
    web: Web, settings: dict[str, Any], connected: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in (PUBLIC, "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    settings["allow"] = [NAME]
    assert (await rest(url=f"http://{NAME}:{web.port}/"))["status_code"] == 200
    assert connected == [(PUBLIC, web.port), ("127.0.0.1", web.port)]


async def test_the_list_opens_exactly_what_it_names(web: Web, other: Web, settings: dict[str, Any]) -> None:
    settings["allow"] = web.allow
    assert (await rest(url=web.url))["status_code"] == 200
    with pytest.raises(AddressRefusedError):
        await rest(url=other.url)
    neighbour = "127.0.0.2"
    with pytest.raises(AddressRefusedError):
        await rest(url=f"http://{neighbour}:{web.port}")
    assert other.connections == 0


async def test_redirects_are_followed(web: Web, settings: dict[str, Any]) -> None:
    settings["allow"] = web.allow
    redirect(web, "/there?token=s3cret#part")
    result = await rest(url=f"{web.url}/", headers={"Authorization": "mine"})
    assert result["response_body"] == "here"
    assert result["url"] == f"{web.url}/there?token=***"
    assert web.asked[1].headers["authorization"] == "mine"
    assert (await rest(url=f"{web.url}/", follow_redirects=False))["status_code"] == 302


@pytest.mark.parametrize(
    ("status", "method", "then"),
    [
        *((301, "POST", "GET"), (302, "POST", "GET"), (303, "PUT", "GET"), (303, "HEAD", "HEAD")),
        *((307, "POST", "POST"), (308, "PUT", "PUT"), (302, "PUT", "PUT")),
    ],
)
async def test_the_method_after_a_redirect(
    web: Web, settings: dict[str, Any], status: int, method: str, then: str
) -> None:
    settings["allow"] = web.allow
    redirect(web, "/there", status)
    await rest(url=f"{web.url}/", method=method, body="content")
    assert [asked.method for asked in web.asked] == [method, then]
    assert web.asked[1].body == (b"" if then == "GET" else b"content")
    assert ("content-type" in web.asked[1].headers) is (then != "GET")


async def test_loops_end(web: Web, settings: dict[str, Any]) -> None:
    settings["allow"] = web.allow
    redirect(web, "/")
    with pytest.raises(ExecutorError, match="more than 5 redirects"):
        await rest(url=f"{web.url}/")
    assert len(web.asked) == 6


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "[::ffff:127.0.0.1]", "localhost", "0177.0.0.1"])
async def test_a_redirect_to_a_closed_address(web: Web, other: Web, settings: dict[str, Any], host: str) -> None:
    settings["allow"] = web.allow
    redirect(web, f"http://{host}:{other.port}/s3cret")
    with pytest.raises(AddressRefusedError) as caught:
        await rest(url=f"{web.url}/")
    assert "s3cret" not in str(caught.value)
    assert other.connections == 0


@pytest.mark.parametrize(
    "location",
    [
        *("file:///etc/passwd", "ftp://example.com/", f"http://{USER}@example.com/", "http://[s3cret/"),
        *("http://[s3cret]x/", "//[1::2::3]/", "/s3cret" * 2000),
    ],
)
async def test_a_redirect_to_what_is_no_url(web: Web, settings: dict[str, Any], location: str) -> None:
    settings["allow"] = web.allow
    redirect(web, location)
    with pytest.raises(ExecutorError, match="redirects to a URL that is not followed") as caught:
        await rest(url=f"{web.url}/")
    assert "s3cret" not in str(caught.value)
    assert "1::2" not in str(caught.value)


async def test_secrets_stay_with_their_origin(web: Web, other: Web, settings: dict[str, Any]) -> None:
    settings |= {"allow": ["127.0.0.1"], "headers": {web.url: {"X-Plain": "1"}, other.url: {"X-Theirs": "2"}}}
    redirect(web, f"{other.url}/there")
    visible = {"Accept": "text/csv", "If-None-Match": "v", "Range": "bytes=0-9"}
    headers = {"Cookie": "c", "X-Api-Key": "k", "X-Mine": "m", **visible}
    await rest(url=f"{web.url}/", headers=headers, auth={"bearer": "t0ken"})
    first, second = web.asked[0].headers, other.asked[0].headers
    secret = {"cookie", "x-api-key", "x-mine", "authorization", "x-plain"}
    assert secret <= first.keys()
    assert {name: second[name.lower()] for name in visible} == visible
    assert not (secret | {"x-theirs"}) & second.keys()


async def test_secrets_do_not_come_back_after_a_detour(web: Web, other: Web, settings: dict[str, Any]) -> None:
    settings["allow"] = ["127.0.0.1"]
    redirect(web, f"{other.url}/")
    redirect(other, f"{web.url}/there")
    await rest(url=f"{web.url}/", auth={"bearer": "t0ken"})
    assert ["authorization" in asked.headers for asked in web.asked] == [True, False]


async def test_a_body_stays_with_its_origin(web: Web, other: Web, settings: dict[str, Any]) -> None:
    settings["allow"] = ["127.0.0.1"]
    redirect(web, f"{other.url}/there", 307)
    with pytest.raises(ExecutorError, match="redirects a request with a body"):
        await rest(url=f"{web.url}/", method="POST", json={})
    assert other.connections == 0


@pytest.mark.parametrize(
    "masked",
    [
        {"auth": {"bearer": "***"}},
        {"headers": {"Authorization": "***"}},
        {"query": {"api_key": "***"}},
        {"json": {"deep": [{"password": "***"}]}},
        {"body": '{"password": "***"}'},
        {"body": "password=***"},
        {"body": "***"},
        {"form": {"token": "***"}},
    ],
)
async def test_a_mask_is_not_sent_as_a_secret(web: Web, settings: dict[str, Any], masked: dict[str, Any]) -> None:
    settings["allow"] = web.allow
    with pytest.raises(InvalidInputsError, match="give it again"):
        await rest(url=web.url, **masked)
    with pytest.raises(InvalidInputsError, match="give it again"):
        await rest(url=f"{web.url}/?api_key=***")
    assert web.connections == 0
