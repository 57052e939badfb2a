"""The paths of a stream to its client, on one loop with the test, and a client that keeps every byte.

    short way      the front of our server joins the stream itself, at once or in a task
    direct         our HTTP protocol hands the connection over
    httptools      the stepped path on stock uvicorn
    h11            the same, on its other protocol
    in process     the stepped path without a socket
    reference      sse-starlette's own streaming, on stock uvicorn

For one history the bytes of every path equal those of the reference.
"""

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from sse_app import descriptors
from sse_app.address import Proxies
from sse_app.brokers.memory import MemoryBroker
from sse_app.descriptors import Waiting
from sse_app.joining import StreamRequest
from sse_app.limits import Failures, Rate
from sse_app.node import Node
from sse_app.server.direct import DirectStream
from sse_app.server.front import front_of
from sse_app.server.protocol import Protocol
from sse_app.testing import StreamingASGITransport
from sse_app.web.callers import Access, Callers
from sse_app.web.desk import Desk
from sse_app.web.guard import Rules
from sse_app.web.stream import EventStream
from tests.chaos.client import HOST, Chunks, Connection
from tests.support.peers import PATIENCE, until
from tests.support.reference import ReferenceStream

SEND_BUFFER = 4096  # bytes; small, so that a reader that stalls soon fills the server's socket
RECEIVE_BUFFER = 4096

# A mark for an async test or a module: it runs on both event loops that uvicorn has.
both_loops = pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {}), ("asyncio", {"use_uvloop": True})], ids=["asyncio", "uvloop"]
)


def fixed_broker(**settings: Any) -> MemoryBroker:
    """A memory log whose epoch and time are the same in each run."""
    broker = MemoryBroker(wall=lambda: 1_700_000_000.0, **settings)
    broker._epoch = "e"
    return broker


def streams_of(node: Node, kind: type[EventStream] = EventStream) -> ASGIApp:
    """An app that answers every path with a stream, of the client ``c`` unless the query names another one."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        asked = request.query_params
        stream = kind(
            node,
            StreamRequest.parse(
                asked.getlist("topic"),
                after=request.headers.get("last-event-id", "").encode() or None,
                last=int(asked["last"]) if "last" in asked else None,
                since=float(asked["since"]) if "since" in asked else None,
                client=asked.get("client", "c"),
            ),
        )
        await stream(scope, receive, send)

    return app


# A server on this loop


@dataclass(frozen=True)
class Served:
    port: int
    state: ServerState

    @property
    def direct(self) -> list[DirectStream]:
        return [connection for connection in self._connections if isinstance(connection, DirectStream)]

    @property
    def _connections(self) -> set[Any]:
        return set(self.state.connections)


@asynccontextmanager
async def served(
    app: ASGIApp,
    http: Callable[..., asyncio.Protocol] = Protocol,
    *,
    tls: ssl.SSLContext | None = None,
    host: str = HOST,
) -> AsyncIterator[Served]:
    """An app behind one of uvicorn's protocols or ours, on a real socket."""
    loop = asyncio.get_running_loop()
    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, proxy_headers=False, access_log=False)
    config.load()
    state = ServerState()
    make: Any = partial(http, config=config, server_state=state, app_state={}, _loop=loop)
    listening = socket.create_server((host, 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    server = await loop.create_server(make, sock=listening, ssl=tls)
    try:
        yield Served(listening.getsockname()[1], state)
    finally:
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()
        await until(lambda: not state.connections and not state.tasks)


# Clients


@dataclass
class Reader:
    """One response: its head, and what was read of its body so far."""

    read_once: Callable[[], Awaitable[bytes | None]]  # None at the end
    reset: Callable[[], Awaitable[None]]
    head: str = ""
    body: bytearray = field(default_factory=bytearray)
    over: bool = False

    async def more(self) -> None:
        async with asyncio.timeout(PATIENCE):
            data = await self.read_once()
        self.over = data is None
        self.body += data or b""

    async def until(self, marker: bytes) -> None:
        searched = 0
        while self.body.find(marker, searched) < 0:
            assert not self.over, f"ended before {marker!r}: {self.body[-300:]!r}"
            searched = max(0, len(self.body) - len(marker))
            await self.more()

    async def to_the_end(self) -> bytes:
        while not self.over:
            await self.more()
        return bytes(self.body)


@asynccontextmanager
async def reading(
    port: int, target: str = "/", method: str = "GET", headers: str = "", *, version: str = "1.1"
) -> AsyncIterator[Reader]:
    """A client on a bare socket with a small buffer, which reads only when the test does."""
    async with asyncio.timeout(PATIENCE):
        connection = await Connection.open(port, receive_buffer=RECEIVE_BUFFER)
    async with connection:
        await connection.send(f"{method} {target} HTTP/{version}\r\nHost: {HOST}\r\n{headers}\r\n".encode())
        async with asyncio.timeout(PATIENCE):
            head = await connection._until(lambda data: b"\r\n\r\n" in data)
        head, _, connection._unread = head.partition(b"\r\n\r\n")
        chunks = Chunks() if b"chunked" in head else None

        async def read_once() -> bytes | None:
            if method == "HEAD" or (chunks is not None and chunks.ended):
                return None
            data = await connection.receive()
            if chunks is None:
                return data or None
            assert data, "the connection ended without its last chunk"
            return chunks.feed(data)

        async def reset() -> None:
            connection.reset()

        yield Reader(read_once, reset, head.decode())


Path = Callable[..., AbstractAsyncContextManager[Reader]]


@asynccontextmanager
async def over_sockets(
    http: type[asyncio.Protocol], kind: type[EventStream], node: Node, target: str, method: str, headers: str
) -> AsyncIterator[Reader]:
    async with served(streams_of(node, kind), http) as server, reading(server.port, target, method, headers) as reader:
        if method == "GET":
            await until(lambda: bool(server.direct) == (http is Protocol), "the stream takes the path that is tested")
        yield reader


@asynccontextmanager
async def over_the_short_way(
    steppable: bool, node: Node, target: str, method: str, headers: str
) -> AsyncIterator[Reader]:
    """Over a socket to the front; what it leaves to the app goes on there."""
    node.broker.steppable = steppable
    failures = Failures(Rate.parse("100/m"), proxies=False)
    callers = Callers(Access(), node, proxies=Proxies(), failures=failures)
    desk = Desk(node, callers, Rules(hosts=None, origins=()), body_max=1_000, cors=False)
    app, left = streams_of(node), list[Protocol]()

    def leave(*arguments: Any) -> Protocol:
        left.append(Protocol(*arguments))
        return left[-1]

    path, question, query = target.partition("?")
    assert path == "/"
    asked = f"/events?{query}" + ("" if "client=" in query else "&client=c" if question else "client=c")
    waiting = Waiting.within(descriptors.limit())
    make = front_of(desk, leave, head_max=16_384, head_deadline=PATIENCE, waiting=waiting)
    async with served(app, make) as server, reading(server.port, asked, method, headers) as reader:
        if method == "GET":
            await until(lambda: bool(server.direct), "the stream is direct")
        assert bool(left) == (method != "GET" or "since=" in query), "the stream takes the path that is tested"
        yield reader


@asynccontextmanager
async def in_process(node: Node, target: str, method: str, headers: str) -> AsyncIterator[Reader]:
    fields = dict(line.split(": ") for line in headers.split("\r\n") if line)
    transport = StreamingASGITransport(streams_of(node))
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=PATIENCE) as client,
        client.stream(method, target, headers=fields) as response,
    ):
        pieces = response.aiter_raw()

        async def read_once() -> bytes | None:
            return await anext(pieces, None)

        head = "".join(f"{name}: {value}\r\n" for name, value in response.headers.items())
        yield Reader(read_once, response.aclose, f"HTTP/1.1 {response.status_code} OK\r\n{head}")


reference: Path = partial(over_sockets, HttpToolsProtocol, ReferenceStream)
PATHS: dict[str, Path] = {
    "short way": partial(over_the_short_way, True),
    "short way in a task": partial(over_the_short_way, False),
    "direct": partial(over_sockets, Protocol, EventStream),
    "httptools": partial(over_sockets, HttpToolsProtocol, EventStream),
    "h11": partial(over_sockets, H11Protocol, EventStream),
    "in process": in_process,
}

every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def without_chance(body: bytearray) -> bytes:
    """The body with 0 for every reconnection time, since they are random."""
    return re.sub(rb'(retry: |"retry":)\d+', rb"\g<1>0", bytes(body))
