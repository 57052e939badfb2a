"""Hubs in memory in several processes of one server: noticed, and said, since nothing else would show why streams miss
events.

Processes of one server have the same parent and listen at the same addresses. From both a name is made, which the first
of them binds as an abstract Unix socket: the kernel frees it when its holder ends, however that ends, and keeps those
of other containers apart. Only Linux has such names; elsewhere nothing is noticed.
"""

import asyncio
import hashlib
import logging
import os
import socket
import sys

from sse_app.hub import Hub
from sse_app.listening import POLL, listeners

logger = logging.getLogger("sse_app")

FIRST_CHECKS = (0.5, 0.5, 1, 2, 4, 8, 16)  # seconds; most servers listen only when the app has started
OVERLAP = 6.0  # seconds that a worker may go on beside the one that takes its place: granian waits 3.5 s to stop it

SEPARATE = (
    "Several processes of this server have a hub with its log in memory. Each delivers only what was published in "
    "itself, so every stream misses the rest. Run one worker, or give the hub a log that its processes share: "
    'Hub("sqlite:///hub.db"), or redis:// or nats://.'
)


async def warn_of_siblings(hub: Hub) -> None:
    """Log ``SEPARATE``, in one process of a server, if several have a hub in memory. Ends when the hub drains: from
    then on the name is for the process that takes this one's place.
    """
    if sys.platform != "linux" or (server := await _server()) is None:
        return
    with socket.socket(socket.AF_UNIX) as name:
        name.setblocking(False)
        if not await _took(name, _name(server, "first"), patience=OVERLAP):
            if not await _took(name, _name(server, "second")):
                return  # of three or more, one says it
            logger.warning(SEPARATE)
        while not hub.draining:  # noqa: ASYNC110  # a signal handler may set it, and could set no event
            await asyncio.sleep(POLL)


async def _server() -> str | None:
    """The addresses that this process listens at, once it does, and its parent."""
    for seconds in FIRST_CHECKS:
        await asyncio.sleep(seconds)
        names = sorted(repr(listener.name) for listener in listeners() if not isinstance(listener.name, bytes))
        if names:
            return f"{os.getppid()} {names}"
    return None


def _name(server: str, rank: str) -> bytes:
    return f"\0sse-app/memory/{hashlib.sha256(server.encode()).hexdigest()[:32]}/{rank}".encode()


async def _took(free: socket.socket, name: bytes, *, patience: float = 0.0) -> bool:
    """Bind it. True also if another hub of this process has: the app of both is in one place, and was meant so."""
    loop = asyncio.get_running_loop()
    end = loop.time() + patience
    while True:
        try:
            free.bind(name)
            free.listen(1)  # so that a second hub finds it among the listeners
        except OSError:
            if any(listener.name == name for listener in listeners()):
                return True
            if loop.time() >= end:
                return False
            await asyncio.sleep(POLL)
        else:
            return True
