"""A log that is cut off, loses the thread, begins anew or is shared: what subscribers get all the same."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import pytest

from sse_app.errors import BrokerUnavailable
from sse_app.events import Event, EventDecoder
from sse_app.node import Node
from sse_app.publication import Draft, Position
from sse_app.subscriber import Subscriber
from tests.support.nodes import node_on, subscribed
from tests.support.peers import MOMENT, Socket, TroubledBroker, available, datas

pytestmark = pytest.mark.virtual_time

Read = Callable[[], list[Event]]


@pytest.fixture
def broker() -> TroubledBroker:
    return TroubledBroker(history=100)


@pytest.fixture
async def node(broker: TroubledBroker) -> AsyncIterator[Node]:
    async with node_on(broker, queue_size=4) as node:
        yield node


class Reading:
    """One of the two ways of a stream: read, or written to a socket."""

    def __init__(self, subscriber: Subscriber, *, written: bool) -> None:
        self._subscriber, self._decoder = subscriber, EventDecoder()
        self._socket = Socket() if written else None
        if self._socket is not None:
            subscriber.attach(self._socket)

    async def events(self, seconds: float = MOMENT) -> list[Event]:
        """Return the events since the last call, and those that come within so many seconds."""
        if self._socket is not None:
            await asyncio.sleep(seconds)
            return self._decoder.feed(self._socket.take())
        data = await available(self._subscriber)
        if seconds > MOMENT:
            reading = asyncio.create_task(self._subscriber.read())
            await asyncio.wait([reading], timeout=seconds)
            reading.cancel()
            data += reading.result() if reading.done() and not reading.cancelled() else b""
            data += await available(self._subscriber)
        return self._decoder.feed(data)


ways = pytest.mark.parametrize("written", [False, True], ids=["read", "written"])


@ways
async def test_a_log_that_begins_anew_is_told_to_every_open_stream_at_once(
    node: Node, broker: TroubledBroker, written: bool
) -> None:
    await node.publish(Draft.compose("lost with the old log"))
    async with subscribed(node) as subscriber:
        reading = Reading(subscriber, written=written)
        await reading.events()
        old = await broker.top()
        broker.begin_anew()
        (gap,) = await reading.events()
        content = json.loads(gap.data)
        assert (gap.type, content["reason"], content["requested"]) == ("gap", "epoch", str(old))
        assert gap.id == str(await broker.top()) != str(old)
        await node.publish(Draft.compose("a"))
        await node.publish(Draft.compose("b"))
        assert datas(await reading.events()) == ["a", "b"]


@ways
async def test_what_the_tail_did_not_hear_of_is_read_from_the_log(
    node: Node, broker: TroubledBroker, written: bool
) -> None:
    async with subscribed(node) as subscriber:
        reading = Reading(subscriber, written=written)
        await reading.events()
        broker.deaf = True
        for text in "abc":
            await node.publish(Draft.compose(text))
        assert await reading.events() == []
        broker.deaf = False
        await node.publish(Draft.compose("d"))
        assert datas(await reading.events()) == ["a", "b", "c", "d"]
        await node.publish(Draft.compose("e"))
        assert datas(await reading.events()) == ["e"]


@ways
async def test_what_the_tail_did_not_hear_of_and_the_log_no_longer_holds_is_a_gap(written: bool) -> None:
    broker = TroubledBroker(history=2)
    async with node_on(broker) as node, subscribed(node) as subscriber:
        reading = Reading(subscriber, written=written)
        await reading.events()
        broker.deaf = True
        for text in "abc":
            await node.publish(Draft.compose(text))
        broker.deaf = False
        await node.publish(Draft.compose("d"))
        gap, *rest = await reading.events()
        assert (gap.type, json.loads(gap.data)["reason"]) == ("gap", "trimmed")
        assert datas(rest) == ["c", "d"]


@ways
async def test_a_stream_that_has_to_read_a_log_that_is_away_waits_for_it(
    node: Node, broker: TroubledBroker, written: bool
) -> None:
    first = (await node.publish(Draft.compose("before"))).position
    for text in "abc":
        await node.publish(Draft.compose(text))
    async with subscribed(node, after=first) as subscriber:
        broker.down = True
        reading = Reading(subscriber, written=written)
        assert [event.type for event in await reading.events(60)] == ["welcome"]
        broker.down = False
        assert datas(await reading.events(5)) == ["a", "b", "c"]


@ways
async def test_a_stream_that_waits_for_its_log_ends_with_the_hub(
    node: Node, broker: TroubledBroker, written: bool
) -> None:
    first = (await node.publish(Draft.compose("before"))).position
    await node.publish(Draft.compose("a"))
    async with subscribed(node, after=first) as subscriber:
        broker.down = True
        reading = Reading(subscriber, written=written)
        await reading.events(10)
        async with asyncio.TaskGroup() as tasks:
            draining = tasks.create_task(node.drain(10))
            assert [event.type for event in await reading.events(10)] == ["bye"]
            draining.cancel()


async def test_publishing_to_a_log_that_is_away_fails_and_open_streams_stay(node: Node, broker: TroubledBroker) -> None:
    async with subscribed(node) as subscriber:
        reading = Reading(subscriber, written=True)
        await reading.events()
        broker.down = True
        with pytest.raises(BrokerUnavailable):
            await node.publish(Draft.compose("x"))
        assert await reading.events() == []
        broker.down = False
        await node.publish(Draft.compose("y"))
        assert datas(await reading.events()) == ["y"]


async def test_new_streams_are_welcomed_while_the_log_is_away_when_nothing_has_to_be_read(
    node: Node, broker: TroubledBroker
) -> None:
    async with subscribed(node):
        top = (await node.publish(Draft.compose("x"))).position
        await asyncio.sleep(MOMENT)
        broker.down = True
        for after in (None, top):
            async with subscribed(node, after=after) as subscriber:
                (welcome,) = await Reading(subscriber, written=True).events()
                assert json.loads(welcome.data)["last"]["id"] == str(top)


async def test_stats_tell_of_a_log_that_is_away(node: Node, broker: TroubledBroker) -> None:
    await node.publish(Draft.compose("x"))
    assert (await node.stats())["trouble"] is None
    broker.down = True
    stats = await node.stats()
    assert (stats["trouble"], stats["recent"]) == ("The log is away.", [])


async def test_a_cursor_that_another_node_gave_is_not_ahead_of_the_log(node: Node, broker: TroubledBroker) -> None:
    class Slow(TroubledBroker):
        """This node learns of the publications of others only when it asks."""

        async def top(self, *, fresh: bool = False) -> Position:
            top = await super().top(fresh=fresh)
            return top if fresh else top._replace(offset=0)

    async with node_on(Slow()) as slow:
        position = (await slow.publish(Draft.compose("x"))).position
        async with subscribed(slow, after=position) as subscriber:
            (welcome,) = await Reading(subscriber, written=True).events()
        assert json.loads(welcome.data)["recovered"] is True
        async with subscribed(slow, after=position.next()) as subscriber:
            _, gap = await Reading(subscriber, written=True).events()
        assert json.loads(gap.data)["reason"] == "ahead"


async def test_subscribers_of_other_nodes_are_counted(node: Node, broker: TroubledBroker) -> None:
    broker.subscribers_elsewhere = 5
    async with subscribed(node) as subscriber:
        (welcome,) = await Reading(subscriber, written=True).events()
        assert json.loads(welcome.data)["subscribers"] == 6
        stats = await node.stats()
        assert (stats["subscribers"], stats["here"], broker.subscribers_here) == (6, 1, 1)
    assert broker.subscribers_here == 0
