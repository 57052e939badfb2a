"""Connections and kicks over each broker: its board carries the questions, the answers and the blocks."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from sse_app import asking
from sse_app.blocks import Who
from sse_app.connections import ConnectedStreams, Wanted
from sse_app.errors import Blocked, NoSuchClient
from sse_app.grants import Grant
from sse_app.joining import StreamRequest
from sse_app.node import Node
from sse_app.subscriber import CloseReason, Subscriber
from sse_app.topics import TopicFilter
from tests.support.nodes import data_of, node_on
from tests.support.peers import PATIENCE, Clock, read_events, turns, until
from tests.support.worlds import World

SHARED = ("sqlite", "redis", "nats")  # by several nodes


@pytest.fixture(params=("memory", *SHARED))
def world(request: pytest.FixtureRequest) -> World:
    world = request.getfixturevalue(f"{request.param}_world")
    assert isinstance(world, World)
    return world


@asynccontextmanager
async def nodes_on(world: World, wall: Clock, count: int = 3) -> AsyncIterator[list[Node]]:
    """So many nodes of one hub that hear each other; one on a log in memory."""
    async with AsyncExitStack() as stack:
        count = count if world.kept else 1
        nodes = [await stack.enter_async_context(node_on(world.open(), wall=wall)) for _ in range(count)]
        boards = [node.broker.board for node in nodes]
        await until(lambda: all(len(board.nodes()) == count - 1 for board in boards), clock=world.clock)
        async with asyncio.timeout(PATIENCE):
            for node in nodes:
                while (await node.connections.find(Wanted())).partial:
                    await turns()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asking, "WINDOW", PATIENCE)  # a busy machine is not a silent node
            yield nodes


async def join(node: Node, user: str, client: str) -> Subscriber:
    grant = Grant(subscribe=TopicFilter(), user=user, client="*", source="portal", issued=time.time())
    return await node.join(StreamRequest.parse(client=client, grant=grant))


async def bye(subscriber: Subscriber) -> dict[str, Any]:
    events = await read_events(subscriber, lambda events: any(event.type == "bye" for event in events))
    return data_of(events[-1])


def clients(found: ConnectedStreams) -> list[str]:
    assert not found.partial
    return sorted(stream.client for stream in found.connections)


async def test_every_node_lists_the_streams_of_all(world: World) -> None:
    async with nodes_on(world, Clock(time.time())) as nodes:
        for number, node in enumerate(nodes):
            await join(node, "ann", f"tab-{number}")
        for node in nodes:
            found = await node.connections.find(Wanted(user="ann"))
            assert clients(found) == [f"tab-{number}" for number in range(len(nodes))]
            assert {stream.node for stream in found.connections} == {node.broker.board.name for node in nodes}
            assert clients(await node.connections.find(Wanted(client="tab-0"))) == ["tab-0"]


@pytest.mark.parametrize(("who", "name"), [("user", "ann"), ("client", "tab")])
async def test_a_kick_ends_streams_on_every_node_and_no_others(world: World, who: Who, name: str) -> None:
    async with nodes_on(world, Clock(time.time())) as nodes:
        kicked = [await join(node, "ann", "tab") for node in nodes]
        others = [await join(node, "bob", "other") for node in nodes]
        done = await nodes[-1].connections.kick(who, name)
        assert (done.closed, done.nodes, done.partial) == (len(nodes), len(nodes) - 1, [])
        assert [stream.closing for stream in kicked] == [CloseReason.KICKED] * len(nodes), "before it was answered"
        for node, stream in zip(nodes, kicked, strict=True):
            assert (await bye(stream))["reason"] == "kicked"
            node.leave(stream, CloseReason.GONE)
        assert not any(stream.is_over for stream in others)
        with pytest.raises(NoSuchClient):
            await nodes[0].connections.kick(who, name)


async def test_a_block_keeps_out_for_five_seconds_and_then_lets_in(world: World) -> None:
    wall = Clock(time.time())
    async with nodes_on(world, wall) as nodes:
        stream = await join(nodes[0], "ann", "tab")
        await nodes[-1].connections.kick("user", "ann", 5.0)
        assert (await bye(stream))["retry"] >= 5_000
        wall.now += 4.9
        for node in nodes:
            with pytest.raises(Blocked):
                await join(node, "ann", "another")
        wall.now += 0.2
        for node in nodes:
            await join(node, "ann", "another")
        assert len((await nodes[0].connections.find(Wanted(user="ann"))).connections) == len(nodes)


@pytest.mark.parametrize("world", SHARED, indirect=True)
async def test_a_node_that_starts_later_keeps_out_too(world: World) -> None:
    wall = Clock(time.time())
    async with nodes_on(world, wall, 1) as (node,):
        await node.connections.kick("user", "ann", 3_600.0)
    async with nodes_on(world, wall, 1) as (node,):
        let_in = await join(node, "ann", "tab")  # this node has not read of it
        await until(lambda: let_in.is_over)
        with pytest.raises(Blocked):
            await join(node, "ann", "tab")
