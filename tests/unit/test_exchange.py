"""Redirects between http and https, and how much of a packed answer is unpacked: without a connection."""

from __future__ import annotations

import gzip
import tracemalloc

import httpx
import pytest

from apflow import ExecutorError, InvalidInputsError
from apflow.executors.exchange import answered, asked_by
from apflow.executors.network import Allowed
from apflow.executors.transport import GuardedTransport, _Unpacker

pytestmark = pytest.mark.anyio


class Scripted(GuardedTransport):
    """Answers the first request with a redirect and the next ones with 200, and connects to nobody."""

    def __init__(self, location: str) -> None:
        super().__init__(Allowed(), 1000)
        self.location = location
        self.asked: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        first = len(self.asked) == 1
        return httpx.Response(302 if first else 200, headers={"Location": self.location} if first else {})


async def follow(start: str, location: str) -> list[httpx.Request]:
    transport = Scripted(location)
    inputs = {"url": start, "auth": {"bearer": "t0ken"}}
    async with transport, answered(transport, asked_by(inputs, {}), follow=True) as (last, response):
        assert response.status_code == 200
        assert last.url == transport.asked[-1].url
    return transport.asked


async def test_nothing_leaves_https_for_http() -> None:
    for host in ("example.com", "example.org"):
        with pytest.raises(ExecutorError, match=r"^example\.com redirects from https to http, which is not followed$"):
            await follow("https://example.com/", f"http://{host}/s3cret")


async def test_the_same_host_on_https_gets_the_authorization() -> None:
    _, second = await follow("http://example.com/a", "https://example.com/b")
    assert str(second.url) == "https://example.com/b"
    assert second.headers["authorization"] == "Bearer t0ken"


@pytest.mark.parametrize(
    "location",
    [
        "https://example.org/",
        "https://example.com:8443/",
        "http://example.com:8080/",
        "//example.org/",
        "http://example.org",
    ],
)
async def test_another_origin_does_not(location: str) -> None:
    _, second = await follow("http://example.com/a", location)
    assert "authorization" not in second.headers


async def test_a_query_that_is_too_long_is_refused() -> None:
    with pytest.raises(InvalidInputsError, match=r"^query: the URL with it is too long$"):
        asked_by({"url": "https://example.com/", "query": {"a": "x" * 70_000}}, {})


async def test_outside_of_a_run_no_key_is_added() -> None:
    assert asked_by({"url": "https://example.com/", "method": "POST", "json": 1}, {}).headers.keys() == {"content-type"}


def test_many_packed_pieces_are_refused() -> None:
    one = gzip.compress(b"x")
    assert _Unpacker(1000).feed(one * 100) == b"x" * 100
    with pytest.raises(ExecutorError, match="more than 100 pieces"):
        _Unpacker(1000).feed(one * 101)


async def test_no_more_is_unpacked_than_may_be_read() -> None:
    packed = gzip.compress(b"0" * 50_000_000)
    unpacker = _Unpacker(100_000)
    tracemalloc.start()
    try:
        with pytest.raises(ExecutorError, match="larger than 100000 bytes"):
            unpacker.feed(packed)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
