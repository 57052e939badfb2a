"""A hub's endpoints for tests: in this process, or byte by byte on a real socket."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import msgspec
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message

from sse_app import Config, Event, Hub, create_app, descriptors
from sse_app.descriptors import Waiting
from sse_app.server import Protocol
from sse_app.server.front import front_of
from sse_app.server.server import Server
from sse_app.testing import StreamingASGITransport, UvicornOptions, VirtualTimeLoop, events, live
from tests.support.paths import served
from tests.support.peers import PATIENCE, until

PROBLEM = "application/problem+json"
DEADLINE = 0.4  # seconds; the deadlines of HastyHub


@dataclass(frozen=True, slots=True)
class Web:
    hub: Hub
    client: httpx.AsyncClient

    async def post(self, data: str | bytes = "x", **params: Any) -> httpx.Response:
        return await self.client.post("/broadcast", content=data, params=params)

    @asynccontextmanager
    async def stream(self, url: str = "/events", **options: Any) -> AsyncIterator[AsyncIterator[Event]]:
        """The events of a new subscriber, the welcome first."""
        async with self.client.stream("GET", url, **options) as response:
            yield events(response)


@asynccontextmanager
async def web(
    hub: Hub | None = None, *, transport: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Web]:
    """A started hub with these settings, and a client of it in this process."""
    hub = Hub(**settings) if hub is None else hub
    asgi = StreamingASGITransport(hub.app, **(transport or {}))
    async with hub, httpx.AsyncClient(transport=asgi, base_url="http://localhost", timeout=PATIENCE) as client:
        yield Web(hub, client)


def code_of(response: "httpx.Response | Answer") -> tuple[int, str]:
    """The status and code of an error, after a check that it has the shape of all errors."""
    assert response.headers["content-type"] == PROBLEM, response
    problem = msgspec.json.decode(response.content)
    assert list(problem) == ["type", "title", "status", "code", "detail"]
    assert problem["type"] == "about:blank"
    assert problem["status"] == response.status_code
    assert problem["title"]
    assert problem["detail"]
    return response.status_code, problem["code"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer on a raw connection; header names are in lower case."""

    status_code: int
    headers: dict[str, str]
    content: bytes

    @classmethod
    def parse(cls, raw: bytes) -> "Answer":
        head, _, content = raw.partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
        return cls(int(line.split(" ")[1]), headers, content)


async def call(
    app: ASGIApp,
    method: str = "GET",
    path: str = "/",
    headers: Iterable[tuple[bytes, bytes]] = (),
    messages: Iterable[Message] = (),
    **scope_options: Any,
) -> Answer:
    """Return an ASGI app's answer to a request that our server would refuse; other servers may let it through."""
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "query_string": b"",
        "root_path": "",
        "headers": list(headers),
        **scope_options,
    }
    incoming, sent = iter(messages), list[Message]()

    async def receive() -> Message:
        return next(incoming)

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    start, *bodies = sent
    fields = {name.decode(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], fields, b"".join(message["body"] for message in bodies))


@dataclass(frozen=True, slots=True)
class LiveHub:
    """A hub behind our own HTTP protocol on a real socket, in another thread."""

    url: str
    port: int
    hub: Hub

    @contextmanager
    def connect(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connection:
            yield connection

    def ask(self, *pieces: bytes) -> bytes:
        """Return all that arrives until the server closes. A valid request has to ask for the close itself."""
        with self.connect() as connection:
            for piece in pieces:
                connection.sendall(piece)
            return read_until(connection, b"")

    def answer(self, *pieces: bytes) -> Answer:
        return Answer.parse(self.ask(*pieces))


def read_until(connection: socket.socket, end: bytes) -> bytes:
    """Return what arrives up to ``end``, or to the end of the connection. Raises TimeoutError when neither comes."""
    received = b""
    while not (end and end in received) and (piece := connection.recv(65536)):
        received += piece
    return received


def until_open(hub: Hub, subscribers: int) -> None:
    """Wait until a hub in another thread has so many streams open: it notices connects and disconnects later."""
    assert hub.node.life._loop is not None
    open_there = until(lambda: len(hub) == subscribers, f"{subscribers} streams are open")
    asyncio.run_coroutine_threadsafe(open_there, hub.node.life._loop).result()


def connections_of(app: Starlette, config: Config) -> Callable[..., asyncio.Protocol]:
    """Return what our server makes of each connection. In tests of both ways another function takes its place."""
    protocol = app_alone(app, config)
    waiting = Waiting.within(descriptors.limit())
    desk, deadline = app.state.desk, config.head_deadline
    return front_of(desk, protocol, head_max=config.head_max, head_deadline=deadline, waiting=waiting)


def app_alone(app: Starlette, config: Config) -> Callable[..., Protocol]:
    """Return what makes of each connection one whose requests all go to the app."""
    return partial(Protocol, head_max=config.head_max, head_deadline=config.head_deadline)


@contextmanager
def live_hub(**settings: Any) -> Iterator[LiveHub]:
    config = Config(**settings)
    app = create_app(config)
    hub = app.state.hub
    options: UvicornOptions = {
        "http": connections_of(app, config),
        "ws": "none",
        "proxy_headers": False,
        "server_header": False,
        "access_log": False,
    }
    with live(app, server_class=lambda config: Server(config, hub.node), **options) as server:
        yield LiveHub(server.url, server.port, hub)


@dataclass(frozen=True, slots=True)
class HastyHub:
    """A hub behind our own HTTP protocol on a real socket, that waits ``DEADLINE`` for a head, a body, and the rest of
    one. It runs in the loop of its test on virtual time, so that a deadline passes only when nothing is left to do.
    """

    hub: Hub
    port: int

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        incoming, outgoing = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield incoming, outgoing
        finally:
            outgoing.close()

    async def answer(self, request: bytes) -> Answer:
        """Return what arrives until the server closes."""
        async with self.connect() as (incoming, outgoing):
            outgoing.write(request)
            return Answer.parse(await incoming.read())


@asynccontextmanager
async def hasty_hub(**settings: Any) -> AsyncIterator[HastyHub]:
    async with Hub(head_deadline=DEADLINE, **settings) as hub:
        make = connections_of(hub.app, hub.config)
        async with served(hub.app, make) as server:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, VirtualTimeLoop)
            loop.patience = 0.2  # real seconds: nothing on loopback takes so long
            yield HastyHub(hub, server.port)
