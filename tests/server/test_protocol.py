"""The bounds of a request beside its head, over a real socket; test_server.py has those of the head."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import suppress
from select import select

import pytest

from tests.support.web import DEADLINE, Answer, LiveHub, code_of, hasty_hub, live_hub, read_until

HEAD_MAX = 2048
POST = b"POST /broadcast HTTP/1.1\r\nHost: localhost\r\n"


pytestmark = pytest.mark.usefixtures("both_ways")


@pytest.fixture
def server(both_ways: None) -> Iterator[LiveHub]:
    with live_hub(drain=0.2, head_max=HEAD_MAX, body_max=1000) as running:
        yield running


@pytest.mark.parametrize(
    ("begin", "more"),
    [(b"0\r\nX-Trailer: ", b"x"), (b"0\r\n", b"X-Trailer: x\r\n"), (b"5;", b"x")],
    ids=["one trailer", "many trailers", "a chunk's extension"],
)
def test_what_never_becomes_a_body_is_bounded_like_a_head(server: LiveHub, begin: bytes, more: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n" + begin)
        with suppress(ConnectionError):  # the server may have closed before its answer was read
            while not select([connection], [], [], 0)[0]:
                connection.sendall(more * 100)
        answer = Answer.parse(read_until(connection, b"}"))
    assert code_of(answer) == (431, "head_too_large")
    assert server.hub.node.totals.published == 0


def test_a_body_much_larger_than_a_head_is_published(server: LiveHub) -> None:
    data = b"x" * 1000
    pieces = [b"%x\r\n%b\r\n" % (10, data[:10]) for _ in range(100)]
    head = POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert server.answer(head, *pieces, b"0\r\n\r\n").status_code == 200
    assert server.hub.node.totals.published == 1


@pytest.mark.virtual_time
async def test_a_body_that_goes_on_after_its_answer_does_not_keep_the_connection() -> None:
    async with (
        hasty_hub(body_max=1000) as hasty,
        hasty.connect() as (incoming, outgoing),
        asyncio.timeout(2 * DEADLINE),
    ):
        outgoing.write(POST + b"Content-Length: 100000\r\n\r\n")
        assert code_of(Answer.parse(await incoming.readuntil(b"}"))) == (413, "too_large")
        while not incoming.at_eof():  # the end follows after the time for the rest of the body
            outgoing.write(b"x")
            await asyncio.sleep(0.3 * DEADLINE)


def test_a_connection_whose_body_ends_after_its_answer_goes_on(server: LiveHub) -> None:
    with server.connect() as connection:
        connection.sendall(POST + b"Content-Length: 2000\r\n\r\n")
        assert read_until(connection, b"}").startswith(b"HTTP/1.1 413 ")
        connection.sendall(b"x" * 2000 + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_until(connection, b"}").startswith(b"HTTP/1.1 200 ")


def test_an_upgrade_that_is_not_known_is_ignored_in_silence(server: LiveHub, caplog: pytest.LogCaptureFixture) -> None:
    upgrade = b"Host: localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    with caplog.at_level(logging.DEBUG):
        assert server.answer(b"GET /healthz HTTP/1.1\r\n" + upgrade).status_code == 200
    assert "pgrade" not in caplog.text
