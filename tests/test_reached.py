"""The pages of the log that many streams read at once, which are read and written once for all of them."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from sse_app import reached as module
from sse_app.brokers import Page
from sse_app.brokers.memory import MemoryBroker
from sse_app.delivery import Delivery
from sse_app.dialects import NATIVE
from sse_app.errors import BrokerUnavailable
from sse_app.events import EventDecoder
from sse_app.publication import Draft, Position, Publication
from sse_app.reached import ReachedLog, SharedPages
from sse_app.topics import TopicFilter
from tests.support.nodes import node_on, publish, subscribed
from tests.support.peers import Socket, datas, turns

pytestmark = pytest.mark.virtual_time

EVERYTHING = TopicFilter()
OLDEST = Position("e", 0)


def page(first: int, last: int, size: int = 10) -> Page:
    found = [Publication(Position("e", offset), "message", (), b"x" * size, 0.0) for offset in range(first, last + 1)]
    return Page(Position("e", first - 1), found, Position("e", last))


def read_twice(pages: SharedPages, of: Page, end: int | None = None) -> None:
    for _ in range(2):
        pages.add(of.start, of.end._replace(offset=end or of.end.offset), EVERYTHING, of)


class Frames:
    """The native dialect, which counts the publications that it writes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, frame = 0, NATIVE.frame

        def counted(publication: Publication) -> bytes:
            self.count += 1
            return frame(publication)

        monkeypatch.setattr(NATIVE, "frame", counted, raising=False)


class CountingBroker(MemoryBroker):
    """Counts the pages that are read."""

    pages = 0

    def at_hand(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page | None:
        self.pages += 1
        return super().at_hand(after, until, topic_filter)


async def texts_of(subscriber: Any) -> list[str]:
    return datas(EventDecoder().feed(await subscriber.read())[1:])


# --- which page ---


def found(pages: SharedPages, after: Position, oldest: Position = OLDEST) -> Page | None:
    kept = pages.find(after, EVERYTHING, oldest)
    return kept and kept.page


def test_a_page_is_kept_when_it_is_read_again() -> None:
    pages, one = SharedPages(), page(1, 5)
    pages.add(one.start, one.end, EVERYTHING, one)
    assert found(pages, one.start) is None, "it may be one long replay"
    pages.add(one.start, one.end, EVERYTHING, one)
    assert found(pages, one.start) is one
    assert pages.find(one.start, TopicFilter.parse(["a"]), OLDEST) is None


def test_a_page_of_what_was_trimmed_or_of_another_epoch_is_not_found() -> None:
    pages, one = SharedPages(), page(3, 5)
    read_twice(pages, one)
    assert found(pages, one.start, Position("e", 2)) is one
    assert found(pages, one.start, Position("e", 3)) is None
    assert found(pages, one.start, Position("f", 0)) is None


def test_a_page_with_a_gap_is_not_kept() -> None:
    pages, one = SharedPages(), page(3, 5)
    for _ in range(2):
        pages.add(OLDEST, one.end, EVERYTHING, one)
    assert not len(pages)


def test_what_nobody_reads_any_more_is_dropped() -> None:
    pages, one = SharedPages(), page(1, 5)
    read_twice(pages, one)
    for _ in range(3):
        pages.age()
        assert found(pages, one.start) is one
    pages.age()
    pages.age()
    assert not len(pages)


def test_no_more_is_kept_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGES_BYTES", 10_000)
    pages = SharedPages()
    for first in range(1, 1_000, 5):
        read_twice(pages, page(first, first + 4, size=100))
        kept = [one for one in (pages._old | pages._young).values() if one]
        assert sum(len(item.body) for one in kept for item in one.page.publications) <= 10_000
    for offset in range(1_000):
        pages.add(Position("e", offset), Position("e", 2_000), EVERYTHING, page(1, 1))
        assert len(pages._old | pages._young) <= 100


# --- streams ---


async def test_a_storm_of_resumes_reads_and_writes_its_page_for_two_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = CountingBroker()
    async with node_on(broker) as node:
        positions = await publish(node, *map(str, range(101)))
        frames = Frames(monkeypatch)
        for _ in range(50):
            async with subscribed(node, after=positions[0]) as subscriber:
                assert await texts_of(subscriber) == list(map(str, range(1, 101)))
        assert (broker.pages, frames.count) == (2, 200)
        assert node.totals.delivered == 50 * 100


async def test_no_page_leads_past_the_end_that_was_asked_for() -> None:
    broker, delivery = MemoryBroker(), Delivery()
    log, start = ReachedLog(broker, delivery), await broker.top()
    for text in "abcde":
        await broker.publish(Draft.compose(text))
    top = await broker.top()
    for offset in (5, 5, 3, 4, 5, 2):
        page = await log.replay(start, top._replace(offset=offset), EVERYTHING)
        assert (page.end.offset, len(page.publications)) == (offset, offset)


async def test_what_is_published_in_a_storm_is_put_behind_its_page(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = CountingBroker()
    async with node_on(broker) as node:
        (start, *_) = await publish(node, *map(str, range(101)))
        frames = Frames(monkeypatch)
        for number in range(101, 301):
            async with subscribed(node, after=start) as subscriber:
                text = b""
                while subscriber.position.offset < number or not text:
                    text += await subscriber.read()
                assert datas(EventDecoder().feed(text)[1:]) == list(map(str, range(1, number)))
            await publish(node, str(number))
    assert frames.count < 1_000, "not 100 to 300 for each of 200"


@pytest.mark.parametrize("named", [{}, {"exclude": ["c-1"]}, {"to": ["c-1"]}])
async def test_a_page_that_is_continued_is_the_page_that_the_log_gives(named: dict[str, Any]) -> None:
    async with node_on(MemoryBroker()) as node:
        start = await node.broker.top()
        shown: dict[str, list[str]] = {"c-1": [], "c-2": []}
        for number in range(20):
            options = named if number % 7 == 3 else {}
            await publish(node, str(number), **options)
            for client, texts in shown.items():
                if client not in options.get("exclude", ()) and options.get("to", [client]) == [client]:
                    texts.append(str(number))
            for client in shown:
                async with subscribed(node, after=start, client=client) as subscriber:
                    assert await texts_of(subscriber) == shown[client]


async def test_a_page_at_hand_goes_out_with_the_welcome_in_one_write_and_no_task() -> None:
    async with node_on(MemoryBroker()) as node:
        positions = await publish(node, *"abc")
        tasks = asyncio.all_tasks()
        async with subscribed(node, after=positions[0]) as subscriber:
            subscriber.attach(socket := Socket(room=10))
            assert socket.room == 9
            assert datas(EventDecoder().feed(socket.take())[1:]) == ["b", "c"]
            assert asyncio.all_tasks() == tasks
            assert not subscriber.is_behind
            await publish(node, "d")
            assert datas(EventDecoder().feed(socket.take())) == ["d"]


async def test_who_may_not_see_all_of_a_page_gets_its_own_form_of_it() -> None:
    async with node_on(MemoryBroker()) as node:
        start = await node.broker.top()
        for text, named in (("a", {}), ("b", {"exclude": ["c-1"]}), ("c", {"to": ["c-1"]}), ("d", {})):
            await publish(node, text, **named)
        for _ in range(3):
            for client, seen in (("c-1", ["a", "c", "d"]), ("c-2", ["a", "b", "d"])):
                async with subscribed(node, after=start, client=client) as subscriber:
                    assert await texts_of(subscriber) == seen


async def test_a_large_page_waits_until_the_connection_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sse_app.joining.PAGE_BYTES_AT_ONCE", 100)
    async with node_on(MemoryBroker()) as node:
        start = await node.broker.top()
        await publish(node, *"abcdefgh")
        async with subscribed(node, after=start) as subscriber:
            assert subscriber.is_behind
            assert node.totals.delivered == 0
            assert [event.type for event in EventDecoder().feed(await subscriber.read())] == ["welcome"]
            assert datas(EventDecoder().feed(await subscriber.read())) == list("abcdefgh")
            assert not subscriber.is_behind


async def test_a_stream_with_more_to_read_than_a_page_goes_on_in_the_log() -> None:
    async with node_on(MemoryBroker()) as node:
        start = await node.broker.top()
        await publish(node, *map(str, range(700)))
        found: Sequence[str] = []
        async with subscribed(node, after=start) as subscriber:
            assert subscriber.is_behind
            found = await texts_of(subscriber)
            assert len(found) == 256
            while len(found) < 700:
                found = [*found, *datas(EventDecoder().feed(await subscriber.read()))]
        assert found == list(map(str, range(700)))


async def test_pages_that_nobody_reads_are_dropped_while_the_node_is_idle() -> None:
    async with node_on(MemoryBroker(), heartbeat=15.0) as node:
        start = await node.broker.top()
        await publish(node, *"abc")
        for _ in range(3):
            async with subscribed(node, after=start):
                pass
        assert len(node._log.pages) == 1
        await asyncio.sleep(2.5)  # two beats
        assert not len(node._log.pages)


# --- the log read at the same time ---


class DistantLog(MemoryBroker):
    """A log that has nothing at hand: ``reads`` counts its answers, which wait for ``answer`` to be set. The first
    ``failures`` of them fail.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads = self.failures = 0
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    def at_hand(self, after: Position, until: Position, topic_filter: TopicFilter) -> None:
        return None

    async def replay(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page:
        self.reads += 1
        number = self.reads
        self.asked.set()
        await self.answer.wait()
        if number <= self.failures:
            raise BrokerUnavailable("The log is away.")
        found = super().at_hand(after, until, topic_filter)
        assert found is not None
        return found


async def distant_log() -> tuple[DistantLog, ReachedLog, Position, Position]:
    broker, delivery = DistantLog(), Delivery()
    start = await broker.top()
    for text in "abc":
        await broker.publish(Draft.compose(text))
    delivery.reached = await broker.top()
    return broker, ReachedLog(broker, delivery), start, delivery.reached


async def test_who_asks_for_a_page_that_is_being_read_waits_for_it() -> None:
    broker, log, start, top = await distant_log()
    asking = [asyncio.create_task(log.replay(start, top, EVERYTHING)) for _ in range(100)]
    await broker.asked.wait()
    asking.append(asyncio.create_task(log.replay(start, top, TopicFilter.parse(["a"]))))
    await turns(5)
    broker.answer.set()
    pages = await asyncio.gather(*asking)
    assert broker.reads == 2, "one of each filter"
    assert len({id(one) for one in pages[:100]}) == 1
    assert [item.event.data for item in pages[0].publications] == ["a", "b", "c"]
    assert not log._reading


@pytest.mark.parametrize("cancelled", [True, False])
async def test_a_page_that_could_not_be_read_is_read_by_those_who_waited(cancelled: bool) -> None:
    broker, log, start, top = await distant_log()
    broker.failures = 0 if cancelled else 1
    first = asyncio.create_task(log.replay(start, top, EVERYTHING))
    await broker.asked.wait()
    others = [asyncio.create_task(log.replay(start, top, EVERYTHING)) for _ in range(3)]
    await turns(5)
    assert broker.reads == 1
    if cancelled:
        first.cancel()
        await turns(5)
    broker.answer.set()
    await asyncio.wait([first])
    for one in await asyncio.gather(*others):
        assert [item.event.data for item in one.publications] == ["a", "b", "c"]
    assert first.cancelled() if cancelled else isinstance(first.exception(), BrokerUnavailable)
    assert not log._reading


async def test_a_thousand_long_replays_read_each_page_twice_at_most() -> None:
    broker = CountingBroker()
    start, delivery = await broker.top(), Delivery()
    for number in range(2_000):
        await broker.publish(Draft.compose(number))
    delivery.reached = top = await broker.top()
    log = ReachedLog(broker, delivery)

    async def read_all() -> int:
        position, count = start, 0
        while position != top:
            page = await log.replay(position, top, EVERYTHING)
            position, count = page.end, count + len(page.publications)
        return count

    assert await asyncio.gather(*(read_all() for _ in range(1_000))) == [2_000] * 1_000
    assert broker.pages <= 2 * 8
