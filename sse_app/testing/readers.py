"""A reader that takes a stream as slowly as its test wants, a few bytes at a time."""

from collections.abc import AsyncIterator
from typing import Self

from sse_app.events import Event, EventDecoder
from sse_app.testing.libraries import Response
from sse_app.testing.stream import check_event_stream


class SlowReader:
    """Reads a streaming response by ``size`` bytes, and only when it is asked to; it never sleeps.

        reader = SlowReader(response, size=64)
        await reader.read()
        assert [event async for event in reader] == ...

    Between two reads nothing is taken from the connection: an app that sends on meets a client that is slow. In process
    that is after the ``buffer`` chunks of StreamingASGITransport. A real socket holds megabytes unless its buffer is
    made small: ``httpx.AsyncHTTPTransport(socket_options=[(SOL_SOCKET, SO_RCVBUF, 4096)])``.

    size: bytes, at least 1. A chunk is taken whole from the response, and then given out by so many.

    ``events`` are those read so far, ``bytes_read`` counts their bytes, and ``ended`` says that the body has ended.
    Raises ValueError for a response that is no event stream.
    """

    def __init__(self, response: Response, size: int = 64) -> None:
        if size < 1:
            raise ValueError("A slow reader reads at least 1 byte at a time.")
        check_event_stream(response)
        self.size = size
        self.events: list[Event] = []
        self.bytes_read = 0
        self.ended = False
        self._chunks: AsyncIterator[bytes] = response.aiter_raw()
        self._unread = b""
        self._decoder = EventDecoder()
        self._given = 0

    async def read(self) -> list[Event]:
        """Read once, at most ``size`` bytes. Return the events that they complete; none at the end of the body too."""
        if not self._unread:
            self._unread = await anext(self._chunks, b"")
            self.ended = not self._unread
        piece, self._unread = self._unread[: self.size], self._unread[self.size :]
        self.bytes_read += len(piece)
        events = self._decoder.feed(piece)
        self.events += events
        return events

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event, read by so many bytes as it takes."""
        while self._given == len(self.events):
            if self.ended:
                raise StopAsyncIteration
            await self.read()
        self._given += 1
        return self.events[self._given - 1]
