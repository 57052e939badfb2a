"""Our HTTP protocol: uvicorn's over httptools, made safe for the open internet.

A request's head is bounded in bytes and seconds; the framing of a request has one meaning, whatever upgrade the request
offers; HTTP/1.0 gets no chunks. A GET's connection is offered to the app as an ASGI extension, so that a stream can
outlive its request (``direct.py``).
"""

import asyncio
import re
from collections import deque
from collections.abc import Sized
from typing import Any

import httptools
import msgspec
import uvicorn

from sse_app.descriptors import Waiting
from sse_app.refusals import Refusals, peer_of
from sse_app.server.direct import FAREWELL, Outlet
from sse_app.server.uvicorn_internals import (
    STATUS_LINE,
    FlowControl,
    HttpToolsProtocol,
    RequestResponseCycle,
    ServerState,
)
from sse_app.web.problems import (
    BAD_REQUEST,
    BAD_TARGET,
    HEAD_TOO_LARGE,
    HEAD_TOO_SLOW,
    MEDIA_TYPE,
    UNKNOWN_VERSION,
    Problem,
    body_of,
)
from sse_app.web.stream import EXTENSION

TARGET_MAX = 65_535  # bytes; httptools calls a longer target invalid
PIECE = 16_384  # bytes that are parsed at once; 900 of the smallest requests fit in
HELD_MAX = 65_536  # bytes that may wait behind requests without an answer; with more, reading pauses

# A target in absolute form (RFC 9112, 3.2.2). It may have no user (RFC 9110, 4.2.4) and no fragment.
ABSOLUTE = re.compile(rb"https?://(?P<authority>[^/?#@]+)(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?", re.IGNORECASE)

# The headers that offer an upgrade; a server that declines the upgrade ignores them (RFC 9110, 7.8; RFC 7540, 3.2.1).
OFFERS = (b"upgrade", b"http2-settings")


class _ParseAborted(Exception):
    """Ends the parsing of a request with a refusal. Raised in a callback of the parser, which wraps it."""

    def __init__(self, refusal: Problem = BAD_REQUEST) -> None:
        self.refusal = refusal


class _Flow(FlowControl):
    """uvicorn's flow control, with the bytes that were received and are not parsed yet (``held``).

    uvicorn resumes reading with each answer and each request, however many requests wait in its ``pipeline``, so one
    connection could fill the memory. Here reading stays paused while a request waits and more than HELD_MAX bytes are
    held. Up to HELD_MAX it goes on, since a transport that does not read does not notice its peer's close.
    """

    def __init__(self, transport: asyncio.Transport, pipeline: Sized) -> None:
        super().__init__(transport)
        self._pipeline = pipeline
        self.held = b""

    def resume_reading(self) -> None:
        if not self._pipeline or len(self.held) <= HELD_MAX:
            super().resume_reading()


class Protocol(HttpToolsProtocol):
    """uvicorn's httptools protocol, with a limit on a request's head in bytes and seconds, and HTTP/1.0 without chunks.

    For other servers: ``uvicorn --http sse_app.server:Protocol``. ``waiting`` and ``refusals`` are shared by all
    connections of a server. Without ``waiting`` no connection is closed to make room for another; without ``refusals``
    uvicorn's own line is logged for each refusal.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        head_max: int = 16 * 1024,
        head_deadline: float = 10.0,
        waiting: Waiting | None = None,
        refusals: Refusals | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.url = b""  # of the request whose head is being received
        self._waiting, self._refusals = waiting, refusals
        self._head_max, self._head_deadline = head_max, head_deadline
        self._unanswered = deque[RequestResponseCycle]()  # in their order; more than one when requests are pipelined
        self._unparsed = 0  # bytes of an unfinished head, trailer or chunk size: fed to the parser since its last event
        self._head_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        # Sent when all requests before it are answered. Bytes behind the refused request are not parsed.
        self._refusal: Problem | None = None
        self._declining = False  # True from the end of a head whose upgrade is declined to its second parsing
        self._set_leniencies()

    def _set_leniencies(self) -> None:
        # uvicorn's parser ignores bytes behind a connection's last request. Bytes behind a body are an error here: they
        # mean that the Content-Length was wrong.
        # httptools refuses most unknown versions by itself. Here it accepts them, and on_headers_complete answers 505.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=False, lenient_version=True)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow: _Flow = _Flow(transport, self.pipeline)
        if self._waiting is not None:
            self._waiting.make_room(len(self.connections))
            self._waiting.add(transport)
        self._wait_for_head()

    def take_over(self, transport: asyncio.Transport, data: bytes, head_left: float | None, *, paused: bool) -> None:
        """Go on with a connection that another protocol had, and with the bytes that it has received. ``head_left`` are
        the seconds that a head may still take, None for ``head_deadline``; ``paused`` when the socket is full.
        """
        self.connection_made(transport)
        if head_left is not None and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = self.loop.call_later(head_left, self._on_head_timeout)
        if paused:
            self.pause_writing()
        if data:
            self.data_received(data)

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self.loop.call_later(FAREWELL, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting_for_head()
        self._stop_lingering()
        super().connection_lost(exc)
        for cycle in self._unanswered:  # uvicorn marks the newest only
            cycle.disconnected = not cycle.response_complete
            cycle.message_event.set()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self.flow.held += data
        self._read()

    def _read(self) -> None:
        """Parse the held bytes, until a request has to wait for the one before it."""
        flow = self.flow
        while flow.held and not self.pipeline and self._refusal is None and self.transport.get_protocol() is self:
            piece, flow.held = flow.held[:PIECE], flow.held[PIECE:]
            self._unparsed += len(piece)
            try:
                self._parse(piece)
            except httptools.HttpParserError as error:
                self._refuse(self._refusal_of(error))
            else:
                if self._unparsed > self._head_max:
                    self._refuse(HEAD_TOO_LARGE)
        if len(flow.held) > HELD_MAX:
            flow.pause_reading()

    def _parse(self, data: bytes) -> None:
        """Feed the parser.

        httptools believes that an upgrade which is offered is taken: it reads no body, and takes the bytes behind the
        head for the next request (httptools#124). When an upgrade is declined, a new parser therefore gets the head
        without the offer, and then the rest.
        """
        rest = self._feed(data)
        while rest is not None:
            head = self._head_without_offer()
            self.parser = httptools.HttpRequestParser(self)
            self._set_leniencies()
            self._declining = False
            self.parser.feed_data(head)
            rest = self._feed(rest)

    def _feed(self, data: bytes | memoryview) -> memoryview | None:
        """Return the bytes behind a head whose upgrade is declined, None when there is no such head."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._declining:
                return memoryview(data)[upgrade.args[0] :]
            self.handle_websocket_upgrade()
        return None

    def _head_without_offer(self) -> bytes:
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                options = (option.strip() for option in value.split(b","))
                value = b", ".join(option for option in options if option.lower() not in OFFERS)
            if name not in OFFERS and not (name == b"connection" and not value):
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])

    def _should_upgrade(self) -> bool:
        """Return True for a WebSocket that the app around the hub takes. Not for a request with a body, nor behind a
        request without an answer: the WebSocket's answer would be taken for the earlier request's.
        """
        framed = any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)
        busy = self.cycle is not None and not self.cycle.response_complete
        return self.parser.get_method() == b"GET" and not framed and not busy and super()._should_upgrade()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_timer is not None:  # without the timer the head is over: a trailer is no header (RFC 9110, 6.5.1)
            super().on_header(name, value.strip(b" \t"))  # white space around a value is no part of it (RFC 9110, 5.5)

    def on_headers_complete(self) -> None:
        if self.parser.get_http_version() not in ("1.1", "1.0"):
            raise _ParseAborted(UNKNOWN_VERSION)
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._head_max or len(self.url) > TARGET_MAX:
            raise _ParseAborted(HEAD_TOO_LARGE)
        if b"#" in self.url:  # a proxy may take a fragment for a part of the path
            raise _ParseAborted(BAD_TARGET)
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise _ParseAborted  # without its tunnel nothing of a CONNECT is left to answer
            self._declining = not self._should_upgrade()
            if not self._declining:
                self._stop_waiting_for_head()
                super().on_headers_complete()
            return
        self._stop_waiting_for_head()
        self._unparsed = 0
        if any(name == b"transfer-encoding" and value.lower() != b"chunked" for name, value in self.headers):
            raise _ParseAborted  # a coding that is not undone here would be published as data (RFC 9112, 6.1)
        if not self.url.startswith(b"/") and (self.url != b"*" or self.parser.get_method() != b"OPTIONS"):
            self._set_host_from_target()
        super().on_headers_complete()
        if self._waiting is not None and not self.pipeline:
            self._waiting.add(self.transport)  # until on_message_complete: the body has not come yet
        while self._unanswered and self._unanswered[0].response_complete:
            self._unanswered.popleft()
        self._unanswered.append(self.cycle)
        if self.scope["method"] == "GET":
            outlet = Outlet(self, self.cycle)
            self.cycle.send = outlet  # type: ignore[method-assign, assignment]  # before its task starts
            self.scope["extensions"] = {EXTENSION: outlet}  # type: ignore[dict-item]
        self.url = b""

    def _set_host_from_target(self) -> None:
        """Move the authority of a target in absolute form to the Host header, so that path and query remain (RFC 9112,
        3.2.2). The app refuses requests with no Host or with two (``web/guard.py``), so their headers stay as sent.
        """
        target = ABSOLUTE.fullmatch(self.url)
        if target is None:
            raise _ParseAborted(BAD_TARGET)
        self.url = (target["path"] or b"/") + (target["query"] or b"")
        hosts = [index for index, (name, _) in enumerate(self.headers) if name == b"host"]
        if len(hosts) == 1:
            self.headers[hosts[0]] = (b"host", target["authority"])
        elif not hosts and self.parser.get_http_version() == "1.0":  # has no Host of its own
            self.headers.append((b"host", target["authority"]))

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._declining:
            return  # called at the head's end, since the parser took the request for an upgrade without a body
        self._unparsed = 0
        self._stop_lingering()
        if self._waiting is not None and not self.cycle.response_complete:
            self._waiting.remove(self.transport)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        was_last = not self.pipeline
        super().on_response_complete()
        if self.flow.held and not self.pipeline and not self.transport.is_closing():
            self._read()
            self.flow.resume_reading()
        if was_last and self._refusal is not None:
            self._answer(self._refusal)
        elif not self.cycle.response_complete:
            pass  # the next request of the pipeline is running
        elif self.cycle.more_body:
            # The request was answered before its body's end. Closing at once could reset the connection before its
            # client has read the answer; reading without a limit would keep it for a client that sends a byte at times.
            self._linger_timer = self.loop.call_later(self._head_deadline, self.transport.close)
        elif self._waiting is not None and not self.transport.is_closing():
            self._waiting.add(self.transport)

    def _stop_lingering(self) -> None:
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None

    def _wait_for_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._head_deadline, self._on_head_timeout)

    def _on_head_timeout(self) -> None:
        self._head_timer = None
        if self.flow.held:  # the client is in time: the rest of the head waits here for the requests before it
            self._wait_for_head()
        else:
            self._refuse(HEAD_TOO_SLOW)

    def _stop_waiting_for_head(self) -> None:
        if self._waiting is not None:
            self._waiting.remove(self.transport)
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refusal_of(self, error: httptools.HttpParserError) -> Problem:
        """Return the refusal for an error of the parser, or of our callback in which the parser failed."""
        if isinstance(error.__context__, _ParseAborted):
            return error.__context__.refusal
        if isinstance(error, httptools.HttpParserInvalidURLError):
            return BAD_TARGET
        return UNKNOWN_VERSION if self.parser.get_method() == b"PRI" else BAD_REQUEST  # HTTP/2's first line

    def _refuse(self, refusal: Problem) -> None:
        """Answer with a refusal once all requests before it are answered, and close the connection."""
        self._stop_waiting_for_head()
        if self.transport.is_closing() or self.transport.get_protocol() is not self:
            return  # the connection is closing, or belongs to a DirectStream
        self._log(refusal)
        self._refusal = refusal
        # Without a first line the refused bytes may be the rest of the last request's body.
        is_request = bool(self.url) or refusal is BAD_TARGET
        last = self.cycle
        if last is None or last.response_complete:
            self._answer(refusal)
        elif last.more_body or (last.body and not self.pipeline and not is_request):
            self._end_request(last)

    def _log(self, refusal: Problem) -> None:
        if refusal is HEAD_TOO_SLOW:
            return  # not worth a line: browsers open connections that they may not need
        if self._refusals is None:
            self.logger.warning("Invalid HTTP request received.")
        else:
            self._refusals.note(refusal.code, peer_of(self.client))

    def _end_request(self, last: RequestResponseCycle) -> None:
        """End the last request because its body is invalid: it breaks off, or is longer than its Content-Length. It
        must not be published, and gets the refusal as its answer. Requests before the last keep their bodies: each was
        followed by a request, so its length was right.
        """
        if self.pipeline:
            self.pipeline.popleft()  # the newest
            return
        last.disconnected = True
        last.message_event.set()
        if last.response_started:
            self.transport.close()  # a refusal would be taken for a part of the response that has begun
        else:
            assert self._refusal is not None
            self._answer(self._refusal)

    def _answer(self, refusal: Problem) -> None:
        if self.transport.is_closing():
            return
        body = msgspec.json.encode(body_of(refusal))
        head = b"content-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % (MEDIA_TYPE.encode(), len(body))
        self.transport.write(STATUS_LINE[refusal.status] + head + body)
        self.transport.close()
