"""The response of one subscriber, which writes to its connection what the hub offers.

It is written in one of two ways, with the same bytes. Tests compare both with sse-starlette's own streaming.

    direct      our HTTP protocol (``server/protocol.py``) hands its connection over; no task, no generator is left
    stepped     on any other server: the delivery loop itself starts ASGI's ``send`` and steps it once; where a
                middleware's ``send`` cannot be stepped, a task reads the subscriber's queue
"""

import asyncio
import logging
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Protocol

from sse_starlette import EventSourceResponse
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from sse_app import notices
from sse_app.batch import Writer
from sse_app.connections import BACK
from sse_app.errors import (
    AuthorizeFailed,
    Blocked,
    BrokerError,
    Draining,
    InsufficientScope,
    KeysUnavailable,
    Overloaded,
    SSEAppError,
    TooManyRequests,
)
from sse_app.events import MEDIA_TYPE
from sse_app.joining import StreamRequest
from sse_app.node import Node
from sse_app.subscriber import CloseReason, Subscriber
from sse_app.web.door import Door
from sse_app.web.problems import problem
from sse_app.web.stepped import SteppedWriter, goes_by_steps

logger = logging.getLogger("sse_app")

CONTENT_TYPE = f"{MEDIA_TYPE}; charset=utf-8"
HEADERS = {"Cache-Control": "no-store, no-transform"}  # no-transform keeps proxies from compressing, so from buffering
COME_BACK = (
    Draining,
    Overloaded,
    BrokerError,
    KeysUnavailable,
    AuthorizeFailed,
    TooManyRequests,
)  # passing errors: the same request may succeed later
LIMITED = (10_000, 30_000)  # milliseconds after which a client comes back that has reached a limit
EXTENSION = "sse_app.connection"  # in scope["extensions"]: a Connection


class Connection(Protocol):
    """The connection of a request, which our HTTP protocol offers in the scope, for a stream that outlives it."""

    def hand_over(self, node: Node, subscriber: Subscriber) -> Writer | None:
        """Return the connection as a writer, once the response's head was sent; None when a middleware changed the
        response so that it cannot be continued. The writer then calls ``node.leave`` for the subscriber.
        """
        ...


class EventStream(EventSourceResponse):
    """The response to ``GET /events``: subscribes when it is called, unsubscribes when it ends, however it ends.

    HEAD gets the headers and leaves no subscriber. A hub that is full, draining or cut off from its log answers an
    EventSource with an empty stream and a time to come back, since an HTTP error would end it for good; others get the
    error. ``door`` is told of the servers that streams come through; ``headers`` are sent beside those of every stream.
    """

    def __init__(
        self,
        node: Node,
        request: StreamRequest,
        *,
        door: Door | None = None,
        headers: Mapping[str, str] = {},
    ) -> None:
        self._node, self._request, self._door = node, request, door
        super().__init__(
            _nothing(),
            headers={**HEADERS, **headers},
            media_type=CONTENT_TYPE,
            ping=0,  # the hub owns all heartbeats
        )
        del self.headers["connection"]  # HTTP/2 forbids it, and HTTP/1.1 does not need it

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        if scope["method"] == "HEAD":
            return self._respond_to_head(scope, receive, send)
        # The coroutine does not refer to this object, whose 2 KB an open stream need not keep.
        return _respond(self._node, self._request, self._writing(), scope, receive, send)

    async def _respond_to_head(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            grant = await self._node.check(self._request.grant)
            self._node.connections.check(grant, grant.check_name(self._request.client))
            grant.narrow(self._request.topic_filter)
        except SSEAppError as error:
            await _refuse(self._node, error, scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def _writing(self) -> "Write":
        head = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        return partial(_write, self._node, self._door, head)


Write = Callable[[Subscriber, Scope, Receive, Send], Awaitable[bool]]  # False: the stream outlives its request


async def _respond(
    node: Node, request: StreamRequest, write: Write, scope: Scope, receive: Receive, send: Send
) -> None:
    try:
        subscriber = await node.join(request)
    except SSEAppError as error:
        await _refuse(node, error, scope, receive, send)
        return
    running = write(subscriber, scope, receive, send)
    del request, write  # frees the memory of both while the stream is open
    ended, reason = True, CloseReason.GONE
    try:
        ended = await running
    except OSError:
        pass  # the peer is gone (ASGI 2.4); a BrokerError is no OSError
    except Exception as error:
        # One line, without the publication's data. The clean end of the body lets the client reconnect and resume.
        logger.error("a stream was ended by our mistake: %s", type(error).__name__)
        reason = CloseReason.ERROR
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        if ended:
            node.leave(subscriber, reason)


async def _refuse(node: Node, error: SSEAppError, scope: Scope, receive: Receive, send: Send) -> None:
    await refused(node, error, scope)(scope, receive, send)


def refused(node: Node, error: SSEAppError, scope: Scope) -> Response:
    """Return the answer to a request whose stream could not join, and count a grant that is not enough."""
    if isinstance(error, InsufficientScope):
        node.totals.auth["scope"] += 1
    return refusal(error, scope, node.retry())


async def _write(
    node: Node, door: Door | None, head: Message, subscriber: Subscriber, scope: Scope, receive: Receive, send: Send
) -> bool:
    """Write the stream: directly if the server offers its connection, else by steps if ``send`` allows it, else by a
    task. Return True when the stream is over, False when a writer goes on after the request.
    """
    await send(head)
    del head
    connection: Connection | None = scope.get("extensions", {}).get(EXTENSION)
    if connection is not None and (direct := connection.hand_over(node, subscriber)):
        subscriber.attach(direct)
        return False
    if door is not None:
        door.entered(scope.get("server"))
    if not await goes_by_steps(send):
        return await _write_in_tasks(subscriber, receive, send)
    writer = SteppedWriter(subscriber, send)
    try:
        async with asyncio.timeout(None) as ending:
            writer.ending = ending
            subscriber.attach(writer)
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:  # the hub has ended it
        await writer.finished()
        await send({"type": "http.response.body", "body": writer.farewell, "more_body": False})
    finally:
        writer.stop()
    return True


async def _write_in_tasks(subscriber: Subscriber, receive: Receive, send: Send) -> bool:
    """Write the stream in this task, which reads the queue and sends; another task waits for the disconnect."""
    try:
        async with asyncio.timeout(None) as here, asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(_await_disconnect(receive, here))
            while data := await subscriber.read():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            watching.cancel()
    except TimeoutError:
        return True  # the client is gone
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None  # the caller distinguishes a peer that is gone from a mistake of ours
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    return True


async def _await_disconnect(receive: Receive, here: asyncio.Timeout) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    here.reschedule(0)


def refusal(error: SSEAppError, scope: Scope, retry: int) -> Response:
    """Return the answer to a request for a stream that ends with this error.

    An EventSource gets an empty stream and a time to come back for an error in COME_BACK: an HTTP error would end it
    for good. That is twice ``retry`` ms, unless a limit says when, and a ``bye`` that it does. All else is a problem.
    """
    if not isinstance(error, COME_BACK) or not _is_event_source(scope):
        return problem(error)
    response = Response(_come_back(error, retry), headers=HEADERS, media_type=CONTENT_TYPE)
    if scope["http_version"].startswith("1"):
        response.headers["Connection"] = "close"  # a full hub needs the descriptor; HTTP/2 knows no such header
    return response


def _come_back(error: SSEAppError, retry: int) -> bytes:
    """Return the whole stream for an EventSource that has to wait: who is kept out comes back when that ends, who has
    reached a limit late enough to be no burden, both within half a minute.
    """
    if not isinstance(error, TooManyRequests):
        return notices.come_back_later(2 * retry)
    soonest, latest = LIMITED
    wait = min(math.ceil(error.wait * 1_000), latest)
    if isinstance(error, Blocked):
        return notices.come_back_later(wait + random.randint(*BACK))
    return notices.bye("limit", random.randint(max(wait, soonest), latest))


def _is_event_source(scope: Scope) -> bool:
    return MEDIA_TYPE in ",".join(Headers(scope=scope).getlist("accept")).lower()


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield
