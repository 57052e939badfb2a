"""The streams of a run: connecting them, reading them, closing them."""

import asyncio
import socket
import struct
import time
from typing import Self, cast

from sse_app.bench.load import Load
from sse_app.bench.tally import Subscriber, Tally
from sse_app.bench.target import Target, source
from sse_app.bench.wire import HEAD_MAX, is_chunked, status_of

CONNECTING = 256  # connections being opened at a time: well inside a backlog of 2,048
CONNECT_SECONDS = 30.0
# Bytes, the SO_RCVBUF of subscribers that do not read. Linux doubles it, and has announced a window of 64 KB before.
SLOW_BUFFER = 2_048
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets the connection, and its port need not wait for 60 s


class Connection(asyncio.Protocol):
    """The connection of one stream: sends the GET, checks the answer's head, and reads on.

    `opened` is done when the stream is open, or fails. Without `read`, nothing is read from then on. The stream is owed
    the last `behind` events, which the request asks for.
    """

    __slots__ = ("_behind", "_head", "_opened", "_read", "_request", "_subscriber", "_tally", "_transport")

    def __init__(self, tally: Tally, request: bytes, read: bool, opened: asyncio.Future[None], behind: int = 0) -> None:
        self._tally, self._request, self._read, self._behind = tally, request, read, behind
        self._opened: asyncio.Future[None] | None = opened
        self._head = b""
        self._transport: asyncio.Transport | None = None
        self._subscriber: Subscriber | None = None

    def itself(self) -> Self:
        """Return the connection, as its own protocol factory."""
        return self

    def close(self) -> None:
        """Close the connection. What comes from now on is not counted."""
        self._subscriber = self._opened = None
        if self._transport:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._tally.calls += 1
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not subclasses
        sock = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        if not self._read:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER)
        self._transport.write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._opened:
            self._fail(f"connection closed before the answer{f': {exc}' if exc else ''}")
        self._end()

    def data_received(self, data: bytes) -> None:
        self._tally.calls += 1
        if self._subscriber:
            self._take(self._subscriber, data, time.monotonic_ns())
        elif self._opened:
            self._on_head(data)

    def _on_head(self, data: bytes) -> None:
        self._head += data
        head, end, body = self._head.partition(b"\r\n\r\n")
        if end and status_of(head) == 200:
            self._open(is_chunked(head), body)
        elif end or len(self._head) > HEAD_MAX:
            line = head[:80].partition(b"\r\n")[0]
            self._fail(f"answered {line.decode('ascii', 'replace')}")

    def _open(self, chunked: bool, body: bytes) -> None:
        assert self._transport
        assert self._opened
        if self._opened.done():  # its timeout came in this very turn of the loop
            self.close()
            return
        self._opened.set_result(None)
        self._opened, self._head = None, b""
        if self._read:
            self._subscriber = self._tally.opened(chunked, self._behind)
            self._take(self._subscriber, body, time.monotonic_ns())
        else:
            self._tally.slow += 1
            self._transport.pause_reading()

    def _fail(self, why: str) -> None:
        if self._opened and not self._opened.done():
            self._opened.set_exception(ConnectionError(why))
        self.close()

    def _take(self, subscriber: Subscriber, data: bytes, now: int) -> None:
        try:
            if subscriber.take(data, now):
                return
        except ValueError as error:
            self._tally.error(f"stream: {error}")
        self._end()

    def _end(self) -> None:
        if self._subscriber:
            self._tally.closed(self._subscriber)
        self.close()


class Streams:
    """All the streams of a run.

    last: the id of the last event that each has seen, who has missed as many as the load says
    """

    def __init__(self, load: Load, target: Target, tally: Tally, last: str | None = None) -> None:
        self._load, self._target, self._tally, self._last = load, target, tally, last
        self._numbers = iter(range(load.subscribers))
        self._connections: list[Connection] = []

    async def connect(self) -> None:
        """Open all streams that can be opened, `CONNECTING` at a time."""
        async with asyncio.TaskGroup() as group:
            for _ in range(min(CONNECTING, self._load.subscribers)):
                group.create_task(self._connect_some())

    async def close(self) -> None:
        """Close them all."""
        for connection in self._connections:
            connection.close()
        await asyncio.sleep(0)  # the loop closes them in its next turn

    async def _connect_some(self) -> None:
        loop, target, load = asyncio.get_running_loop(), self._target, self._load
        request, behind = target.subscribe(load.token, self._last), load.behind if self._last else 0
        for number in self._numbers:
            opened: asyncio.Future[None] = loop.create_future()
            connection = Connection(self._tally, request, load.reads(number), opened, behind)
            self._connections.append(connection)
            local = source(number, load.subscribers, target.address)
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await loop.create_connection(connection.itself, target.address, target.port, local_addr=local)
                    await opened
            except OSError as error:
                connection.close()
                self._tally.error(f"GET: {str(error) or 'no answer in time'}")
