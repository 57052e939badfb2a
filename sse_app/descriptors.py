"""File descriptors: how many a process may have open, and which connections go first when they run out. Windows knows
no such limit.
"""

import asyncio
import sys
from contextlib import suppress

if sys.platform != "win32":
    import resource

ROOM = 64  # descriptors for all but streams: other requests, the log, listening, the libraries
SPARE = 48  # of these, what no connection without a request may take


def limit() -> int:
    if sys.platform == "win32":
        return sys.maxsize
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft  # the constant is -1 on Linux


def raise_limit() -> None:
    """As far as this user may: the soft limit is there for programs that use select()."""
    if sys.platform != "win32":
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            with suppress(ValueError, OSError):  # macOS refuses more than its own maximum
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Waiting:
    """The connections of a server that have no whole request just now: nothing of one has come, or not all of its head
    or body, or the last is answered. They make room for those that ask, the longest waiting first (so does nginx: its
    connections are "reusable" then). Beyond the limit nothing is accepted any more, health checks neither.

    ``most``: connections that may be open before one of them has to go.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._transports: dict[asyncio.Transport, None] = {}

    @classmethod
    def within(cls, limit: int) -> "Waiting":
        """For a process that may open so many descriptors."""
        return cls(max(limit - SPARE, limit // 2))

    def add(self, transport: asyncio.Transport) -> None:
        self._transports[transport] = None

    def remove(self, transport: asyncio.Transport) -> None:
        self._transports.pop(transport, None)

    def make_room(self, connections: int) -> None:
        """Called with the number of open ones for each that comes, before it is added."""
        if connections > self._most and self._transports:
            oldest = next(iter(self._transports))
            self.remove(oldest)
            oldest.close()
