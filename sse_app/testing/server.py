"""An ASGI app on a real socket of this machine, served by uvicorn from a thread of this process."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from starlette.types import ASGIApp, Receive, Scope, Send

if TYPE_CHECKING:
    import uvicorn

START_SECONDS = 30.0  # a server that takes longer to start is stuck
STOP_SECONDS = 30.0  # the same for its end, on top of what its clients are granted


class UvicornOptions(TypedDict, total=False):
    """The arguments of uvicorn.Config for ``live``, which itself decides on address, processes and reloads."""

    loop: str
    http: Any  # a name, or what makes a protocol
    ws: Any  # the same
    lifespan: Literal["auto", "on", "off"]
    interface: Literal["auto", "asgi3", "asgi2", "wsgi"]
    log_config: dict[str, Any] | str | None
    log_level: str | int | None
    access_log: bool
    proxy_headers: bool
    server_header: bool
    date_header: bool
    forwarded_allow_ips: list[str] | str | None
    root_path: str
    limit_concurrency: int | None
    limit_max_requests: int | None
    backlog: int
    timeout_keep_alive: int
    timeout_graceful_shutdown: float | None
    ssl_keyfile: str | os.PathLike[str] | None
    ssl_certfile: str | os.PathLike[str] | None
    ssl_keyfile_password: str | None
    ssl_version: int
    ssl_cert_reqs: int
    ssl_ca_certs: str | os.PathLike[str] | None
    ssl_ciphers: str
    headers: list[tuple[str, str]] | None
    h11_max_incomplete_event_size: int | None


@contextlib.contextmanager
def live(
    app: ASGIApp,
    *,
    server_class: "Callable[[uvicorn.Config], uvicorn.Server] | None" = None,
    **uvicorn_options: Unpack[UvicornOptions],
) -> Iterator["LiveServer"]:
    """Serve an ASGI app on a real socket, 127.0.0.1 and a free port, from a thread of this process.

        with live(app) as server:
            httpx.get(server.url + "/healthz")

    The app has its lifespan and an event loop of its own. server_class makes the server of a uvicorn.Config,
    default uvicorn.Server. uvicorn_options go to that Config; ``timeout_graceful_shutdown`` (0.2 s unless given) is how
    long open streams may go on at the end, before they are cancelled and their connections aborted.

    Raises RuntimeError from the cause when the server does not start or stop within 30 s, and when it or the lifespan
    of the app failed.
    """
    server = LiveServer(app, server_class, uvicorn_options)
    server._start()
    try:
        yield server
    finally:
        server._stop()


class LiveServer:
    """The server that ``live`` runs. ``port`` is its TCP port, ``url`` its address without a slash at the end."""

    port: int
    url: str

    def __init__(
        self,
        app: ASGIApp,
        server_class: "Callable[[uvicorn.Config], uvicorn.Server] | None",
        uvicorn_options: UvicornOptions,
    ) -> None:
        import uvicorn  # the rest of this package does without uvicorn

        options: dict[str, Any] = {"log_config": None, "timeout_graceful_shutdown": 0.2, **uvicorn_options}
        self._config = uvicorn.Config(
            self._watched(app), host="127.0.0.1", port=0, callback_notify=self._announce, **options
        )
        self._server = (server_class or uvicorn.Server)(self._config)
        self._thread = threading.Thread(target=self._run, name="live server", daemon=True)
        self._settled = threading.Event()  # the server listens, or has failed
        self._error: BaseException | None = None
        self._lifespan_error: Exception | None = None

    def _start(self) -> None:
        self._thread.start()
        if not self._settled.wait(START_SECONDS):
            self._error = TimeoutError(f"it did not start within {START_SECONDS} s")
        if self._error is not None:
            self._stop()

    def _stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(STOP_SECONDS + float(self._config.timeout_graceful_shutdown or 0))
        if self._thread.is_alive():
            self._error = self._error or TimeoutError(f"it did not stop within {STOP_SECONDS} s")
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join(STOP_SECONDS)
        if error := self._lifespan_error or self._error:
            raise RuntimeError(f"the server failed: {error}") from error

    async def _announce(self) -> None:
        """Called by uvicorn once it listens, and then every 30 s."""
        if self._settled.is_set():
            return
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"{'https' if self._config.is_ssl else 'http'}://127.0.0.1:{self.port}"
        self._lifespan_error = None  # an app without a lifespan may raise, and uvicorn serves it all the same
        self._settled.set()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=self._config.get_loop_factory()) as runner:
                runner.run(self._serve())
        except BaseException as error:  # uvicorn leaves by SystemExit when it cannot start
            self._error = self._error or error
        finally:
            self._settled.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.ensure_future(self._server.serve())
        try:
            await self._task
        finally:
            for connection in list(self._server.server_state.connections):
                connection.transport.abort()
            await asyncio.sleep(0)  # the loop closes the sockets in its next turn

    def _watched(self, app: ASGIApp) -> ASGIApp:
        """The app, with the exception of its lifespan kept for ``live`` to raise: uvicorn only logs it."""

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            except Exception as error:
                if scope["type"] == "lifespan":
                    self._lifespan_error = error
                raise

        return watched
