"""Which addresses executors may connect to.

An executor gets its addresses from whoever writes a task tree, often a model. Only public addresses are open to
it; everything inside the operator's network has to be named in the executor's setting `allow`. Who connects uses
the addresses that `resolve` returned and asks nobody again, so a name cannot change between check and connection.
"""

from __future__ import annotations

import asyncio
import re
import socket
import unicodedata
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Final

from apflow.errors import AddressRefusedError, ExecutorError

if TYPE_CHECKING:
    from collections.abc import Iterable

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_RESOLVE_SECONDS: Final = 10.0
_LARGEST_PORT: Final = 65_535
_LONGEST_HOST: Final = 253
_LONGEST_GIVEN: Final = 4 * _LONGEST_HOST  # longer ones take long to normalise, and are none afterwards
_HOST: Final = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
# What the C library takes for an IPv4 address: one to four numbers, each decimal, octal or hexadecimal.
_NUMBER: Final = re.compile(r"0x[0-9a-f]*|[0-9]+")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_DOTS: Final = str.maketrans({"\u3002": ".", "\uff0e": ".", "\uff61": "."})

# The first network that holds an address tells why it is refused.
_REFUSED: Final = tuple(
    (ip_network(network), reason)
    for reason, networks in (
        ("loopback", ("127.0.0.0/8", "::1/128")),
        ("unspecified", ("0.0.0.0/8", "::/128")),
        ("metadata", ("169.254.169.254/32", "169.254.170.2/32", "169.254.170.23/32", "100.100.100.200/32")),
        ("metadata", ("168.63.129.16/32", "192.0.0.192/32", "fd00:ec2::/64", "fd20:ce::254/128")),
        ("link-local", ("169.254.0.0/16", "fe80::/10")),
        ("private", ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fec0::/10")),
        ("shared", ("100.64.0.0/10",)),
        ("documentation", ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "3fff::/20")),
        ("benchmark", ("198.18.0.0/15", "2001:2::/48")),
        ("multicast", ("224.0.0.0/4", "ff00::/8")),
        ("reserved", ("192.0.0.0/24", "192.88.99.0/24", "240.0.0.0/4", "2001::/23", "2002::/16")),
    )
    for network in networks
)
_NAT64: Final = IPv6Network("64:ff9b::/96")
_COMPATIBLE: Final = IPv6Network("::/96")
_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_GLOBAL: Final = IPv6Network("2000::/3")


@dataclass(frozen=True, slots=True)
class Allowed:
    """What the setting `allow` of an executor opens beyond the public addresses: exactly what it names.

    Attributes:
        names: Host names, each with its port, None for every port. A name is open whatever it resolves to.
        networks: Networks, each with its port, None for every port. Names that resolve into one are open, too.
    """

    names: frozenset[tuple[str, int | None]] = frozenset()
    networks: tuple[tuple[Network, int | None], ...] = ()

    @classmethod
    def parse(cls, entries: Iterable[str]) -> Allowed:
        """Read the setting: `"host"`, `"1.2.3.4"`, `"::1"`, each also with a port, or `"10.0.0.0/8"`.

        A port is written as in a URL: `"host:8080"`, `"[::1]:8080"`.

        Raises:
            ValueError: An entry is none of these. The message names its position, counted from 0.
        """
        if isinstance(entries, str | bytes):
            raise ValueError(f"allow must be a list of texts, got {type(entries).__name__}")
        names: set[tuple[str, int | None]] = set()
        networks: list[tuple[Network, int | None]] = []
        for position, entry in enumerate(entries):
            try:
                target, port = _entry(entry)
            except (AddressRefusedError, ValueError) as error:
                raise ValueError(
                    f"allow[{position}] must be a host name, an IP address (both also with :port) or a network such "
                    "as 10.0.0.0/8: no URL, no path, no wildcard"
                ) from error
            if isinstance(target, str):
                names.add((target, port))
            else:
                networks.append((target, port))
        return cls(frozenset(names), tuple(networks))

    def opens(self, host: str, port: int, address: Address) -> bool:
        """Whether an entry names this host or this address, for this port.

        Args:
            host: As `normal_host` returns it.
            port: Where the connection goes.
            address: What the host resolved to.
        """
        if (host, None) in self.names or (host, port) in self.names:
            return True
        return any(only in {None, port} and address in network for network, only in self.networks)


def normal_host(host: str) -> str:
    """Return a host in the one form that is checked, connected to and sent: lower case, ASCII, no final dot.

    An IPv4 address in any form that the operating system understands (`2130706433`, `0x7f.1`, `0177.0.0.1`)
    becomes four decimal numbers; an IPv6 address loses its brackets.

    Raises:
        AddressRefusedError: It is no host name and no address, or an address with a zone.
    """
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if len(bare) > _LONGEST_GIVEN:
        raise AddressRefusedError("the host is no host name and no IP address (malformed)")
    if ":" in bare:
        return _normal_ipv6(bare)
    text = unicodedata.normalize("NFKC", bare).translate(_DOTS).lower()
    text = _ascii(text.removesuffix("."))
    if bare is not host or len(text) > _LONGEST_HOST or _HOST.fullmatch(text) is None:
        raise AddressRefusedError("the host is no host name and no IP address (malformed)")
    if _NUMBER.fullmatch(text.rpartition(".")[2]) is None:
        return text
    try:
        return str(IPv4Address(socket.inet_aton(text)))
    except OSError:
        raise AddressRefusedError("the host ends in a number, but is no IPv4 address (malformed)") from None


async def resolve(host: str, port: int, allow: Allowed) -> list[str]:
    """Return the addresses of a host, in the order of preference, if all of them are open.

    One address that is not open closes the name: it could be the one that a later connection gets.

    Args:
        host: A name or an address in any form.
        port: Where the connection goes, 1 to 65,535.
        allow: What is open beyond the public addresses.

    Raises:
        AddressRefusedError: An address is not open. The message has the host and the kind of address.
        ExecutorError: The host cannot be resolved now; `retryable` is True.
    """
    name = normal_host(host)
    if not 0 < port <= _LARGEST_PORT:
        raise AddressRefusedError(f"the port must be 1 to {_LARGEST_PORT}")
    addresses = [_plain(address) for address in await _addresses(name, port)]
    for address in addresses:
        reason = refusal(address)
        if reason is not None and not allow.opens(name, port, address):
            raise AddressRefusedError(
                f"connections to {name} are refused: its address is {reason}. "
                "The executor's setting 'allow' opens what it names"
            )
    return list(dict.fromkeys(map(str, addresses)))


def refusal(address: Address) -> str | None:
    """Return why an address is closed, such as `"loopback"` or `"private"`, or None for a public one.

    IPv6 addresses that carry an IPv4 address are judged by that one.
    """
    plain = _plain(address)
    carried = _carried(plain) if isinstance(plain, IPv6Address) else None
    found = next((reason for network, reason in _REFUSED if plain in network), None)
    if carried is not None and found in {None, "reserved"}:
        inner = refusal(carried)
        if inner is not None or plain in _NAT64:
            return inner
    if found is None and isinstance(plain, IPv6Address) and plain not in _GLOBAL:
        return "reserved"
    return found if found is not None or plain.is_global else "reserved"


def _carried(address: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address in a NAT64, 6to4, Teredo or IPv4-compatible address."""
    if address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.sixtofour or (address.teredo[1] if address.teredo else None)


def _plain(address: Address) -> Address:
    """Return the IPv4 address that an IPv4-mapped one is, and any other as it is."""
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


async def _addresses(name: str, port: int) -> list[Address]:
    try:
        return [ip_address(name)]
    except ValueError:
        pass
    try:
        async with asyncio.timeout(_RESOLVE_SECONDS):
            found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # A timeout is an OSError.
        raise ExecutorError(f"the host {name} cannot be resolved", retryable=True) from None
    if not found:
        raise ExecutorError(f"the host {name} has no address", retryable=True)
    if any("%" in str(info[4][0]) for info in found):
        raise AddressRefusedError(f"connections to {name} are refused: its address is link-local and has a zone")
    return [ip_address(info[4][0]) for info in found]


def _normal_ipv6(text: str) -> str:
    try:
        address = IPv6Address(text)
    except ValueError:
        raise AddressRefusedError("the host is no host name and no IP address (malformed)") from None
    if address.scope_id is not None:
        raise AddressRefusedError("an IPv6 address with a zone is refused (link-local)")
    return str(address)


def _ascii(text: str) -> str:
    if text.isascii():
        return text
    import idna

    try:
        return idna.encode(text, uts46=True).decode("ascii").lower()
    except UnicodeError:
        raise AddressRefusedError("the host is no host name and no IP address (malformed)") from None


def _entry(entry: str) -> tuple[str | Network, int | None]:
    """Return what one entry of `allow` names, and its port."""
    if not isinstance(entry, str):
        raise ValueError("no text")
    if "/" in entry:
        network = ip_network(entry)
        if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
            raise ValueError("IPv4 networks are written as such")
        return network, None
    host, port = entry, None
    if entry.startswith("[") or entry.count(":") == 1:
        host, colon, digits = entry.rpartition(":") if not entry.endswith("]") else (entry, "", "")
        port = _port(digits) if colon else None
    name = normal_host(host)
    try:
        address = _plain(ip_address(name))
    except ValueError:
        return name, port
    if isinstance(address, IPv4Address) and ":" not in host and str(address) != host:
        raise ValueError("IPv4 addresses are written as four decimal numbers")
    return ip_network(address), port


def _port(digits: str) -> int:
    if _PORT.fullmatch(digits) is None or not 0 < int(digits) <= _LARGEST_PORT:
        raise ValueError("no port")
    return int(digits)
