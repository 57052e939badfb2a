"""What a request may cost beside its head, over a real socket. Its head stands in test_server.py."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from select import select

import pytest

from tests.web import Answer, LiveHub, code_of, live_hub, read_until

HEAD_MAX = 2048
POST = b"POST /broadcast HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture
def hasty() -> Iterator[LiveHub]:
    with live_hub(drain=0.2, head_deadline=0.5, head_max=HEAD_MAX, body_max=1000) as running:
        yield running


@pytest.mark.parametrize(
    ("begin", "more"),
    [(b"0\r\nX-Trailer: ", b"x"), (b"0\r\n", b"X-Trailer: x\r\n"), (b"5;", b"x")],
    ids=["one trailer", "many trailers", "a chunk's extension"],
)
def test_what_never_becomes_a_body_is_bounded_like_a_head(hasty: LiveHub, begin: bytes, more: bytes) -> None:
    with hasty.connect() as connection:
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n" + begin)
        with suppress(ConnectionError):  # it may be gone before its answer was seen
            while not select([connection], [], [], 0)[0]:
                connection.sendall(more * 100)
        answer = Answer.parse(read_until(connection, b"}"))
    assert code_of(answer) == (431, "head_too_large")
    assert hasty.hub.totals.published == 0


def test_a_body_much_larger_than_a_head_is_published(hasty: LiveHub) -> None:
    data = b"x" * 1000
    pieces = [b"%x\r\n%b\r\n" % (10, data[:10]) for _ in range(100)]
    head = POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert hasty.answer(head, *pieces, b"0\r\n\r\n").status_code == 200
    assert hasty.hub.totals.published == 1


def test_a_body_that_goes_on_after_its_answer_does_not_keep_the_connection(hasty: LiveHub) -> None:
    with hasty.connect() as connection:
        connection.sendall(POST + b"Content-Length: 100000\r\n\r\n")
        received = b""
        while piece := connection.recv(65536):  # 413 at once; the end when what is left has had its time
            received += piece
            connection.sendall(b"x")
    assert code_of(Answer.parse(received)) == (413, "too_large")


def test_a_connection_whose_body_ends_after_its_answer_goes_on(hasty: LiveHub) -> None:
    with hasty.connect() as connection:
        connection.sendall(POST + b"Content-Length: 2000\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
        connection.sendall(b"x" * 2000 + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_an_upgrade_that_is_not_known_is_ignored_in_silence(hasty: LiveHub, caplog: pytest.LogCaptureFixture) -> None:
    upgrade = b"Host: localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    with caplog.at_level(logging.DEBUG):
        assert hasty.answer(b"GET /healthz HTTP/1.1\r\n" + upgrade).status_code == 200
    assert "pgrade" not in caplog.text
