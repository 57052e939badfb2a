"""An ordered consumer of the messages of a stream, and how a message of the server is read."""

import asyncio
from collections.abc import Callable

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import Header

from sse_app.brokers.nats.entries import Message


class Feed:
    """Delivers every message in order until it is ``broken``; then another feed has to go on.

    nats-py's ordered consumer is not replaced when the server's heartbeats stop (nats.py#510).
    """

    def __init__(self, client: Client, deliver: Callable[[Message], None], on_break: Callable[[], object]) -> None:
        self._client, self._deliver, self._on_break = client, deliver, on_break
        self._count = 0  # messages that came
        self._loop = asyncio.get_running_loop()
        self._last_message = self._loop.time()
        self.broken = False

    @property
    def silence(self) -> float:
        """Seconds since the last message or heartbeat."""
        return self._loop.time() - self._last_message

    async def on_message(self, message: Msg) -> None:
        self._last_message = self._loop.time()
        if is_message(message):
            self._count += 1
            self._expect(message.metadata.sequence.consumer)
            if not self.broken:
                self._deliver(message_of(message))
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
    """Return True for a message of the stream, False for a status or heartbeat of the server."""
    return message.reply.startswith("$JS.ACK.")


def message_of(message: Msg) -> Message:
    metadata = message.metadata
    return Message(metadata.sequence.stream, metadata.timestamp.timestamp(), message.data)


def status_of(message: Msg) -> str:
    """Return the status that the server sends in place of a message: ``404 No Messages``."""
    headers = message.headers or {}
    return f"{headers.get(Header.STATUS.value, '')} {headers.get(Header.DESCRIPTION.value, '')}"
