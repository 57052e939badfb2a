"""The modes of a subscriber: what ends, changes or resumes it in the middle of something else."""

import asyncio
from collections.abc import Callable

import pytest

from sse_app import notices
from sse_app.batch import Batch
from sse_app.brokers import Page
from sse_app.brokers.memory import MemoryBroker
from sse_app.events import Event
from sse_app.publication import Draft, Position
from sse_app.subscriber import CloseReason
from sse_app.topics import TopicFilter
from tests.support.peers import MOMENT, Socket, TroubledBroker, datas, turns
from tests.test_subscriber import GREETING, Stream

pytestmark = pytest.mark.virtual_time


class HeldBroker(MemoryBroker):
    """A log whose next top() or replay() waits until ``held`` is set; ``asked`` is set once it waits."""

    def __init__(self) -> None:
        super().__init__()
        self.hold = ""
        self.asked, self.held = asyncio.Event(), asyncio.Event()

    async def _wait(self, method: str) -> None:
        if self.hold == method:
            self.hold = ""
            self.asked.set()
            await self.held.wait()

    async def top(self, *, fresh: bool = False) -> Position:
        top = await super().top()
        await self._wait("top")
        return top

    async def replay(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page:
        page = await super().replay(after, until, topic_filter)
        await self._wait("replay")
        return page


holding = pytest.mark.parametrize("method", ["top", "replay"])
both_ways = pytest.mark.parametrize("room", [None, 1_000], ids=["read", "written"])


async def begin_behind(method: str, room: int | None) -> tuple[Stream, HeldBroker, asyncio.Task[bytes] | None]:
    """A stream that has two events to read from the log, and waits there for the log's answer."""
    broker = HeldBroker()
    start = await broker.top()
    stream = Stream(broker, room)
    for text in "ab":
        await broker.publish(Draft(Event(text)))
    await anext(stream.tail)
    await stream.begin(start)
    broker.hold = method
    reading = None
    if room is None:
        await stream.subscriber.read()  # the greeting
        reading = asyncio.create_task(stream.subscriber.read())
    await broker.asked.wait()
    return stream, broker, reading


@both_ways
@holding
async def test_a_page_that_comes_after_the_end_is_not_counted_as_delivered(method: str, room: int | None) -> None:
    stream, broker, reading = await begin_behind(method, room)
    stream.subscriber.release()
    broker.held.set()
    if reading is not None:
        assert await reading == b""
    await asyncio.sleep(MOMENT)
    assert stream.totals.delivered == 0
    await stream.end()


@holding
async def test_a_page_that_comes_after_a_cut_is_not_counted_as_delivered(method: str) -> None:
    stream, broker, _ = await begin_behind(method, 1_000)
    stream.subscriber.cut()
    broker.held.set()
    await asyncio.sleep(MOMENT)
    assert stream.totals.delivered == 0
    assert stream.socket is not None
    assert stream.socket.ended
    await stream.end()


async def test_a_stream_that_was_released_reads_nothing_more() -> None:
    broker = MemoryBroker()
    stream = Stream(broker, None, queue=2)
    await stream.begin()
    await stream.stalled(*"abc")
    stream.subscriber.release()
    assert await stream.subscriber.read() == b""
    assert stream.totals.delivered == 0


async def test_a_reader_that_waits_is_told_of_the_release() -> None:
    stream = Stream(MemoryBroker(), None)
    await stream.begin()
    await stream.subscriber.read()
    reading = asyncio.create_task(stream.subscriber.read())
    await asyncio.sleep(MOMENT)
    await stream.publish("a")  # it is awake, and has not gone on yet
    stream.subscriber.release()
    async with asyncio.timeout(1):
        assert await reading == b""
    assert stream.totals.delivered == 0


async def test_a_stream_that_ended_makes_no_queue() -> None:
    stream = Stream(MemoryBroker(), 1_000)
    await stream.begin()
    stream.subscriber.cut()
    stream.subscriber.close(CloseReason.DRAIN, b"data: bye\n\n")
    await stream.publish("a")
    stream.subscriber.beat()
    stream.subscriber.fall_behind()
    assert stream.subscriber._queue is None
    await stream.end()


async def test_what_waits_of_a_log_that_began_anew_is_not_written_behind_the_new_one() -> None:
    """The reader finds the new log before the hub's tail does: the old one's batches wait in its queue."""
    broker = TroubledBroker()
    stream = Stream(broker, None)
    start = await broker.top()
    for text in "abc":
        await broker.publish(Draft(Event(text)))
    old = Batch.join(await anext(stream.tail))
    await stream.begin(start)
    await stream.subscriber.read()
    reading = asyncio.create_task(stream.subscriber.read())
    await turns(1)  # it has looked up the end of the log, and waits for a page
    stream.subscriber.offer(old)
    broker.begin_anew()
    await broker.publish(Draft(Event("new")))
    found = stream.decoder.feed(await reading)
    found += await stream.read()
    assert datas(found) == ["new"]
    assert stream.subscriber.position == await broker.top()
    await stream.end()


# --- an end at once ---

BYE = notices.bye("revoked", 3_000)


@both_ways
@holding
async def test_a_page_that_comes_after_an_end_at_once_is_not_sent(method: str, room: int | None) -> None:
    stream, broker, reading = await begin_behind(method, room)
    stream.subscriber.end(CloseReason.REVOKED, BYE)
    broker.held.set()
    if reading is not None:
        assert await reading == BYE
    await asyncio.sleep(MOMENT)
    assert [event.type for event in await stream.read()] == (["welcome", "bye"] if room else [])
    assert stream.totals.delivered == 0
    await stream.end()


@pytest.mark.parametrize("room", [None, 1, 2, 1_000], ids=["read", "full", "nearly full", "free"])
async def test_an_end_at_once_drops_what_waits_and_takes_nothing_more(room: int | None) -> None:
    stream = Stream(MemoryBroker(), room)
    await stream.begin()
    await stream.stalled(*"abc")
    stream.subscriber.end(CloseReason.REVOKED, BYE)
    await stream.stalled(*"defghijk")
    stream.subscriber.beat()
    stream.subscriber.fall_behind()
    written = {1: ["welcome"], 2: ["welcome", "message"], 1_000: ["welcome", *["message"] * 3]}
    assert [event.type for event in await stream.read()] == [*written.get(room or 0, []), "bye"]
    assert stream.totals.delivered == len(written.get(room or 0, ["welcome"])) - 1
    if stream.socket is not None:
        assert stream.socket.ended
        stream.subscriber.resume()  # the full socket takes more, too late
    assert await stream.read() == []
    assert stream.subscriber.closing is CloseReason.REVOKED
    await stream.end()


async def test_a_stream_that_ends_before_it_begins_gets_only_the_last_bytes() -> None:
    """It is registered, and looks up where the log ends, when it is told to end."""
    for room in (None, 1):
        stream = Stream(MemoryBroker(), room)
        await stream.publish("a")
        stream.subscriber.end(CloseReason.REVOKED, BYE)
        await stream.begin(Position("other", 0))
        assert [event.type for event in await stream.read()] == ["bye"]
        await stream.end()


async def test_a_reader_that_was_just_given_something_gets_only_the_last_bytes() -> None:
    stream = Stream(MemoryBroker(), None)
    await stream.begin()
    await stream.subscriber.read()
    reading = asyncio.create_task(stream.subscriber.read())
    await asyncio.sleep(MOMENT)
    await stream.publish("a")  # the reader is awake, and has not gone on yet
    stream.subscriber.end(CloseReason.REVOKED, BYE)
    assert await reading == BYE
    assert await stream.subscriber.read() == b""
    assert stream.totals.delivered == 0


@both_ways
async def test_an_end_at_once_drops_what_a_close_would_have_flushed(room: int | None) -> None:
    stream = Stream(MemoryBroker(), room and 1)
    await stream.begin()
    await stream.stalled(*"abc")
    stream.subscriber.close(CloseReason.DRAIN, notices.bye("drain", 3_000))
    stream.subscriber.end(CloseReason.REVOKED, BYE)
    stream.subscriber.end(CloseReason.EXPIRED, notices.bye("expired", 3_000))
    found = await stream.read()
    assert found[-1].type == "bye"
    assert '"revoked"' in found[-1].data
    assert datas(found) == []
    assert stream.subscriber.closing is CloseReason.REVOKED
    await stream.end()


class Busy(Socket):
    """A connection that does something to its subscriber within its own write."""

    def __init__(self, room: int = 1_000) -> None:
        super().__init__(room)
        self.meanwhile: list[Callable[[], None]] = []

    def write(self, batch: Batch) -> bool:
        more = super().write(batch)
        if self.meanwhile:
            self.meanwhile.pop(0)()
        return more


async def test_a_catch_up_that_is_resumed_within_a_write_is_not_doubled() -> None:
    broker = MemoryBroker()
    stream = Stream(broker, None)
    start = await broker.top()
    for text in "ab":
        await broker.publish(Draft(Event(text)))
    await anext(stream.tail)
    await stream.begin(start)
    stream.socket = socket = Busy()
    socket.meanwhile.append(stream.subscriber.resume)
    stream.subscriber.attach(socket)
    assert len(stream.tasks) == 1
    assert await stream.texts() == ["a", "b"]
    await stream.end()


class CountingBroker(TroubledBroker):
    attempts = 0

    async def replay(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page:
        self.attempts += 1
        return await super().replay(after, until, topic_filter)


@both_ways
async def test_a_log_that_is_away_is_tried_about_once_a_second_until_it_is_back(room: int | None) -> None:
    broker = CountingBroker()
    stream = Stream(broker, room)
    start = await broker.top()
    await broker.publish(Draft(Event("a")))
    await anext(stream.tail)
    broker.down = True
    await stream.begin(start)
    if room is None:
        await stream.subscriber.read()  # the greeting
        reading = asyncio.create_task(stream.subscriber.read())
    await asyncio.sleep(60)
    assert 60 <= broker.attempts <= 125  # pauses of half a second to a second, the first two shorter
    broker.down = False
    await asyncio.sleep(1)
    if room is None:
        assert datas(stream.decoder.feed(await reading)) == ["a"]
    assert stream.totals.delivered == 1
    await stream.end()


@pytest.mark.parametrize("room", [None, 1, 2, 1_000], ids=["read", "full", "nearly full", "free"])
async def test_a_batch_of_the_log_before_is_not_written_in_this_one(room: int | None) -> None:
    """A client joins when the log has begun anew, while the hub still delivers what the one before announced."""
    broker = TroubledBroker()
    stream = Stream(broker, room)
    for text in "abc":
        await broker.publish(Draft(Event(text)))
    old = Batch.join(await anext(stream.tail))
    broker.begin_anew()
    await stream.begin()
    stream.subscriber.offer(old)
    assert datas(await stream.read()) == []
    stream.subscriber.offer(old)
    stream.subscriber.offer_cursor(old.publications[-1].position)
    await stream.publish("new")
    assert datas(await stream.read()) == ["new"]
    assert stream.decoder.last_event_id == str(await broker.top())
    assert stream.subscriber.position == await broker.top()
    assert stream.totals.delivered == 1
    await stream.end()


@pytest.mark.parametrize("room", [1, 2])
@pytest.mark.parametrize("behind", [False, True], ids=["live", "from the log"])
async def test_a_writer_that_is_replaced_within_its_write_is_not_waited_for(room: int, behind: bool) -> None:
    broker = MemoryBroker()
    stream = Stream(broker, None)
    start = await broker.top()
    if behind:
        await broker.publish(Draft(Event("a")))
        await anext(stream.tail)
    await stream.begin(start)
    await stream.subscriber.read()
    first, second = Busy(room), Socket()
    first.meanwhile.append(lambda: stream.subscriber.attach(second))
    stream.subscriber.attach(first)
    if not behind:
        await stream.publish("a")
    await asyncio.sleep(MOMENT)
    await stream.publish("b")
    await asyncio.sleep(MOMENT)
    assert datas(stream.decoder.feed(first.take())) == ["a"]
    assert datas(stream.decoder.feed(second.take())) == ["b"]
    await stream.end()


async def test_a_full_writer_that_took_the_place_of_another_is_waited_for() -> None:
    stream = Stream(MemoryBroker(), None)
    await stream.begin()
    await stream.publish("a")
    first, second = Busy(), Socket(1)
    first.meanwhile.append(lambda: stream.subscriber.attach(second))
    stream.subscriber.attach(first)
    await stream.publish("b")
    assert first.take() == GREETING
    assert datas(stream.decoder.feed(second.take())) == ["a"]
    second.room = 1
    stream.subscriber.resume()
    assert datas(stream.decoder.feed(second.take())) == ["b"]
    await stream.end()


@pytest.mark.parametrize("behind", [False, True], ids=["live", "from the log"])
@pytest.mark.parametrize("room", [1, 2])
async def test_a_writer_that_releases_within_its_write_is_not_written_to_again(room: int, behind: bool) -> None:
    broker = MemoryBroker()
    stream = Stream(broker, None)
    start = await broker.top()
    if behind:
        for number in range(600):  # some pages
            await broker.publish(Draft(Event(str(number))))
        await anext(stream.tail)
    await stream.begin(start)
    await stream.subscriber.read()
    socket = Busy(room)
    socket.meanwhile.append(stream.subscriber.release)
    stream.subscriber.attach(socket)
    if not behind:
        await stream.publish("0")
    await asyncio.sleep(MOMENT)
    written = datas(stream.decoder.feed(socket.take()))
    assert written[0] == "0"
    assert stream.totals.delivered == len(written) < 600
    await stream.publish("more")
    socket.room = 1_000
    stream.subscriber.resume()
    assert socket.take() == b""
    await stream.end()


async def test_a_writer_for_a_stream_that_is_over_is_ended() -> None:
    stream = Stream(MemoryBroker(), None)
    await stream.begin()
    stream.subscriber.release()
    socket = Socket()
    stream.subscriber.attach(socket)
    assert socket.ended
    assert socket.take() == b""


async def test_a_reader_that_waits_is_told_to_go_on_from_the_log() -> None:
    broker = MemoryBroker()
    stream = Stream(broker, None)
    await stream.begin()
    await stream.subscriber.read()
    reading = asyncio.create_task(stream.subscriber.read())
    await asyncio.sleep(MOMENT)
    await broker.publish(Draft(Event("a")))  # the hub's tail left it out
    stream.subscriber.fall_behind()
    async with asyncio.timeout(1):
        assert datas(stream.decoder.feed(await reading)) == ["a"]
    await stream.end()


async def test_a_catch_up_that_waits_for_its_socket_ends_with_the_stream() -> None:
    broker = MemoryBroker()
    stream = Stream(broker, 2)  # the greeting and a page
    start = await broker.top()
    for number in range(600):
        await broker.publish(Draft(Event(str(number))))
    await stream.begin(start)
    await asyncio.sleep(MOMENT)
    (catching_up,) = stream.tasks
    assert not catching_up.done()
    stream.subscriber.cut()
    await asyncio.sleep(MOMENT)
    assert catching_up.done()
    await stream.end()


async def test_a_stream_that_is_over_before_it_begins_reads_nothing() -> None:
    broker = MemoryBroker()
    stream = Stream(broker, None)
    start = await broker.top()
    await broker.publish(Draft(Event("a")))
    stream.subscriber.release()
    await stream.begin(start)
    assert await stream.subscriber.read() == b""
    assert stream.totals.delivered == 0
