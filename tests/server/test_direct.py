"""The hand-over of a connection to its stream: its conditions, what is left of the request, and the stream's end."""

import asyncio
import gc
import ssl
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from sse_app import notices
from sse_app.events import EventDecoder
from sse_app.joining import StreamRequest
from sse_app.node import Node
from sse_app.publication import Draft
from sse_app.server import direct
from sse_app.server.direct import DirectStream, Outlet
from sse_app.server.protocol import Protocol
from sse_app.subscriber import CloseReason, Subscriber
from tests.chaos.client import HOST, Connection
from tests.support.nodes import node_on
from tests.support.paths import (
    SEND_BUFFER,
    Reader,
    both_loops,
    fixed_broker,
    reading,
    served,
    streams_of,
)
from tests.support.peers import PATIENCE, turns, until

pytestmark = both_loops

ENDLESS = 3_600.0  # seconds between heartbeats: none comes within a test
HIGH_WATER = 64 * 1024  # bytes; the high-water mark of a transport's write buffer on both loops
BIG = "x" * 8_000

Wrap = Callable[[ASGIApp], ASGIApp]


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with node_on(fixed_broker(), heartbeat=ENDLESS, drain=PATIENCE) as node:
        yield node


def data_of(body: bytes | bytearray) -> list[str]:
    return [event.data for event in EventDecoder().feed(bytes(body)) if event.type == "message"]


async def publish(node: Node, *data: str) -> None:
    for item in data:
        await node.publish(Draft.compose(item))
        await turns(4)  # each is delivered by itself


async def drained(node: Node, reader: Reader) -> bytes:
    """Return the whole body, once the hub has ended the stream."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(node.drain())
        return await reader.to_the_end()


# When a connection is handed over


async def test_the_request_of_a_plain_stream_is_over_and_its_connection_still_counted(node: Node) -> None:
    async with served(streams_of(node)) as server:
        before = len(asyncio.all_tasks())
        async with reading(server.port) as reader:
            await reader.until(b"event: welcome")
            assert (len(server.direct), len(server.state.connections)) == (1, 1)
            assert (server.state.tasks, len(asyncio.all_tasks()), server.state.total_requests) == (set(), before, 1)
            await publish(node, "1", "2")
            body = await drained(node, reader)
            assert data_of(body) == ["1", "2"]
            assert body.count(b"event: bye") == 1
        assert node.totals.subscribers == 0
        await until(lambda: not server.state.connections)


async def test_an_http_1_0_stream_is_handed_over_and_has_no_chunks(node: Node) -> None:
    async with served(streams_of(node)) as server, reading(server.port, version="1.0") as reader:
        await reader.until(b"event: welcome")
        assert len(server.direct) == 1
        assert "transfer-encoding" not in reader.head
        await publish(node, "1", "2")
        body = await drained(node, reader)
    assert body.startswith(b"retry: ")
    assert data_of(body) == ["1", "2"]
    assert body.count(b"\n\n") == 4  # welcome, two events, bye: and nothing between them


async def test_a_stream_over_tls_is_handed_over(node: Node, certificate: tuple[Path, Path]) -> None:
    key, chain = certificate
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(chain, key)
    trusting = ssl.create_default_context(cafile=str(chain))
    async with served(streams_of(node), tls=tls) as server, asyncio.timeout(PATIENCE):
        incoming, outgoing = await asyncio.open_connection(HOST, server.port, ssl=trusting)
        outgoing.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await incoming.readuntil(b"event: welcome")
        assert (len(server.direct), server.state.tasks) == (1, set())
        await publish(node, *[BIG] * 100)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(node.drain())
            rest = await incoming.read()
        assert rest.count(BIG.encode()) == 100
        assert rest.endswith(b"\r\n0\r\n\r\n")
        outgoing.close()
        await outgoing.wait_closed()
        await until(lambda: not server.state.connections)
    assert node.totals.subscribers == 0


# When it stays with its request


def changing_head(*headers: tuple[bytes, bytes]) -> Wrap:
    """A middleware that sets fields in the head of the answer."""

    def wrap(app: ASGIApp) -> ASGIApp:
        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            async def changed(message: Message) -> None:
                if message["type"] == "http.response.start":
                    names = {name for name, _ in headers}
                    kept = [field for field in message["headers"] if field[0] not in names]
                    message = {**message, "headers": [*kept, *headers]}
                await send(message)

            await app(scope, receive, changed)

        return wrapped

    return wrap


def compressing(app: ASGIApp) -> ASGIApp:
    """A middleware that compresses event streams, which Starlette's does not."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        press = zlib.compressobj(wbits=31)

        async def changed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"content-encoding", b"gzip")]}
            else:
                last = not message.get("more_body", False)
                body = press.compress(message["body"]) + press.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)
                message = {**message, "body": body}
            await send(message)

        await app(scope, receive, changed)

    return wrapped


class Passing(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)


def as_it_is(app: ASGIApp) -> ASGIApp:
    return app


async def identity(body: bytes) -> bytes:
    return body


another_type = changing_head((b"content-type", b"text/plain"))


WRAPPED: dict[str, tuple[Wrap, type[asyncio.Protocol]]] = {
    "compressed": (compressing, Protocol),
    "another type": (another_type, Protocol),
    "coded already": (changing_head((b"transfer-encoding", b"chunked")), Protocol),
    "BaseHTTPMiddleware": (Passing, Protocol),
    "BaseHTTPMiddleware twice": (lambda app: Passing(Passing(app)), Protocol),
    "stock httptools": (as_it_is, HttpToolsProtocol),
    "stock h11": (as_it_is, H11Protocol),
    "stock httptools, BaseHTTPMiddleware": (Passing, HttpToolsProtocol),
}
every_wrap = pytest.mark.parametrize(("wrap", "http"), WRAPPED.values(), ids=WRAPPED)


@every_wrap
async def test_a_wrapped_stream_takes_the_ordinary_path_and_is_whole(
    node: Node, wrap: Wrap, http: type[asyncio.Protocol]
) -> None:
    async with served(wrap(streams_of(node)), http) as server, reading(server.port) as reader:
        await until(lambda: node.totals.subscribers == 1)
        await turns(20)
        await publish(node, *[BIG] * 100)
        assert (server.direct, len(server.state.connections)) == ([], 1)
        body = await drained(node, reader)
    if "content-encoding: gzip" in reader.head:
        body = zlib.decompress(body, wbits=31)
    assert data_of(body) == [BIG] * 100
    assert body.count(b"event: bye") == 1
    assert node.totals.subscribers == 0


@every_wrap
async def test_a_wrapped_stream_whose_client_leaves_leaves_nothing(
    node: Node, wrap: Wrap, http: type[asyncio.Protocol]
) -> None:
    async with served(wrap(streams_of(node)), http) as server:
        await turns(5)
        before = len(asyncio.all_tasks())
        async with reading(server.port):
            await until(lambda: node.totals.subscribers == 1)
            await publish(node, *[BIG] * 100)  # more than the socket takes
        await until(lambda: not node.totals.subscribers and not server.state.connections and not server.state.tasks)
        await turns(5)
        assert len(asyncio.all_tasks()) == before


async def test_a_stream_with_a_length_keeps_it(node: Node) -> None:
    wrap = changing_head((b"content-length", b"1000000"))
    async with served(wrap(streams_of(node))) as server, reading(server.port) as reader:
        await reader.until(b"event: welcome")
        await publish(node, "1", "2")
        await reader.until(b"data: 2\n\n")
        assert (server.direct, data_of(reader.body)) == ([], ["1", "2"])
    assert reader.body.startswith(b"retry: ")


async def test_what_a_middleware_sends_after_the_hand_over_gets_into_no_stream(node: Node) -> None:
    def meddling(app: ASGIApp) -> ASGIApp:
        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            await app(scope, receive, send)
            await send({"type": "http.response.body", "body": b"the end", "more_body": False})

        return wrapped

    async with served(meddling(streams_of(node))) as server, reading(server.port) as reader:
        await reader.until(b"event: welcome")
        await publish(node, "1")
        assert len(server.direct) == 1
        assert b"the end" not in await drained(node, reader)
        assert data_of(reader.body) == ["1"]


# A second request on the connection


GET = f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
# Without stock httptools on asyncio: a request behind an open one takes its news of the close (uvicorn 0.54).
SERVERS = pytest.mark.parametrize(
    ("wrap", "http"),
    [(as_it_is, Protocol), (another_type, Protocol), (as_it_is, H11Protocol)],
    ids=["ours", "ours, stepped", "h11"],
)


@SERVERS
@pytest.mark.parametrize("when", ["with the first", "later"])
@pytest.mark.parametrize("way", [Connection.close, Connection.reset], ids=["closed", "reset"])
async def test_a_pipelined_request_keeps_no_subscriber_after_the_close(
    wrap: Wrap, http: type[asyncio.Protocol], when: str, way: Callable[[Connection], None]
) -> None:
    async with node_on(fixed_broker(), heartbeat=0.15) as node, served(wrap(streams_of(node)), http) as server:
        connection = await Connection.open(server.port)
        await connection.send(GET * 2 if when == "with the first" else GET)
        async with asyncio.timeout(PATIENCE):
            await connection._until(lambda data: b"event: welcome" in data)
            if when == "later":
                await connection.send(GET)
        await turns(20)
        assert node.totals.subscribers == 1
        way(connection)
        await until(lambda: not node.totals.subscribers and not server.state.connections)


@pytest.mark.parametrize("more", [GET, GET * 3, GET[:20], b"\0garbage\r\n\r\n"], ids=["one", "many", "part", "garbage"])
@pytest.mark.parametrize("when", ["with the first", "later"])
async def test_nothing_that_follows_its_request_gets_into_a_stream(node: Node, more: bytes, when: str) -> None:
    first = GET + more if when == "with the first" and b"\0" not in more else GET
    async with served(streams_of(node)) as server, await Connection.open(server.port) as connection:
        async with asyncio.timeout(PATIENCE):
            await connection.send(first)
            received = await connection._until(lambda data: b"event: welcome" in data)
            await connection.send(more)
            await turns(20)
            assert node.totals.subscribers == 1
            await publish(node, "the end")
            received += await connection._until(lambda data: b"the end\n\n" in data)
    assert received.count(b"HTTP/1.1 ") == 1
    await until(lambda: node.totals.subscribers == 0)


# How a stream ends


async def test_a_half_closed_connection_ends_its_stream(node: Node) -> None:
    async with served(streams_of(node)) as server, await Connection.open(server.port) as connection:
        async with asyncio.timeout(PATIENCE):
            await connection.send(GET)
            await connection._until(lambda data: b"event: welcome" in data)
            connection.socket.shutdown(1)
            while await connection.receive():
                pass
        await until(lambda: not node.totals.subscribers and not server.state.connections)
    assert node.totals.closed == {"gone": 1}


@pytest.mark.parametrize("waits", [0, 1, 2, 3, 5, 8])
async def test_a_reset_at_any_moment_of_the_hand_over_leaves_nothing(node: Node, waits: int) -> None:
    async with served(streams_of(node)) as server:
        for _ in range(20):
            connection = await Connection.open(server.port)
            await connection.send(GET)
            await turns(waits)
            connection.reset()
        await until(lambda: not node.totals.subscribers and not server.state.connections and not server.state.tasks)
        await publish(node, "the hub goes on")
    assert node.totals.closed.total() == node.totals.connected


async def test_a_connection_that_is_lost_before_its_stream_writes_leaves_nothing(node: Node) -> None:
    """At the hand-over the transport knows of the loss, and has not called ``connection_lost`` yet."""
    connections: set[Any] = set()

    def aborting(app: ASGIApp) -> ASGIApp:
        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            async def lost(message: Message) -> None:
                await send(message)
                for connection in connections:
                    connection.transport.abort()

            await app(scope, receive, lost)

        return wrapped

    async with served(aborting(streams_of(node))) as server:
        connections = server.state.connections
        async with await Connection.open(server.port) as connection:
            await connection.send(GET)
            await until(lambda: node.totals.closed == {"gone": 1})
        await until(lambda: not server.state.connections)
    assert node.totals.subscribers == 0


@pytest.mark.parametrize("way", ["closed", "reset"])
async def test_a_connection_that_is_lost_while_it_catches_up_leaves_nothing(node: Node, way: str) -> None:
    for number in range(3_000):
        await node.publish(Draft.compose(f"{number} {BIG[:1_000]}"))
    await turns(20)
    async with served(streams_of(node)) as server:
        before = len(asyncio.all_tasks())
        async with reading(server.port, headers="Last-Event-ID: e-0\r\n") as reader:
            await reader.until(b"data: 50 ")
            assert len(asyncio.all_tasks()) == before + 1
            if way == "reset":
                await reader.reset()
        await until(lambda: not node.totals.subscribers and not server.state.connections)
        await turns(5)
        assert len(asyncio.all_tasks()) == before
    assert node.totals.closed == {"gone": 1}
    assert node.totals.delivered < 3_000


# A socket that is full


def only(node: Node) -> Subscriber:
    (subscriber,) = node._delivery
    return subscriber


async def test_a_reader_that_stalls_costs_its_queue_and_one_write_buffer_and_gets_everything() -> None:
    limit, total = 100_000, 400
    async with (
        node_on(fixed_broker(), heartbeat=ENDLESS, queue_bytes=limit) as node,
        served(streams_of(node)) as server,
    ):
        async with reading(server.port) as reader:
            await reader.until(b"event: welcome")
            (stream,) = server.direct
            waited = buffered = 0
            for number in range(total):
                await publish(node, f"{number} {BIG}")
                waited = max(waited, only(node)._bytes)
                buffered = max(buffered, stream.transport.get_write_buffer_size())
            assert node.totals.overflows == 1
            assert limit / 2 < waited <= limit + len(BIG) + 100
            assert HIGH_WATER < buffered <= HIGH_WATER + 3 * len(BIG)
            await reader.until(b"data: %d " % (total - 1))
            await until(lambda: node.totals.lagging == 0)
            await publish(node, "live again")
            await reader.until(b"live again\n\n")
        assert [item.partition(" ")[0] for item in data_of(reader.body)] == [*map(str, range(total)), "live"]


async def test_a_catch_up_waits_for_the_socket_page_by_page(node: Node) -> None:
    """The write buffer holds at most the high-water mark and a few pages of the log."""
    for number in range(500):
        await node.publish(Draft.compose(f"{number} {BIG}"))
    await until(lambda: node._delivery.position.offset == 500, "all is delivered, so that a reader finds it in the log")
    async with served(streams_of(node)) as server:
        async with reading(server.port, headers="Last-Event-ID: e-0\r\n") as reader:
            await reader.until(b"event: welcome")
            (stream,) = server.direct
            most = 0
            while b"data: 499 " not in reader.body[-2 * len(BIG) :]:
                most = max(most, stream.transport.get_write_buffer_size())
                await reader.more()
        assert len(data_of(reader.body)) >= 499
    assert most <= HIGH_WATER + 2 * 256 * 1024 + SEND_BUFFER


@pytest.mark.parametrize("full", [False, True], ids=["free", "full"])
async def test_an_end_at_once_is_the_last_that_a_client_gets(node: Node, full: bool) -> None:
    async with faked(node, room=1 if full else 1_000) as (transport, _):
        await publish(node, "1", "2")
        before = [] if full else ["1", "2"]
        only(node).end(CloseReason.REVOKED, notices.bye("revoked", 3_000))
        await publish(node, "3")
        assert transport.closed
    events = EventDecoder().feed(transport.sent)
    assert [event.data for event in events if event.type == "message"] == before
    assert events[-1].type == "bye"
    assert node.totals.closed == {"revoked": 1}


async def test_a_reader_that_stalls_does_not_keep_a_stream_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer acknowledges nothing that it does not read, and the hub does not leave that to TCP alone."""
    monkeypatch.setattr(direct, "ENDING", 0.01)
    async with node_on(fixed_broker(), heartbeat=ENDLESS, queue_bytes=1_000_000) as node:
        async with served(streams_of(node)) as server, reading(server.port) as reader:
            await reader.until(b"event: welcome")
            subscriber = only(node)
            while not subscriber._count:
                await publish(node, BIG)
            subscriber.end(CloseReason.REVOKED, notices.bye("revoked", 3_000))
            await until(lambda: not server.state.connections)
        assert (node.totals.subscribers, node.totals.closed) == (0, {"revoked": 1})


class FakeTransport(asyncio.Transport):
    """A transport that takes ``room`` writes, then calls ``pause_writing`` in the middle of one, as asyncio does."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.sent, self.closed = room, b"", False
        self.protocol: DirectStream | None = None
        self.lost_in_write = False

    def write(self, data: Any) -> None:
        assert self.protocol is not None
        self.sent += data
        self.room -= 1
        if self.room == 0:
            self.protocol.pause_writing()
        if self.lost_in_write and self.protocol is not None:
            protocol, self.protocol = self.protocol, None
            protocol.connection_lost(None)

    def close(self) -> None:
        self.closed = True

    def get_write_buffer_size(self) -> int:
        return 0 if self.room > 0 else 1

    def make_room(self, room: int) -> None:
        assert self.protocol is not None
        self.room = room
        self.protocol.resume_writing()


@asynccontextmanager
async def faked(node: Node, room: int, after: str | None = None) -> AsyncIterator[tuple[FakeTransport, DirectStream]]:
    subscriber = await node.join(StreamRequest.parse(client="c", after=after))
    transport = FakeTransport(room)
    stream = DirectStream(transport, ServerState(), node, subscriber, chunked=False, paused=False)
    transport.protocol = stream
    subscriber.attach(stream)
    yield transport, stream
    if transport.protocol is not None:
        stream.connection_lost(None)
    assert subscriber not in set(node._delivery)


async def test_a_paused_transport_fills_the_queue_then_drops_it_then_reads_the_log_then_is_live() -> None:
    async with node_on(fixed_broker(), heartbeat=ENDLESS, queue_size=3) as node, faked(node, room=2) as (transport, _):
        await publish(node, "1")
        assert data_of(transport.sent) == ["1"]
        await publish(node, "2", "3", "4")
        assert (data_of(transport.sent), only(node)._count, node.totals.overflows) == (["1"], 3, 0)
        await publish(node, "5", "6")
        assert (data_of(transport.sent), only(node)._count) == (["1"], 0)
        assert (node.totals.overflows, node.totals.lagging) == (1, 1)
        transport.make_room(2)
        await turns(20)
        assert (data_of(transport.sent), node.totals.lagging) == (["1", "2", "3", "4", "5", "6"], 0)
        await publish(node, "7")
        assert data_of(transport.sent)[-1] == "7"


async def test_a_transport_that_pauses_and_resumes_before_it_is_noticed_loses_no_order() -> None:
    """uvloop calls ``pause_writing`` at the end of a turn, so that a write may follow a full buffer."""
    async with node_on(fixed_broker(), heartbeat=ENDLESS) as node, faked(node, room=1_000) as (transport, stream):
        stream.pause_writing()
        await publish(node, "1", "2")
        stream.resume_writing()
        stream.pause_writing()
        await publish(node, "3", "4")
        stream.resume_writing()
        stream.resume_writing()
        await publish(node, "5")
        assert data_of(transport.sent) == ["1", "2", "3", "4", "5"]


async def test_a_connection_lost_in_the_middle_of_a_write_stops_no_delivery(node: Node) -> None:
    async with faked(node, room=1_000) as (other, _), faked(node, room=1_000) as (transport, _):
        transport.lost_in_write = True
        await publish(node, "1", "2", "3")
        assert (node.totals.subscribers, data_of(other.sent)) == (1, ["1", "2", "3"])


async def test_a_connection_lost_in_the_middle_of_a_heartbeat_stops_no_heart() -> None:
    async with (
        node_on(fixed_broker(), heartbeat=0.15) as node,
        faked(node, room=1_000) as (other, _),
        faked(node, room=1_000) as (transport, _),
    ):
        transport.lost_in_write = True
        await until(lambda: node.totals.subscribers == 1)
        beats = other.sent.count(b":\n\n")
        await until(lambda: other.sent.count(b":\n\n") > beats + 1)


@pytest.mark.parametrize("room", [1, 2])
async def test_a_connection_lost_in_the_middle_of_a_catch_up_stops_it(node: Node, room: int) -> None:
    for number in range(600):
        await node.publish(Draft.compose(str(number)))
    await turns(20)
    before = len(asyncio.all_tasks())
    async with faked(node, room, after="e-0") as (transport, stream):
        transport.lost_in_write = True
        transport.room = 1_000
        stream.resume_writing()
        await until(lambda: not node.totals.subscribers)
        await turns(20)
        assert len(asyncio.all_tasks()) == before
    await publish(node, "the hub goes on")


async def test_a_stream_that_is_closed_while_it_catches_up_ends_after_the_rest_of_the_log(node: Node) -> None:
    for number in range(600):
        await node.publish(Draft.compose(str(number)))
    await turns(20)
    async with faked(node, room=2, after="e-0") as (transport, stream):
        await turns(20)  # one page is written, and the socket is full
        assert 0 < len(data_of(transport.sent)) < 600
        drain = asyncio.create_task(node.drain())
        await turns(20)
        assert not transport.closed
        while not transport.closed:
            transport.make_room(1)
            await turns(10)
        stream.connection_lost(None)
        transport.protocol = None
        await drain
    assert data_of(transport.sent) == [*map(str, range(600))]
    assert transport.sent.count(b"event: bye") == 1


async def test_a_hub_that_is_closed_lets_go_of_a_stream_that_is_stuck() -> None:
    """The client resumes for what it lacks when it reconnects."""
    async with node_on(fixed_broker(), heartbeat=ENDLESS, queue_size=1) as node:
        subscriber = await node.join(StreamRequest.parse(client="c"))
        transport = FakeTransport(1)
        stream = transport.protocol = DirectStream(
            transport, ServerState(), node, subscriber, chunked=True, paused=False
        )
        subscriber.attach(stream)
        await publish(node, "1", "2", "3")
        assert (node.totals.overflows, transport.closed) == (1, False)
    assert transport.closed
    assert transport.sent.endswith(b"\n\r\n0\r\n\r\n")
    transport.make_room(1_000)
    stream.connection_lost(None)
    assert node.totals.subscribers == 0


# Memory after the end of a stream


OURS = (DirectStream, Subscriber, Outlet, Protocol, RequestResponseCycle)


def left() -> list[str]:
    return [type(item).__name__ for item in gc.get_objects() if isinstance(item, OURS)]


@asynccontextmanager
async def uncollected() -> AsyncIterator[None]:
    """Assert that no object of ours is there, before the test and after it, without a collection of garbage."""
    gc.collect()
    assert left() == []
    gc.disable()
    try:
        yield
        await turns(10)
        assert left() == []
    finally:
        gc.enable()


async def visit(port: int, *requests: bytes) -> None:
    async with await Connection.open(port) as connection, asyncio.timeout(PATIENCE):
        for request in requests:
            await connection.send(request)
        await connection._until(lambda data: b"event: welcome" in data)


@pytest.mark.parametrize("way", ["left", "drained", "reset"])
async def test_a_stream_that_is_over_is_freed_without_the_collector(node: Node, way: str) -> None:
    async with served(streams_of(node)) as server:
        await visit(server.port, GET)
        await until(lambda: not server.state.connections)
        async with uncollected():
            for _ in range(5):
                async with reading(server.port) as reader:
                    await reader.until(b"event: welcome")
                    await publish(node, "1")
                    if way == "reset":
                        await reader.reset()
            if way == "drained":
                async with reading(server.port) as reader:
                    await drained(node, reader)
            del reader
            await until(lambda: not server.state.connections)


async def test_of_an_open_stream_only_itself_and_its_subscriber_are_left(node: Node) -> None:
    gc.collect()
    gc.disable()
    try:
        async with served(streams_of(node)) as server, reading(server.port) as reader:
            await reader.until(b"event: welcome")
            await turns(10)
            assert sorted(left()) == ["DirectStream", "Subscriber"]
    finally:
        gc.enable()


@pytest.mark.parametrize("stalled", [False, True])
async def test_a_stream_that_had_to_wait_is_freed_too(stalled: bool) -> None:
    node = node_on(fixed_broker(), heartbeat=ENDLESS, queue_bytes=50_000)
    async with node, served(streams_of(node)) as server, uncollected():
        async with reading(server.port) as reader:
            await reader.until(b"event: welcome")
            await publish(node, *[BIG] * 100)
            assert node.totals.overflows == 1
            while not stalled and len(data_of(reader.body)) < 100:
                await reader.more()
        del reader
        await until(lambda: not server.state.connections and not node.totals.subscribers)


async def test_an_answered_request_is_freed_without_the_collector() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("answer")(scope, receive, send)

    async with served(app) as server, uncollected(), await Connection.open(server.port) as connection:
        for _ in range(3):
            assert (await connection.request("GET", "/")).body == b"answer"
        connection.close()
        await until(lambda: not server.state.connections and not server.state.tasks)


async def test_a_pipelined_request_is_garbage_that_the_collector_finds(node: Node) -> None:
    async with served(streams_of(node)) as server:
        await visit(server.port, GET * 3)
        await until(lambda: not server.state.connections and not node.totals.subscribers)
        await turns(10)
        gc.collect()
        assert left() == []
