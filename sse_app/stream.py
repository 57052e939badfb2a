"""One subscriber's response: what the hub offers it, written to its connection."""

import logging
from collections.abc import AsyncIterator
from typing import cast

import anyio
from sse_starlette import EventSourceResponse
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sse_app import notices
from sse_app.errors import Draining, Overloaded, SSEAppError
from sse_app.events import MEDIA_TYPE
from sse_app.hub import Hub
from sse_app.subscriber import Subscriber

logger = logging.getLogger("sse_app")

CONTENT_TYPE = f"{MEDIA_TYPE}; charset=utf-8"
HEADERS = {"Cache-Control": "no-store, no-transform"}  # no-transform keeps proxies from compressing, so from buffering


class EventStream(EventSourceResponse):
    """The response to ``GET /events``: subscribes when it is called, unsubscribes when it ends, however it ends.

    HEAD gets the headers and leaves no subscriber. A hub that is full or draining answers an EventSource with an empty
    stream and a time to come back, since an HTTP error would end it for good; others get the error.
    """

    def __init__(
        self,
        hub: Hub,
        topics: tuple[str, ...] = (),
        *,
        after: bytes | None = None,
        last: int | None = None,
        since: float | None = None,
        client: str | None = None,
    ) -> None:
        self._hub = hub
        self._subscription = hub.subscribe(*topics, after=after, last=last, since=since, client=client)
        super().__init__(
            _nothing(),
            headers=HEADERS,
            media_type=CONTENT_TYPE,
            ping=0,  # the hub owns all heartbeats
            shutdown_event=cast(anyio.Event, _DrainOnShutdown(hub)),
            shutdown_grace_period=hub.drain_window + 1,
        )
        del self.headers["connection"]  # HTTP/2 forbids it, and HTTP/1.1 does not need it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await super().__call__(scope, receive, send)
            return
        try:
            async with self._subscription as subscriber:
                self.body_iterator = _blocks(subscriber)
                await super().__call__(scope, receive, send)
        except OSError:
            return  # the peer is gone (ASGI 2.4); what a broker fails with is never an OSError
        except (Draining, Overloaded):
            if MEDIA_TYPE not in Headers(scope=scope).get("accept", ""):
                raise
            later = Response(notices.come_back_later(), headers=HEADERS, media_type=CONTENT_TYPE)
            await later(scope, receive, send)
        except SSEAppError:
            raise  # refused before the stream began
        except Exception as error:
            # One line, and never what was being sent. A clean end lets the client come back and resume.
            logger.error("a stream was ended by our mistake: %s", type(error).__name__)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield


async def _blocks(subscriber: Subscriber) -> AsyncIterator[bytes]:
    while data := await subscriber.read():
        yield data


class _DrainOnShutdown:
    """Stands for the event that sse-starlette sets when it sees a foreign server being stopped: the hub drains then."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def set(self) -> None:
        self._hub.begin_drain()
