"""Streams that are lost at a byte of one's choice, to test that a client reconnects and misses nothing."""

from collections.abc import AsyncIterator, Iterable
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

import httpx
import httpx2

from sse_app.testing.libraries import BaseTransport, BodyStream, Request, library_of
from sse_app.testing.stream import is_event_stream


class Loss(StrEnum):
    """The end of a stream that was cut, as its client sees it."""

    RESET = "reset"  # httpx.ReadError: the connection is gone
    CLOSED = "closed"  # httpx.RemoteProtocolError: closed before the last chunk, as by a proxy that restarts
    ENDED = "ended"  # no error: the body ends, as proxies end a stream that was open for long


class CuttingTransport(BaseTransport):
    """Cuts the streams of another transport off, each after so many bytes of its body, and lets the next request pass.

        transport = CuttingTransport(StreamingASGITransport(app), after=[100])

    The app sees its client leave, as it does when a connection is lost. Responses that are no ``200 text/event-stream``
    pass unchanged and are not counted.

    transport: an in-process or a real one, of httpx or of httpx2.
    after: for the first stream, the second and so on, the bytes after which it is cut; 0 is right after its head, and
        a stream that is shorter ends by itself. Streams beyond these are not cut: ``after=range(1000)`` cuts the first
        thousand, each a byte later.
    loss: what the client sees.

    ``cuts`` is how many streams were cut so far.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport | httpx2.AsyncBaseTransport,
        after: Iterable[int],
        *,
        loss: Loss = Loss.RESET,
    ) -> None:
        self.cuts = 0
        self.loss = Loss(loss)
        self._transport: Any = transport
        self._after = iter(after)

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self._transport.__aexit__(exc_type, exc_value, traceback)

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def handle_async_request(self, request: Request) -> Any:
        response = await self._transport.handle_async_request(request)
        if is_event_stream(response) and (after := next(self._after, None)) is not None:
            response.stream = _CutBody(response.stream, after, self, request)
        return response

    def count_cut(self, request: Request) -> Exception | None:
        """Count a cut of the stream that a request has opened. Return the error that its reader gets."""
        self.cuts += 1
        match self.loss:
            case Loss.RESET:
                error: Exception = library_of(request).ReadError("the connection was reset", request=request)
            case Loss.CLOSED:
                message = "the connection was closed before the body was complete"
                error = library_of(request).RemoteProtocolError(message, request=request)
            case Loss.ENDED:
                return None
        return error


class _CutBody(BodyStream):
    """The first bytes of another body."""

    def __init__(self, body: Any, left: int, transport: CuttingTransport, request: Request) -> None:
        self._body, self._left, self._transport, self._request = body, left, transport, request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._left > 0:
            async for chunk in self._body:
                yield chunk[: self._left]
                self._left -= len(chunk)
                if self._left <= 0:
                    break
            else:
                return
        await self.aclose()
        if error := self._transport.count_cut(self._request):
            raise error

    async def aclose(self) -> None:
        await self._body.aclose()
