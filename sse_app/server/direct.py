"""Direct streams: a subscriber that writes to its connection without the request that opened it.

``Outlet`` stands where a GET's response goes out. It looks at the head that reaches the wire, after all middleware;
when that is an event stream that nobody has wrapped, ``hand_over`` makes a ``DirectStream`` of the connection, and
the request, its task, its parser and its scope are gone. What is left of an idle stream is measured in
``docs/performance.md``.
"""

import asyncio

from starlette.types import Message

from sse_app.events import MEDIA_TYPE
from sse_app.hub import Hub
from sse_app.server.uvicorn_internals import HttpToolsProtocol, RequestResponseCycle, ServerState
from sse_app.subscriber import Batch, CloseReason, Subscriber

FAREWELL = 1.0  # seconds for what a closed connection has to flush; over TLS asyncio allows its peer 30 s to answer
LAST_CHUNK = b"0\r\n\r\n"


class Outlet:
    """The ``send`` of one GET, and the connection that it offers to a stream (``stream.Connection``).

    HTTP/1.0 has no chunks: a body without a length ends with its connection. uvicorn would send chunks all the same.
    """

    __slots__ = ("_chunked", "_cycle", "_protocol", "_send", "_streamable", "_unbounded")

    def __init__(self, protocol: HttpToolsProtocol, cycle: RequestResponseCycle) -> None:
        self._protocol, self._cycle, self._send = protocol, cycle, cycle.send
        self._chunked = cycle.scope["http_version"] != "1.0"
        self._streamable = self._unbounded = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._look_at(message)
        elif self._unbounded:
            self._cycle.expected_content_length = len(message.get("body", b""))
        await self._send(message)  # type: ignore[arg-type]
        if self._cycle.response_complete:
            self._part()

    def _look_at(self, message: Message) -> None:
        headers = {name.lower(): value for name, value in message.get("headers", ())}
        framed = b"content-length" in headers or b"transfer-encoding" in headers
        if not self._chunked and not framed:
            self._unbounded = True
            self._cycle.chunked_encoding = False
        self._streamable = (
            message["status"] == 200
            and headers.get(b"content-type", b"").startswith(MEDIA_TYPE.encode())
            and not framed
            and b"content-encoding" not in headers
        )

    def hand_over(self, hub: Hub, subscriber: Subscriber) -> "DirectStream | None":
        protocol, cycle = self._protocol, self._cycle
        if not self._streamable or not cycle.response_started or cycle.response_complete or cycle.disconnected:
            return None
        cycle.response_complete = True  # the request is over: for uvicorn, and for who still waits to receive
        cycle.message_event.set()
        self._send = _drop
        protocol.pipeline.clear()  # a request behind an endless one is never answered
        state = protocol.server_state
        state.total_requests += 1
        state.connections.discard(protocol)
        stream = DirectStream(protocol.transport, state, hub, subscriber, self._chunked, protocol.flow.write_paused)
        protocol.flow.resume_reading()  # or a close would go unnoticed
        protocol.transport.set_protocol(stream)
        # They all know each other, and the collector would find them late: 5 KB for each stream until then.
        self._part()
        protocol.parser = protocol.cycle = None  # type: ignore[assignment]
        return stream

    def _part(self) -> None:
        """The request is over; it and this object know each other no more."""
        vars(self._cycle).pop("send", None)
        self._cycle.scope["extensions"].clear()


async def _drop(message: object) -> None:
    """What a middleware sends after the end of the response that it saw."""


class DirectStream(asyncio.Protocol):
    """One event stream's connection: a protocol of asyncio, and the subscriber's writer.

    uvicorn keeps it among its connections. It ends with the connection, which it closes after the stream's last byte.
    """

    __slots__ = ("_chunked", "_hub", "_paused", "_state", "_subscriber", "transport")

    def __init__(
        self,
        transport: asyncio.Transport,
        state: ServerState,
        hub: Hub,
        subscriber: Subscriber,
        chunked: bool,
        paused: bool,
    ) -> None:
        self.transport = transport
        self._state, self._hub, self._subscriber = state, hub, subscriber
        self._chunked, self._paused = chunked, paused
        state.connections.add(self)  # type: ignore[arg-type]  # uvicorn's own protocols are a closed union

    def write(self, batch: Batch) -> bool:
        self.transport.write(batch.chunk if self._chunked else batch.data)
        return not self._paused

    def end(self) -> None:
        if self._chunked:
            self.transport.write(LAST_CHUNK)
        self.transport.close()

    def shutdown(self) -> None:
        """Called by a uvicorn server that stops: with ours every stream has ended by then. Another one waits for the
        connection, which a client that does not read would keep open for ever.
        """
        self._hub.begin_drain()
        asyncio.get_running_loop().call_later(self._hub.drain_window + FAREWELL, self.transport.abort)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._subscriber.resume()

    def data_received(self, data: bytes) -> None:
        """Nothing is expected: a pipelined request has to wait for an end that its client decides."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.connections.discard(self)
        self._hub.leave(self._subscriber, CloseReason.GONE)
