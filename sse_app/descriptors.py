"""The limit on a process's file descriptors, and the connections that are closed first when it is reached. Windows has
no such limit.
"""

import asyncio
import sys
from collections import OrderedDict
from contextlib import suppress

if sys.platform != "win32":
    import resource

ROOM = 64  # descriptors kept for all but streams: other requests, the log, listening sockets, the libraries
SPARE = 48  # those of ROOM that a connection without a request may not take


def limit() -> int:
    if sys.platform == "win32":
        return sys.maxsize
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft  # the constant is -1 on Linux


def raise_limit() -> None:
    """Raise the soft limit to the hard limit. It is lower only to protect programs that use select()."""
    if sys.platform != "win32":
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            with suppress(ValueError, OSError):  # macOS refuses more than its own maximum
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Waiting:
    """The connections of a server without a complete request: no request has begun, its head or body is incomplete, or
    the last one is answered. When a new connection needs room, the one that has waited longest is closed (as nginx
    closes its "reusable" connections). At the process's limit no connection could be accepted, not even of a health
    check.

    ``most``: the connections that may be open before a waiting one is closed.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._transports = OrderedDict[asyncio.Transport, None]()  # a dict looks for its first key past all deleted

    @classmethod
    def within(cls, limit: int) -> "Waiting":
        """Return one for a process that may open ``limit`` descriptors."""
        return cls(max(limit - SPARE, limit // 2))

    def add(self, transport: asyncio.Transport) -> None:
        self._transports[transport] = None

    def remove(self, transport: asyncio.Transport) -> None:
        self._transports.pop(transport, None)

    def make_room(self, connections: int) -> None:
        """Close the connection that has waited longest, if there are too many. Called for each new connection, before
        it is added, with the number of open ``connections``.
        """
        if connections > self._most and self._transports:
            oldest, _ = self._transports.popitem(last=False)
            oldest.close()
