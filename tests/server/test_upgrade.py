"""A request that offers an upgrade is a request like any other: its body is not parsed as a request."""

import asyncio
import logging
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any

import httpx
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from sse_app.server.protocol import Protocol
from tests.support.peers import PATIENCE, until
from tests.support.web import LiveHub, live_hub, read_until

SMUGGLED = b"POST /broadcast HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nevil"
NEXT = b"GET /next HTTP/1.1\r\nHost: localhost\r\nX-Own: kept\r\n\r\n"

OFFERS = {
    "unknown": b"Connection: Upgrade\r\nUpgrade: foo\r\n",
    "WebSocket": b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
    "curl --http2": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAA\r\n",
    "small letters": b"upgrade: TLS/1.0, h2c\r\nconnection:\tupgrade \r\n",
    "two of each": b"Connection: x\r\nConnection: UPGRADE\r\nUpgrade: a\r\nUpgrade: b\r\n",
}
FRAMINGS = {
    "a length": (b"Content-Length: %d\r\n" % len(SMUGGLED), SMUGGLED),
    "chunks": (b"Transfer-Encoding: chunked\r\n", b"%x\r\n%b\r\n0\r\nX-Trailer: x\r\n\r\n" % (len(SMUGGLED), SMUGGLED)),
    "two chunks": (
        b"Transfer-Encoding: chunked\r\n",
        b"a;x=y\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (SMUGGLED[:10], len(SMUGGLED) - 10, SMUGGLED[10:]),
    ),
    "a promise": (b"Expect: 100-continue\r\nContent-Length: %d\r\n" % len(SMUGGLED), SMUGGLED),
    "no body": (b"", b""),
    "a length of none": (b"Content-Length: 0\r\n", b""),
}
METHODS = (b"POST", b"GET", b"PUT", b"HEAD", b"OPTIONS")

every_offer = pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
every_framing = pytest.mark.parametrize("framing", FRAMINGS.values(), ids=FRAMINGS)


def request(method: bytes, offer: bytes, framing: tuple[bytes, bytes]) -> bytes:
    fields, body = framing
    return method + b" /path?query HTTP/1.1\r\nHost: localhost\r\n" + offer + fields + b"X-Own: kept\r\n\r\n" + body


@dataclass(frozen=True)
class Ran:
    """One request as the app got it, and the part of its body that the app read."""

    method: str
    path: str
    body: bytes
    fields: frozenset[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Outcome:
    ran: list[Ran]
    sent: bytes
    closed: bool

    @property
    def bodies(self) -> list[tuple[str, str, bytes]]:
        return [(one.method, one.path, one.body) for one in self.ran]


@dataclass
class Recorder:
    """An app that records each request with its body, and answers."""

    ran: list[Ran] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        self.ran.append(Ran(scope["method"], scope["path"], body, frozenset(scope["headers"])))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})


class Wire(asyncio.Transport):
    """A transport for a protocol whose data the test feeds in pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.closing, self.sent, self.protocol = False, b"", asyncio.BaseProtocol()

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def run(pieces: Sequence[bytes], expected: int, ws: Any = "none") -> Outcome:
    """Return the requests that these bytes run, once ``expected`` have run and the connection is idle or closed."""
    app, wire = Recorder(), Wire()
    config = uvicorn.Config(app, ws=ws, lifespan="off", log_config=None, access_log=False)
    config.load()
    protocol = Protocol(config=config, server_state=ServerState(), app_state={})
    wire.set_protocol(protocol)
    protocol.connection_made(wire)
    try:
        for piece in pieces:
            protocol.data_received(piece)
        await until(lambda: wire.sent.count(b"HTTP/1.1 200 OK\r\n") == expected or wire.closing)
        await until(lambda: not protocol.tasks)
        return Outcome(app.ran, wire.sent, wire.closing)
    finally:
        protocol.connection_lost(None)


def ordinary(method: bytes, framing: tuple[bytes, bytes]) -> list[tuple[str, str, bytes]]:
    body = SMUGGLED if framing[1] else b""
    return [(method.decode(), "/path", body), ("GET", "/next", b"")]


@every_offer
@every_framing
async def test_it_runs_as_what_it_says_wherever_it_is_cut(offer: bytes, framing: tuple[bytes, bytes]) -> None:
    for method in METHODS[:2]:
        raw = request(method, offer, framing) + NEXT
        for cut in range(len(raw)):
            outcome = await run([raw[:cut], raw[cut:]], 2)
            assert outcome.bodies == ordinary(method, framing), cut
            assert not outcome.closed, cut


@given(
    st.sampled_from(list(OFFERS.values())),
    st.lists(st.tuples(st.sampled_from(METHODS), st.sampled_from(list(FRAMINGS.values()))), min_size=1, max_size=4),
    st.lists(st.integers(0, 2_000), max_size=8),
)
def test_several_behind_one_another_run_in_order_wherever_they_are_cut(
    offer: bytes, requests: list[tuple[bytes, tuple[bytes, bytes]]], cuts: list[int]
) -> None:
    raw = b"".join(request(method, offer, framing) for method, framing in requests) + NEXT
    places = sorted({0, len(raw), *(cut % len(raw) for cut in cuts)})
    pieces = [raw[begin:end] for begin, end in pairwise(places)]
    outcome = asyncio.run(run(pieces, len(requests) + 1))
    expected = [*(ordinary(method, framing)[0] for method, framing in requests), ("GET", "/next", b"")]
    assert outcome.bodies == expected


@every_offer
async def test_the_app_is_not_told_of_the_offer(offer: bytes) -> None:
    first = (await run([request(b"POST", offer, FRAMINGS["a length"])], 1)).ran[0]
    names = {name for name, _ in first.fields}
    assert not names & {b"upgrade", b"http2-settings"}
    assert {(b"host", b"localhost"), (b"x-own", b"kept"), (b"content-length", b"%d" % len(SMUGGLED))} <= first.fields
    options = chain.from_iterable(value.split(b", ") for name, value in first.fields if name == b"connection")
    assert set(options) <= {b"keep-alive", b"x"}


async def test_a_close_beside_the_offer_holds() -> None:
    raw = request(b"POST", b"Connection: Upgrade, close\r\nUpgrade: foo\r\n", FRAMINGS["a length"])
    outcome = await run([raw], 1)
    assert outcome.bodies == [("POST", "/path", SMUGGLED)]
    assert outcome.closed


@pytest.mark.parametrize(
    "target", [b"localhost:80", b"/broadcast", b"http://localhost/broadcast"], ids=["address", "path", "URL"]
)
@every_framing
async def test_a_tunnel_is_refused_and_nothing_behind_it_runs(target: bytes, framing: tuple[bytes, bytes]) -> None:
    fields, body = framing
    raw = b"CONNECT " + target + b" HTTP/1.1\r\nHost: localhost\r\n" + fields + b"\r\n" + body + SMUGGLED
    for cut in range(len(raw)):
        outcome = await run([raw[:cut], raw[cut:]], 0)
        assert not outcome.ran, cut
        assert outcome.sent.startswith(b"HTTP/1.1 400 "), cut
        assert outcome.closed


async def test_an_offer_counts_as_a_part_of_its_head_however_it_comes() -> None:
    raw = request(b"GET", b"Connection: Upgrade\r\nUpgrade: " + b"x" * 20_000 + b"\r\n", (b"", b""))
    for pieces in ([raw], [raw[:-1], raw[-1:]]):
        outcome = await run(pieces, 0)
        assert not outcome.ran
        assert outcome.sent.startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"Content-Length: 5\r\nContent-Length: 6\r\n", 400),
        (b"Transfer-Encoding: gzip\r\n", 400),
        (b"X: " + b"x" * 20_000 + b"\r\n", 431),
    ],
    ids=["length and chunks", "two lengths", "a coding", "a large head"],
)
async def test_an_offer_excuses_nothing(fields: bytes, status: int) -> None:
    outcome = await run([request(b"POST", OFFERS["unknown"] + fields, (b"", b"hello"))], 0)
    assert not outcome.ran
    assert outcome.sent.startswith(b"HTTP/1.1 %d " % status)
    assert outcome.closed


# A WebSocket of the app around the hub, on a uvicorn with WebSockets


class WebSocketProtocol(asyncio.Protocol):
    """Stands in for uvicorn's protocols, which need more packages. It answers with the bytes that it got."""

    def __init__(self, **options: Any) -> None:
        pass

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, Wire)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(b"WebSocket: " + data)
        self.transport.close()


HANDSHAKE = b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"


async def test_a_websocket_of_the_app_around_gets_its_handshake() -> None:
    outcome = await run([HANDSHAKE, b"\r\n"], 0, WebSocketProtocol)
    assert not outcome.ran
    assert outcome.sent.startswith(b"WebSocket: GET /ws HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "raw",
    [HANDSHAKE.replace(b"GET", b"POST"), HANDSHAKE + b"Content-Length: %d\r\n" % len(SMUGGLED),
     HANDSHAKE.replace(b"websocket", b"h2c")],
    ids=["another method", "a body", "another protocol"],
)  # fmt: skip
async def test_what_is_no_handshake_is_an_ordinary_request_there_too(raw: bytes) -> None:
    body = SMUGGLED if b"Content-Length" in raw else b""
    outcome = await run([raw + b"\r\n" + body + NEXT], 2, WebSocketProtocol)
    assert [(one.path, one.body) for one in outcome.ran] == [("/ws", body), ("/next", b"")]


async def test_a_handshake_behind_an_unanswered_request_waits_its_turn() -> None:
    outcome = await run([NEXT + HANDSHAKE + b"\r\n"], 2, WebSocketProtocol)
    assert [one.path for one in outcome.ran] == ["/next", "/ws"]


# The hub


@pytest.fixture(scope="module")
def server() -> Iterator[LiveHub]:
    with live_hub(drain=0.2) as running:
        yield running


def curl(server: LiveHub, *arguments: str) -> bytes:
    command = ["curl", "--silent", "--http2", "--max-time", str(PATIENCE), *arguments]
    return subprocess.run(command, check=True, capture_output=True, timeout=2 * PATIENCE).stdout


def test_curl_publishes_when_it_is_asked_for_http_2(server: LiveHub) -> None:
    before = server.hub.node.totals.published
    answer = curl(server, "--write-out", " %{http_code} %{http_version}", "-d", "hi", f"{server.url}/broadcast")
    assert answer.endswith(b'"durable":"none"} 200 1.1')
    assert server.hub.node.totals.published == before + 1


def test_curl_subscribes_when_it_is_asked_for_http_2() -> None:
    with live_hub(drain=0.2) as server:
        command = ["curl", "--silent", "--no-buffer", "--http2", "--max-time", str(PATIENCE), f"{server.url}/events"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, b"")
            assert b"event: welcome\n" in lines
            server.hub.publish_threadsafe("hello")
            assert b"data: hello\n" in lines
            process.terminate()


def test_a_body_that_is_a_request_is_published_as_it_is(server: LiveHub) -> None:
    """The HTTP client of the JDK offers h2c with every first request."""
    offer = OFFERS["curl --http2"]
    with server.connect() as connection:
        for head, body in (
            (b"POST /broadcast HTTP/1.1\r\nHost: localhost\r\n" + offer + FRAMINGS["a length"][0], SMUGGLED),
            (b"POST /broadcast HTTP/1.1\r\nHost: localhost\r\n" + offer + FRAMINGS["chunks"][0], FRAMINGS["chunks"][1]),
        ):
            connection.sendall(head + b"\r\n")
            connection.sendall(body)
            assert read_until(connection, b'"none"}').startswith(b"HTTP/1.1 200 ")
            last = httpx.get(f"{server.url}/stats", timeout=PATIENCE).json()["last"]
            assert last["data"] == SMUGGLED.decode().replace("\r\n", "\n")


def test_an_offer_without_a_body_leaves_the_connection_as_it_was(
    server: LiveHub, caplog: pytest.LogCaptureFixture
) -> None:
    ask = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + OFFERS["WebSocket"]
    with caplog.at_level(logging.DEBUG), server.connect() as connection:
        connection.sendall(ask + b"\r\n")
        assert read_until(connection, b"}").startswith(b"HTTP/1.1 200 ")
        connection.sendall(ask + b"\r\n" + ask + b"\r\n" + ask + b"Connection: close\r\n\r\n")
        assert read_until(connection, b"").count(b"HTTP/1.1 200 OK") == 3
    assert "pgrade" not in caplog.text  # an offer is no reason for a log line
