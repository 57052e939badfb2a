"""Consumers of a stream, with which its messages are read: all of a page at once, or each as it is stored."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext, api

from sse_app.brokers.nats.connection import FAILURES
from sse_app.brokers.nats.entries import Message
from sse_app.brokers.nats.feed import Feed, is_message, status_of

HEARTBEAT = 1.0  # seconds between two heartbeats of a feed without messages
IDLE = 10.0  # seconds after which the server deletes a consumer that nobody reads from
PENDING_MESSAGES = 65_536  # of a feed that wait for this process; with more, nats-py drops some and the feed breaks


class Consumers:
    """Consumers of one stream, as one connection reaches them. ``answer`` is how long its server has for one, in
    seconds. Methods raise FAILURES."""

    def __init__(self, client: Client, js: JetStreamContext, stream: str, answer: float) -> None:
        self._client, self._js, self._stream, self._answer = client, js, stream, answer

    @asynccontextmanager
    async def feed(
        self, after: int, take: Callable[[Message], None], on_break: Callable[[], object]
    ) -> AsyncIterator[Feed]:
        """Deliver all messages behind an offset: first those that there are, then each as it is stored."""
        feed = Feed(self._client, take, on_break)
        inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(inbox, cb=feed.on_message, pending_msgs_limit=PENDING_MESSAGES)
        try:
            async with self.consumer(start=after + 1, deliver_subject=inbox):
                yield feed
        finally:
            await _unsubscribe(subscription)

    @asynccontextmanager
    async def consumer(
        self,
        start: int | datetime,
        subject: str | None = None,
        *,
        headers_only: bool = False,
        deliver_subject: str | None = None,
    ) -> AsyncIterator[api.ConsumerInfo]:
        """Make a consumer of the messages from an offset or a time on, of one subject if it is given, for a while."""
        config = api.ConsumerConfig(
            name=secrets.token_hex(8),  # we name it, so that it can be deleted even if the answer is lost
            filter_subject=subject,
            headers_only=headers_only or None,
            deliver_subject=deliver_subject,
            flow_control=True if deliver_subject else None,
            idle_heartbeat=HEARTBEAT if deliver_subject else None,
            ack_policy=api.AckPolicy.NONE,
            max_deliver=1,
            inactive_threshold=IDLE,
            num_replicas=1,
            mem_storage=True,
        )
        if isinstance(start, datetime):
            config.deliver_policy, config.opt_start_time = api.DeliverPolicy.BY_START_TIME, start
        else:
            config.deliver_policy, config.opt_start_seq = api.DeliverPolicy.BY_START_SEQUENCE, start
        try:
            yield await self._js.add_consumer(self._stream, config)
        finally:
            with suppress(*FAILURES):
                await self._client.publish(f"{api.DEFAULT_PREFIX}.CONSUMER.DELETE.{self._stream}.{config.name}")

    async def pull(self, consumer: api.ConsumerInfo, batch: int, **bounds: int) -> tuple[list[Msg], bool]:
        """Return the messages that the server has now, and True if a bound kept it from sending the next one."""
        found: list[Msg] = []
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def take(message: Msg) -> None:
            if is_message(message):
                found.append(message)
            if not ended.done() and (len(found) == batch or not is_message(message)):
                ended.set_result(status_of(message))

        inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(inbox, cb=take)
        try:
            subject = f"{api.DEFAULT_PREFIX}.CONSUMER.MSG.NEXT.{self._stream}.{consumer.name}"
            request = {"batch": batch, "no_wait": True, **bounds}
            await self._client.publish(subject, json.dumps(request).encode(), inbox)
            async with asyncio.timeout(self._answer):
                status = await ended
        finally:
            await _unsubscribe(subscription)
        if len(found) == batch or status.startswith(("404", "408")):
            return found, False
        if status.startswith("409 Message Size"):
            return found, True
        raise nats.errors.Error(f"the server did not read its stream: {status}")


async def _unsubscribe(subscription: Subscription) -> None:
    with suppress(*FAILURES):
        await subscription.unsubscribe()
