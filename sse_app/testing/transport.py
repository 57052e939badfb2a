"""An in-process transport for httpx and httpx2 that streams what an ASGI app answers."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any

import anyio
from starlette.types import ASGIApp

from sse_app.testing.call import Call
from sse_app.testing.libraries import BaseTransport, BodyStream
from sse_app.testing.lifespan import Lifespan
from sse_app.testing.tasks import finish

logger = logging.getLogger(__name__)


class StreamingASGITransport(BaseTransport):
    """Runs an ASGI app in this process and streams what it answers, to a client of httpx or of httpx2. For asyncio.

    ``httpx.ASGITransport`` collects the whole body before it returns, so an endless stream hangs it for ever, and its
    timeouts do nothing (encode/httpx#2186). Here a response is returned once the app has started it, the app waits
    while ``buffer`` chunks lie unread, and httpx's read timeout holds (httpx.ReadTimeout). Closing the response, the
    client or the transport, and cancelling the reader, gives the app an ``http.disconnect``; each of them waits up to
    ``grace`` seconds for the app to end, then cancels it. An app that still runs after its response was complete (a
    background task) is cancelled only with the transport.

    app: an ASGI 3 app.
    lifespan: run the app's startup in ``async with client`` (or ``async with transport``) and its shutdown at the end.
        A startup that fails raises RuntimeError with the app's message.
    raise_app_exceptions: raise the app's exception in the reader. An exception after the reader has closed its response
        is raised when the client closes, unless it only says that the client left (the OSError of ``send``, Starlette's
        ClientDisconnect). False: the reader gets what a network would show, status 500 or httpx.RemoteProtocolError,
        and the exception goes to the log.
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
        self._lifespan: Lifespan | None = None  # while it runs
        self._calls: set[Call] = set()
        self._unseen: list[Exception] = []  # exceptions of the app that were raised in no reader

    async def __aenter__(self) -> "StreamingASGITransport":
        if self._has_lifespan:
            lifespan = Lifespan(self.app, self.grace)
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
            logger.exception("Closing the transport failed, after another error")  # the first error is the one raised

    @property
    def lifespan_state(self) -> dict[str, Any] | None:
        """The state that the app's lifespan has made; None while none runs."""
        return None if self._lifespan is None else self._lifespan.state

    async def handle_async_request(self, request: Any) -> Any:
        if self._has_lifespan and self._lifespan is None:
            raise RuntimeError("lifespan=True needs `async with httpx.AsyncClient(transport=...)`: nothing started it")
        call = Call(self, request)
        self._calls.add(call)
        call.start()
        try:
            status, headers = await call.head()
        except BaseException:
            await self._end(call)
            raise
        return call.library.Response(status, headers=headers, stream=_Body(call, self._end))

    async def aclose(self) -> None:
        """End every call, then the lifespan. Raise the app's exceptions that were raised in no reader."""
        try:
            await self._end(*self._calls, cancel_complete=True)
        finally:
            lifespan, self._lifespan = self._lifespan, None
            if lifespan is not None:
                await lifespan.stop()
        unseen, self._unseen = self._unseen, []
        if unseen:
            raise unseen[0] if len(unseen) == 1 else ExceptionGroup("The app failed when nobody read any more", unseen)

    async def _end(self, *calls: "Call", cancel_complete: bool = False) -> None:
        for call in calls:
            call.disconnect()
        with anyio.CancelScope(shield=True):
            await finish({call.task for call in calls if cancel_complete or not call.complete}, self.grace)
            await finish({call.task for call in calls if not call.read_to_end}, self.grace, cancel=False)
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


class _Body(BodyStream):
    """The body of a call's response. An error while it is read closes it, as it closes a connection of httpcore."""

    def __init__(self, call: "Call", end: Callable[["Call"], Awaitable[None]]) -> None:
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
