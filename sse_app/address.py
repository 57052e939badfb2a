"""The address of a client, also behind proxies: of whom a limit is counted, and to whom a ticket is bound.

A proxy appends the address of its own client to a header. So the header is read from its right end, and only as far as
the proxies that wrote it are trusted: what stands further left, anyone may have sent.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import islice
from typing import Self

UNIX = "unix"  # the address of a peer on a Unix socket, and its name among the trusted proxies
HEADERS = ("x-forwarded-for", "forwarded")  # the second is RFC 7239
HOPS_MAX = 20  # elements of the header that are read
NETWORK_BITS = 64  # of IPv6: what one customer has at least (RFC 6177), and takes addresses from as it likes

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network
RawHeaders = Iterable[tuple[bytes, bytes]]  # as in an ASGI scope: the names in lower case

# An address as proxies write it, with or without a port (RFC 7239, 6: also a port that is no number).
_NODE = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<v4>[0-9.]+))(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?|(?P<bare>[^\[\]]+)")
# The last element of a Forwarded header that was turned round, so that an element is read up to the comma before it
# without a look at what stands there: an open quote that a client sent must not swallow what its proxy appended. Turned
# round, an escaped quote is `"\`.
_LAST_ELEMENT = re.compile(r'(?P<element>(?:[^",]++|"(?:"\\|[^"])*+")*+)(?P<comma>,|\Z)')
_PAIR = re.compile(r'[ \t]*([A-Za-z0-9!#$%&\'*+.^_`|~-]+)=("(?:[^"\\]|\\.)*+"|[^\s";]*)[ \t]*(?:;|\Z)')


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies that are trusted, and the ``header`` in which they tell of their clients. Without any, a client's
    address is its peer's.
    """

    networks: tuple[IPNetwork, ...] = ()
    unix: bool = False
    header: str = ""

    @classmethod
    def parse(cls, trusted: Iterable[str], header: str | None) -> Self:
        """Return the proxies of these networks and addresses; ``unix`` is who connects by a Unix socket. ``header`` is
        one of HEADERS. Raises ValueError for a network that is none, or that everyone is in.
        """
        names = tuple(trusted)
        networks = tuple(_network(name) for name in names if name != UNIX)
        return cls(networks, UNIX in names, (header or "").lower())

    def __bool__(self) -> bool:
        return self.unix or bool(self.networks)

    def client_address(self, peer: str | None, headers: RawHeaders) -> str:
        """Return the address of the client that sent a request with these headers. ``peer`` is the address at the other
        end of the connection, None for a Unix socket.

        It is the first from the right that no trusted proxy has. What is no address ends the search at the hop before,
        as do HOPS_MAX hops. Ports, brackets and zones are left out, and an IPv4-mapped address is IPv4.
        """
        if peer and ":" not in peer and not self:
            return peer  # IPv4, as sockets write it: to look into it would cost each connect 10 us
        address = parse_address(peer or "")
        found = str(address) if address else peer or UNIX
        if found == peer:
            found = peer  # the text that the connection has anyway: a stream keeps it too
        is_trusted = self._trusts(address) if address else self.unix and not peer
        hops = islice(self._hops(headers), HOPS_MAX)
        while is_trusted and (address := parse_address(next(hops, ""))):
            found, is_trusted = str(address), self._trusts(address)
        return found

    def _trusts(self, address: IPAddress) -> bool:
        return any(address in network for network in self.networks)

    def _hops(self, headers: RawHeaders) -> Iterator[str]:
        """Yield the addresses that the elements of the header name, from the right; "" for one that names none."""
        name = self.header.encode()
        lines = [value.decode("latin-1") for key, value in headers if key == name]
        if lines:  # several lines are one list (RFC 9110, 5.3)
            yield from (_forwarded if self.header == "forwarded" else _forwarded_for)(",".join(lines))


def parse_address(text: str) -> IPAddress | None:
    """Return the address in a text as proxies and servers write it, None when there is none."""
    match = _NODE.fullmatch(text.strip(" \t"))
    if match is None:
        return None
    try:
        address = ip_address((match["v6"] or match["v4"] or match["bare"]).partition("%")[0])
    except ValueError:
        return None
    if address.version == 4 and not match["v4"]:  # with brackets or a zone
        return None
    return getattr(address, "ipv4_mapped", None) or address


def bucket(address: str) -> str:
    """Return what is counted as one: an address of IPv4, a network of IPv6."""
    found = parse_address(address)
    if not isinstance(found, IPv6Address):
        return address
    return str(IPv6Network((int(found), NETWORK_BITS), strict=False))


def is_public(address: str) -> bool:
    """Return True for an address of the internet. All others may be those of a proxy in front of everyone."""
    found = parse_address(address)
    return found is not None and found.is_global


def _network(name: str) -> IPNetwork:
    network = ip_network(name)
    if network.prefixlen == 0:
        raise ValueError("a network that everyone is in")
    if isinstance(network, IPv6Network) and network[0].ipv4_mapped:
        raise ValueError("an IPv4-mapped network, which no address is in")
    return network


def _forwarded_for(text: str) -> Iterator[str]:
    yield from reversed(text.rsplit(",", HOPS_MAX))


def _forwarded(text: str) -> Iterator[str]:
    turned, start = text[::-1], 0
    while match := _LAST_ELEMENT.match(turned, start):
        yield _for(match["element"][::-1])
        if not match["comma"]:
            return
        start = match.end()
    yield ""


def _for(element: str) -> str:
    """Return the value of ``for`` in an element of a Forwarded header, "" when there is none, or not one alone."""
    found, start = [], 0
    while start < len(element):
        match = _PAIR.match(element, start)
        if match is None:
            return ""
        if match[1].lower() == "for":
            found.append(match[2])
        start = match.end()
    value = found[0] if len(found) == 1 else ""
    return value[1:-1] if value.startswith('"') else value
