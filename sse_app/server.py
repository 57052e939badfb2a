"""Our uvicorn server: it drains the hub before it stops, and bounds what a request's head may cost.

uvicorn waits for open streams before lifespan shutdown, so the drain hangs on ``Server.shutdown``.
"""

import asyncio
import gc
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

import msgspec
import uvicorn
from sse_starlette.sse import AppStatus
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from sse_app.app import create_app
from sse_app.config import Config
from sse_app.direct import DirectStream, Outlet
from sse_app.hub import Hub
from sse_app.stream import EXTENSION

BACKLOG = 4096  # connections that may wait to be accepted: a hub's clients come back all at once
GRACE = 1  # seconds after the drain for what is left
QUICK_DRAIN = 1.0  # seconds, for a stop that somebody waits for at a terminal (SIGINT)

REFUSALS = {
    400: ("bad_request", "This is not a valid HTTP request."),
    408: ("too_slow", "The request's head did not arrive in time (head_deadline)."),
    431: ("head_too_large", "The request's head is larger than head_max."),
}


class _Refused(Exception):
    """Ends the parsing of a request; raised through the parser."""


class Protocol(HttpToolsProtocol):
    """uvicorn's httptools protocol, with a limit on a request's head in bytes and seconds, and HTTP/1.0 without chunks.

    For other servers: ``uvicorn --http sse_app.server:Protocol``.
    """

    def __init__(self, *args: Any, head_max: int = 16 * 1024, head_deadline: float = 10.0, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head_max, self._head_deadline = head_max, head_deadline
        self._head_size = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._refusal = 400
        # uvicorn forgives what follows the last request; after a body it means that its length was wrong.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=False)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._head_timer is not None:
            self._head_size += len(data)
            if self._head_size > self._head_max:
                self._refuse(431)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_timer is not None:  # what comes after the body, a trailer, is no header (RFC 9110, 6.5.1)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head_arrived()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._head_max:
            self._refusal = 431
            raise _Refused
        if not self.url.startswith(b"/") and self.url != b"*":
            raise _Refused  # an absolute target would override the Host that was checked (RFC 9112, 3.2.2)
        super().on_headers_complete()
        if self.scope["method"] == "GET":
            outlet = Outlet(self, self.cycle)
            self.cycle.send = outlet  # type: ignore[method-assign, assignment]  # before its task starts
            self.scope["extensions"] = {EXTENSION: outlet}  # type: ignore[dict-item]

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_size = 0
            self._head_timer = self.loop.call_later(self._head_deadline, self._refuse, 408)

    def _head_arrived(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: int) -> None:
        self._head_arrived()
        self._refusal = status
        self.send_400_response("")

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what it cannot parse, as problem details."""
        if self.transport.is_closing() or self.transport.get_protocol() is not self:
            return  # it is over, or a stream's now
        if self._drop_unanswered():
            self.transport.close()
            return
        line = STATUS_LINE[self._refusal]
        code, detail = REFUSALS[self._refusal]
        title = line.split(b" ", 2)[2].strip().decode()
        body = msgspec.json.encode(
            {"type": "about:blank", "title": title, "status": self._refusal, "code": code, "detail": detail}
        )
        head = b"content-type: application/problem+json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(line + head + body)
        self.transport.close()

    def _drop_unanswered(self) -> bool:
        """End the request before the one that is refused. More than its length says means that its body is not what
        was meant, so it must not be published. True when it is too late for that: then a refusal would be taken for
        its answer, or in a stream for data.
        """
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        cycle.disconnected = True
        cycle.message_event.set()
        return bool(self.pipeline) or cycle.response_started or not (cycle.more_body or cycle.body)


class Server(uvicorn.Server):
    """A uvicorn server that drains ``hub`` when it is told to stop.

    SIGTERM takes the whole drain window, SIGINT a second at most, and a second signal ends it at once. Listening goes
    on while it drains, so that whoever comes back is told when to try again. ``on_ready`` is called once it listens.
    """

    def __init__(self, config: uvicorn.Config, hub: Hub, on_ready: Callable[[], None] = lambda: None) -> None:
        super().__init__(config)
        config.timeout_graceful_shutdown = GRACE
        self._hub = hub
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._hub.stop_accepting()
        if self.should_exit:
            self.force_exit = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._hub.started and not self.force_exit:
            await self._drain()
        for connection in list(self.server_state.connections):
            cycle = getattr(connection, "cycle", None)
            if isinstance(connection, DirectStream) or (cycle is not None and not cycle.response_complete):
                connection.transport.abort()  # it had its time; closing would wait for a flush that may never come
        await super().shutdown(sockets)

    async def _drain(self) -> None:
        window = self._hub.drain_window
        if signal.SIGINT in self._captured_signals:
            window = min(window, QUICK_DRAIN)
        async with asyncio.TaskGroup() as tasks:
            drain = tasks.create_task(self._hub.drain(window))
            while not drain.done() and not self.force_exit:
                await asyncio.wait([drain], timeout=0.1)
            drain.cancel()


def serve(config: Config, on_ready: Callable[[Sequence[str]], None] = lambda urls: None) -> None:
    """Run a server until a signal ends it. ``on_ready`` gets the URLs that it listens on. Raises OSError for an address
    that cannot be listened on."""
    # Its own way to end streams on SIGTERM would cut them before they are drained. The process is ours here.
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
    app = create_app(config)
    sockets = listen(config)
    urls = [_url(listening) for listening in sockets]

    def ready() -> None:
        _calm_collector()
        on_ready(urls)

    server = Server(uvicorn_config(app, config), app.state.hub, ready)
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again once it has stopped
        server.run(sockets=sockets)
    if not server.started:
        sys.exit(3)


def _calm_collector() -> None:
    """The collector looks at every object of every open stream, again and again, and finds nothing: 125 us of CPU for
    each connect, 78 us with it set so."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def uvicorn_config(app: Any, config: Config) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=partial(Protocol, head_max=config.head_max, head_deadline=config.head_deadline),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_level="info" if config.access_log else "warning",
        access_log=config.access_log,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
    )


def listen(config: Config) -> list[socket.socket]:
    """Sockets on every address of ``host``. What is set on them holds for the connections that they accept."""
    sockets: list[socket.socket] = []
    port = config.port
    found = socket.getaddrinfo(config.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, address in dict.fromkeys((item[0], item[4][0]) for item in found):
        listening = socket.create_server((str(address), port), family=family, backlog=BACKLOG)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, config.so_sndbuf)
        if sys.platform == "linux":
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(config.tcp_user_timeout * 1000))
        port = listening.getsockname()[1]
        sockets.append(listening)
    return sockets


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
