"""The address that the load goes to: this machine, and no other."""

import ipaddress
import math
import socket
import sys
from typing import NamedTuple
from urllib.parse import urlsplit

from sse_app.errors import BenchRefused

# Linux has 28,232 ephemeral ports for each source address unless configured otherwise, and searching for a free one
# takes longer the fewer are left.
PORTS_PER_SOURCE = 5_000


class Target(NamedTuple):
    """A resolved server: connections go to `address`, the `Host` header says what the URL said."""

    address: str
    port: int
    host: str
    path: str

    def subscribe(self, token: str | None, last: str | None = None) -> bytes:
        """Return the request that opens a stream, after the event with the id `last` if there is one."""
        head = f"GET {self.path}/events HTTP/1.1\r\nHost: {self.host}\r\n{_bearer(token)}"
        head += f"Last-Event-ID: {last}\r\n" if last else ""
        return f"{head}Accept: text/event-stream\r\nCache-Control: no-store\r\n\r\n".encode()

    def publish(self, key: str | None, several: bool = False) -> bytes:
        """Return the head of a request that publishes one event, or several as lines of NDJSON: up to the value of its
        Content-Length, which ends it.
        """
        head = f"POST {self.path}/broadcast HTTP/1.1\r\nHost: {self.host}\r\n{_bearer(key)}"
        media_type = "application/x-ndjson" if several else "application/json"
        return f"{head}Content-Type: {media_type}\r\nContent-Length: ".encode()


def _bearer(secret: str | None) -> str:
    return f"Authorization: Bearer {secret}\r\n" if secret else ""


def resolve(url: str) -> Target:
    """Return the target that `url` names. Raises BenchRefused for another machine: a load is an attack on it.

    The name is looked up once, so that the address that was checked is the one connected to.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 80
    except ValueError as wrong:
        raise BenchRefused(f"{url!r} is not a URL: {wrong}") from None
    if parts.scheme != "http" or not parts.hostname:
        raise BenchRefused(f"{url!r}: the load speaks plain http://host:port only")
    try:
        address = str(socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise BenchRefused(f"{parts.hostname}: {error.strerror}") from None
    if not ipaddress.ip_address(address).is_loopback:
        raise BenchRefused(f"{parts.hostname} is {address}, not this machine: only that one may be loaded")
    return Target(address, port, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"))


def source(number: int, subscribers: int, address: str) -> tuple[str, int] | None:
    """Return the local address of one of `subscribers`, spread so that no source address runs out of ports."""
    sources = math.ceil(subscribers / PORTS_PER_SOURCE)
    if sources == 1 or sys.platform != "linux" or not address.startswith("127."):
        return None
    return f"127.0.0.{1 + number % sources}", 0
