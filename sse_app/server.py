"""Our uvicorn server: it drains the hub before it stops.

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

import uvicorn
from sse_starlette.sse import AppStatus

from sse_app.app import create_app
from sse_app.config import Config
from sse_app.direct import DirectStream
from sse_app.errors import ConfigError
from sse_app.hub import Hub
from sse_app.protocol import Protocol as Protocol  # also for `uvicorn --http sse_app.server:Protocol`

BACKLOG = 4096  # connections that may wait to be accepted: a hub's clients come back all at once
GRACE = 1  # seconds after the drain for what is left
NOT_STARTED = 3  # the exit status of a server that could not start; why stands in its log
SPREADS = sys.platform == "linux"  # SO_REUSEPORT: macOS gives all connections to one socket
QUICK_DRAIN = 1.0  # seconds, for a stop that somebody waits for at a terminal (SIGINT)


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


def serve(config: Config, sockets: Sequence[socket.socket], on_ready: Callable[[Hub], object]) -> None:
    """Serve on these sockets until a signal ends it. ``on_ready`` gets the hub once it listens."""
    # Its own way to end streams on SIGTERM would cut them before they are drained. The process is ours here.
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
    app = create_app(config)

    def ready() -> None:
        _calm_collector()
        on_ready(app.state.hub)

    server = Server(uvicorn_config(app, config), app.state.hub, ready)
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again once it has stopped
        server.run(sockets=list(sockets))
    if not server.started:
        sys.exit(NOT_STARTED)


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


def listen(config: Config) -> list[list[socket.socket]]:
    """For each worker, sockets on every address of ``host``. What is set on them holds for the connections that they
    accept. Raises ConfigError.
    """
    try:
        sockets = _listen(config, config.port)
        port = sockets[0].getsockname()[1]
        # Where the kernel spreads connections over sockets of one address, each worker has its own.
        return [sockets, *(_listen(config, port) if SPREADS else sockets for _ in range(config.workers - 1))]
    except (OSError, UnicodeError) as error:  # a name that cannot be looked up is one or the other
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"host, port: cannot listen on {config.host} port {config.port}: {reason}.") from error


def _listen(config: Config, port: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    shared = SPREADS and config.workers > 1
    found = socket.getaddrinfo(config.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, address in dict.fromkeys((item[0], item[4][0]) for item in found):
        listening = socket.create_server((str(address), port), family=family, backlog=BACKLOG, reuse_port=shared)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, config.so_sndbuf)
        if sys.platform == "linux":
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(config.tcp_user_timeout * 1000))
        port = listening.getsockname()[1]
        sockets.append(listening)
    return sockets


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
