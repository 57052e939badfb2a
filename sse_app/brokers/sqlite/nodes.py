"""The processes of this machine that share a log: how many subscribers each has, and how to wake it.

Each keeps a small file in ``<file>-nodes``, locked as long as it lives: the kernel unlocks it however it ends. In it
stand the loopback port on which it wants a datagram whenever something was appended, and its number of subscribers. A
datagram that is lost, or cannot reach another network namespace, costs a moment: everyone also looks by itself.
"""

import fcntl
import os
import secrets
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sse_app.brokers.sqlite.files import NODES, make_directory_beside, open_beside

LOOPBACK = "127.0.0.1"
KNOWN_FOR = 0.5  # seconds until the directory is looked at again


class Node(NamedTuple):
    port: int
    subscribers: int


class Nodes:
    """Its own file, and those of the others. Small file operations; any thread may call, one at a time each.

    What is not understood in here, and what fails in ``tell`` and ``wake``, costs a moment too, never a publication.
    """

    def __init__(self, database: Path) -> None:
        self._database, self._directory = database, Path(f"{database}{NODES}")
        self._name = secrets.token_hex(8)
        self._file: int | None = None
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._ports: list[int] = []
        self._looked = float("-inf")

    def join(self, port: int) -> None:
        make_directory_beside(self._database, self._directory)
        unlocked = self._directory / f".{self._name}"  # nobody takes it for a dead one's
        self._file = open_beside(self._database, unlocked)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.tell(Node(port, 0))
        unlocked.rename(self._directory / self._name)

    def tell(self, node: Node) -> None:
        if self._file is not None:
            with suppress(OSError):
                os.pwrite(self._file, b"%-10d %-10d\n" % node, 0)

    def close(self) -> None:
        self._socket.close()
        if self._file is not None:
            with suppress(OSError):
                (self._directory / self._name).unlink()
            os.close(self._file)
            self._file = None

    def others(self, *, telling: Node | None = None) -> list[Node]:
        """Everyone else who is alive, after telling them of oneself. Clears away what the dead have left."""
        if telling is not None:
            self.tell(telling)
        return [node for path in self._paths() if (node := _alive(path)) is not None]

    def _paths(self) -> list[Path]:
        try:
            with os.scandir(self._directory) as entries:
                names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        return [self._directory / name for name in names if not name.startswith(".") and name != self._name]

    def wake(self) -> None:
        """Tell the others that something was appended."""
        if time.monotonic() - self._looked > KNOWN_FOR:
            self._looked = time.monotonic()
            with suppress(OSError):  # no descriptor is free: those that are known are woken
                self._ports = [node.port for node in self.others()]
        for port in self._ports:
            with suppress(OSError):
                self._socket.sendto(b"", (LOOPBACK, port))


def _alive(path: Path) -> Node | None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with suppress(OSError, ValueError):
            port, subscribers = map(int, os.pread(file, 64, 0).split())
            return Node(port, subscribers)
    else:
        with suppress(OSError):
            path.unlink()
    finally:
        os.close(file)
    return None
