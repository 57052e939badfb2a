import asyncio
import logging
import re
import select
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import msgspec
import pytest
import uvicorn
from sse_starlette.sse import AppStatus
from starlette.applications import Starlette
from starlette.routing import Mount

from sse_app import Config, EventDecoder, Hub, draining
from sse_app.brokers.memory import MemoryBroker
from sse_app.errors import ConfigError
from sse_app.publication import Position
from sse_app.server import Protocol
from sse_app.server.server import Server
from sse_app.server.sockets import listen
from sse_app.testing import UvicornOptions, live
from tests.support.peers import PATIENCE
from tests.support.web import Answer, HastyHub, LiveHub, code_of, hasty_hub, live_hub, read_until

HOST = b"Host: localhost\r\n"
CLOSE = HOST + b"Connection: close\r\n"
HEAD_MAX = 2048


pytestmark = pytest.mark.usefixtures("both_ways")


@pytest.fixture(scope="module")
def server(both_ways: None) -> Iterator[LiveHub]:
    with live_hub(drain=0.2, head_max=HEAD_MAX) as running:
        yield running


@pytest.fixture
async def hasty() -> AsyncIterator[HastyHub]:
    async with hasty_hub() as running:
        yield running


def post(*fields: bytes, body: bytes = b"") -> bytes:
    return b"POST /broadcast HTTP/1.1\r\n" + CLOSE + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body


# Bytes that are no valid HTTP request; web/endpoints/test_broadcast.py has valid requests that are refused.

CHUNKED = b"Transfer-Encoding: chunked"
NOT_HTTP = [
    ("length and chunks", post(b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n")),
    ("chunks and length", post(CHUNKED, b"Content-Length: 5", body=b"5\r\nhello\r\n0\r\n\r\n")),
    ("two lengths", post(b"Content-Length: 5", b"Content-Length: 5", body=b"hello")),
    ("two lengths that differ", post(b"Content-Length: 5", b"Content-Length: 6", body=b"hello!")),
    ("two lengths in one", post(b"Content-Length: 5, 5", body=b"hello")),
    ("a negative length", post(b"Content-Length: -5", body=b"hello")),
    ("a length with a sign", post(b"Content-Length: +5", body=b"hello")),
    ("a length in hex", post(b"Content-Length: 0x5", body=b"hello")),
    ("a length beyond all", post(b"Content-Length: " + b"9" * 30, body=b"hello")),
    ("no length at all", post(b"Content-Length: ", body=b"hello")),
    ("a length shorter than the body", post(b"Content-Length: 5", body=b"hello world")),
    ("a bad chunk", post(CHUNKED, body=b"Z\r\nhello\r\n0\r\n\r\n")),
    ("a chunk longer than it says", post(CHUNKED, body=b"2\r\nhello\r\n0\r\n\r\n")),
    ("chunks before the end of the codings", post(b"Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n")),
    ("a coding that nobody undoes", post(b"Transfer-Encoding: gzip, chunked", body=b"5\r\nhello\r\n0\r\n\r\n")),
    ("a coding without an end", post(b"Transfer-Encoding: gzip", body=b"hello")),
    ("bare line feeds", b"GET /healthz HTTP/1.1\nHost: localhost\n\n"),
    ("one bare line feed", b"GET /healthz HTTP/1.1\r\nHost: localhost\n\r\n"),
    ("a bare carriage return", b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: a\rb\r\n\r\n"),
    ("a folded line", b"GET /healthz HTTP/1.1\r\n" + HOST + b" folded\r\n\r\n"),
    ("a blank before the colon", b"GET /healthz HTTP/1.1\r\nHost : localhost\r\n\r\n"),
    ("NUL in a field", b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: \0\r\n\r\n"),
    ("a field without a name", b"GET /healthz HTTP/1.1\r\n" + HOST + b": x\r\n\r\n"),
    ("a user in the target", b"GET http://user@localhost/stats HTTP/1.1\r\n" + HOST + b"\r\n"),
    ("a user and a password", b"GET http://localhost:80@evil.example/stats HTTP/1.1\r\n" + HOST + b"\r\n"),
    ("a fragment in the target", b"GET http://localhost/stats#x HTTP/1.1\r\n" + HOST + b"\r\n"),
    ("a fragment behind a path", b"GET /stats#x HTTP/1.1\r\n" + HOST + b"\r\n"),
    ("a target without a host", b"GET http:///stats HTTP/1.1\r\n" + HOST + b"\r\n"),
    ("a target of another scheme", b"GET ftp://localhost/stats HTTP/1.1\r\n" + HOST + b"\r\n"),
    ("a star for a method that takes none", b"GET * HTTP/1.1\r\n" + HOST + b"\r\n"),
    ("a target without a slash", b"GET @evil HTTP/1.1\r\n" + HOST + b"\r\n"),
    ("a tunnel", b"CONNECT evil.example:443 HTTP/1.1\r\n" + HOST + b"\r\n"),
    ("raw UTF-8 in the target", "GET /é HTTP/1.1\r\n".encode() + HOST + b"\r\n"),
    ("a blank in the target", b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n"),
    ("an unknown method", b"BREW /events HTTP/1.1\r\n" + HOST + b"\r\n"),
    ("a version that is none", b"GET / HTTP/1\r\n" + HOST + b"\r\n"),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    ("NUL", b"\0\r\n\r\n"),
]  # fmt: skip


@pytest.mark.parametrize("request_bytes", [row[1] for row in NOT_HTTP], ids=[row[0] for row in NOT_HTTP])
def test_what_is_no_valid_request_is_a_400_and_the_end_of_the_connection(server: LiveHub, request_bytes: bytes) -> None:
    before = server.hub.node.totals.published
    answer = server.answer(request_bytes)
    assert code_of(answer) == (400, "bad_request")
    assert answer.headers["connection"] == "close"
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert server.hub.node.totals.published == before


@pytest.mark.parametrize(
    "target",
    ["/broadcast?topic=café", "/café", "/broadcast?topic=a\x7f", "/broadcast?topic=\u200b", "caf\u00e9"],
    ids=["query", "path", "a control", "invisible", "no path"],
)
def test_a_target_that_is_not_encoded_is_told_how_to_be(server: LiveHub, target: str) -> None:
    before = server.hub.node.totals.published
    raw = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi".encode()
    answer = server.answer(raw)
    assert code_of(answer) == (400, "bad_request")
    assert "percent-encode" in answer.content.decode()
    assert "curl with -G --data-urlencode" in answer.content.decode()
    assert server.hub.node.totals.published == before


@pytest.mark.parametrize("version", [b"2.0", b"3.0", b"0.9", b"1.2", b"9.9"])
@pytest.mark.parametrize("rest", [b"", HOST, HOST + b"Connection: Upgrade\r\nUpgrade: h2c\r\n"])
def test_another_version_is_a_505_and_the_end_of_the_connection(server: LiveHub, version: bytes, rest: bytes) -> None:
    answer = server.answer(b"GET /healthz HTTP/" + version + b"\r\n" + rest + b"\r\n")
    assert code_of(answer) == (505, "unsupported_version")
    assert answer.headers["connection"] == "close"


def test_http_2_without_asking_is_a_505(server: LiveHub) -> None:
    assert code_of(server.answer(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")) == (505, "unsupported_version")
    assert code_of(server.answer(b"GET /healthz\r\n\r\n")) == (505, "unsupported_version")  # HTTP/0.9


@pytest.mark.parametrize("space", [b" ", b"\t", b" \t  "])
def test_white_space_around_a_value_is_not_the_value(server: LiveHub, space: bytes) -> None:
    def around(value: bytes) -> bytes:
        return space + value + space

    fields = b"Host:" + around(b"localhost") + b"\r\nConnection:" + around(b"close") + b"\r\n"
    body = (
        b"Idempotency-Key:" + around(b"k" + space.hex().encode()) + b"\r\nContent-Type:" + around(b"application/json")
    )
    expect = b"\r\nExpect:" + around(b"100-continue") + b"\r\nContent-Length: 2\r\n\r\n{}"
    received = server.ask(b"POST /broadcast HTTP/1.1\r\n" + fields + body + expect)
    assert re.findall(rb"HTTP/1\.1 (\d+) ", received)[-1] == b"200"
    top = msgspec.json.decode(received.rpartition(b"\r\n\r\n")[2])["id"].encode()
    with server.connect() as connection:
        cursor = b"Last-Event-ID:" + around(top) + b"\r\nOrigin:" + around(b"http://localhost")
        connection.sendall(b"GET /events HTTP/1.1\r\nHost:" + around(b"localhost") + b"\r\n" + cursor + b"\r\n\r\n")
        assert b'"recovered":true' in read_until(connection, b'"heartbeat"')


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://localhost/healthz", 200),
        ("https://localhost:8443/healthz", 200),
        ("HTTP://LOCALHOST/healthz", 200),
        ("http://[::1]:8000/healthz", 200),
        ("http://localhost", 200),  # the console
        ("http://localhost?x=y", 200),
        ("http://localhost/events?topi=x", 400),  # the query of an absolute target is read
        ("http://localhost/none", 404),
        ("http://localhost//healthz", 404),
        ("http://evil.example/stats", 421),
        ("http://localhost.evil.example/stats", 421),
        ("http://lo%63alhost/healthz", 400),
        ("http://localhost:port/healthz", 400),
    ],
)
@pytest.mark.parametrize(
    ("version", "host"),
    [("1.1", "Host: localhost"), ("1.1", "Host: evil.example"), ("1.1", "Host: a/b"), ("1.0", "X: y")],
)
def test_an_absolute_target_names_the_host_whatever_the_header_says(
    server: LiveHub, target: str, status: int, version: str, host: str
) -> None:
    raw = f"GET {target} HTTP/{version}\r\n{host}\r\nConnection: close\r\n\r\n"
    assert server.answer(raw.encode()).status_code == status


@pytest.mark.parametrize("hosts", [b"", HOST * 2], ids=["none", "two"])
def test_an_absolute_target_makes_up_for_no_host_header(server: LiveHub, hosts: bytes) -> None:
    raw = b"GET http://localhost/healthz HTTP/1.1\r\n" + hosts + b"Connection: close\r\n\r\n"
    assert code_of(server.answer(raw)) == (400, "bad_host")


def test_an_absolute_target_publishes_and_subscribes(server: LiveHub) -> None:
    with server.connect() as connection:
        for _ in range(2):
            connection.sendall(b"POST http://localhost/broadcast?topic=a HTTP/1.1\r\n" + HOST)
            connection.sendall(b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello")
            assert read_until(connection, b'"none"}').startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET http://localhost/events HTTP/1.1\r\n" + HOST + b"\r\n")
        assert b"event: welcome" in read_until(connection, b'"heartbeat"')


def test_the_options_of_the_server_as_a_whole_are_no_bad_request(server: LiveHub) -> None:
    assert server.answer(b"OPTIONS * HTTP/1.1\r\n" + CLOSE + b"\r\n").status_code == 404


BAD_HOSTS = [
    ("missing", b"", 400),
    ("twice", HOST * 2, 400),
    ("twice and different", HOST + b"Host: evil.example\r\n", 400),
    ("empty", b"Host:\r\n", 400),
    ("malformed", b"Host: a/b?c\r\n", 400),
    ("with a user", b"Host: localhost@evil.example\r\n", 400),
    ("unknown", b"Host: evil.example\r\n", 421),
    ("a rebinding name", b"Host: 127.0.0.1.nip.example\r\n", 421),
]


@pytest.mark.parametrize("request_line", [b"GET /metrics", b"POST /broadcast", b"GET /events"])
@pytest.mark.parametrize(("host", "status"), [row[1:] for row in BAD_HOSTS], ids=[row[0] for row in BAD_HOSTS])
def test_a_bad_host_has_its_code_on_the_wire_too(
    server: LiveHub, request_line: bytes, host: bytes, status: int
) -> None:
    raw = request_line + b" HTTP/1.1\r\n" + host + b"Connection: close\r\n\r\n"
    assert code_of(server.answer(raw)) == (status, "bad_host")


@pytest.mark.parametrize(
    "path", [b"/@evil", b"//evil.example/events", b"/events@evil", b"/%2e%2e/events", b"/./events"]
)
def test_a_path_is_taken_as_it_is(server: LiveHub, path: bytes) -> None:
    assert code_of(server.answer(b"GET " + path + b" HTTP/1.1\r\n" + CLOSE + b"\r\n")) == (404, "not_found")


@pytest.mark.virtual_time
@pytest.mark.parametrize("body", [b"hello world", b""])
async def test_a_body_that_ends_early_is_a_408_and_published_by_nobody(hasty: HastyHub, body: bytes) -> None:
    assert code_of(await hasty.answer(post(b"Content-Length: 50", body=body))) == (408, "too_slow")
    assert hasty.hub.node.totals.published == 0


@pytest.mark.parametrize("connection", [b"close", b"keep-alive"])
def test_what_follows_a_body_in_the_same_packet_keeps_it_from_being_published(
    server: LiveHub, connection: bytes
) -> None:
    before = server.hub.node.totals.published
    fields = HOST + b"Connection: " + connection + b"\r\nContent-Length: 2\r\n\r\n"
    answer = server.answer(b"POST /broadcast HTTP/1.1\r\n" + fields + b'{}{"forgotten":1}')
    assert code_of(answer) == (400, "bad_request")
    assert server.hub.node.totals.published == before


def test_a_line_end_after_a_body_is_forgiven(server: LiveHub) -> None:
    """Old clients send one behind a body (RFC 9112, 2.2)."""
    assert server.answer(post(b"Content-Length: 5", body=b"hello\r\n")).status_code == 200


@pytest.mark.parametrize(
    "garbage",
    [b"\0", b"BREW / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nX : y\r\n", b"GET /" + b"x" * HEAD_MAX + b" HTTP/1.1\r\n\r\n",
     b"POST /broadcast HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZ\r\n"],
    ids=["no HTTP", "no method", "a bad field", "a large head", "a body that breaks off"],
)  # fmt: skip
@pytest.mark.parametrize(
    "good",
    [[b"POST /broadcast"] * 2, [b"GET /healthz"], [b"GET /healthz", b"POST /broadcast", b"GET /readyz"],
     [b"POST /broadcast", b"GET /healthz"], [b"HEAD /healthz"] * 50],
    ids=["two POSTs", "a GET", "three", "a GET behind a POST", "fifty"],
)  # fmt: skip
def test_good_requests_before_a_bad_one_are_answered_in_order_then_it_is(
    server: LiveHub, good: list[bytes], garbage: bytes
) -> None:
    before = server.hub.node.totals.published
    requests = [
        line + b" HTTP/1.1\r\n" + HOST + (b"Content-Length: 5\r\n\r\nhello" if line.startswith(b"POST") else b"\r\n")
        for line in good
    ]
    received = server.ask(b"".join(requests) + garbage)
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", received)]
    assert statuses == [200] * len(good) + [431 if len(garbage) > HEAD_MAX else 400]
    assert code_of(Answer.parse(received[received.rindex(b"HTTP/1.1 ") :]))[0] == statuses[-1]
    assert server.hub.node.totals.published == before + good.count(b"POST /broadcast")


@pytest.mark.parametrize(
    ("bad", "status"),
    [("GET / HTTP/2.0\r\n\r\n", 505), ("GET /é HTTP/1.1\r\n\r\n", 400), ("GET / HTTP/1.1\r\nX : y\r\n\r\n", 400),
     ("GET http://user@localhost/ HTTP/1.1\r\n\r\n", 400), (f"GET /{'x' * HEAD_MAX} HTTP/1.1\r\n\r\n", 431)],
    ids=["a version", "a target", "a field", "a user", "a large head"],
)  # fmt: skip
def test_a_bad_request_shows_that_the_body_before_it_was_whole(server: LiveHub, bad: str, status: int) -> None:
    before = server.hub.node.totals.published
    good = b"POST /broadcast HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello"
    received = server.ask(good + bad.encode())
    assert [int(found) for found in re.findall(rb"HTTP/1\.1 (\d+) ", received)] == [200, status]
    assert server.hub.node.totals.published == before + 1


@pytest.mark.virtual_time
async def test_a_head_that_comes_too_slowly_behind_a_slow_request_is_a_408_after_its_answer(hasty: HastyHub) -> None:
    async with hasty.connect() as (incoming, outgoing):
        outgoing.write(b"POST /broadcast HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhelloGET /heal")
        received = await incoming.read()
    assert re.findall(rb"HTTP/1\.1 (\d+) ", received) == [b"200", b"408"]


def test_what_follows_an_answered_request_is_a_400_of_its_own(server: LiveHub) -> None:
    with server.connect() as connection:
        connection.sendall(b"POST /broadcast HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello")
        assert read_until(connection, b'"none"}').startswith(b"HTTP/1.1 200 ")
        connection.sendall(b" world")
        assert read_until(connection, b"").startswith(b"HTTP/1.1 400 ")


def test_a_trailer_is_no_header(server: LiveHub) -> None:
    trailers = b"Host: evil.example\r\nContent-Type: multipart/mixed\r\nOrigin: https://evil.example\r\n"
    raw = post(CHUNKED, body=b"5\r\nhello\r\n0\r\n" + trailers + b"\r\n")
    assert server.answer(raw).status_code == 200


# The bounds of a head


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /healthz HTTP/1.1\r\n" + CLOSE + b"X: " + b"a" * HEAD_MAX + b"\r\n\r\n",
        b"GET /healthz?" + b"a" * HEAD_MAX + b" HTTP/1.1\r\n" + CLOSE + b"\r\n",
        b"GET /healthz HTTP/1.1\r\n" + CLOSE + b"a: b\r\n" * (HEAD_MAX // 6) + b"\r\n",
        b"GET /healthz HTTP/1.1\r\n" + CLOSE + b"X: " + b"a" * HEAD_MAX,
    ],
    ids=["one field", "the target", "many fields", "no end"],
)
def test_a_head_above_its_limit_is_a_431(server: LiveHub, raw: bytes) -> None:
    answer = server.answer(raw)
    assert code_of(answer) == (431, "head_too_large")
    assert answer.headers["connection"] == "close"


def test_a_head_of_nearly_the_limit_is_answered_and_so_is_the_next(server: LiveHub) -> None:
    raw = b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: " + b"a" * (HEAD_MAX - 100) + b"\r\n\r\n"
    with server.connect() as connection:
        for _ in range(3):
            connection.sendall(raw)
            assert read_until(connection, b"}").startswith(b"HTTP/1.1 200 ")


def test_a_long_body_is_no_long_head(server: LiveHub) -> None:
    data = b"x" * HEAD_MAX * 4
    raw = post(b"Content-Length: %d" % len(data), body=data)
    assert server.answer(raw).status_code == 200


@pytest.mark.virtual_time
@pytest.mark.parametrize("begun", [b"", b"GET /healthz HTTP/1.1\r\n" + HOST, b"G", b"\r\n"])
async def test_a_head_that_does_not_end_in_time_is_a_408(hasty: HastyHub, begun: bytes) -> None:
    answer = await hasty.answer(begun)
    assert code_of(answer) == (408, "too_slow")
    assert answer.headers["connection"] == "close"


@pytest.mark.virtual_time
async def test_the_deadline_of_a_head_holds_for_every_head_of_a_connection(hasty: HastyHub) -> None:
    async with hasty.connect() as (incoming, outgoing):
        outgoing.write(b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n")
        assert (await incoming.readuntil(b"}")).startswith(b"HTTP/1.1 200 ")
        outgoing.write(b"GET /heal")
        assert (await incoming.read()).startswith(b"HTTP/1.1 408 ")


@pytest.mark.virtual_time
async def test_a_stream_outlives_the_deadline_of_heads(hasty: HastyHub) -> None:
    async with hasty.connect() as (incoming, outgoing):
        outgoing.write(b"GET /events HTTP/1.1\r\n" + HOST + b"\r\n")
        await incoming.readuntil(b"event: welcome")
        assert (await hasty.answer(b"G")).status_code == 408  # the deadline has passed
        await hasty.hub.publish("still here")
        assert b"data: still here" in await incoming.readuntil(b"still here")


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("after", "garbage"),
    [
        (after, garbage)
        for after in (b"", b"event: welcome")
        for garbage in (b"G", b"\0garbage\r\n\r\n", b"GET /events HTTP/1.1\r\n" + HOST)
    ],
)
async def test_what_a_client_sends_after_its_subscription_gets_into_no_stream(
    hasty: HastyHub, after: bytes, garbage: bytes
) -> None:
    async with hasty.connect() as (incoming, outgoing):
        outgoing.write(b"GET /events HTTP/1.1\r\n" + HOST + b"\r\n")
        received = await incoming.readuntil(after) if after else b""
        outgoing.write(garbage)  # without a wait in between, in one segment with the request
        assert (await hasty.answer(b"G")).status_code == 408  # the deadline has passed
        await hasty.hub.publish("the end")
        await hasty.hub.drain()
        received += await incoming.read()
    assert b"data: the end" in received
    assert b"HTTP/1.1 4" not in received.partition(b"\r\n\r\n")[2]


def test_refusals_are_logged_without_what_was_sent(server: LiveHub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for raw in (
        b"GET /m4rk3r HTTP/9.9\r\n\r\n",
        b"m4rk3r\r\n\r\n",
        b"GET /m4rk3r HTTP/1.1\r\nHost: m4rk3r/\r\nConnection: close\r\n\r\n",
    ):
        assert b"m4rk3r" not in server.ask(raw)
    records = [record for record in caplog.records if record.name != "uvicorn.access"]  # the access log is for paths
    assert records
    assert "m4rk3r" not in "".join(record.getMessage() for record in records)


# HTTP/1.0, methods, connections


def test_an_http_1_0_stream_comes_without_chunks_and_ends_with_its_connection() -> None:
    with ExitStack() as stack:
        with live_hub(drain=0.2) as server:
            connection = stack.enter_context(server.connect())
            connection.sendall(b"GET /events HTTP/1.0\r\n\r\n")
            head, _, body = read_until(connection, b"\n\n").partition(b"\r\n\r\n")
            server.hub.publish_threadsafe("one")
        body += read_until(connection, b"")
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    assert body.startswith(b"retry: ")
    assert [event.type for event in EventDecoder().feed(body)] == ["welcome", "message", "bye"]


@pytest.mark.parametrize("path", [b"/", b"/stats", b"/metrics", b"/healthz", b"/openapi.json", b"/static/app.js"])
def test_an_http_1_0_client_reads_everything_else_too(server: LiveHub, path: bytes) -> None:
    answer = server.answer(b"GET " + path + b" HTTP/1.0\r\n\r\n")
    assert answer.status_code == 200
    assert "transfer-encoding" not in answer.headers
    assert len(answer.content) == int(answer.headers["content-length"])


def test_an_http_1_0_client_publishes(server: LiveHub) -> None:
    answer = server.answer(b"POST /broadcast HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello")
    assert answer.status_code == 200


@pytest.mark.parametrize("method", ["OPTIONS", "POST", "PUT", "DELETE", "PATCH", "TRACE"])
def test_a_subscription_takes_no_other_method(server: LiveHub, method: str) -> None:
    before = server.hub.node.totals.connected
    answer = server.answer(f"{method} /events HTTP/1.1\r\n".encode() + CLOSE + b"\r\n")
    assert code_of(answer) == (405, "method_not_allowed")
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert server.hub.node.totals.connected == before


def test_an_upgrade_that_nobody_offers_is_an_ordinary_request(server: LiveHub) -> None:
    raw = b"GET /healthz HTTP/1.1\r\n" + HOST + b"Connection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    assert server.answer(raw).status_code == 200


def test_pipelined_requests_are_answered_in_order(server: LiveHub) -> None:
    first = b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n"
    received = server.ask(first + b"GET /readyz HTTP/1.1\r\n" + CLOSE + b"\r\n")
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert received.index(b'{"status":"ok"}') < received.index(b'{"status":"ready"}')


def test_a_curl_that_expects_100_continue_gets_it(server: LiveHub) -> None:
    with server.connect() as connection:
        connection.sendall(post(b"Content-Length: 5", b"Expect: 100-continue"))
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(b"hello")
        assert read_until(connection, b"").startswith(b"HTTP/1.1 200 ")


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(server: LiveHub) -> None:
    answer = server.answer(post(b"Content-Length: 999999999", b"Expect: 100-continue"))
    assert code_of(answer) == (413, "too_large")


def test_the_server_does_not_say_what_it_is(server: LiveHub) -> None:
    assert "server" not in server.answer(b"GET /healthz HTTP/1.1\r\n" + CLOSE + b"\r\n").headers


# Listening


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    ((found,),) = listen(Config(port=0, so_sndbuf=32768, tcp_user_timeout=7))
    with found:
        yield found


def test_port_0_takes_a_free_one(listening: socket.socket) -> None:
    host, port = listening.getsockname()
    assert host == "127.0.0.1"
    assert port > 0


def test_what_is_accepted_has_the_send_buffer_of_the_settings(listening: socket.socket) -> None:
    with accepted(listening) as connection:
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 32768  # Linux doubles it


def test_what_is_accepted_gives_up_on_a_silent_peer(listening: socket.socket) -> None:
    with accepted(listening) as connection:
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000  # milliseconds


@contextmanager
def accepted(listening: socket.socket) -> Iterator[socket.socket]:
    listening.settimeout(5)
    with socket.create_connection(listening.getsockname(), timeout=5):
        connection, _ = listening.accept()
        with connection:
            yield connection


@contextmanager
def listened(port: int = 0, **settings: Any) -> Iterator[list[list[socket.socket]]]:
    with ExitStack() as stack:
        each = listen(Config(port=port, allow_open_publish=True, broker="other://", **settings))
        for sockets in each:
            for found in sockets:
                stack.enter_context(found)
        yield each


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("::", ["::", "0.0.0.0"]),
        ("::1,127.0.0.1", ["::1", "127.0.0.1"]),
        ("127.0.0.1,127.0.0.2,127.0.0.1", ["127.0.0.1", "127.0.0.2"]),
        ("127.0.0.1,0.0.0.0", ["0.0.0.0"]),
        ("::1,0.0.0.0,127.0.0.1", ["::1", "0.0.0.0"]),
        ("::,0.0.0.0,::1", ["::", "0.0.0.0"]),
    ],
)
def test_several_addresses_are_listened_on_at_one_port(host: str, addresses: list[str]) -> None:
    with listened(host=host) as (sockets,):
        names = [found.getsockname() for found in sockets]
    assert [name[0] for name in names] == addresses
    assert len({name[1] for name in names}) == 1


def test_a_name_with_several_addresses_is_listened_on_at_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{last}", 0)) for last in (1, 2, 1)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with listened(host="localhost") as (sockets,):
        names = [listening.getsockname() for listening in sockets]
    assert names == [("127.0.0.1", names[0][1]), ("127.0.0.2", names[0][1])]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_any_address_of_ipv6_is_reached_by_either_family(address: str) -> None:
    with listened(host="::") as (sockets,), ExitStack() as stack:
        port = sockets[0].getsockname()[1]
        stack.enter_context(socket.create_connection((address, port), timeout=PATIENCE))
        (waiting,) = select.select(sockets, [], [], PATIENCE)[0]
        connection, peer = waiting.accept()
        stack.enter_context(connection)
    assert peer[0] == address, "as it is called in its own family"


def test_a_free_port_is_one_that_is_free_at_every_address() -> None:
    with socket.create_server(("127.0.0.2", 0)) as taken, pytest.MonkeyPatch.context() as patch:
        create, ports = socket.create_server, iter([taken.getsockname()[1], 0])

        def unlucky(address: tuple[str, int], **options: Any) -> socket.socket:
            return create((address[0], address[1] or next(ports)), **options)

        patch.setattr(socket, "create_server", unlucky)
        with listened(host="127.0.0.1,127.0.0.2") as (sockets,):
            assert len({found.getsockname()[1] for found in sockets} - {taken.getsockname()[1]}) == 1


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("others", [1, 2])
def test_a_port_where_another_server_listens_is_in_use_also_between_servers_with_workers(
    workers: int, others: int
) -> None:
    """SO_REUSEPORT would let both listen, and the kernel would divide the clients between them."""
    with listened(workers=others) as each:
        port = each[0][0].getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"):
            listen(Config(port=port, workers=workers, broker="other://"))


def test_each_worker_has_a_socket_of_its_own_at_every_address_and_a_server_that_ends_leaves_the_port() -> None:
    port = 0
    for _ in range(2):
        with listened(host="127.0.0.1,127.0.0.2", port=port, workers=3) as each:
            assert [len(sockets) for sockets in each] == [2, 2, 2]
            assert len({found.fileno() for sockets in each for found in sockets}) == 6
            (port,) = {found.getsockname()[1] for sockets in each for found in sockets}


def test_what_was_opened_before_an_address_that_is_taken_is_closed_again() -> None:
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"^host, port: cannot listen on 127.0.0.2 port {port}: "):
            listen(Config(host=("127.0.0.1", "127.0.0.2"), port=port))
        socket.create_server(("127.0.0.1", port)).close()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "256.0.0.1"])
def test_a_host_that_is_none_is_named(host: str) -> None:
    with pytest.raises(ConfigError, match=f"^host, port: cannot listen on {host} port 0: .+"):
        listen(Config(host=host, port=0, allow_open_publish=True))


# Stopping


def test_a_server_that_stops_ends_its_streams_with_bye_and_the_final_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "SPREAD", 0)  # streams end all at once, and have the whole window to do so
    with ExitStack() as stack:
        with live_hub(drain=PATIENCE) as server:
            streams = [stack.enter_context(server.connect()) for _ in range(5)]
            for stream in streams:
                stream.sendall(b"GET /events HTTP/1.1\r\n" + HOST + b"\r\n")
                read_until(stream, b"event: welcome")
            server.hub.publish_threadsafe("the last")
        for stream in streams:
            received = read_until(stream, b"")
            assert received.index(b"data: the last") < received.index(b"event: bye")
            assert received.endswith(b"\r\n0\r\n\r\n")


class SilentBroker(MemoryBroker):
    """A log that never answers again: publishing takes for ever, and with ``closes=False`` closing too."""

    def __init__(self, *, closes: bool = True) -> None:
        super().__init__()
        self.asked, self._closes = threading.Event(), closes

    async def publish(self, *args: Any, **named: Any) -> Position:
        self.asked.set()
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def __aexit__(self, *error: Any) -> None:
        try:
            if not self._closes:
                await asyncio.get_running_loop().create_future()
        finally:
            await super().__aexit__(*error)


@contextmanager
def stopped_in_the_middle(
    broker: SilentBroker, signals: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """Open a stream and begin a publication, then signal the server so many times to stop; at the end of the block it
    has stopped. Yields the connection of the stream.
    """
    hub, servers = Hub(broker, drain=0), list[Server]()
    monkeypatch.setattr(AppStatus, "should_exit", False)  # a signal sets it for the rest of the process

    def server_of(config: uvicorn.Config) -> Server:
        servers.append(Server(config, hub.node))
        return servers[0]

    app = Starlette(lifespan=hub.lifespan, routes=[Mount("/", hub.app)])
    options: UvicornOptions = {"http": Protocol, "ws": "none", "log_config": None, "access_log": False}
    with ExitStack() as stack:
        running = stack.enter_context(live(app, server_class=server_of, **options))
        address = "127.0.0.1", running.port
        stream, publisher = (stack.enter_context(socket.create_connection(address, PATIENCE)) for _ in range(2))
        stream.sendall(b"GET /events HTTP/1.1\r\n" + HOST + b"\r\n")
        read_until(stream, b"event: welcome")
        publisher.sendall(post(b"Content-Length: 5", body=b"hello"))
        assert broker.asked.wait(PATIENCE)
        for _ in range(signals):
            servers[0].handle_exit(signal.SIGINT, None)
        yield stream


def test_a_stop_says_in_one_line_that_requests_waited_for_a_log_that_is_away(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopped_in_the_middle(SilentBroker(), 1, monkeypatch):
        pass
    assert caplog.messages == ["the time to stop is over; 1 requests end without an answer"]


def test_a_second_signal_ends_streams_and_requests_without_a_word(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopped_in_the_middle(SilentBroker(), 2, monkeypatch):
        pass
    assert caplog.messages == []


def test_a_log_that_does_not_close_after_a_second_signal_is_one_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopped_in_the_middle(SilentBroker(closes=False), 2, monkeypatch):
        pass
    assert caplog.messages == ["The stop was cut short: the log could not be closed in time."]
