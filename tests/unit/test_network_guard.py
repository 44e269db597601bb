"""The guard before connections of executors: what it takes a host for, what it refuses, what it opens."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apflow import AddressRefusedError, ExecutorError
from apflow.executors.network import Allowed, normal_host, refusal, resolve

PUBLIC = "8.8.8.8"
PUBLIC6 = "2606:4700:4700::1111"
NOTHING = Allowed()


class Names:
    """Stands in for the resolver: what each name resolves to, one answer after the other, and who asked."""

    def __init__(self) -> None:
        self.answers: dict[str, list[list[str]]] = {}
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        self.asked.append(host)
        if host not in self.answers:
            raise socket.gaierror(socket.EAI_NONAME, "secret words of the resolver")
        addresses = self.answers[host].pop(0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    made = Names()
    monkeypatch.setattr(socket, "getaddrinfo", made)
    return made


@pytest.mark.parametrize(
    ("host", "normal"),
    [
        ("LocalHost.", "localhost"),
        ("api.EXAMPLE.com", "api.example.com"),
        ("b\u00fccher.example.com", "xn--bcher-kva.example.com"),
        ("\u24c1ocalhost", "localhost"),
        ("my_service-1", "my_service-1"),
        *((host, "127.0.0.1") for host in ("127.0.0.1", "2130706433", "0x7f000001", "0X7F000001", "017700000001")),
        *((host, "127.0.0.1") for host in ("0177.0.0.1", "127.1", "127.0.1", "0x7f.1", "127.0.0.1.")),
        *((host, "127.0.0.1") for host in ("127\u30020\u30020\u30021", "\uff11\uff12\uff17.0.0.1", "127\uff0e1")),
        ("8.8", "8.0.0.8"),
        ("[::1]", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("::ffff:127.0.0.1", "::ffff:7f00:1"),
    ],
)
def test_each_host_has_one_form(host: str, normal: str) -> None:
    assert normal_host(host) == normal


@pytest.mark.parametrize(
    "host",
    [
        *(
            "",
            ".",
            "a..b",
            "a b",
            "a\0b",
            "a/b",
            "a@b",
            "a:80",
            "%31",
            "*",
            "a" * 64,
            "a." * 127 + "a",
            "\uff05",
            "\u0378",
        ),
        *("a." * 600, "\u00e4" * 20_000, "a" + "\u0315\u0300" * 5000),
        *("1.2.3.4.5", "256.1.1.1", "1.2.3.08", "4294967296", "a.1", "a.0x7f", "[127.0.0.1]", "[::1", "127.0.0.1 x"),
        *("fe80::1%eth0", "[fe80::1%25eth0]", "::1%0", "[v1.x]", "12345::"),
    ],
)
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(AddressRefusedError):
        normal_host(host)


@given(st.integers(0, 2**32 - 1))
def test_numbers_are_the_address_that_the_system_takes_them_for(number: int) -> None:
    dotted = str(IPv4Address(number))
    first, rest = number >> 24, number & 0xFFFFFF
    for form in (
        str(number),
        hex(number),
        f"0{number:o}",
        f"{first}.{rest}",
        f"0x{first:x}.{rest >> 16}.{rest & 65535}",
    ):
        assert normal_host(form) == dotted


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        *((address, "loopback") for address in ("127.0.0.1", "127.255.0.1", "::1", "::ffff:127.0.0.1", "::127.0.0.1")),
        *((address, "loopback") for address in ("64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:1:2:3:4:80ff:fffe")),
        *((address, "private") for address in ("10.1.2.3", "172.31.0.1", "192.168.1.1", "fd12::1", "fec0::1")),
        *((address, "private") for address in ("::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::")),
        *((address, "metadata") for address in ("169.254.169.254", "fd00:ec2::254", "100.100.100.200")),
        *((address, "metadata") for address in ("::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "168.63.129.16")),
        *((address, "link-local") for address in ("169.254.1.1", "fe80::1")),
        *((address, "unspecified") for address in ("0.0.0.0", "0.1.2.3", "::")),  # noqa: S104 - refused
        *((address, "shared") for address in ("100.64.0.1", "100.127.255.255")),
        *((address, "benchmark") for address in ("198.18.0.1", "198.19.255.255", "2001:2::1")),
        *((address, "documentation") for address in ("192.0.2.1", "203.0.113.9", "2001:db8::1", "3fff::1")),
        *((address, "multicast") for address in ("224.0.0.1", "ff02::1")),
        *((address, "reserved") for address in ("255.255.255.255", "240.0.0.1", "192.88.99.1", "2002:808:808::")),
        *((address, "reserved") for address in ("64:ff9b:1::1", "100::1", "5f00::1", "::8.8.8.8", "4000::1")),
    ],
)
def test_addresses_that_are_not_public_are_closed(address: str, reason: str) -> None:
    assert refusal(ip_address(address)) == reason


@pytest.mark.parametrize("address", [PUBLIC, "1.1.1.1", PUBLIC6, "64:ff9b::808:808", f"::ffff:{PUBLIC}"])
def test_public_addresses_are_open(address: str) -> None:
    assert refusal(ip_address(address)) is None


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6))
def test_no_address_is_open_that_python_does_not_know_as_global(address: IPv4Address | IPv6Address) -> None:
    if refusal(address) is None:
        plain = address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
        assert plain.is_global
        assert not plain.is_multicast


@pytest.mark.anyio
async def test_a_public_name_resolves_to_its_addresses_in_order(names: Names) -> None:
    names.answers["api.example.com"] = [[PUBLIC6, PUBLIC, PUBLIC6]]
    assert await resolve("API.example.com.", 443, NOTHING) == [PUBLIC6, PUBLIC]
    assert names.asked == ["api.example.com"]


@pytest.mark.anyio
async def test_an_address_is_not_looked_up(names: Names) -> None:
    assert await resolve("134744072", 443, NOTHING) == [PUBLIC]
    assert names.asked == []


@pytest.mark.anyio
@pytest.mark.parametrize("other", ["127.0.0.1", "10.0.0.1", "::1", "::ffff:10.0.0.1", "169.254.169.254"])
async def test_one_closed_address_closes_the_name(names: Names, other: str) -> None:
    names.answers["api.example.com"] = [[PUBLIC, other]]
    with pytest.raises(AddressRefusedError, match=r"api\.example\.com") as caught:
        await resolve("api.example.com", 443, Allowed.parse(["api.example.com:80"]))
    assert caught.value.retryable is False
    assert other not in str(caught.value)


@pytest.mark.anyio
async def test_the_error_tells_the_kind_of_address(names: Names) -> None:
    names.answers["meta.example.com"] = [["169.254.169.254"]]
    with pytest.raises(AddressRefusedError, match=r"meta\.example\.com are refused: its address is metadata"):
        await resolve("meta.example.com", 80, NOTHING)


@pytest.mark.anyio
async def test_a_name_that_does_not_resolve_may_do_so_later(names: Names) -> None:
    with pytest.raises(ExecutorError, match=r"^the host api\.example\.com cannot be resolved$") as caught:
        await resolve("api.example.com", 80, NOTHING)
    assert caught.value.retryable is True
    assert not isinstance(caught.value, AddressRefusedError)


@pytest.mark.anyio
async def test_addresses_with_a_zone_are_refused_even_if_allowed(names: Names) -> None:
    names.answers["api.example.com"] = [["fe80::1%eth0"]]
    with pytest.raises(AddressRefusedError):
        await resolve("api.example.com", 80, Allowed.parse(["api.example.com", "fe80::/10"]))


@pytest.mark.anyio
@pytest.mark.parametrize("port", [0, -1, 65_536])
async def test_ports_have_bounds(names: Names, port: int) -> None:
    with pytest.raises(AddressRefusedError, match="port"):
        await resolve(PUBLIC, port, NOTHING)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("entry", "host", "port", "opened"),
    [
        ("127.0.0.1", "127.0.0.1", 80, True),
        ("127.0.0.1", "2130706433", 80, True),
        ("127.0.0.1", "::ffff:127.0.0.1", 80, True),
        ("127.0.0.1", "inner.example.com", 80, True),
        ("127.0.0.1", "127.0.0.2", 80, False),
        ("127.0.0.1", "::1", 80, False),
        ("127.0.0.1", "64:ff9b::7f00:1", 80, False),
        ("127.0.0.1:8080", "127.0.0.1", 8080, True),
        ("127.0.0.1:8080", "127.0.0.1", 80, False),
        ("127.0.0.0/8", "127.200.0.1", 80, True),
        ("127.0.0.0/8", "10.0.0.1", 80, False),
        ("0.0.0.0/0", "::1", 80, False),
        ("::/0", "127.0.0.1", 80, False),
        ("::/0", "::ffff:127.0.0.1", 80, False),
        ("::1", "::1", 80, True),
        ("[::1]", "0::1", 80, True),
        ("[::1]:8080", "::1", 8080, True),
        ("[::1]:8080", "::1", 80, False),
        ("fd00::/8", "fd12::1", 80, True),
        ("fd00::/8", "fe80::1", 80, False),
        ("::ffff:10.0.0.1", "10.0.0.1", 80, True),
        ("Inner.example.com", "inner.example.com.", 80, True),
        ("inner.example.com", "127.0.0.1", 80, False),
        ("inner.example.com", "other.inner.example.com", 80, False),
        ("example.com", "inner.example.com", 80, False),
        ("inner.example.com:80", "inner.example.com", 80, True),
        ("inner.example.com:81", "inner.example.com", 80, False),
    ],
)
async def test_the_list_opens_exactly_what_it_names(
    names: Names, entry: str, host: str, port: int, *, opened: bool
) -> None:
    names.answers = {"inner.example.com": [["127.0.0.1"]], "other.inner.example.com": [["127.0.0.1"]]}
    allow = Allowed.parse([entry])
    if opened:
        assert len(await resolve(host, port, allow)) == 1
    else:
        with pytest.raises(AddressRefusedError):
            await resolve(host, port, allow)


@pytest.mark.parametrize(
    "entry",
    [
        *("", "*", "*.example.com", "http://example.com", "example.com/x", "example.com:", "example.com:0", ":80"),
        *("example.com:65536", "example.com:\uff18\uff10", "10.0.0.1/8", "10.0.0.0/33", "::ffff:0:0/96", "[::1]x:80"),
        *("2130706433", "0x7f.1", "fe80::1%eth0", "1.2.3.4.5", "a b", 5, None, b"example.com"),
    ],
)
def test_a_wrong_entry_is_named_by_its_position(entry: Any) -> None:
    with pytest.raises(ValueError, match=r"allow\[1\] must be a host name"):
        Allowed.parse(["example.com", entry])


def test_one_text_is_no_list() -> None:
    with pytest.raises(ValueError, match="list of texts"):
        Allowed.parse("example.com")
