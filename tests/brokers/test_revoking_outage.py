"""Revocations while the broker is away: refused, and good when they are repeated."""

import pytest

from sse_app.errors import BrokerUnavailable, InvalidToken
from sse_app.publication import Draft, Position
from tests.brokers.test_board_outage import answer, first_error, server, world
from tests.support.broker_process import BrokerProcess
from tests.support.nodes import data_of
from tests.support.peers import datas, read_events
from tests.support.revoking import join, nodes_on, revocation, to_the_end
from tests.support.worlds import World

__all__ = ["server", "world"]


async def test_a_revocation_that_meets_an_outage_is_repeated_and_then_holds(
    server: BrokerProcess, world: World
) -> None:
    async with nodes_on(world, 2) as (one, two):
        streams = [await join(node, "42") for node in (one, two)]
        other = await join(two, "43")
        await one.publish(Draft.compose("before"))
        await read_events(other, lambda events: "before" in datas(events))
        server.kill()
        await first_error(lambda: one.broker.board.get("a.b"))
        asked = revocation(user="42")
        with pytest.raises(BrokerUnavailable):
            await one.revoke(asked)
        assert not any(stream.is_over for stream in streams)
        server.start()
        position, _ = await answer(lambda: one.revoke(asked))
        assert isinstance(position, Position)
        await answer(lambda: two.publish(Draft.compose("after")))
        for stream in streams:
            events = await to_the_end(stream)
            assert data_of(events[-1])["reason"] == "revoked"
            assert set(datas(events)) <= {"before"}
        await read_events(other, lambda events: "after" in datas(events))
        for node in (one, two):
            with pytest.raises(InvalidToken):
                await answer(lambda node=node: join(node, "42"))  # type: ignore[misc]
