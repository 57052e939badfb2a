"""One stream whose events are kept, to find out what a server can do."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator

from sse_app.bench.target import Target
from sse_app.bench.wire import ChunkedDecoder, is_chunked, status_of

READ_MAX = 65_536  # bytes

_END = re.compile(rb"\r?\n\r?\n")


class Witness:
    """The events that came on one stream, as they stand there."""

    def __init__(self, reader: asyncio.StreamReader, body: ChunkedDecoder | None) -> None:
        self._reader, self._body = reader, body
        self._text = b""

    async def until(self, wanted: bytes) -> list[bytes]:
        """Return the events so far, once this is in the last of them. Raises `OSError` when the stream ends before."""
        while (found := self._text.find(wanted)) < 0 or not _END.search(self._text, found):
            data = await self._reader.read(READ_MAX)
            if not data:
                raise ConnectionError("the stream ended")
            self._text += self._body.feed(data) if self._body else data
        return _END.split(self._text)[:-1]


@contextlib.asynccontextmanager
async def witness(target: Target, token: str | None, last: str | None = None) -> AsyncIterator[Witness]:
    """Open a stream for the length of a block. Raises `OSError` when the server has none to give.

    last: the id of the last event that was seen before
    """
    reader, writer = await asyncio.open_connection(target.address, target.port)
    try:
        writer.write(target.subscribe(token, last))
        head = await reader.readuntil(b"\r\n\r\n")
        if status_of(head) != 200:
            raise ConnectionError(f"GET: answered {status_of(head)}")
        yield Witness(reader, ChunkedDecoder() if is_chunked(head) else None)
    except asyncio.IncompleteReadError:
        raise ConnectionError("GET: no answer") from None
    finally:
        writer.transport.abort()
