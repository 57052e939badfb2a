"""The sockets that a server listens on: one for each address of ``host`` and each worker."""

import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from ipaddress import ip_address

from sse_app.config import Config
from sse_app.errors import ConfigError

BACKLOG = 4096  # connections that may wait to be accepted: a hub's clients come back all at once
PORT_TRIES = 10  # free ports that are tried until one is free at every address
SPREADS = sys.platform == "linux"  # SO_REUSEPORT: macOS gives all connections to one socket


def listen(config: Config) -> list[list[socket.socket]]:
    """Return for each worker its sockets, on every address of ``host``. The connections that a socket accepts inherit
    its options. Raises ConfigError, also when another server listens there, with workers of its own or not.
    """
    addresses = _addresses(config)
    tries = PORT_TRIES if config.port == 0 else 1
    while True:
        tries -= 1
        try:
            return _listen(config, addresses)
        except ConfigError:  # a port that is free at one address may be taken at the next
            if not tries:
                raise


def _addresses(config: Config) -> dict[tuple[int, str], str]:
    """Return the family and address of each socket to open, with the host of the settings that it stands for."""
    addresses: dict[tuple[int, str], str] = {}
    for host in config.addresses:
        try:
            found = socket.getaddrinfo(host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:  # a name that cannot be looked up is one or the other
            raise _cannot_listen(host, config.port, error) from error
        for family, _, _, _, address in found:
            addresses.setdefault((family, str(address[0])), host)
    every = {family for family, address in addresses if ip_address(address).is_unspecified}
    return {
        (family, address): host
        for (family, address), host in addresses.items()
        if family not in every or ip_address(address).is_unspecified  # a wildcard includes all others of its family
    }


def _listen(config: Config, addresses: Mapping[tuple[int, str], str]) -> list[list[socket.socket]]:
    port, each = config.port, list[list[socket.socket]]()
    with ExitStack() as opened:
        for (family, address), host in addresses.items():
            try:
                sockets = _sockets(config, family, (address, port), opened)
            except OSError as error:
                raise _cannot_listen(host, port, error) from error
            port = sockets[0].getsockname()[1]
            each.append(sockets)
        opened.pop_all()
    return [list(sockets) for sockets in zip(*each, strict=True)]


def _sockets(config: Config, family: int, address: tuple[str, int], opened: ExitStack) -> list[socket.socket]:
    """Return a socket for each worker: its own where the kernel spreads connections over sockets of one address, else
    one that all workers share.
    """
    first = opened.enter_context(socket.create_server(address, family=family, backlog=BACKLOG))
    sockets = [first]
    if SPREADS and config.workers > 1:
        # Set after the socket listens: had two servers set it before, both could listen here, and neither would fail.
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for _ in range(config.workers - 1):
            again = socket.create_server(first.getsockname()[:2], family=family, backlog=BACKLOG, reuse_port=True)
            sockets.append(opened.enter_context(again))
    for listening in sockets:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, config.so_sndbuf)
        if sys.platform == "linux":
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(config.tcp_user_timeout * 1000))
    return sockets * (config.workers // len(sockets))


def _cannot_listen(host: str, port: int, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or error
    return ConfigError(f"host, port: cannot listen on {host} port {port}: {reason}.")


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
