"""Idle streams: their heartbeats are spread, and their cursors stay in the log."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from sse_app import notices
from sse_app.batch import Batch
from sse_app.brokers.memory import MemoryBroker
from sse_app.delivery import Delivery
from sse_app.dialects import NATIVE, Native
from sse_app.events import EventDecoder
from sse_app.heartbeats import SLOTS, Cursors, Heartbeats
from sse_app.metrics import Totals
from sse_app.node import Node
from sse_app.publication import Draft, Position
from sse_app.subscriber import Subscriber
from sse_app.topics import TopicFilter
from tests.support.nodes import cursor_of, data_of, node_on, replay, subscribed
from tests.support.peers import MOMENT, Socket, available, datas, log_of, received

pytestmark = pytest.mark.virtual_time

PATIENCE = 3_600  # virtual seconds


async def test_an_idle_stream_gets_a_comment_after_15_seconds(node: Node) -> None:
    async with subscribed(node) as subscriber:
        await received(subscriber)
        for _ in range(3):
            await asyncio.sleep(14)
            assert await available(subscriber) == b""
            await asyncio.sleep(1)
            assert await available(subscriber) == notices.HEARTBEAT
    assert node.totals.heartbeats == 3


async def test_thousands_of_idle_streams_beat_from_one_task_and_not_all_at_once() -> None:
    async with node_on(MemoryBroker()) as node, AsyncExitStack() as stack:
        before = len(asyncio.all_tasks())
        sockets = []
        for number in range(3_000):
            if number % 200 == 199:
                await asyncio.sleep(1)
            subscriber = await stack.enter_async_context(subscribed(node))
            sockets.append(Socket())
            subscriber.attach(sockets[-1])
        assert len(asyncio.all_tasks()) == before
        for socket in sockets:
            socket.take()
        counts = []
        for _ in range(15):
            await asyncio.sleep(1)
            beaten = [socket.take() for socket in sockets]
            assert set(beaten) <= {b"", notices.HEARTBEAT}
            counts.append(beaten.count(notices.HEARTBEAT))
        assert sum(counts) == 3_000
        assert max(counts) < 600


async def test_who_left_is_not_beaten(node: Node) -> None:
    async with subscribed(node):
        pass
    await asyncio.sleep(60)
    assert node.totals.heartbeats == 0


async def test_a_quiet_topic_does_not_end_in_a_gap() -> None:  # C8
    """Whenever it came and whenever it goes, the cursor of its client is still in the log."""
    async with node_on(MemoryBroker(history=1_000)) as node, AsyncExitStack() as stack:
        readers = list[tuple[Subscriber, EventDecoder]]()
        for number in range(20_000):
            if number % 130 == 0 and number < 4_000:
                readers.append((await stack.enter_async_context(subscribed(node, "quiet")), EventDecoder()))
            await node.publish(Draft.compose(str(number), topic="loud"))
            await asyncio.sleep(0)
            if number % 50 == 0:
                oldest = await node.broker.oldest()
                for subscriber, decoder in readers:
                    assert datas(decoder.feed(await available(subscriber))) == []
                    assert cursor_of(decoder) >= oldest
        for _, decoder in readers:
            welcome, *rest = await replay(node, "quiet", after=decoder.last_event_id)
            assert data_of(welcome)["recovered"]
            assert rest == []
    assert node.totals.gaps == {}


async def test_a_log_that_begins_anew_is_searched_for_cursors_at_once() -> None:
    broker, delivery = MemoryBroker(), Delivery()
    async with broker:
        delivery.position = Position("old", 50_000)
        cursors = Cursors(broker, delivery)
        await cursors.move_all()
        assert not cursors.are_due()
        delivery.position = Position("old", 52_491)
        assert not cursors.are_due()
        delivery.position = Position("old", 52_500)  # a quarter of what this log can hold is new
        assert cursors.are_due()
        delivery.position = Position("new", 40_000)
        assert cursors.are_due()
        await cursors.move_all()
        assert not cursors.are_due()


async def test_a_cursor_is_moved_with_the_heartbeat_too() -> None:
    async with node_on(MemoryBroker(history=100)) as node, subscribed(node, "quiet") as subscriber:
        decoder = EventDecoder()
        decoder.feed(await available(subscriber))
        for number in range(64):
            await node.publish(Draft.compose(str(number), topic="loud"))
        await asyncio.sleep(15)
        decoder.feed(await available(subscriber))
        assert decoder.last_event_id == str(await node.broker.top())


@pytest.mark.parametrize("exclude", [None, ["c-1"]])
async def test_a_young_log_moves_no_cursors(exclude: list[str] | None) -> None:
    async with node_on(MemoryBroker()) as node, AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(subscribed(node, "quiet", client=f"c-{n}")) for n in range(10)]
        for subscriber in readers:
            subscriber.attach(Socket(room=3))  # fails when it is written to more often
        for number in range(4_999):
            await node.publish(Draft.compose(str(number), topic="loud", exclude=exclude))
            await asyncio.sleep(0)
        await asyncio.sleep(MOMENT)
        assert {subscriber.position.offset for subscriber in readers} == {0}
        for number in range(2_600):
            await node.publish(Draft.compose(str(number), topic="loud", exclude=exclude))
            await asyncio.sleep(0)
        assert min(subscriber.position.offset for subscriber in readers) >= 4_999


async def test_an_idle_stream_keeps_its_cursor_when_few_large_publications_trim_the_log() -> None:
    async with node_on(MemoryBroker(history_bytes=1_000_000)) as node, subscribed(node, "quiet") as subscriber:
        decoder = EventDecoder()
        for number in range(1_200):
            await node.publish(Draft.compose(str(number), topic="loud"))
        for _ in range(1_000):
            await node.publish(Draft.compose("x" * 4_000, topic="loud"))
            await asyncio.sleep(0)
            decoder.feed(await available(subscriber))
            assert cursor_of(decoder) >= await node.broker.oldest()


async def test_a_log_that_is_trimmed_by_age_moves_cursors_before() -> None:
    broker = MemoryBroker(history_age=600.0, clock=asyncio.get_running_loop().time)
    async with node_on(broker) as node, subscribed(node, "quiet") as subscriber:
        decoder = EventDecoder()
        for second in range(2_000):
            await node.publish(Draft.compose(str(second), topic="loud"))
            await asyncio.sleep(1)
            decoder.feed(await available(subscriber))
            if second < 290:
                assert cursor_of(decoder).offset == 0
            assert cursor_of(decoder) >= await broker.oldest()


async def test_who_gets_everything_is_sent_no_cursors(node: Node) -> None:
    async with subscribed(node) as subscriber:
        await received(subscriber)
        frames = b""
        for number in range(1_000):
            await node.publish(Draft.compose(str(number)))
            frames += await available(subscriber)
        log = b"".join(map(NATIVE.frame, await log_of(node.broker)))  # type: ignore[arg-type]
        assert frames == log


async def test_the_streams_of_a_dialect_share_the_bytes_of_a_heartbeat() -> None:
    class Loud(Native):
        heartbeat = b": still here\n\n"

    class Recorder(Socket):
        def write(self, batch: Batch) -> bool:
            batches.append(batch)
            return super().write(batch)

    batches = list[Batch]()
    broker, totals = MemoryBroker(), Totals()
    delivery = Delivery()
    heartbeats = Heartbeats(totals, Cursors(broker, delivery))
    loud = Loud()
    for dialect in (NATIVE, loud, NATIVE, loud):
        subscriber = Subscriber(broker, totals, TopicFilter(), "me", (1, 1_000), dialect=dialect)
        delivery.add(subscriber)
        heartbeats.add(subscriber)
        subscriber.begin(await broker.top(), b"", behind=False)
        subscriber.attach(Recorder())
    for _ in range(SLOTS):
        await heartbeats.send_next()
    assert [batch.data for batch in batches] == [NATIVE.heartbeat, loud.heartbeat] * 2
    assert batches[0] is batches[2]
    assert batches[1] is batches[3]
