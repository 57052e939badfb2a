"""A stream's connection: from the GET to the events, and the failures on the way."""

import asyncio
import socket

import pytest

from sse_app.bench.connect import SLOW_BUFFER, Connection, Streams
from sse_app.bench.load import Load
from sse_app.bench.tally import Tally
from sse_app.bench.target import resolve
from sse_app.bench.wire import HEAD_MAX
from tests.bench.fake_hub import HEAD, FakeHub, chunk, serving


class Wire(asyncio.Transport):
    """A transport without a peer."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__({"socket": sock})
        self.sent = b""
        self.aborted = self.paused = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        self.paused = True


class Dialled:
    """A connection just opened."""

    def __init__(self, sock: socket.socket, read: bool = True) -> None:
        self.tally, self.wire = Tally("beef"), Wire(sock)
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.connection = Connection(self.tally, b"GET", read, self.opened)
        self.connection.connection_made(self.wire)


@pytest.mark.parametrize("cut", range(1, len(HEAD), 7))
async def test_a_stream_opens_with_its_head(cut: int) -> None:
    with socket.socket() as sock:
        dialled = Dialled(sock)
        assert dialled.wire.sent == b"GET"
        dialled.connection.data_received(HEAD[:cut])
        assert not dialled.opened.done()
        dialled.connection.data_received(HEAD[cut:] + chunk(b": hello\n\n"))
        assert dialled.opened.result() is None
        assert len(dialled.tally.streams) == 1


@pytest.mark.parametrize("answer", [b"HTTP/1.1 503 No\r\n\r\n", b"SSH-2.0\r\n\r\n", b"x" * (HEAD_MAX + 1)])
async def test_another_answer_is_a_failure(answer: bytes) -> None:
    with socket.socket() as sock:
        dialled = Dialled(sock)
        dialled.connection.data_received(answer)
        assert isinstance(dialled.opened.exception(), ConnectionError)
        assert dialled.wire.aborted
        assert not dialled.tally.streams


async def test_a_close_before_the_answer_is_a_failure() -> None:
    with socket.socket() as sock:
        dialled = Dialled(sock)
        dialled.connection.connection_lost(OSError("gone"))
        assert "before the answer: gone" in str(dialled.opened.exception())


async def test_what_comes_after_giving_up_opens_nothing() -> None:
    with socket.socket() as sock:
        dialled = Dialled(sock)
        dialled.opened.cancel()
        dialled.connection.data_received(HEAD)
        assert dialled.wire.aborted
        assert not dialled.tally.streams


@pytest.mark.parametrize("ending", [b"0\r\n\r\n", b"no chunk\r\n"])
async def test_a_stream_ends_with_its_last_chunk_or_a_wrong_one(ending: bytes) -> None:
    with socket.socket() as sock:
        dialled = Dialled(sock)
        dialled.connection.data_received(HEAD)
        dialled.connection.data_received(ending)
        dialled.connection.connection_lost(None)
        assert dialled.wire.aborted
        assert (len(dialled.tally.streams), len(dialled.tally.ended)) == (0, 1)


async def test_one_that_does_not_read_takes_no_more_than_the_head() -> None:
    with socket.socket() as sock:
        dialled = Dialled(sock, read=False)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) <= 2 * max(SLOW_BUFFER, 2304)
        dialled.connection.data_received(HEAD)
        assert dialled.opened.result() is None
        assert dialled.wire.paused
        dialled.connection.connection_lost(None)
        assert (dialled.tally.slow, len(dialled.tally.streams), len(dialled.tally.ended)) == (1, 0, 0)


async def test_a_crowd_opens_what_can_be_opened_and_leaves_together() -> None:
    hub, tally = FakeHub(refuse_streams=3), Tally("beef")
    async with serving(hub) as url:
        crowd = Streams(Load(subscribers=20), resolve(url), tally)
        await crowd.connect()
        assert (len(hub.streams), len(tally.streams)) == (17, 17)
        assert tally.first_error == "GET: answered HTTP/1.1 503 Service Unavailable"
        await crowd.close()
        assert not tally.ended
