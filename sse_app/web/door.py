"""The foreign server that an app's streams come through, and the signs that this server is being stopped.

A server waits for open streams before it tells the app of its stop, so an app that ends its streams has to notice the
stop by itself. Every server first closes the sockets that it listens on; where it does so late, there is the signal.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from sse_app.listening import POLL, Address, listeners
from sse_app.node import Node
from sse_app.web import exit_signal


class Door:
    """The server that streams come through, known by its address from the first stream on."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the server. Called when the app starts, perhaps again and on another event loop."""
        self._server: Address | None = None
        self._changed = asyncio.Event()

    def entered(self, server: Address | None) -> None:
        """Note the server of a stream, None when ASGI does not say it. Called for each stream; costs a comparison."""
        if server is not None and server != self._server:
            self._server = server
            self._changed.set()

    async def closed(self) -> None:
        """Return once the server listens no longer. Waits for ever while no listening socket of it is found."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            assert self._server is not None
            ours = [listener for listener in listeners() if listener.serves(self._server)]
            while ours:
                await asyncio.sleep(POLL)
                ours = [listener for listener in ours if listener.open]
                if not ours:
                    return


def signs_of_a_stop(door: Door) -> Iterable[Callable[[], Awaitable[None]]]:
    """Return functions that wait until the server of ``door`` is being stopped."""
    return door.closed, exit_signal.stopped


async def drain_after(sign: Callable[[], Awaitable[None]], node: Node) -> None:
    """Begin the hub's drain once ``sign`` returns."""
    await sign()
    node.begin_drain()
