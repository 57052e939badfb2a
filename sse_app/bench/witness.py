"""One stream whose events are kept, to find out what a server can do."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator

from sse_app.bench.target import Target
from sse_app.bench.wire import ChunkedDecoder, is_chunked, status_of

READ_MAX = 65_536  # bytes
OPEN_SECONDS = 30.0

_END = re.compile(rb"\r?\n\r?\n")


class Witness:
    """The events that came on one stream, as they stand there."""

    def __init__(self, reader: asyncio.StreamReader, body: ChunkedDecoder | None) -> None:
        self._reader, self._body = reader, body
        self._text = b""

    async def until(self, wanted: bytes) -> list[bytes]:
        """Return the events so far, once this is in the last of them. Raises `OSError` when the stream ends before."""
        while (found := self._text.find(wanted)) < 0 or not _END.search(self._text, found):
            self._text += await self._read()
        return _END.split(self._text)[:-1]

    async def _read(self) -> bytes:
        data = await self._reader.read(READ_MAX)
        if not data or (self._body and self._body.ended):
            raise ConnectionError("the stream ended")
        try:
            return self._body.feed(data) if self._body else data
        except ValueError as error:
            raise ConnectionError(f"stream: {error}") from None


@contextlib.asynccontextmanager
async def witness(target: Target, token: str | None, last: str | None = None) -> AsyncIterator[Witness]:
    """Open a stream for the length of a block. Raises `OSError` when the server has none to give within 30 s.

    last: the id of the last event that was seen before
    """
    reader, writer = await asyncio.open_connection(target.address, target.port)
    try:
        writer.write(target.subscribe(token, last))
        head = await _head(reader)
        if status_of(head) != 200:
            raise ConnectionError(f"GET: answered {status_of(head)}")
        yield Witness(reader, ChunkedDecoder() if is_chunked(head) else None)
    finally:
        writer.transport.abort()


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            return await reader.readuntil(b"\r\n\r\n")
    except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        raise ConnectionError("GET: no answer") from None
