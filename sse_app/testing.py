"""Tests of endless streams: an in-process transport for httpx and httpx2, a live server, and a reader of events.

    transport = StreamingASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        async with client.stream("GET", "/events") as response:
            welcome = await anext(events(response))

Nothing here sleeps or polls; every task belongs to its transport and every thread to its ``live`` block.
"""

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import httpx2
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_app.events import Event, EventDecoder

if TYPE_CHECKING:
    import uvicorn

logger = logging.getLogger(__name__)

START_SECONDS = 30.0  # a server that takes longer to start is stuck
STOP_SECONDS = 30.0  # the same for its end, on top of what its clients are granted


async def events(response: httpx.Response | httpx2.Response) -> AsyncIterator[Event]:
    """The events of a streaming response, as a browser's EventSource would dispatch them.

    Comments and blocks without data (heartbeats, moved cursors) are not events. The client's read timeout bounds the
    wait for the next bytes: httpx.ReadTimeout. Raises ValueError if the response is not a ``200 text/event-stream``, as
    EventSource would refuse it (WHATWG HTML 9.2.3).
    """
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if response.status_code != 200 or media_type != "text/event-stream":
        raise ValueError(f"no event stream: status {response.status_code}, content type {media_type or 'missing'}")
    decoder = EventDecoder()
    async for chunk in response.aiter_raw():
        for event in decoder.feed(chunk):
            yield event


class StreamingASGITransport(httpx.AsyncBaseTransport, httpx2.AsyncBaseTransport):
    """Runs an ASGI app in this process and streams what it answers, to a client of httpx or of httpx2. For asyncio.

    ``httpx.ASGITransport`` collects the whole body before it returns, so an endless stream hangs it for ever, and its
    timeouts do nothing (encode/httpx#2186). Here a response is returned once the app has started it, the app waits
    while ``buffer`` chunks lie unread, and httpx's read timeout holds (httpx.ReadTimeout). Closing the response, the
    client or the transport, and cancelling the reader, gives the app an ``http.disconnect``; who does so waits until
    the app has ended, at most ``grace`` seconds, then cancels it. What still runs after its response was complete (a
    background task) is cancelled only with the transport.

    app: an ASGI 3 app.
    lifespan: run the app's startup in ``async with client`` (or ``async with transport``) and its shutdown at the end.
        A startup that fails raises RuntimeError with the app's message.
    raise_app_exceptions: raise the app's exception in the reader; one that comes when nobody reads any more is raised
        when the client closes, unless it only says that the client left (that OSError, Starlette's ClientDisconnect).
        False: what a network would show, status 500 or httpx.RemoteProtocolError, and the exception goes to the log.
    spec_version: ASGI's HTTP version. From "2.4" on, ``send`` to a client that left raises OSError; before, it returns.
        Starlette's StreamingResponse then looks for a disconnect only when it sends, so closing an idle one takes the
        whole ``grace``; "2.3", which uvicorn announces, closes it at once.
    buffer: chunks that the app may be ahead of its reader, at least 1.
    grace: seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        lifespan: bool = False,
        raise_app_exceptions: bool = True,
        spec_version: str = "2.4",
        root_path: str = "",
        client: tuple[str, int] = ("127.0.0.1", 50000),
        buffer: int = 4,
        grace: float = 1.0,
    ) -> None:
        self.app = app
        self.raise_app_exceptions = raise_app_exceptions
        self.spec_version = spec_version
        self.root_path = root_path
        self.client = client
        self.buffer = buffer
        self.grace = grace
        self._has_lifespan = lifespan
        self._lifespan: _Lifespan | None = None  # while it runs
        self._calls: set[_Call] = set()
        self._unseen: list[Exception] = []  # exceptions of the app that no reader saw

    async def __aenter__(self) -> "StreamingASGITransport":
        if self._has_lifespan:
            lifespan = _Lifespan(self.app, self.grace)
            await lifespan.start()
            self._lifespan = lifespan
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        try:
            await self.aclose()
        except Exception:
            if exc_type is None:
                raise
            logger.exception("Closing the transport failed, after another error")  # which must not be masked

    async def handle_async_request(self, request: Any) -> Any:
        if self._has_lifespan and self._lifespan is None:
            raise RuntimeError("lifespan=True needs `async with httpx.AsyncClient(transport=...)`: nothing started it")
        call = _Call(self, request)
        self._calls.add(call)
        call.start()
        try:
            status, headers = await call.head()
        except BaseException:
            await self._end(call)
            raise
        return call.library.Response(status, headers=headers, stream=_Body(call, self._end))

    async def aclose(self) -> None:
        """End every call, then the lifespan. Raises the app's exceptions that no reader saw."""
        try:
            await self._end(*self._calls, cancel_complete=True)
        finally:
            lifespan, self._lifespan = self._lifespan, None
            if lifespan is not None:
                await lifespan.stop()
        unseen, self._unseen = self._unseen, []
        if unseen:
            raise unseen[0] if len(unseen) == 1 else ExceptionGroup("The app failed when nobody read any more", unseen)

    async def _end(self, *calls: "_Call", cancel_complete: bool = False) -> None:
        for call in calls:
            call.leave()
        with anyio.CancelScope(shield=True):
            await _finish({call.task for call in calls if cancel_complete or not call.complete}, self.grace)
            await _finish({call.task for call in calls if not call.read_to_end}, self.grace, cancel=False)
        for call in calls:
            if call.task.done() and call in self._calls:
                self._calls.remove(call)
                self._keep_unseen(call.unseen_error())

    def _keep_unseen(self, error: Exception | None) -> None:
        if error is None:
            return
        if self.raise_app_exceptions:
            self._unseen.append(error)
        else:
            logger.error("The app failed", exc_info=error)


async def _finish(tasks: Collection[asyncio.Task[None]], grace: float, *, cancel: bool = True) -> None:
    """Wait up to ``grace`` seconds for the tasks to end, then cancel them and wait that long again."""
    running = {task for task in tasks if not task.done()}
    if running:
        _, running = await asyncio.wait(running, timeout=grace)
    if not running or not cancel:
        return
    for task in running:
        task.cancel()
    _, running = await asyncio.wait(running, timeout=grace)
    if running:
        raise RuntimeError(f"{len(running)} call(s) of the app still ran {grace} s after they were cancelled")


class _Body(httpx.AsyncByteStream, httpx2.AsyncByteStream):
    """What httpx reads a response from. Like a connection of httpcore, any error in reading closes it."""

    def __init__(self, call: "_Call", end: Callable[["_Call"], Awaitable[None]]) -> None:
        self._call = call
        self._end = end

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk = await self._call.read()
        except BaseException:
            await self.aclose()
            raise
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        await self._end(self._call)


class _Call:
    """One request: the app on one side, who reads its response on the other, plain state of one loop between them."""

    def __init__(self, transport: StreamingASGITransport, request: httpx.Request | httpx2.Request) -> None:
        self.library: Any = httpx2 if isinstance(request, httpx2.Request) else httpx  # whose errors it may raise
        self._transport = transport
        self._request = request
        self._read_timeout: float | None = request.extensions.get("timeout", {}).get("read")
        self._changed = asyncio.Event()  # replaced at each change of what follows
        self._uploads: deque[Message] = deque()
        self._upload_error: Exception | None = None
        self._head: tuple[int, list[tuple[bytes, bytes]]] | None = None
        self._chunks: deque[bytes] = deque()
        self.complete = False  # the app has sent its last chunk
        self.read_to_end = False
        self._returned = False
        self._left = False  # nobody reads any more
        self._error: Exception | None = None
        self._error_seen = False

    def start(self) -> None:
        self.task = asyncio.create_task(self._run(), name=f"{self._request.method} {self._request.url.path}")

    # The reader's side.

    async def head(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        await self._wait_to_read(lambda: self._head is not None)
        if self._head is not None:
            return self._head
        self._check_connected()
        self._raise_app_error()
        self.complete = True
        return 500, [(b"content-length", b"0")]

    async def read(self) -> bytes | None:
        """The next chunk; None at the end, which waits for the app to return (at most the transport's grace)."""
        await self._wait_to_read(lambda: bool(self._chunks) or self.complete)
        if self._chunks:
            chunk = self._chunks.popleft()
            self._change()
            return chunk
        self._check_connected()
        if self.complete:
            self.read_to_end = True
            await _finish({self.task}, self._transport.grace, cancel=False)
        self._raise_app_error()
        if not self.complete:
            raise self.library.RemoteProtocolError("the app ended without completing its response") from self._error
        return None

    def leave(self) -> None:
        self._left = True
        self._change()

    def unseen_error(self) -> Exception | None:
        return None if self._error_seen or _is_disconnect(self._error) else self._error

    async def _wait_to_read(self, ready: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(self._read_timeout):
                await self._until(lambda: ready() or self._returned or self._left)
        except TimeoutError:
            message = f"the app sent nothing for {self._read_timeout} s"
            raise self.library.ReadTimeout(message, request=self._request) from None

    def _check_connected(self) -> None:
        if self._upload_error is not None:
            raise self._upload_error
        if self._left:
            raise self.library.ReadError("the transport was closed", request=self._request)

    def _raise_app_error(self) -> None:
        if self._error is not None and self._transport.raise_app_exceptions:
            self._error_seen = True
            raise self._error

    # The app's side.

    async def _run(self) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._upload)
                try:
                    await self._transport.app(self._scope(), self._receive, self._send)
                    self._check_started()
                except Exception as error:
                    self._error = error
                tasks.cancel_scope.cancel()
        finally:
            self._returned = True
            self._change()

    def _scope(self) -> Scope:
        request, transport = self._request, self._transport
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": transport.spec_version},
            "http_version": "1.1",
            "method": request.method,
            "scheme": request.url.scheme,
            "path": request.url.path,
            "raw_path": request.url.raw_path.split(b"?")[0],
            "query_string": request.url.query,
            "root_path": transport.root_path,
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "client": transport.client,
            "server": (request.url.host, request.url.port or (443 if request.url.scheme == "https" else 80)),
            "extensions": {},
        }
        if transport._lifespan is not None:
            scope["state"] = transport._lifespan.state.copy()
        return scope

    async def _upload(self) -> None:
        assert isinstance(self._request.stream, httpx.AsyncByteStream | httpx2.AsyncByteStream)
        remaining = float(self._request.headers.get("content-length", "inf"))  # nobody knows how long a chunked body is
        more = True
        try:
            async for chunk in self._request.stream:
                if chunk:
                    remaining -= len(chunk)
                    more = remaining > 0
                    await self._until(lambda: len(self._uploads) < self._transport.buffer)
                    self._give(chunk, more)
        except Exception as error:  # in making the body: the caller hears of it, the app sees its client leave
            self._upload_error = error
            self.leave()
        if more:
            self._give(b"", False)

    def _give(self, chunk: bytes, more: bool) -> None:
        self._uploads.append({"type": "http.request", "body": chunk, "more_body": more})
        self._change()

    async def _receive(self) -> Message:
        await self._until(lambda: bool(self._uploads) or self.complete or self._left)
        if self.complete or self._left:
            return {"type": "http.disconnect"}
        self._change()
        return self._uploads.popleft()

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.body" and message.get("body"):
            # As servers do: wait for room first, then write. With room, ``send`` ends without suspending.
            await self._until(lambda: len(self._chunks) < self._transport.buffer or self._left)
        if self._left:
            if tuple(map(int, self._transport.spec_version.split("."))) >= (2, 4):
                raise _ClientGoneError("the client has gone")
        elif message["type"] == "http.response.start" and self._head is None:
            self._head = message["status"], [(bytes(name), bytes(value)) for name, value in message.get("headers", [])]
        elif message["type"] == "http.response.body" and self._head is not None and not self.complete:
            if message.get("body") and self._request.method != "HEAD":
                self._chunks.append(bytes(message["body"]))
            self.complete = not message.get("more_body", False)
        else:
            raise RuntimeError(f"unexpected ASGI message {message['type']!r}: it is not this one's turn")
        self._change()

    def _check_started(self) -> None:
        if self._head is None and not self._left:
            raise RuntimeError("the app returned without starting a response")

    # Both sides.

    async def _until(self, ready: Callable[[], bool]) -> None:
        while not ready():
            await self._changed.wait()

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class _ClientGoneError(OSError):
    """What ASGI 2.4 wants ``send`` to raise, told from other OSErrors of the app."""


def _is_disconnect(error: Exception | None) -> bool:
    if isinstance(error, ExceptionGroup):
        return all(_is_disconnect(inner) for inner in error.exceptions)
    return isinstance(error, _ClientGoneError | ClientDisconnect)


class _Lifespan:
    """The app's lifespan, in a task of its own from ``start`` to ``stop``."""

    def __init__(self, app: ASGIApp, grace: float) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._grace = grace
        self._questions: asyncio.Queue[Message] = asyncio.Queue()  # at most one of each phase
        self._answers: asyncio.Queue[Message] = asyncio.Queue()
        self._error: Exception | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="lifespan")
        try:
            await self._ask("startup")
        except BaseException:
            await self._end()
            raise

    async def stop(self) -> None:
        try:
            await self._ask("shutdown")
        finally:
            await self._end()

    async def _run(self) -> None:
        scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._app(scope, self._questions.get, self._answers.put)
        except Exception as error:
            self._error = error
        finally:
            self._answers.put_nowait({"type": "lifespan.ended"})

    async def _ask(self, phase: str) -> None:
        self._questions.put_nowait({"type": f"lifespan.{phase}"})
        answer = await self._answers.get()
        if answer["type"] != f"lifespan.{phase}.complete":
            await self._end()
            message = answer.get("message") or f"the app's {phase} failed: {self._error or 'it ended'}"
            raise RuntimeError(message) from self._error

    async def _end(self) -> None:
        with anyio.CancelScope(shield=True):
            await _finish({self._task}, self._grace)


@contextlib.contextmanager
def live(
    app: ASGIApp, *, server_class: "Callable[[uvicorn.Config], uvicorn.Server] | None" = None, **uvicorn_options: Any
) -> Iterator["LiveServer"]:
    """Serve an ASGI app on a real socket, 127.0.0.1 and a free port, from a thread of this process.

        with live(app) as server:
            httpx.get(server.url + "/healthz")

    The app has its lifespan and an event loop of its own. server_class: what makes the server of a uvicorn.Config,
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
    """A server made by ``live``. ``port`` is its TCP port and ``url`` its address, without a slash at the end."""

    port: int
    url: str

    def __init__(
        self,
        app: ASGIApp,
        server_class: "Callable[[uvicorn.Config], uvicorn.Server] | None",
        uvicorn_options: dict[str, Any],
    ) -> None:
        import uvicorn  # here, since the rest of this module does without it

        options = {"log_config": None, "timeout_graceful_shutdown": 0.2} | uvicorn_options
        self._config = uvicorn.Config(
            self._watched(app), host="127.0.0.1", port=0, callback_notify=self._announce, **options
        )
        self._server = (server_class or uvicorn.Server)(self._config)
        self._thread = threading.Thread(target=self._run, name="live server", daemon=True)
        self._settled = threading.Event()  # it serves, or it has failed
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
        self._lifespan_error = None  # uvicorn goes on without, if the app just has no lifespan
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
        """The app, with what its lifespan raises kept: uvicorn only logs it."""

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            except Exception as error:
                if scope["type"] == "lifespan":
                    self._lifespan_error = error
                raise

        return watched
