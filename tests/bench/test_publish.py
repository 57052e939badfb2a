"""The connection of a publisher: its requests, and how long each waits for an answer."""

import asyncio

import pytest

from sse_app.bench.publish import Poster
from sse_app.bench.wire import Answers

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Wire(asyncio.Transport):
    """A transport without a peer."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


def dialled(patience: float = 30) -> tuple[Poster, Wire]:
    """A publisher's connection just opened."""
    poster, wire = Poster(Answers(), patience), Wire()
    assert not poster.usable
    poster.connection_made(wire)
    assert poster.usable
    return poster, wire


@pytest.mark.parametrize("cut", range(1, len(ANSWER), 7))
async def test_an_answer_counts_when_it_is_whole(cut: int) -> None:
    poster, wire = dialled()
    for number in (1, 2):
        answer = poster.post(b"POST")
        assert wire.sent == b"POST" * number
        poster.data_received(ANSWER[:cut])
        assert not answer.done()
        poster.data_received(ANSWER[cut:])
        assert await answer == 200
    poster.close()
    assert not poster.usable


async def test_an_answer_that_is_no_http_and_one_that_never_comes_are_failures() -> None:
    poster, _ = dialled()
    answer = poster.post(b"POST")
    poster.data_received(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n")
    with pytest.raises(ConnectionError, match="chunk"):
        await answer
    answer = poster.post(b"POST")
    poster.connection_lost(None)
    with pytest.raises(ConnectionError, match="before the answer"):
        await answer
    poster.close()


@pytest.mark.virtual_time
async def test_each_post_waits_as_long_as_the_first() -> None:
    poster, _ = dialled(patience=10)
    clock = asyncio.get_running_loop()
    for _ in range(3):
        answer = poster.post(b"POST")
        await asyncio.sleep(4)
        poster.data_received(ANSWER)
        assert await answer == 200
    asked = clock.time()
    with pytest.raises(TimeoutError, match="no answer in time"):
        await poster.post(b"POST")
    assert clock.time() == asked + 10
    poster.close()


@pytest.mark.virtual_time
async def test_a_closed_connection_leaves_no_timer() -> None:
    poster, wire = dialled(patience=10)
    answer = poster.post(b"POST")
    poster.close()
    assert wire.aborted
    await asyncio.sleep(20)
    assert not answer.done()
