"""A client of the hub on bare sockets: it has every byte, and can stall, disconnect, reset and resume."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, Self
from weakref import WeakKeyDictionary

from sse_app.events import Event, EventDecoder
from sse_app.publication import Position

HOST = "127.0.0.1"
PATIENCE = 35.0  # seconds until a vanished or stalled peer is gone: the longest that the hub promises for anything
BEGIN = "-0"  # behind an epoch: the cursor before its first publication
SMALL = 4096  # bytes of receive buffer; small, so that a reader that stalls soon fills the server's socket


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """One TCP connection, with as much of HTTP/1.1 as the hub's answers need. It reads only when the test does."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._unread = b""

    @classmethod
    async def open(cls, port: int, *, receive_buffer: int | None = None) -> Self:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (HOST, port))
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def receive(self, size: int = 65536) -> bytes:
        """Return the next bytes, b"" when the peer has closed. Raises ConnectionError when the peer has reset."""
        data, self._unread = self._unread, b""
        return data or await asyncio.get_running_loop().sock_recv(self.socket, size)

    async def send_head(self, method: str, target: str, **headers: object) -> None:
        """Send a request's head. The keyword ``last_event_id="x"`` is the header Last-Event-Id: x."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {HOST}"]
        lines += [f"{name.replace('_', '-').title()}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join([*lines, "", ""]).encode())

    async def receive_head(self) -> Answer:
        head = await self._until(lambda data: b"\r\n\r\n" in data)
        head, _, self._unread = head.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return Answer(int(status.split(" ")[1]), headers)

    async def receive_answer(self) -> Answer:
        head = await self.receive_head()
        size = int(head.headers["content-length"])
        body = await self._until(lambda data: len(data) >= size) if size else b""
        body, self._unread = body[:size], body[size:]
        return Answer(head.status, head.headers, body)

    async def request(self, method: str, target: str, body: bytes = b"", **headers: object) -> Answer:
        await self.send_head(method, target, content_length=len(body), **headers)
        await self.send(body)
        return await self.receive_answer()

    async def publish(self, body: bytes | str, target: str = "/broadcast", **headers: object) -> str:
        """Publish, and return the id once the hub has acknowledged it."""
        answer = await self.request("POST", target, body.encode() if isinstance(body, str) else body, **headers)
        assert answer.status == 200, answer
        return str(answer.json["id"])

    async def _until(self, complete: Callable[[bytes], bool]) -> bytes:
        data = b""
        while not complete(data):
            more = await self.receive()
            if not more:
                raise ConnectionError("the peer closed in the middle of its answer")
            data += more
        return data


class Chunks:
    """A decoder of the chunked coding, for a body that arrives in any pieces (RFC 9112, 7.1)."""

    def __init__(self) -> None:
        self.ended = False  # the last chunk is complete
        self._unread = b""
        self._left = 0  # bytes of the chunk and the line end behind it
        self._last = False

    def feed(self, data: bytes) -> bytes:
        self._unread += data
        payload = []
        while self._unread and not self.ended:
            if self._left:
                payload.append(self._take())
            elif b"\r\n" in self._unread:
                size, _, self._unread = self._unread.partition(b"\r\n")
                self._left = int(size, 16) + 2
                self._last = self._left == 2
            else:
                break
        return b"".join(payload)

    def _take(self) -> bytes:
        piece, self._unread = self._unread[: self._left], self._unread[self._left :]
        payload = piece[: max(0, self._left - 2)]
        self._left -= len(piece)
        self.ended = self._last and not self._left
        return payload


class Stream:
    """One answer to GET /events. ``events`` has arrived, ``cursor`` is what a browser would resume with."""

    def __init__(self, connection: Connection, cursor: str) -> None:
        self.connection = connection
        self.events: list[Event] = []
        self.over = False
        self._cursor = cursor
        self._chunks = Chunks()
        self._decoder = EventDecoder()

    @classmethod
    async def open(
        cls, port: int, cursor: str = "", *, target: str = "/events", receive_buffer: int | None = None
    ) -> Self:
        connection = await Connection.open(port, receive_buffer=receive_buffer)
        stream = cls(connection, cursor)
        try:
            await stream._begin(target)
        except BaseException:
            connection.close()
            raise
        return stream

    async def _begin(self, target: str) -> None:
        headers = {"last_event_id": self._cursor} if self._cursor else {}
        try:
            await self.connection.send_head("GET", target, accept="text/event-stream", **headers)
            head = await self.connection.receive_head()
        except ConnectionError:
            self.over = True
            return
        assert head.status == 200, head
        assert head.headers["transfer-encoding"] == "chunked"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.connection.close()

    async def read(self, size: int = 65536) -> list[Event]:
        """Read once, and return the events that are now complete. Sets ``over`` at the end of the connection."""
        try:
            data = await self.connection.receive(size)
        except ConnectionError:
            data = b""
        self.over = not data
        events = self._decoder.feed(self._chunks.feed(data))
        self.events += events
        notify()
        return events

    async def until(self, found: Callable[[], bool]) -> Self:
        while not found():
            assert not self.over, f"the stream ended after {len(self.events)} events, the last {self.events[-1:]}"
            await self.read()
        return self

    async def until_offset(self, offset: int) -> Self:
        return await self.until(lambda: bool(self.cursor) and offset_of(self.cursor) >= offset)

    async def to_the_end(self) -> Self:
        while not self.over:
            await self.read()
        return self

    @property
    def cursor(self) -> str:
        return self._decoder.last_event_id or self._cursor

    @property
    def retry(self) -> int | None:
        return self._decoder.retry

    @property
    def complete(self) -> bool:
        """True when the body ended with its final chunk."""
        return self._chunks.ended

    @property
    def offsets(self) -> list[int]:
        """The offsets of the publications that arrived, in order."""
        return offsets(self.events)

    def of_type(self, type: str) -> list[Event]:
        return [event for event in self.events if event.type == type]


def offset_of(id: str) -> int:
    position = Position.parse(id.encode())
    assert position is not None, id
    return position.offset


def offsets(events: Iterable[Event]) -> list[int]:
    return [offset_of(event.id or "") for event in events if event.type == "message"]


def named_in_gaps(events: Iterable[Event]) -> set[int]:
    """The offsets that the gaps among these events name as lost."""
    missing: set[int] = set()
    for event in events:
        if event.type == "gap":
            gap = json.loads(event.data)
            missing.update(range(offset_of(gap["requested"]) + 1, offset_of(gap["oldest"])))
    return missing


async def stats(port: int) -> dict[str, Any]:
    async with await Connection.open(port) as connection:
        answer = await connection.request("GET", "/stats")
        result: dict[str, Any] = answer.json
        return result


async def post(port: int, body: str, target: str = "/broadcast", **headers: object) -> Answer:
    async with await Connection.open(port) as connection:
        return await connection.request("POST", target, body.encode(), **headers)


async def replayed(port: int, cursor: str) -> Stream:
    """A stream that resumed at a cursor of this epoch, read at least up to the present end of the log."""
    top = offset_of((await stats(port))["top"])
    async with await Stream.open(port, cursor) as stream:
        await stream.until_offset(top)
    return stream


def texts_of(stream: Stream) -> list[str]:
    """The data of the publications that arrived, in order."""
    return [event.data for event in stream.events if event.type == "message"]


def ids_of(stream: Stream) -> list[str]:
    return [event.id or "" for event in stream.events if event.type == "message"]


_updates = WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Event]()  # set at the next ``notify``


def notify() -> None:
    """Have the tasks in ``until_notified`` check their conditions again: this task has got something."""
    if event := _updates.pop(asyncio.get_running_loop(), None):
        event.set()


async def until_notified(condition: Callable[[], bool]) -> float:
    """Wait for a condition on what other tasks of the test get. Return the seconds that it took."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    while not condition():
        await _updates.setdefault(loop, asyncio.Event()).wait()
    return loop.time() - begun


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Check until the condition is true, at most as long as the hub promises. Each check is a request, which takes the
    time between two checks.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    while not await condition():
        assert loop.time() < deadline, f"not within {PATIENCE} s: {what}"


async def until_stats(port: int, **expected: object) -> None:
    async def so() -> bool:
        now = await stats(port)
        return all(now[name] == value for name, value in expected.items())

    await until(so, str(expected))


async def publish_all(port: int, bodies: Sequence[bytes], connections: int = 4) -> None:
    """Publish over several connections at once, in an order that the hub decides."""
    waiting = iter(bodies)

    async def publisher() -> None:
        async with await Connection.open(port) as connection:
            for body in waiting:
                await connection.publish(body)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            tasks.create_task(publisher())


class Publishing:
    """Publishes as fast as the hub acknowledges, which is more than 500 a second, until its block ends."""

    def __init__(self) -> None:
        self.top = 0  # offset of the newest acknowledged publication
        self.epoch = ""

    async def run(self, port: int) -> None:
        async with await Connection.open(port) as connection:
            for number in count(1):
                position = Position.parse((await connection.publish(str(number))).encode())
                assert position is not None
                self.epoch, self.top = position
                notify()

    async def until(self, offset: int) -> None:
        await until_notified(lambda: self.top >= offset)

    def cursor(self, offset: int) -> str:
        return f"{self.epoch}-{offset}"


@asynccontextmanager
async def publishing(port: int) -> AsyncIterator[Publishing]:
    publishing = Publishing()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(publishing.run(port))
        await publishing.until(1)
        yield publishing
        task.cancel()


async def together(work: Iterable[Awaitable[None]], at_once: int = 20) -> None:
    """Run all coroutines, at most ``at_once`` at a time."""
    waiting = iter(work)

    async def worker() -> None:
        for item in waiting:
            await item

    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(worker())


@asynccontextmanager
async def streams(port: int, number: int, **options: Any) -> AsyncIterator[list[Stream]]:
    """Open so many streams, and read the welcome of each."""
    opened: list[Stream] = []

    async def open_one() -> None:
        stream = await Stream.open(port, **options)
        opened.append(stream)
        await stream.until(lambda: bool(stream.events))

    try:
        await together(open_one() for _ in range(number))
        yield opened
    finally:
        for stream in opened:
            with suppress(OSError):
                stream.connection.close()
