"""The sockets that this process listens on, found among its file descriptors.

A server that stops first closes its listening sockets, whatever stops it: a signal, its parent, its own limit of
requests. All servers have this sign of a stop in common (``web/door.py``).
"""

import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

POLL = 0.5  # seconds between two checks of a socket; short against the seconds that open streams have to end
# Descriptors below this number are checked; 8,000 would take 160 ms. A listening socket has a low one, since servers
# listen before they have connections.
DESCRIPTORS = 512

Address = Sequence[str | int | None]  # as ASGI has it in scope["server"]: a host and port, or a path and None


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket. Its inode tells whether the descriptor is still this socket: descriptors are used again."""

    descriptor: int
    inode: int
    name: object  # host, port, ... of a TCP socket; the path of a Unix socket

    @property
    def open(self) -> bool:
        try:
            return os.fstat(self.descriptor).st_ino == self.inode
        except OSError:
            return False

    def serves(self, server: Address) -> bool:
        """Return True when a connection to the address ``server`` may have come in here. Hosts are not compared, since
        a wildcard's is none of a connection. granian has the port as a str.
        """
        host, port = server
        if port is None:
            return self.name == host
        return isinstance(self.name, tuple) and str(self.name[1]) == str(port)


def listeners() -> Iterator[Listener]:
    """The listening sockets of servers on event loops in this process. On Windows none: its sockets have no descriptors
    of this kind.
    """
    if sys.platform == "win32":
        return
    for descriptor in range(DESCRIPTORS):
        with suppress(OSError):  # the descriptor is not open, is no socket, or has no such options
            if found := _listener(descriptor):
                yield found


def _listener(descriptor: int) -> Listener | None:
    if os.get_blocking(descriptor):
        return None  # of a thread: socket.socket() below would make it non-blocking when there is a default timeout
    asked = socket.socket(fileno=descriptor)
    try:
        if not asked.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return None
        return Listener(descriptor, os.fstat(descriptor).st_ino, asked.getsockname())
    finally:
        asked.detach()
