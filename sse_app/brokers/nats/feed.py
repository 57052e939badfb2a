"""Messages as the server delivers them, and an ordered consumer of them."""

import asyncio
from collections.abc import Callable

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import Header

from sse_app.brokers.nats.entries import Message


class Feed:
    """Every message in its order, or ``broken``, and then another one has to go on.

    nats-py's own ordered consumer is not made anew when its heartbeats stay away (nats.py#510).
    """

    def __init__(self, client: Client, take: Callable[[Message], None], on_break: Callable[[], object]) -> None:
        self._client, self._take, self._on_break = client, take, on_break
        self._count = 0  # of the messages that came
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self.broken = False

    @property
    def silence(self) -> float:
        """Seconds since it was last heard of."""
        return self._loop.time() - self._heard

    async def hear(self, message: Msg) -> None:
        self._heard = self._loop.time()
        if is_message(message):
            self._count += 1
            self._expect(message.metadata.sequence.consumer)
            if not self.broken:
                self._take(message_of(message))
            return
        headers = message.headers or {}
        if answer := message.reply or headers.get(Header.CONSUMER_STALLED.value):  # flow control
            await self._client.publish(answer)
        if last := headers.get(Header.LAST_CONSUMER.value):
            self._expect(int(last))

    def _expect(self, count: int) -> None:
        if count != self._count and not self.broken:
            self.broken = True
            self._on_break()


def is_message(message: Msg) -> bool:
    """Whether it is one of the stream, not a word of the server."""
    return message.reply.startswith("$JS.ACK.")


def message_of(message: Msg) -> Message:
    metadata = message.metadata
    return Message(metadata.sequence.stream, metadata.timestamp.timestamp(), message.data)


def status_of(message: Msg) -> str:
    """What the server says in place of a message: ``404 No Messages``."""
    headers = message.headers or {}
    return f"{headers.get(Header.STATUS.value, '')} {headers.get(Header.DESCRIPTION.value, '')}"
