"""Revocations over each broker: its log orders them, its board keeps them."""

import asyncio
from random import Random

import pytest

from sse_app.brokers.sqlite.nodes import Nodes
from sse_app.errors import InvalidToken
from sse_app.publication import Draft
from sse_app.subscriber import CloseReason
from tests.support.nodes import data_of
from tests.support.peers import datas, read_events, turns, until
from tests.support.revoking import (
    LAST,
    assert_none_was_sent_after_its_revocation,
    is_complete,
    join,
    nodes_on,
    revocation,
    to_the_end,
)
from tests.support.worlds import World

SHARED = ("sqlite", "redis", "nats")  # by several nodes


@pytest.fixture(params=("memory", *SHARED))
def world(request: pytest.FixtureRequest) -> World:
    world = request.getfixturevalue(f"{request.param}_world")
    assert isinstance(world, World)
    return world


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
    await check_at_random(world)


async def test_it_holds_where_processes_do_not_wake_each_other(
    sqlite_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their datagrams are lost: each finds out in its own time what the others have appended."""
    monkeypatch.setattr(Nodes, "wake", lambda *_: None)
    await check_at_random(sqlite_world)


async def check_at_random(world: World) -> None:
    chance = Random(12)
    users = [str(number) for number in range(8)]
    revoked_at = dict[str, int]()  # the newest number that was published before the acknowledgement
    async with nodes_on(world, 3) as nodes:
        streams = [(user, await join(node, user)) for user in users for node in nodes]
        reading = [asyncio.create_task(read_events(stream, is_complete)) for _, stream in streams]
        for number in range(1, 301):
            if number % 60 == 30:
                user = chance.choice(users)
                await chance.choice(nodes).revoke(revocation(user=user))
                revoked_at.setdefault(user, number - 1)
            await chance.choice(nodes).publish(Draft.compose(str(number)))
            await turns(chance.randrange(5))
        await nodes[0].publish(Draft.compose(LAST))
        received = zip((user for user, _ in streams), await asyncio.gather(*reading), strict=True)
        assert_none_was_sent_after_its_revocation(received, revoked_at, 300)
        await until(lambda: all(stream.is_over == (user in revoked_at) for user, stream in streams))
