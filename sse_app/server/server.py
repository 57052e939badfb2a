"""Our uvicorn server, which drains the hub before it stops.

uvicorn waits for open streams before lifespan shutdown, so ``Server.shutdown`` drains the hub.
"""

import asyncio
import gc
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import FrameType
from typing import cast

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_app import descriptors
from sse_app.config import Config
from sse_app.descriptors import Waiting
from sse_app.hub import create_app
from sse_app.node import Node
from sse_app.refusals import Refusals
from sse_app.server import logs
from sse_app.server.direct import DirectStream
from sse_app.server.front import Front, front_of
from sse_app.server.protocol import Protocol
from sse_app.server.sockets import BACKLOG
from sse_app.web import exit_signal

logger = logging.getLogger("sse_app")

GRACE = 1  # seconds after the drain for what is left
NOT_STARTED = 1  # the exit status of a server that could not start; its log says why
QUICK_DRAIN = 1.0  # seconds; after SIGINT somebody waits at a terminal


class Server(uvicorn.Server):
    """A uvicorn server that drains ``node`` when it is told to stop.

    SIGTERM and SIGHUP take the whole drain window, SIGINT a second at most, and a second signal ends the drain at once.
    The server listens while it drains, so that clients which reconnect are told when to try again. ``on_ready`` is
    called once the server listens.
    """

    def __init__(self, config: uvicorn.Config, node: Node, on_ready: Callable[[], None] = lambda: None) -> None:
        super().__init__(config)
        config.app = _quiet_when_cancelled(cast(ASGIApp, config.app), node)
        config.timeout_graceful_shutdown = GRACE
        self._node = node
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle uvicorn's signals and SIGHUP, unless it is ignored, as under nohup."""
        with super().capture_signals(), ExitStack() as stack:
            if threading.current_thread() is threading.main_thread():
                for number in stop_signals():
                    stack.callback(signal.signal, number, signal.signal(number, self.handle_exit))
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._node.stop_accepting()
        if self.should_exit:
            self.force_exit = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._node.life.started and not self.force_exit:
            await self._drain()
        for connection in list(self.server_state.connections):
            if _is_busy(connection):
                connection.transport.abort()  # its drain is over; close() would wait for a flush that may never come
        late = asyncio.get_running_loop().call_later(GRACE / 2, self._abort_remaining)
        await super().shutdown(sockets)
        late.cancel()
        if self.force_exit:  # then uvicorn skips the lifespan's shutdown, which closes the hub
            with suppress(TimeoutError):
                async with asyncio.timeout(GRACE):
                    await self.lifespan.shutdown()

    def _abort_remaining(self) -> None:
        """Abort the connections and cancel the requests that are left. Such connections are closed, but have bytes to
        flush, or wait up to 30 s for their peer to end TLS; such requests wait for a log that does not answer.
        """
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        if tasks := list(self.server_state.tasks):
            logger.warning("the time to stop is over; %d requests end without an answer", len(tasks))
            for task in tasks:
                task.cancel()

    async def _drain(self) -> None:
        window = self._node.drain_window
        if signal.SIGINT in self._captured_signals:
            window = min(window, QUICK_DRAIN)
        async with asyncio.TaskGroup() as tasks:
            drain = tasks.create_task(self._node.drain(window))
            while not drain.done() and not self.force_exit:
                await asyncio.wait([drain], timeout=0.1)
            drain.cancel()


def _is_busy(connection: object) -> bool:
    """Return True for a connection with a stream, or with a request that has no answer yet."""
    cycle = getattr(connection, "cycle", None)
    unanswered = connection.busy if isinstance(connection, Front) else cycle is not None and not cycle.response_complete
    return isinstance(connection, DirectStream) or unanswered


def stop_signals() -> list[signal.Signals]:
    """Return the signals that stop a server. SIGHUP, sent when a terminal closes, is left out when it is ignored."""
    found = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        found.append(signal.SIGHUP)
    return found


def _quiet_when_cancelled(app: ASGIApp, node: Node) -> ASGIApp:
    """Return the app, with calls that return when they are cancelled while the node drains. uvicorn would log a
    traceback of each cancelled stream or request, and Starlette send uvicorn one of a cancelled lifespan.
    """

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, _without_traceback(send) if scope["type"] == "lifespan" else send)
        except asyncio.CancelledError:
            if not node.draining:
                raise

    return call


def _without_traceback(send: Send) -> Send:
    async def forward(message: Message) -> None:
        task = asyncio.current_task()
        if message["type"] == "lifespan.shutdown.failed" and task is not None and task.cancelling():
            message = {**message, "message": "The stop was cut short: the log could not be closed in time."}
        await send(message)

    return forward


def serve(config: Config, sockets: Sequence[socket.socket], on_ready: Callable[[Node], object]) -> None:
    """Serve on these sockets until a signal ends it. ``on_ready`` gets the node once the server listens."""
    exit_signal.leave_streams_open()  # concerns the whole process, which belongs to this server
    logging.raiseExceptions = False  # else a line that cannot be written causes a traceback of thirty lines
    app = create_app(config)
    node = app.state.hub.node

    def ready() -> None:
        _tune_collector()
        on_ready(node)

    server = Server(uvicorn_config(app, config), node, ready)
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again once it has stopped
        server.run(sockets=list(sockets))
    if not server.started:
        sys.exit(NOT_STARTED)


def _tune_collector() -> None:
    """Make the garbage collector run less often. It scans the objects of all open streams and finds nothing to free: a
    connect takes 125 us of CPU with Python's defaults, 78 us with these thresholds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def uvicorn_config(app: Starlette, config: Config) -> uvicorn.Config:
    """Return the configuration of a server for the app of a hub."""
    waiting = Waiting.within(descriptors.limit())
    protocol = partial(
        Protocol,
        head_max=config.head_max,
        head_deadline=config.head_deadline,
        waiting=waiting,
        refusals=Refusals(),
    )
    front = front_of(
        *(app.state.desk, protocol), head_max=config.head_max, head_deadline=config.head_deadline, waiting=waiting
    )
    return uvicorn.Config(
        app,
        http=front,  # type: ignore[arg-type]
        log_config=logs.config(),
        ws="none",
        lifespan="on",
        log_level="info" if config.access_log else "warning",
        access_log=config.access_log,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
    )
