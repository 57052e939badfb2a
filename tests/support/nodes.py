"""A node on virtual time: publishing to it, and reading its subscribers."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from sse_app.brokers import Broker
from sse_app.brokers.memory import MemoryBroker
from sse_app.config import Config
from sse_app.events import Event, EventDecoder
from sse_app.joining import StreamRequest
from sse_app.node import Node
from sse_app.publication import Draft, Position
from sse_app.subscriber import Subscriber
from tests.support.peers import MOMENT, datas, received


def node_on(broker: Broker, **settings: Any) -> Node:
    """A node with the settings of a hub by default."""
    defaults: dict[str, Any] = {
        "queue_size": Config.queue,
        "queue_bytes": Config.queue_bytes,
        "heartbeat": Config.heartbeat,
        "retry": (Config.retry_min, Config.retry_max),
        "max_subscribers": 100_000,
        "drain": Config.drain,
        "ticket_reconnect": Config.ticket_reconnect,
    }
    return Node(broker, **(defaults | settings))


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    """A started node on an empty log in memory."""
    async with node_on(MemoryBroker()) as node:
        yield node


def subscribed(node: Node, *topics: str, **options: Any) -> AbstractAsyncContextManager[Subscriber]:
    """A subscriber as long as the block lasts."""
    return node.subscribe(StreamRequest.parse(topics, **options))


async def publish(node: Node, *texts: str, **options: Any) -> list[Position]:
    """Publish one by one, each delivered before the next."""
    positions = []
    for text in texts:
        positions.append((await node.publish(Draft.compose(text, **options))).position)
        await asyncio.sleep(MOMENT)
    return positions


async def texts(subscriber: Subscriber) -> list[str]:
    return datas(await received(subscriber))


async def replay(node: Node, *topics: str, **options: Any) -> list[Event]:
    """The events that a new subscriber gets at once."""
    async with subscribed(node, *topics, **options) as subscriber:
        return await received(subscriber)


def data_of(event: Event) -> dict[str, Any]:
    data = json.loads(event.data)
    assert isinstance(data, dict)
    return data


def cursor_of(decoder: EventDecoder) -> Position:
    cursor = Position.parse(decoder.last_event_id.encode())
    assert cursor is not None
    return cursor


def state(node: Node) -> tuple[int, int, float, int]:
    """All counts of subscribers that a node keeps."""
    return node.totals.subscribers, len(node._heartbeats), node.gauges()["filters"], node.totals.lagging
