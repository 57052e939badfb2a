"""A TCP proxy that forwards in other pieces, breaks connections, holds bytes back, or drops the answers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from random import Random, choice

from tests.chaos.client import HOST

Recut = Callable[[bytes], Iterator[bytes]]
Limit = Callable[[bytes], int | None]


def unchanged(data: bytes) -> Iterator[bytes]:
    yield data


def into_bytes(data: bytes) -> Iterator[bytes]:
    return (data[index : index + 1] for index in range(len(data)))


def at_random(seed: int) -> Recut:
    """Pieces of 1 to 40 bytes: inside characters, line ends and chunk heads."""
    random = Random(seed)

    def recut(data: bytes) -> Iterator[bytes]:
        while data:
            size = random.randint(1, 40)
            yield data[:size]
            data = data[size:]

    return recut


def no_limit(seen: bytes) -> int | None:
    return None


def after_bytes(count: int) -> Limit:
    """Cut after so many bytes of the body."""

    def limit(seen: bytes) -> int | None:
        head, end, _ = seen.partition(b"\r\n\r\n")
        return len(head) + len(end) + count if end else None

    return limit


def after_the_first_block(seen: bytes) -> int | None:
    """Cut behind the first event's blank line."""
    end = seen.find(b"\n\n", seen.find(b"\r\n\r\n") + 4)
    return None if end < 0 else end + 2


class Proxy:
    """A proxy on ``port``. Set ``recut`` and ``limit`` before a connection is made. The first connections have the
    ``limits``, one each. A connection goes to any of the ``upstreams``, which are ports.

    While ``closed`` is set no connection gets through, while ``deaf`` is set no answer comes back.
    """

    def __init__(self, upstream: int, limits: Iterable[Limit] = ()) -> None:
        self.upstreams = [upstream]
        self.port = 0
        self.recut: Recut = unchanged
        self.limit: Limit = no_limit
        self.limits = iter(limits)
        self.closed = self.deaf = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.tasks: set[asyncio.Task[None]] = set()

    def hold(self) -> None:
        """Become a black hole: connections stay, and nothing passes."""
        self._flowing.clear()

    def release(self) -> None:
        """Let pass what was held."""
        self._flowing.set()

    def cut(self) -> None:
        """Break all present connections."""
        for task in self.tasks:
            task.cancel()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            if not self.closed:
                await self._relay(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the peer of a broken connection gets its end from the kernel
        finally:
            self.tasks.discard(task)
            writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(HOST, choice(self.upstreams))
        up = asyncio.create_task(self._up(reader, server_writer, self.recut))
        try:
            await self._down(server_reader, writer, self.recut, next(self.limits, self.limit))
        finally:
            server_writer.close()  # before any await, where a second cancellation would end this
            up.cancel()
            await asyncio.wait([up])

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, recut: Recut) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                await self._flowing.wait()
                for piece in recut(data):
                    writer.write(piece)
                await writer.drain()
            writer.write_eof()

    async def _down(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, recut: Recut, limit: Limit
    ) -> None:
        seen = b""
        while data := await reader.read(65536):
            await self._flowing.wait()
            if self.deaf:
                continue
            if limit is not no_limit:
                before = len(seen)
                seen += data
                allowed = limit(seen)
                data = seen[before:allowed]
                if allowed is not None and len(seen) >= allowed:
                    writer.write(data)
                    return
            for piece in recut(data):
                writer.write(piece)
            await writer.drain()


@asynccontextmanager
async def proxy_to(port: int, limits: Iterable[Limit] = ()) -> AsyncIterator[Proxy]:
    proxy = Proxy(port, limits)
    server = await asyncio.start_server(proxy.serve, HOST, 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for task in list(proxy.tasks):
            task.cancel()
        if proxy.tasks:
            await asyncio.wait(proxy.tasks)
        await server.wait_closed()
