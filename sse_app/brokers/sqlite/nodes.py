"""The processes of this machine that share a log: how many subscribers each has, and how to wake it.

Each process keeps a small file in ``<file>-nodes``, locked as long as the process lives: the kernel unlocks it however
the process ends. The file has the loopback port on which the process waits for a datagram at every append, and its
number of subscribers. A datagram that is lost, or cannot reach another network namespace, costs a moment: each process
also polls the watermark.
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
APPENDED, TOLD = b"", b"m"  # the datagrams: the log has grown, the board has a message
REFRESH = 0.5  # seconds between two reads of the directory


class Node(NamedTuple):
    port: int
    subscribers: int


class Nodes:
    """The file of this process, and those of the others.

    All are small file operations. Any thread may call a method, but not two the same one at once, save ``wake``. A file
    that cannot be read, and a ``write`` or ``wake`` that fails, costs a moment too, never a publication.
    """

    def __init__(self, database: Path, name: str = "") -> None:
        self._database, self._directory = database, Path(f"{database}{NODES}")
        self._name = name or secrets.token_hex(6)
        self._file: int | None = None
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._ports: list[int] = []
        self._refreshed = float("-inf")

    def join(self, port: int) -> None:
        make_directory_beside(self._database, self._directory)
        unlocked = self._directory / f".{self._name}"  # no process takes a name with a dot for that of a dead one
        self._file = open_beside(self._database, unlocked)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.write(Node(port, 0))
        unlocked.rename(self._directory / self._name)

    def write(self, node: Node) -> None:
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

    def exchange(self, own: Node) -> dict[str, Node]:
        """Write the numbers of this process, and return those of the others by their names."""
        self.write(own)
        return self._living()

    def others(self) -> list[Node]:
        """Return the other processes that are alive, and remove the files of dead ones."""
        return list(self._living().values())

    def _living(self) -> dict[str, Node]:
        return {path.name: node for path in self._paths() if (node := _alive(path)) is not None}

    def _paths(self) -> list[Path]:
        try:
            with os.scandir(self._directory) as entries:
                names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        return [self._directory / name for name in names if not name.startswith(".") and name != self._name]

    def wake(self, datagram: bytes = APPENDED) -> None:
        """Tell the others that something was appended, or put on the board."""
        if time.monotonic() - self._refreshed > REFRESH:
            self._refreshed = time.monotonic()
            with suppress(OSError):  # without a free descriptor the ports that are known are used
                self._ports = [node.port for node in self.others()]
        for port in self._ports:
            with suppress(OSError):
                self._socket.sendto(datagram, (LOOPBACK, port))


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
