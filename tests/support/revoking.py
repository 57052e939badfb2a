"""Streams of users, and what a revocation of some of them must have done."""

import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from sse_app.events import Event
from sse_app.grants import Grant
from sse_app.joining import StreamRequest
from sse_app.node import Node
from sse_app.revocations import Revocation
from sse_app.subscriber import Subscriber
from sse_app.topics import TopicFilter
from tests.support.nodes import node_on
from tests.support.peers import datas, read_events
from tests.support.worlds import World

LAST = "0"  # the publication after which a stream that was not revoked has everything


def grant_of(user: str) -> Grant:
    return Grant(subscribe=TopicFilter(), user=user, token=f"token of {user}", issued=time.time() - 60)


def revocation(**what: Any) -> Revocation:
    return Revocation.of(lasts=3_600, **what)


async def join(node: Node, user: str) -> Subscriber:
    return await node.join(StreamRequest.parse(grant=grant_of(user)))


@asynccontextmanager
async def nodes_on(world: World, count: int) -> AsyncIterator[list[Node]]:
    """So many nodes of one hub; one on a log in memory."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(node_on(world.open())) for _ in range(count if world.kept else 1)]


async def to_the_end(subscriber: Subscriber) -> list[Event]:
    return await read_events(subscriber, lambda events: any(event.type == "bye" for event in events))


def is_complete(events: list[Event]) -> bool:
    return any(event.type == "bye" or event.data == LAST for event in events)


def assert_none_was_sent_after_its_revocation(
    received: Iterable[tuple[str, list[Event]]], revoked_at: Mapping[str, int], total: int
) -> None:
    """``received`` are the users and events of streams on which 1 to ``total`` and then LAST were published, and
    ``revoked_at`` is the newest number that was published before the revocation of a user was acknowledged.
    """
    for user, events in received:
        numbers = [int(text) for text in datas(events)]
        if user in revoked_at:
            assert events[-1].type == "bye"
            assert numbers == list(range(1, len(numbers) + 1))
            assert len(numbers) <= revoked_at[user], "sent after its revocation"
        else:
            assert numbers == [*range(1, total + 1), int(LAST)]
