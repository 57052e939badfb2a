"""A warning when several processes of one server each have a hub in memory: nothing else would show why their streams
miss events.

Processes of one server have the same parent and listen at the same addresses. Parent and addresses make a name, which
the first process binds as an abstract Unix socket. The kernel frees the name however its process ends, and keeps the
names of other containers apart. Only Linux has abstract sockets; elsewhere there is no warning.
"""

import asyncio
import hashlib
import logging
import os
import socket
import sys

from sse_app.listening import POLL, listeners
from sse_app.node import Node

logger = logging.getLogger("sse_app")

FIRST_CHECKS = (0.5, 0.5, 1, 2, 4, 8, 16)  # seconds; most servers listen only when the app has started
OVERLAP = 6.0  # seconds that a worker may go on beside the one that takes its place: granian waits 3.5 s to stop it

SEPARATE = (
    "Several processes of this server have a hub with its log in memory. Each delivers only what was published in "
    "itself, so every stream misses the rest. Run one worker, or give the hub a log that its processes share: "
    'Hub("sqlite:///hub.db"), or redis:// or nats://.'
)


async def warn_of_siblings(node: Node) -> None:
    """Log ``SEPARATE``, in one process of a server, if several have a hub in memory. Returns when the hub drains, so
    that the process which replaces this one can bind the name.
    """
    if sys.platform != "linux" or (server := await _server()) is None:
        return
    with socket.socket(socket.AF_UNIX) as name:
        name.setblocking(False)
        if not await _bind(name, _name(server, "first"), patience=OVERLAP):
            if not await _bind(name, _name(server, "second")):
                return  # of three or more processes only the second one warns
            logger.warning(SEPARATE)
        while not node.draining:  # noqa: ASYNC110  # a signal handler may set it, and could set no event
            await asyncio.sleep(POLL)


async def _server() -> str | None:
    """Return the parent and the addresses of this process once it listens; None when it does not listen in time."""
    for seconds in FIRST_CHECKS:
        await asyncio.sleep(seconds)
        names = sorted(repr(listener.name) for listener in listeners() if not isinstance(listener.name, bytes))
        if names:
            return f"{os.getppid()} {names}"
    return None


def _name(server: str, rank: str) -> bytes:
    return f"\0sse-app/memory/{hashlib.sha256(server.encode()).hexdigest()[:32]}/{rank}".encode()


async def _bind(free: socket.socket, name: bytes, *, patience: float = 0.0) -> bool:
    """Bind the name to the socket ``free``, within ``patience`` seconds. Return True also when another hub of this
    process has bound it: two hubs in one app are intended.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + patience
    while True:
        try:
            free.bind(name)
            free.listen(1)  # makes listeners() find it for a second hub of this process
        except OSError:
            if any(listener.name == name for listener in listeners()):
                return True
            if loop.time() >= end:
                return False
            await asyncio.sleep(POLL)
        else:
            return True
