"""One request to an ASGI app in this process."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import anyio
import httpx
import httpx2
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Scope

from sse_app.testing.libraries import Request, library_of
from sse_app.testing.tasks import finish


class Server(Protocol):
    """A call's transport, as far as the call needs it: the arguments of StreamingASGITransport."""

    app: ASGIApp
    raise_app_exceptions: bool
    spec_version: str
    root_path: str
    client: tuple[str, int]
    buffer: int
    grace: float

    @property
    def lifespan_state(self) -> dict[str, Any] | None:
        """The state that the app's lifespan has made; None where none runs."""


class Call:
    """One request: the app on one side, the reader of its response on the other, the state of one loop between them."""

    def __init__(self, server: Server, request: Request) -> None:
        self.library = library_of(request)
        self._server = server
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
        self._left = False  # the reader has closed the response
        self._error: Exception | None = None
        self._error_seen = False

    def start(self) -> None:
        self.task = asyncio.create_task(self._run(), name=f"{self._request.method} {self._request.url.path}")

    # For the reader

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
            await finish({self.task}, self._server.grace, cancel=False)
        self._raise_app_error()
        if not self.complete:
            raise self.library.RemoteProtocolError("the app ended without completing its response") from self._error
        return None

    def disconnect(self) -> None:
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
        if self._error is not None and self._server.raise_app_exceptions:
            self._error_seen = True
            raise self._error

    # For the app

    async def _run(self) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._upload)
                try:
                    await self._server.app(self._scope(), self._receive, self._send)
                    self._check_started()
                except Exception as error:
                    self._error = error
                tasks.cancel_scope.cancel()
        finally:
            self._returned = True
            self._change()

    def _scope(self) -> Scope:
        request, server = self._request, self._server
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": server.spec_version},
            "http_version": "1.1",
            "method": request.method,
            "scheme": request.url.scheme,
            "path": request.url.path,
            "raw_path": request.url.raw_path.split(b"?")[0],
            "query_string": request.url.query,
            "root_path": server.root_path,
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "client": server.client,
            "server": (request.url.host, request.url.port or (443 if request.url.scheme == "https" else 80)),
            "extensions": {},
        }
        if server.lifespan_state is not None:
            scope["state"] = server.lifespan_state.copy()
        return scope

    async def _upload(self) -> None:
        assert isinstance(self._request.stream, httpx.AsyncByteStream | httpx2.AsyncByteStream)
        remaining = float(self._request.headers.get("content-length", "inf"))  # a chunked body has no length
        more = True
        try:
            async for chunk in self._request.stream:
                if chunk:
                    remaining -= len(chunk)
                    more = remaining > 0
                    await self._until(lambda: len(self._uploads) < self._server.buffer)
                    self._queue_upload(chunk, more)
        except Exception as error:  # of the iterator that makes the body: for the caller; the app sees a disconnect
            self._upload_error = error
            self.disconnect()
        if more:
            self._queue_upload(b"", False)

    def _queue_upload(self, chunk: bytes, more: bool) -> None:
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
            await self._until(lambda: len(self._chunks) < self._server.buffer or self._left)
        if self._left:
            if tuple(map(int, self._server.spec_version.split("."))) >= (2, 4):
                raise _ClientGoneError("the client has gone")
        elif message["type"] == "http.response.start" and self._head is None:
            self._head = message["status"], [(bytes(name), bytes(value)) for name, value in message.get("headers", [])]
        elif message["type"] == "http.response.body" and self._head is not None and not self.complete:
            if message.get("body") and self._request.method != "HEAD":
                self._chunks.append(bytes(message["body"]))
            self.complete = not message.get("more_body", False)
        else:
            raise RuntimeError(f"unexpected ASGI message {message['type']!r}: an app sends one start, then bodies")
        self._change()

    def _check_started(self) -> None:
        if self._head is None and not self._left:
            raise RuntimeError("the app returned without starting a response")

    # For both

    async def _until(self, ready: Callable[[], bool]) -> None:
        while not ready():
            await self._changed.wait()

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class _ClientGoneError(OSError):
    """The OSError that ``send`` raises after the client left (ASGI 2.4), unlike any OSError of the app's own."""


def _is_disconnect(error: Exception | None) -> bool:
    if isinstance(error, ExceptionGroup):
        return all(_is_disconnect(inner) for inner in error.exceptions)
    return isinstance(error, _ClientGoneError | ClientDisconnect)
