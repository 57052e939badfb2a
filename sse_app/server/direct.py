"""Direct streams: a subscriber that writes to its connection without the request that opened it.

``Outlet`` is the ``send`` of a GET, behind all middleware, so it sees the head as it goes on the wire. When that is the
head of an event stream that no middleware has wrapped, ``hand_over`` turns the connection into a ``DirectStream`` and
frees the request, its task, its parser and its scope. ``docs/performance.md`` has the memory that an idle stream takes.
"""

import asyncio

from starlette.types import Message

from sse_app.batch import Batch
from sse_app.events import MEDIA_TYPE
from sse_app.node import Node
from sse_app.server.uvicorn_internals import HttpToolsProtocol, RequestResponseCycle, ServerState
from sse_app.subscriber import CloseReason, Subscriber

FAREWELL = 1.0  # seconds for what a closed connection has to flush; over TLS asyncio allows its peer 30 s to answer
ENDING = 30.0  # seconds that a client may take to read the rest of a stream that has ended
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
            self._inspect_head(message)
        elif self._unbounded:
            self._cycle.expected_content_length = len(message.get("body", b""))
        await self._send(message)  # type: ignore[arg-type]
        if self._cycle.response_complete:
            self._release_request()

    def _inspect_head(self, message: Message) -> None:
        """Set how the body is framed, and note in ``_streamable`` whether a DirectStream may continue it."""
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

    def hand_over(self, node: Node, subscriber: Subscriber) -> "DirectStream | None":
        protocol, cycle = self._protocol, self._cycle
        if not self._streamable or not cycle.response_started or cycle.response_complete or cycle.disconnected:
            return None
        cycle.response_complete = True  # ends the request for uvicorn, and for a middleware that awaits receive()
        cycle.message_event.set()
        self._send = _discard
        protocol.pipeline.clear()  # a request behind an endless one is never answered
        state = protocol.server_state
        state.total_requests += 1
        state.connections.discard(protocol)
        stream = DirectStream(protocol.transport, state, node, subscriber, self._chunked, protocol.flow.write_paused)
        protocol.flow.resume_reading()  # a transport that does not read does not notice its peer's close
        protocol.transport.set_protocol(stream)
        # Protocol, cycle and outlet refer to each other. Unlinked, their 5 KB a stream need not wait for the collector.
        self._release_request()
        protocol.parser = protocol.cycle = None  # type: ignore[assignment]
        return stream

    def _release_request(self) -> None:
        """Remove the references between the request that is over and this outlet."""
        vars(self._cycle).pop("send", None)
        self._cycle.scope["extensions"].clear()


async def _discard(message: object) -> None:
    """Ignore a message that a middleware sends after the connection was handed over."""


class DirectStream(asyncio.Protocol):
    """One event stream's connection: a protocol of asyncio, and the subscriber's writer.

    uvicorn keeps this protocol among its connections. The stream closes the connection after its last byte.
    """

    __slots__ = ("_chunked", "_node", "_paused", "_state", "_subscriber", "transport")

    def __init__(
        self,
        transport: asyncio.Transport,
        state: ServerState,
        node: Node,
        subscriber: Subscriber,
        chunked: bool,
        paused: bool,
    ) -> None:
        self.transport = transport
        self._state, self._node, self._subscriber = state, node, subscriber
        self._chunked, self._paused = chunked, paused
        state.connections.add(self)  # type: ignore[arg-type]  # uvicorn's own protocols are a closed union

    def write(self, batch: Batch) -> bool:
        self.transport.write(batch.chunk if self._chunked else batch.data)
        return not self._paused

    def end(self, farewell: bytes = b"") -> None:
        if farewell:
            self.write(Batch(farewell))
        if self._chunked:
            self.transport.write(LAST_CHUNK)
        self.transport.close()
        if self.transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(ENDING, self.transport.abort)

    def shutdown(self) -> None:
        """Begin the drain, and abort the connection after it. Called by a uvicorn server that stops. Our ``Server`` has
        ended every stream by then; another one waits for the connection, which a client that does not read would keep
        open for ever.
        """
        self._node.begin_drain()
        asyncio.get_running_loop().call_later(self._node.drain_window + FAREWELL, self.transport.abort)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._subscriber.resume()

    def data_received(self, data: bytes) -> None:
        """Ignore what the client sends. A request pipelined behind a stream is never answered: the stream ends with its
        connection.
        """

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.connections.discard(self)
        self._node.leave(self._subscriber, CloseReason.GONE)
