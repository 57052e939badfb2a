"""Leases: the open streams of a ticket on a node."""

from contextlib import AsyncExitStack

from sse_app.brokers.memory import MemoryBroker
from sse_app.grants import Grant, Lease
from sse_app.leases import STREAMS_MAX
from sse_app.subscriber import Subscriber
from sse_app.topics import TopicFilter
from tests.support.nodes import node_on, subscribed
from tests.support.peers import Socket


def of_ticket(generation: int) -> Grant:
    return Grant(subscribe=TopicFilter(), source="ticket", lease=Lease("x", generation))


async def test_streams_that_have_ended_and_are_not_gone_yet_are_not_counted() -> None:
    """As those of clients that read nothing: their ends are written, and wait to be read."""
    async with node_on(MemoryBroker()) as node, AsyncExitStack() as stack:
        streams = list[Subscriber]()
        for generation in range(1, 2 * STREAMS_MAX + 1):
            stream = await stack.enter_async_context(subscribed(node, grant=of_ticket(generation)))
            stream.attach(Socket())
            streams.append(stream)
        assert [stream.is_over for stream in streams] == [True] * STREAMS_MAX + [False] * STREAMS_MAX
