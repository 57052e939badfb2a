"""A planned stop: every stream ends in order, and nothing acknowledged goes unseen."""

import asyncio

import pytest

from sse_app.brokers import Tail
from sse_app.brokers.memory import MemoryBroker
from sse_app.errors import Draining
from sse_app.events import EventDecoder
from sse_app.node import Node
from sse_app.publication import Draft
from sse_app.subscriber import Subscriber
from tests.support.nodes import node_on, publish, state, subscribed, texts
from tests.support.peers import MOMENT, LateTail, datas, received

pytestmark = pytest.mark.virtual_time

PATIENCE = 3_600  # virtual seconds


class Ends:
    """The time at which each stream ended, and its events: read until the end, on virtual time."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.types: list[list[str]] = []

    async def read(self, node: Node, subscriber: Subscriber) -> None:
        decoder, types = EventDecoder(), list[str]()
        while data := await subscriber.read():
            types += [event.type for event in decoder.feed(data)]
        self.times.append(asyncio.get_running_loop().time())
        self.types.append(types)

    async def stream(self, node: Node, ready: asyncio.Semaphore) -> None:
        async with subscribed(node) as subscriber:
            ready.release()
            await self.read(node, subscriber)


async def connect(node: Node, tasks: asyncio.TaskGroup, count: int) -> Ends:
    ends, ready = Ends(), asyncio.Semaphore(0)
    for _ in range(count):
        tasks.create_task(ends.stream(node, ready))
    for _ in range(count):
        await ready.acquire()
    return ends


async def test_a_drain_spreads_the_closes_over_its_window_with_a_bye_at_the_end_of_each(node: Node) -> None:
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        ends = await connect(node, tasks, 500)
        begun = asyncio.get_running_loop().time()
        await node.publish(Draft.compose("last"))
        await node.drain(10)
        took = asyncio.get_running_loop().time() - begun
    assert ends.types == [["welcome", "message", "bye"]] * 500
    assert took <= 10
    spread = [time - begun for time in ends.times]
    assert max(spread) - min(spread) >= 5, "over half of the window"
    seconds = [int(time) for time in spread]
    assert max(map(seconds.count, seconds)) <= 100, "and evenly"
    assert node.totals.closed == {"drain": 500}
    assert state(node) == (0, 0, 0, 0)


async def test_a_drain_waits_until_what_was_acknowledged_is_delivered() -> None:
    class Late(MemoryBroker):
        """Its tail tells a second later what its log has."""

        def tail(self) -> Tail:
            return LateTail(super().tail(), lambda: asyncio.sleep(1))

    async with node_on(Late()) as node, asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        ends = await connect(node, tasks, 10)
        await node.publish(Draft.compose("last"))
        await node.drain(10)
        assert ends.types == [["welcome", "message", "bye"]] * 10


async def test_a_drain_refuses_who_comes_and_lets_finish_who_is_there(node: Node) -> None:
    order = list[str]()

    async def publisher(may_publish: asyncio.Event) -> None:
        with node.admitted():
            await may_publish.wait()
            await node.publish(Draft.compose("in flight"))
            order.append("answered")

    may_publish = asyncio.Event()
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        ends = await connect(node, tasks, 3)
        tasks.create_task(publisher(may_publish))
        await asyncio.sleep(MOMENT)
        drain = tasks.create_task(node.drain(10))
        await asyncio.sleep(MOMENT)
        assert node.draining
        with pytest.raises(Draining), node.admitted():
            raise AssertionError
        with pytest.raises(Draining):
            await subscribed(node).__aenter__()
        assert ends.times == []
        may_publish.set()
        await drain
        order.append("drained")
    assert order == ["answered", "drained"]
    assert ends.types == [["welcome", "message", "bye"]] * 3
    assert node.totals.refused == 1


async def test_a_publisher_that_never_ends_does_not_cost_the_readers_their_bye(node: Node) -> None:
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        ends = await connect(node, tasks, 100)
        with node.admitted():
            begun = asyncio.get_running_loop().time()
            await node.drain(10)
            assert asyncio.get_running_loop().time() - begun <= 10
        assert ends.types == [["welcome", "bye"]] * 100
        assert max(ends.times) - min(ends.times) >= 5


async def test_a_reader_that_does_not_read_ends_the_drain_with_the_window(node: Node) -> None:
    async with asyncio.timeout(PATIENCE), subscribed(node) as stalled:
        begun = asyncio.get_running_loop().time()
        await node.drain(10)
        assert asyncio.get_running_loop().time() - begun == pytest.approx(10)
        assert [event.type for event in await received(stalled)] == ["welcome", "bye"]


async def test_a_drain_with_no_window_closes_everyone_at_once(node: Node) -> None:
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        ends = await connect(node, tasks, 50)
        await node.drain(0)
    assert ends.types == [["welcome", "bye"]] * 50


async def test_a_drain_of_nobody_is_over_at_once(node: Node) -> None:
    begun = asyncio.get_running_loop().time()
    await node.drain(10)
    assert asyncio.get_running_loop().time() == begun


async def test_a_slow_reader_gets_the_log_to_its_end_before_its_bye() -> None:
    async with node_on(MemoryBroker(), queue_size=2) as node, asyncio.timeout(PATIENCE), subscribed(node) as slow:
        await received(slow)
        await publish(node, *map(str, range(20)))
        assert node.totals.lagging == 1
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(node.drain(10))
            await asyncio.sleep(MOMENT)
            events = await received(slow)
        assert datas(events) == [str(number) for number in range(20)]
        assert events[-1].type == "bye"


@pytest.mark.parametrize("accepting", [True, False])
async def test_begin_drain_drains_without_waiting_and_only_once(node: Node, accepting: bool) -> None:
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        ends = await connect(node, tasks, 3)
        if not accepting:
            node.stop_accepting()
        node.begin_drain()
        node.begin_drain()
        assert node.draining
        assert ends.times == []
    assert ends.types == [["welcome", "bye"]] * 3


async def test_who_stops_accepting_still_serves_who_is_there(node: Node) -> None:
    async with subscribed(node) as subscriber:
        node.stop_accepting()
        await publish(node, "a")
        assert await texts(subscriber) == ["a"]
        with pytest.raises(Draining):
            await subscribed(node).__aenter__()
