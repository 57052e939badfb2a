"""Revocations over each broker: its log orders them, its board keeps them."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import Any

import pytest

from sse_app.errors import InvalidToken
from sse_app.events import Event
from sse_app.grants import Grant
from sse_app.joining import StreamRequest
from sse_app.node import Node
from sse_app.publication import Draft
from sse_app.revocations import Revocation
from sse_app.subscriber import CloseReason, Subscriber
from sse_app.topics import TopicFilter
from tests.support.nodes import data_of, node_on
from tests.support.peers import datas, read_events, turns, until
from tests.support.worlds import World

SHARED = ("sqlite", "redis", "nats")  # by several nodes


@pytest.fixture(params=("memory", *SHARED))
def world(request: pytest.FixtureRequest) -> World:
    world = request.getfixturevalue(f"{request.param}_world")
    assert isinstance(world, World)
    return world


def grant_of(user: str) -> Grant:
    return Grant(subscribe=TopicFilter(), user=user, token=f"token of {user}", issued=time.time() - 60)


def revocation(**what: Any) -> Revocation:
    return Revocation.of(lasts=3_600, **what)


@asynccontextmanager
async def nodes_on(world: World, count: int) -> AsyncIterator[list[Node]]:
    """So many nodes of one hub; one on a log in memory."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(node_on(world.open())) for _ in range(count if world.kept else 1)]


async def join(node: Node, user: str) -> Subscriber:
    return await node.join(StreamRequest.parse(grant=grant_of(user)))


async def to_the_end(subscriber: Subscriber) -> list[Event]:
    return await read_events(subscriber, lambda events: any(event.type == "bye" for event in events))


async def test_a_revocation_ends_streams_on_every_node_and_outlives_them(world: World) -> None:
    async with nodes_on(world, 3) as nodes:
        streams = [await join(node, "42") for node in nodes]
        other = await join(nodes[-1], "43")
        await nodes[0].publish(Draft.compose("before"))
        position, ended = await nodes[0].revoke(revocation(user="42"))
        after = (await nodes[-1].publish(Draft.compose("after"))).position
        assert (position.epoch, ended, after.offset > position.offset) == (after.epoch, 1, True)
        for stream in streams:
            events = await to_the_end(stream)
            assert data_of(events[-1])["reason"] == "revoked"
            assert set(datas(events)) <= {"before"}
        found = await read_events(other, lambda events: "after" in datas(events))
        assert datas(found) == ["before", "after"]
        for node in nodes:
            with pytest.raises(InvalidToken):
                await join(node, "42")
    if world.kept:
        async with nodes_on(world, 1) as (node,):
            with pytest.raises(InvalidToken):
                await join(node, "42")
            node.leave(await join(node, "43"), CloseReason.GONE)


@pytest.mark.parametrize("world", SHARED, indirect=True)
async def test_no_publication_after_a_revocation_reaches_a_stream_that_it_names(world: World) -> None:
    chance = Random(12)
    users = [str(number) for number in range(8)]
    revoked_at = dict[str, int]()  # the newest number that was published before the acknowledgement
    async with nodes_on(world, 3) as nodes:
        streams = [(user, await join(node, user)) for user in users for node in nodes]
        reading = [asyncio.create_task(read_events(stream, _is_complete)) for _, stream in streams]
        for number in range(1, 301):
            if number % 60 == 30:
                user = chance.choice(users)
                await chance.choice(nodes).revoke(revocation(user=user))
                revoked_at.setdefault(user, number - 1)
            await chance.choice(nodes).publish(Draft.compose(str(number)))
            await turns(chance.randrange(5))
        await nodes[0].publish(Draft.compose("0"))
        for (user, _), events in zip(streams, await asyncio.gather(*reading), strict=True):
            numbers = [int(text) for text in datas(events)]
            if user in revoked_at:
                assert events[-1].type == "bye"
                assert numbers == list(range(1, len(numbers) + 1))
                assert len(numbers) <= revoked_at[user], "sent after its revocation"
            else:
                assert numbers == [*range(1, 301), 0]
        await until(lambda: all(stream.is_over == (user in revoked_at) for user, stream in streams))


def _is_complete(events: list[Event]) -> bool:
    return bool(events) and (events[-1].type == "bye" or events[-1].data == "0")
