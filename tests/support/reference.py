"""A stream over sse-starlette's own streaming. Our writers must send the same, byte for byte."""

from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from sse_app.subscriber import Subscriber
from sse_app.web.stream import EventStream, Write


class ReferenceStream(EventStream):
    """The response of ``EventStream``, whose body sse-starlette sends from a generator over the subscriber's queue."""

    def _writing(self) -> Write:
        return self._send_blocks

    async def _send_blocks(self, subscriber: Subscriber, scope: Scope, receive: Receive, send: Send) -> bool:
        self.body_iterator = _blocks(subscriber)
        await EventSourceResponse.__call__(self, scope, receive, send)
        return True


async def _blocks(subscriber: Subscriber) -> AsyncIterator[bytes]:
    while data := await subscriber.read():
        yield data
