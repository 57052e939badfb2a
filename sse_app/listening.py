"""The sockets that this process listens on, asked of the operating system: the one sign of a stop that servers share.

Every server closes them first when it stops, whoever told it to: a signal, its parent, its own limit of requests.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

LOOK = 0.5  # seconds between two looks; the open streams have seconds to end after it
DESCRIPTORS = 512  # the lowest, which are asked: servers listen before they have connections; 8,000 would take 160 ms

Address = Sequence[str | int | None]  # as ASGI has it in scope["server"]: a host and port, or a path and None


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket. An inode is never two sockets at a time, a descriptor soon is another file."""

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
        """At the address of a connection: that of a wildcard has another host. granian has the port as a str."""
        host, port = server
        if port is None:
            return self.name == host
        return isinstance(self.name, tuple) and str(self.name[1]) == str(port)


def listeners() -> Iterator[Listener]:
    """The listening sockets that servers on event loops have here; none on Windows, which has no such descriptors."""
    if sys.platform == "win32":
        return
    for descriptor in range(DESCRIPTORS):
        with suppress(OSError):  # not open, no socket, or none that can be asked
            if found := _listener(descriptor):
                yield found


def _listener(descriptor: int) -> Listener | None:
    if os.get_blocking(descriptor):
        return None  # a thread's; and with a default timeout, asking would change what blocks
    asked = socket.socket(fileno=descriptor)
    try:
        if not asked.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return None
        return Listener(descriptor, os.fstat(descriptor).st_ino, asked.getsockname())
    finally:
        asked.detach()


class Door:
    """The server that streams come through, known by its address as soon as there is one."""

    def __init__(self) -> None:
        self._server: Address | None = None
        self._changed = asyncio.Event()

    def entered(self, server: Address | None) -> None:
        """A stream came through this server. Called for every one, so next to nothing when that is known."""
        if server is not None and server != self._server:
            self._server = server
            self._changed.set()

    async def closed(self) -> None:
        """Return once the server listens no longer. Waits for ever while none is found to."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            assert self._server is not None
            ours = [listener for listener in listeners() if listener.serves(self._server)]
            while ours:
                await asyncio.sleep(LOOK)
                ours = [listener for listener in ours if listener.open]
                if not ours:
                    return
