"""Which requests a server takes for its own: the headers Host and Origin."""

from __future__ import annotations

from typing import Any

import pytest

from apflow.bridge.guard import Guarded, is_loopback

pytestmark = pytest.mark.anyio

LOOPBACK_HOSTS = [
    "localhost",
    "localhost:8000",
    "LOCALHOST:1",
    "127.0.0.1",
    "127.0.0.1:8000",
    "127.1.2.3:5",
    "[::1]:80",
]
OTHER_HOSTS = [
    *("evil.example.com", "evil.example.com:8000", "localhost.evil.example.com", "127.0.0.1.evil.example.com:80"),
    *("192.168.0.1:8000", "0.0.0.0:8000", "localhost@evil.example.com", "evil.example.com/localhost", "[fe80::1]"),
]
NO_HOSTS = ["", "localhost:port", "localhost/", "user@localhost", "localhost:99999", "[::1", "local\thost", "::1"]


async def status(*headers: tuple[str, str], loopback: bool = True, kind: str = "http") -> int:
    """Return the status of a request, 200 when the guard has let it through, 1008 for a closed websocket."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Any:
        return {"type": f"{kind}.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    scope = {"type": kind, "method": "POST", "path": "/mcp", "headers": raw}
    await Guarded(app, loopback=loopback)(scope, receive, send)
    number: int = sent[0].get("status") or sent[0]["code"]
    return number


@pytest.mark.parametrize("host", LOOPBACK_HOSTS)
async def test_a_server_on_this_machine_is_called_by_its_names(host: str) -> None:
    assert await status(("host", host)) == 200
    assert await status(("Host", host), ("Origin", f"http://{host}")) == 200


@pytest.mark.parametrize("host", [*OTHER_HOSTS, *NO_HOSTS])
async def test_a_server_on_this_machine_has_no_other_names(host: str) -> None:
    assert await status(("host", host)) == 421


@pytest.mark.parametrize("loopback", [True, False])
async def test_a_request_names_one_host_and_at_most_one_origin(loopback: bool) -> None:
    host, origin = ("host", "localhost"), ("origin", "http://localhost")
    assert await status(loopback=loopback) == 421
    assert await status(host, host, loopback=loopback) == 421
    assert await status(host, origin, origin, loopback=loopback) == 403


@pytest.mark.parametrize(
    "origin",
    [
        *(f"http://{host}" for host in OTHER_HOSTS),
        *("null", "", "localhost", "file://localhost", "ftp://localhost", "http://", "http:localhost"),
    ],
)
async def test_pages_of_other_sites_may_not_call_a_server_on_this_machine(origin: str) -> None:
    assert await status(("host", "localhost:8000"), ("origin", origin)) == 403


@pytest.mark.parametrize(
    "origin", ["http://localhost", "http://127.0.0.1:3000", "https://localhost:6274", "http://[::1]:1"]
)
async def test_pages_of_this_machine_may_call_a_server_on_it(origin: str) -> None:
    assert await status(("host", "localhost:8000"), ("origin", origin)) == 200


@pytest.mark.parametrize("host", [*LOOPBACK_HOSTS, "agents.example.com", "192.168.0.1:8000"])
async def test_a_public_server_has_any_name(host: str) -> None:
    assert await status(("host", host), loopback=False) == 200
    assert await status(("host", host), ("origin", f"https://{host}"), loopback=False) == 200
    assert await status(("host", host), ("origin", "https://example.org"), loopback=False) == 403


@pytest.mark.parametrize("host", NO_HOSTS)
async def test_a_public_server_has_a_name(host: str) -> None:
    assert await status(("host", host), loopback=False) == 421


@pytest.mark.parametrize(
    ("host", "origin", "expected"),
    [
        ("example.com", "https://example.com:443", 200),
        ("example.com:80", "http://example.com", 200),
        ("example.com:8000", "http://example.com", 403),
        ("example.com", "http://example.com:8000", 403),
        ("EXAMPLE.com", "http://example.com", 200),
        ("example.com", "null", 403),
    ],
)
async def test_ports_are_part_of_an_origin(host: str, origin: str, expected: int) -> None:
    assert await status(("host", host), ("origin", origin), loopback=False) == expected


@pytest.mark.parametrize("loopback", [True, False])
async def test_there_are_no_websockets(loopback: bool) -> None:
    assert await status(("host", "localhost"), kind="websocket", loopback=loopback) == 1008


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_a_loopback_address_reaches_this_machine_alone(host: str) -> None:
    assert is_loopback(host)


EVERYBODY = "0.0.0.0"  # noqa: S104 - nothing listens there


@pytest.mark.parametrize("host", [EVERYBODY, "::", "", "192.168.0.1", "example.com", "localhost.example.com", "127"])
def test_everything_else_may_be_reached_by_others(host: str) -> None:
    assert not is_loopback(host)
