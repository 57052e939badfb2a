"""Our HTTP protocol: uvicorn's over httptools, with the holes closed that it leaves on the open internet.

A request's head is bounded in bytes and seconds, its framing has one meaning only, whatever upgrade it offers, and
HTTP/1.0 gets no chunks. A GET's connection is offered to the app as an ASGI extension, so that a stream can do without
its request (``direct.py``).
"""

import asyncio
import re
from collections import deque
from collections.abc import Sized
from typing import Any

import httptools
import msgspec

from sse_app.descriptors import Waiting
from sse_app.server.direct import FAREWELL, Outlet
from sse_app.server.logs import Refusals
from sse_app.server.uvicorn_internals import STATUS_LINE, FlowControl, HttpToolsProtocol, RequestResponseCycle
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

TARGET_MAX = 65_535  # bytes; httptools parses no longer one, and calls it invalid
PIECE = 16_384  # bytes that are parsed at once: of the smallest requests they are 900
HELD_MAX = 65_536  # bytes that wait behind requests without an answer before no more are read

# A target in absolute form (RFC 9112, 3.2.2), without what has no place in one: a user (RFC 9110, 4.2.4), a fragment.
ABSOLUTE = re.compile(rb"https?://(?P<authority>[^/?#@]+)(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?", re.IGNORECASE)

# The headers that offer an upgrade, and mean nothing when it is not taken (RFC 9110, 7.8; RFC 7540, 3.2.1).
OFFERS = (b"upgrade", b"http2-settings")


class _Refused(Exception):
    """Ends the parsing of a request; raised through the parser."""

    def __init__(self, refusal: Problem = BAD_REQUEST) -> None:
        self.refusal = refusal


class _Flow(FlowControl):
    """uvicorn's, with what has come and has to wait. uvicorn reads on with each answer, and with each request that is
    read, however many wait in its ``pipeline``: one connection could fill the memory. Up to HELD_MAX that goes on here
    too, since who does not read does not hear of a close.
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
    connections of a server; without the first none is closed for others, without the second uvicorn's own line is
    logged of each.
    """

    def __init__(
        self,
        *args: Any,
        head_max: int = 16 * 1024,
        head_deadline: float = 10.0,
        waiting: Waiting | None = None,
        refusals: Refusals | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.url = b""  # of the request that has begun, until its head is whole
        self._waiting, self._refusals = waiting, refusals
        self._head_max, self._head_deadline = head_max, head_deadline
        self._unanswered = deque[RequestResponseCycle]()  # in their order; more than one when requests are pipelined
        self._unseen = 0  # bytes since the parser last came to something: an unfinished head, trailer or chunk size
        self._head_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._refusal: Problem | None = None  # waits until all before it are answered; nothing behind it is looked at
        self._declining = False  # an upgrade: from the end of the head that offers it to that head's second parsing
        self._make_strict()

    def _make_strict(self) -> None:
        # uvicorn forgives what follows the last request; after a body it means that its length was wrong.
        # httptools refuses most versions that nobody knows; here all of them get the answer that says so.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=False, lenient_version=True)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow: _Flow = _Flow(transport, self.pipeline)
        if self._waiting is not None:
            self._waiting.make_room(len(self.connections))
            self._waiting.add(transport)
        self._await_head()

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self.loop.call_later(FAREWELL, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        self._stop_lingering()
        super().connection_lost(exc)
        for cycle in self._unanswered:  # uvicorn tells the last one only
            cycle.disconnected = not cycle.response_complete
            cycle.message_event.set()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self.flow.held += data
        self._read()

    def _read(self) -> None:
        """Parse what has come, until a request has to wait for the one before it."""
        flow = self.flow
        while flow.held and not self.pipeline and self._refusal is None and self.transport.get_protocol() is self:
            piece, flow.held = flow.held[:PIECE], flow.held[PIECE:]
            self._unseen += len(piece)
            try:
                self._parse(piece)
            except httptools.HttpParserError as error:
                self._refuse(self._refusal_of(error))
            else:
                if self._unseen > self._head_max:
                    self._refuse(HEAD_TOO_LARGE)
        if len(flow.held) > HELD_MAX:
            flow.pause_reading()

    def _parse(self, data: bytes) -> None:
        """Feed the parser. It takes a request that offers an upgrade for the last one, whose body is not HTTP's any
        more, and what follows its head for the next request (httptools#124). So a new parser gets that head without
        the offer, and then the rest.
        """
        rest = self._feed(data)
        while rest is not None:
            head = self._head_without_offer()
            self.parser = httptools.HttpRequestParser(self)
            self._make_strict()
            self._declining = False
            self.parser.feed_data(head)
            rest = self._feed(rest)

    def _feed(self, data: bytes | memoryview) -> memoryview | None:
        """Returns what follows a head whose offer is declined."""
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
        """True for a WebSocket that the app around the hub takes. One with a body is none, and one behind a request
        that has no answer yet would answer in its place.
        """
        framed = any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)
        busy = self.cycle is not None and not self.cycle.response_complete
        return self.parser.get_method() == b"GET" and not framed and not busy and super()._should_upgrade()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_timer is not None:  # what comes after the body, a trailer, is no header (RFC 9110, 6.5.1)
            super().on_header(name, value.strip(b" \t"))  # white space around it is not the value (RFC 9110, 5.5)

    def on_headers_complete(self) -> None:
        if self.parser.get_http_version() not in ("1.1", "1.0"):
            raise _Refused(UNKNOWN_VERSION)
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._head_max or len(self.url) > TARGET_MAX:
            raise _Refused(HEAD_TOO_LARGE)
        if b"#" in self.url:  # a proxy may take what follows it for a part of the path
            raise _Refused(BAD_TARGET)
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise _Refused  # a tunnel is nothing that can be declined
            self._declining = not self._should_upgrade()
            if not self._declining:
                self._head_arrived()
                super().on_headers_complete()
            return
        self._head_arrived()
        self._unseen = 0
        if any(name == b"transfer-encoding" and value.lower() != b"chunked" for name, value in self.headers):
            raise _Refused  # a coding that nobody here undoes would pass for the data (RFC 9112, 6.1)
        if not self.url.startswith(b"/") and (self.url != b"*" or self.parser.get_method() != b"OPTIONS"):
            self._take_authority()
        super().on_headers_complete()
        if self._waiting is not None and not self.pipeline:
            self._waiting.add(self.transport)  # for its body, until that has come
        while self._unanswered and self._unanswered[0].response_complete:
            self._unanswered.popleft()
        self._unanswered.append(self.cycle)
        if self.scope["method"] == "GET":
            outlet = Outlet(self, self.cycle)
            self.cycle.send = outlet  # type: ignore[method-assign, assignment]  # before its task starts
            self.scope["extensions"] = {EXTENSION: outlet}  # type: ignore[dict-item]
        self.url = b""

    def _take_authority(self) -> None:
        """Take the Host from a target in absolute form, and leave its path and query (RFC 9112, 3.2.2). Which requests
        must have a Host, and one only, is left to who checks it.
        """
        target = ABSOLUTE.fullmatch(self.url)
        if target is None:
            raise _Refused(BAD_TARGET)
        self.url = (target["path"] or b"/") + (target["query"] or b"")
        hosts = [index for index, (name, _) in enumerate(self.headers) if name == b"host"]
        if len(hosts) == 1:
            self.headers[hosts[0]] = (b"host", target["authority"])
        elif not hosts and self.parser.get_http_version() == "1.0":  # which knows no Host, but this one is asked for
            self.headers.append((b"host", target["authority"]))

    def on_body(self, body: bytes) -> None:
        self._unseen = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._declining:
            return  # it was the end of the head
        self._unseen = 0
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
            pass  # the next of the pipeline is at work
        elif self.cycle.more_body:
            # Answered before its body's end. Closing now could take the answer from its client, and going on to read
            # would keep the connection as long as it sends a byte now and then.
            self._linger_timer = self.loop.call_later(self._head_deadline, self.transport.close)
        elif self._waiting is not None and not self.transport.is_closing():
            self._waiting.add(self.transport)

    def _stop_lingering(self) -> None:
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._head_deadline, self._miss_head)

    def _miss_head(self) -> None:
        self._head_timer = None
        if self.flow.held:  # the rest of it has come, and waits here
            self._await_head()
        else:
            self._refuse(HEAD_TOO_SLOW)

    def _head_arrived(self) -> None:
        if self._waiting is not None:
            self._waiting.remove(self.transport)
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refusal_of(self, error: httptools.HttpParserError) -> Problem:
        """The refusal for an error of the parser, or of a callback of ours in it."""
        if isinstance(error.__context__, _Refused):
            return error.__context__.refusal
        if isinstance(error, httptools.HttpParserInvalidURLError):
            return BAD_TARGET
        return UNKNOWN_VERSION if self.parser.get_method() == b"PRI" else BAD_REQUEST  # as HTTP/2 begins

    def _refuse(self, refusal: Problem) -> None:
        """Answer what cannot be taken, once all that came before it is answered, and close."""
        self._head_arrived()
        if self.transport.is_closing() or self.transport.get_protocol() is not self:
            return  # it is over, or a stream's now
        self._log(refusal)
        self._refusal = refusal
        is_request = bool(self.url) or refusal is BAD_TARGET  # by its first line; else it may be the rest of a body
        last = self.cycle
        if last is None or last.response_complete:
            self._answer(refusal)
        elif last.more_body or (last.body and not self.pipeline and not is_request):
            self._take_back(last)

    def _log(self, refusal: Problem) -> None:
        if refusal is HEAD_TOO_SLOW:
            return  # browsers open connections that they may not need
        if self._refusals is None:
            self.logger.warning("Invalid HTTP request received.")
        else:
            self._refusals.note(refusal.code, self.client)

    def _take_back(self, last: RequestResponseCycle) -> None:
        """End the request whose body is not what was meant: it breaks off, or more came than its length says. It must
        not be published, and the refusal is its answer. Behind others a body is believed to have its length: so had
        those before.
        """
        if self.pipeline:
            self.pipeline.popleft()  # the newest
            return
        last.disconnected = True
        last.message_event.set()
        if last.response_started:
            self.transport.close()  # a refusal would be taken for the rest of it
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
