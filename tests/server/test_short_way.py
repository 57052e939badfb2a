"""The short way: for every request the bytes of the app's own answer, and the same done."""

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from sse_app import Hub, descriptors
from sse_app.auth.keys import new_key
from sse_app.descriptors import Waiting
from sse_app.errors import LogUnavailable
from sse_app.publication import Position
from sse_app.server.front import front_of
from sse_app.server.protocol import Protocol
from tests.chaos.client import Chunks
from tests.server.test_upgrade import Wire
from tests.support.paths import fixed_broker
from tests.support.peers import turns

PUBLISH_KEY = "publishers-own-key"
ALL, SOME = new_key("all"), new_key("some")
BEARERS = [b"Authorization: Bearer " + key.encode() for key in (PUBLISH_KEY, ALL[0], SOME[0])]
BODY_MAX, HEAD_MAX = 300, 4_096
EXAMPLES = settings().max_examples  # of this run's profile
DATE = [(b"date", b"Mon, 30 Nov 2026 12:00:00 GMT")]


class Line(Wire):
    """A wire with two ends, which hands itself from protocol to protocol."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"sockname": ("127.0.0.1", 8000), "peername": ("127.0.0.1", 5000)}.get(name, default)

    def abort(self) -> None:
        self.closing = True

    def get_write_buffer_size(self) -> int:
        return 0


@dataclass
class Side:
    """A hub, and one way to it."""

    hub: Hub
    make: Any
    state: ServerState = field(default_factory=ServerState)

    def __post_init__(self) -> None:
        self.state.default_headers = DATE

    def connect(self) -> Line:
        config = uvicorn.Config(self.hub.app, ws="none", lifespan="off", log_config=None, access_log=False)
        config.load()
        line, protocol = Line(), self.make(config=config, server_state=self.state, app_state={})
        line.set_protocol(protocol)
        protocol.connection_made(line)
        return line

    async def ask(self, pieces: Sequence[bytes]) -> tuple[bytes, bool]:
        """Return what is sent for these bytes, and whether the connection is closed then."""
        line = self.connect()
        for piece in pieces:
            line.get_protocol().data_received(piece)  # type: ignore[attr-defined]
            await turns(12)
        sent = b""
        while sent != line.sent:  # a stream may still read the log
            sent = line.sent
            await turns(12)
        sent, closing = without_chunks(sent), line.closing
        line.closing = True
        line.get_protocol().connection_lost(None)
        await turns(3)
        return sent, closing

    def counted(self) -> Counter[str]:
        """Return what the hub and its server have counted."""
        totals = self.hub.node.totals
        found = Counter({name: count for name, count in totals.as_dict().items() if isinstance(count, int)})
        found.update(totals.auth)
        found.update(totals.closed)
        return found + Counter(requests=self.state.total_requests)


def without_chunks(sent: bytes) -> bytes:
    """Return what was sent with the stream at its end in one piece: its chunks depend on when the log is read."""
    answers, head, stream = sent.rpartition(b"transfer-encoding: chunked\r\n\r\n")
    return answers + head + Chunks().feed(stream) if head else sent


@dataclass
class Ways:
    """The two ways, each to a hub of its own, on a loop of their own."""

    short: Side
    app: Side
    runner: asyncio.Runner

    def ask(self, pieces: Sequence[bytes]) -> bytes:
        """Return what both send, which is the same."""
        return self.runner.run(self._ask(pieces))

    async def _ask(self, pieces: Sequence[bytes]) -> bytes:
        before = self.short.counted(), self.app.counted()
        short, app = await self.short.ask(pieces), await self.app.ask(pieces)
        done = self.short.counted() - before[0], self.app.counted() - before[1]
        await self._level()
        assert short == app
        assert done[0] == done[1]
        return short[0]

    async def _level(self) -> None:
        """Publish where less was published, so that the next example shows its own difference alone."""
        tops = [side.hub.node.totals.published for side in (self.short, self.app)]
        behind = self.app if tops[0] > tops[1] else self.short
        for _ in range(abs(tops[0] - tops[1])):
            await behind.hub.publish("x")


def way_of(hub: Hub, *, short: bool) -> Side:
    def protocol(**options: Any) -> Protocol:
        return Protocol(**options, head_max=HEAD_MAX)

    if not short:
        return Side(hub, protocol)

    def positional(config: Any, server_state: Any, app_state: Any, loop: Any) -> Protocol:
        return protocol(config=config, server_state=server_state, app_state=app_state, _loop=loop)

    waiting = Waiting.within(descriptors.limit())
    return Side(hub, front_of(hub.app.state.desk, positional, head_max=HEAD_MAX, head_deadline=10.0, waiting=waiting))


def settings_of(kind: str, directory: Path) -> dict[str, Any]:
    """Return the settings of a hub with these credentials."""
    if kind == "open":
        return {}
    if kind == "a publish key":
        return {"publish_key": PUBLISH_KEY}
    path = directory / "auth.toml"
    table = '[keys.{0}]\nhash = "{1}"\nsubscribe = ["{2}"]\npublish = ["{2}"]\n'
    path.write_text(table.format("all", ALL[1], "**") + table.format("some", SOME[1], "a/**"))
    path.chmod(0o600)
    return {"auth_file": str(path), "publish_key": PUBLISH_KEY, "anonymous_subscribe": ("news/*",)}


@contextmanager
def both_ways(given: dict[str, Any]) -> Iterator[Ways]:
    """Start two hubs of these settings, one for each way."""
    names = ("localhost", "hub.example")
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        patch.setattr(random, "randint", lambda low, high: low)
        patch.setattr(secrets, "token_hex", lambda size=32: "0" * 2 * size)
        hubs = [Hub(fixed_broker(), allowed_hosts=names, body_max=BODY_MAX, **given) for _ in range(2)]
        sides = [way_of(hub, short=hub is hubs[0]) for hub in hubs]
        for hub in hubs:
            runner.run(hub.__aenter__())
        yield Ways(sides[0], sides[1], runner)
        for hub in hubs:
            runner.run(hub.__aexit__(None, None, None))


@pytest.fixture(scope="module", params=["open", "a publish key", "keys"])
def ways(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    with both_ways(settings_of(request.param, tmp_path_factory.mktemp("keys"))) as ways:
        yield ways


# Hubs that refuse streams


async def is_full(hub: Hub) -> None:
    hub.node._admission._max_subscribers = 0


async def has_no_log(hub: Hub) -> None:
    await fails_with(hub, LogUnavailable("It cannot be read."))


async def is_mistaken(hub: Hub) -> None:
    await fails_with(hub, RuntimeError("boom"))


async def fails_with(hub: Hub, error: Exception) -> None:
    async def top(*, fresh: bool = False) -> Position:
        raise error

    hub.broker.top = top  # type: ignore[method-assign]


async def blocks_a_client(hub: Hub) -> None:
    hub.node.connections._wall = hub.node.connections.blocks._wall = lambda: 1_700_000_000.0
    await hub.kick(client="tab-1", block=7.5)


async def drains(hub: Hub) -> None:
    hub.node.stop_accepting()


REFUSALS = (is_full, has_no_log, blocks_a_client, drains)


@contextmanager
def both_refusing(refusal: Callable[[Hub], Awaitable[None]], directory: Path) -> Iterator[Ways]:
    with both_ways(settings_of("keys", directory)) as ways:
        for side in (ways.short, ways.app):
            ways.runner.run(refusal(side.hub))  # type: ignore[arg-type]
        yield ways


@pytest.fixture(scope="module", params=REFUSALS, ids=lambda refusal: refusal.__name__)
def refusing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    """Two hubs that join no stream, or not each."""
    with both_refusing(request.param, tmp_path_factory.mktemp("keys")) as ways:
        yield ways


# Requests in order, and nearly so

QUERIES = (
    *(b"?topic=a/b", b"?topic=a&topic=b&event=tick", b"?to=tab-1&exclude=tab-2", b"?topic=caf%C3%A9"),
    *(
        b"?topic=news/1",
        b"?topic=a/*",
        b"?topic=",
        b"?topic=%FF",
        b"?topc=a",
        b"?event=welcome",
        b"?event=a%0Ab",
        b"?event=a&event=b",
    ),
    *(b"?to=", b"?token=x", b"?batch=1", b"?topic=a#b", b"?topic=\xc3\xa9", b"?last_event_id=e-1", b"?last=2&topic=a"),
    *(b"?last=x", b"?since=1h", b"?ticket=abc", b"?client=tab-1", b"?client=a%20b", b"?client=a&client=b", b"?"),
    *(b"?topic=a/**/b", b"?lastEventId=e-1&last_event_id=e-2", b"?topic=" + b"x" * 2_100, b"?Topic=a", b"?_=17"),
)
CHUNKED = b"Transfer-Encoding: chunked"
CLOSES = (b"Connection: close", b"Proxy-Connection: close")  # httptools takes the one for the other
FIELDS = (
    *(b"Content-Type: application/json", b"Content-Type: text/plain; charset=utf-8", b"content-type:application/json"),
    *(b"Content-Type: text/plain; charset=latin-1", b"Content-Type: multipart/form-data", b"Content-Type: ;"),
    *(b"Content-Type: application/x-ndjson", b"Content-Encoding: gzip", b"Content-Encoding: identity"),
    *(b"Content-Encoding: identity, identity", CHUNKED, b"Connection: keep-alive"),
    *(*CLOSES, b"Connection: Upgrade\r\nUpgrade: foo", b"Connection: upgrade\r\nUpgrade: websocket"),
    *(b"Connection: keep-alive, x", b"Expect: 100-continue", b"TE: trailers", b"Trailer: x", b"Upgrade: h2c"),
    *(b"Idempotency-Key: k1", b"Idempotency-Key: k1 ", b"Idempotency-Key: \xe9", b"Idempotency-Key: a b"),
    *(b"Idempotency-Key: " + b"k" * 200, b"Idempotency-Key: k2\r\nIdempotency-Key: k3", b"Idempotency-Key:"),
    *(b"Origin: http://localhost", b"Origin: https://evil.example", b"Origin: null", b"Origin:"),
    *(b"Sec-Fetch-Site: cross-site", b"Sec-Fetch-Site: same-origin", b"Sec-Fetch-Site: none"),
    *BEARERS,
    *(BEARERS[0].replace(b"B", b"b"), b"\r\n".join(BEARERS), BEARERS[1] + b"x", BEARERS[0].replace(b"r ", b"r  ")),
    *(b"Authorization: Basic eDp5", b"Authorization:"),
    *(b"Last-Event-ID: e-1", b"Last-Event-ID: e-1 ", b"Last-Event-ID: z-1", b"Last-Event-ID: \xff", b"Last-Event-ID:"),
    *(b"Last-Event-ID: e-1\r\nLast-Event-ID: e-2", b"Accept: text/event-stream", b"Cookie: a=b", b"X-Any: \t x \t"),
    *(b"X-Any: a\x00b", b"X-Any: a\rb", b"X-Any: a\nb", b" folded", b"X Any: x", b"X-Any : x", b": x", b"X-Any"),
    *(
        b"User-Agent: \xc3\xa9",
        b"Keep-Alive: 5",
        b"HTTP2-Settings: AAM",
        b"X: " + b"x" * 500,
        b"X: " + b"x" * HEAD_MAX,
        *(b"X: " + b"x" * (HEAD_MAX - less) for less in range(0, 120, 6)),
    ),
)
HOSTS = (
    *(b"Host: hub.example:8000", b"host:LOCALHOST", b"Host: 127.0.0.1:8000"),
    *(
        b"Host: 127.0.0.1:8001",
        b"Host: evil.example",
        b"Host: localhost\r\nHost: localhost",
        b"X: y",
        b"Host: [::1",
        b"Host:",
    ),
)
BODIES = (
    *(
        b"hello",
        b'{"a": 1}',
        b'{"a": 1',
        b"[1, 2]",
        b"NaN",
        b"\xff\xfe",
        b"a\nb\rc\r\nd",
        "é".encode(),
        b"",
        b"x" * BODY_MAX,
    ),
    *(
        b"x" * (BODY_MAX + 1),
        b"[" * 70 + b"]" * 70,
        b'"\\ud83d"',
        b"\xef\xbb\xbf1",
        b"POST /broadcast HTTP/1.1\r\n\r\n",
    ),
)
KINDS = (b"application/json", b"text/plain")
LINES = (
    b"HEAD /events",
    *(
        b"PUT /broadcast",
        b"GET /broadcast",
        b"POST /events",
        b"DELETE /events",
        b"OPTIONS /broadcast",
        b"post /broadcast",
    ),
    *(b"GET /healthz", b"GET /grant", b"POST http://localhost/broadcast", b"POST /broadcast/", b"POST //broadcast"),
    *(b"POST /broadcas%74", b"POST  /broadcast", b"GET /nothing", b"CONNECT localhost:80"),
)
LENGTHS = (b"0%d", b"+%d", b"%d ", b"%d\r\nContent-Length: %d", b"-%d", b"%d, %d", b"0x%x")
VERSIONS = (b"HTTP/1.0", b"HTTP/2.0", b"http/1.1", b"HTTP/1.1 ", b"HTTP/1.1 x", b"")
ENDS = (b"\n", b"\r", b" \r\n")


@st.composite
def requests(draw: st.DrawFn, *, whole: bool) -> bytes:
    """A request in order, but for a few things that may be wrong with it. Behind a ``whole`` one another may follow.

    What the app does with bytes behind a wrong length, or behind a connection's last request, depends on whether the
    requests before are answered by then.
    """
    parts = ("line", "end", "host", "length", *(() if whole else ("size", "version")))
    odd = draw(st.sets(st.sampled_from(parts), max_size=2))

    def one(what: str, usual: bytes, others: Sequence[bytes]) -> bytes:
        return draw(st.sampled_from(others)) if what in odd else usual

    is_post = draw(st.booleans())
    line = one("line", b"POST /broadcast" if is_post else b"GET /events", LINES)
    others = [one for one in FIELDS if not whole or one not in (CHUNKED, *CLOSES)]
    fields = [one("host", b"Host: localhost", HOSTS), *draw(st.lists(st.sampled_from(others), max_size=2, unique=True))]
    body = draw(st.sampled_from(BODIES)) if is_post else b""
    if is_post or "size" in odd:
        length = one("length", b"%d", LENGTHS)
        size = max(0, len(body) + (draw(st.sampled_from((-1, 1))) if "size" in odd else 0))
        fields.append(b"Content-Length: " + length % ((size,) * length.count(b"%")))
    query = draw(st.sampled_from(QUERIES)) if draw(st.booleans()) else b""
    end = one("end", b"\r\n", ENDS)
    head = [line + query + b" " + one("version", b"HTTP/1.1", VERSIONS), *draw(st.permutations(fields)), b"", b""]
    return end.join(head) + body


def whole(line: bytes, *fields: bytes, body: bytes = b"", length: bytes = b"%d", version: bytes = b"HTTP/1.1") -> bytes:
    lengths = [b"Content-Length: " + length % ((len(body),) * length.count(b"%"))] if body else []
    return b"\r\n".join([line + b" " + version, *(fields or (b"Host: localhost",)), *lengths, b"", body])


HOST = b"Host: localhost"
BEHIND = (b"x", b"\r\n", b"GET /", b"POST /broadcast", b"GET", b"\0")
EACH = (
    *(whole(line, body=body) for line in (b"POST /broadcast", *LINES) for body in BODIES[:3]),
    *(whole(b"POST /broadcast" + query, body=b"hello") for query in QUERIES),
    *(whole(b"GET /events" + query) for query in QUERIES),
    *(whole(b"POST /broadcast", HOST, one, body=b'{"a": 1}') for one in FIELDS),
    *(whole(b"GET /events", HOST, one) for one in FIELDS),
    *(whole(b"POST /broadcast", one, body=b"hello") for one in HOSTS),
    *(whole(b"GET /events", one) for one in HOSTS),
    *(whole(b"POST /broadcast", HOST, b"Content-Type: " + kind, body=body) for body in BODIES for kind in KINDS),
    *(whole(b"POST /broadcast", body=b"hello", length=length) for length in LENGTHS),
    *(whole(b"POST /broadcast", body=b"hello", version=version) for version in VERSIONS),
    *(whole(b"POST /broadcast", body=b"hello").replace(b"\r\n", end) for end in ENDS),
    *(
        whole(b"POST /broadcast", body=b"hello") + more
        for more in (b"x", b"\r\n", b"GET /", b"POST /broadcast", b"GET")
    ),
)


def test_whatever_is_odd_about_it_is_answered_and_done_as_by_the_app(ways: Ways) -> None:
    for raw in EACH:
        for cut in (0, 1, raw.find(b"\r\n\r\n") + 4, len(raw) - 1):
            ways.ask([piece for piece in (raw[:cut], raw[cut:]) if piece])


def cut(raw: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(raw), *(cut % len(raw) for cut in cuts)})
    return [raw[begin:end] for begin, end in pairwise(places)]


ACCEPTS = (b"Accept: text/event-stream", b"Accept: */*")
STREAMS = tuple(
    whole(b"GET /events" + query, HOST, accept, *bearer)
    for query in (b"?topic=b", b"?topic=a/b&client=tab-1", b"?client=tab-1&last_event_id=e-0")
    for accept in ACCEPTS
    for bearer in ((), *((bearer,) for bearer in BEARERS[1:]))
)


def test_a_stream_that_is_refused_is_answered_and_counted_once(refusing: Ways) -> None:
    for raw in STREAMS:
        for behind in (b"", raw, whole(b"POST /broadcast", HOST, BEARERS[0], body=b"hello"), whole(b"GET /healthz")):
            refusing.ask([raw + behind])
            refusing.ask([raw[:-1], raw[-1:] + behind])
            refusing.ask([piece for piece in (raw, behind) if piece])


def test_a_mistake_of_ours_ends_the_connection_of_a_stream(tmp_path: Path) -> None:
    with both_refusing(is_mistaken, tmp_path) as ways:
        for raw in STREAMS:
            ways.ask([raw])
            ways.ask([raw[:-1], raw[-1:]])


@settings(max_examples=EXAMPLES)
@given(
    requests(whole=True), st.sampled_from(STREAMS), requests(whole=False), st.lists(st.integers(0, 4_000), max_size=3)
)
def test_what_is_refused_among_others_is_as_by_the_app(
    refusing: Ways, before: bytes, refused: bytes, after: bytes, cuts: list[int]
) -> None:
    refusing.ask(cut(before + refused + after, cuts))


def test_a_request_whose_body_never_comes_is_counted_as_by_the_app(ways: Ways) -> None:
    for credential in (b"X-None: 1", *BEARERS):
        lines = [
            b"POST /broadcast?topic=a HTTP/1.1",
            b"Host: localhost",
            credential,
            b"Content-Length: 6",
            b"",
            b"hello",
        ]
        assert ways.ask([b"\r\n".join(lines)]).partition(b" ")[2][:3] in (b"", b"401", b"403")


@settings(max_examples=3 * EXAMPLES)
@given(requests(whole=False), st.lists(st.integers(0, 4_000), max_size=3))
def test_what_is_answered_and_done_is_what_the_app_would(ways: Ways, raw: bytes, cuts: list[int]) -> None:
    ways.ask(cut(raw, cuts))


@settings(max_examples=2 * EXAMPLES)
@given(st.lists(requests(whole=True), min_size=2, max_size=4), st.lists(st.integers(0, 4_000), max_size=3))
def test_several_behind_one_another_too(ways: Ways, asked: list[bytes], cuts: list[int]) -> None:
    ways.ask(cut(b"".join(asked), cuts))
