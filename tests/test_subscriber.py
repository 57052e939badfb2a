"""One stream seen from the hub: what is offered comes out once and in order, by way of queue, log or socket."""

import asyncio
import json
import logging
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from typing import Any

import pytest

from sse_app import notices
from sse_app.batch import Batch
from sse_app.brokers import Page
from sse_app.brokers.memory import MemoryBroker
from sse_app.events import Event, EventDecoder
from sse_app.grants import OPEN, Grant
from sse_app.metrics import Totals
from sse_app.publication import Draft, Position, Publication
from sse_app.subscriber import CloseReason, Subscriber
from sse_app.subscription import Subscription
from sse_app.topics import TopicFilter
from tests.support import whatwg
from tests.support.peers import MOMENT, DistantBroker, Socket, available, cancel_at, datas, lose, turns

pytestmark = pytest.mark.virtual_time

GREETING = b"event: welcome\ndata: hello\n\n"


class Stream:
    """A subscriber at its log, and the client at the other end: it reads, or a socket of any room is written to."""

    def __init__(self, broker: MemoryBroker, room: int | None, *, queue: int = 4, queue_bytes: int = 100_000) -> None:
        self.broker, self.totals, self.room = broker, Totals(), room
        self.tail = broker.tail()
        self.tasks: set[asyncio.Task[None]] = set()
        self.decoder = EventDecoder()
        self.socket: Socket | None = None
        self.subscriber = Subscriber(broker, self.totals, TopicFilter(), "me", (queue, queue_bytes), self.spawn)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        return task

    async def begin(self, position: Position | None = None) -> None:
        top = await self.broker.top()
        start = position or top
        self.subscriber.begin(start, GREETING, behind=start != top)
        if self.room is not None:
            self.socket = Socket(self.room)
            self.subscriber.attach(self.socket)

    async def publish(self, *texts: str) -> list[Position]:
        """Publish, and offer it as one batch, as the hub would."""
        positions = [await self.broker.publish(Draft(Event(text))) for text in texts]
        self.subscriber.offer(Batch.join(await anext(self.tail)))
        return positions

    async def stalled(self, *texts: str) -> None:
        """Publish one by one, while the client does not read."""
        for text in texts:
            await self.publish(text)

    async def publish_meanwhile(self, *texts: str, after: int = 0) -> None:
        await turns(after)
        for text in texts:
            await asyncio.sleep(0)
            await self.publish(text)

    async def read(self) -> list[Event]:
        """Return what the client can read now: all that comes while it goes on reading."""
        if self.socket is None:
            return self.decoder.feed(await available(self.subscriber))
        data = b""
        for _ in range(1_000):
            await asyncio.sleep(MOMENT)
            piece = self.socket.take()
            data += piece
            if not self.socket.room:
                self.socket.room = self.room or 1
                self.subscriber.resume()
            elif not piece:
                return self.decoder.feed(data)
        raise AssertionError("the stream never comes to rest")

    async def texts(self) -> list[str]:
        return datas(await self.read())

    async def end(self) -> None:
        self.subscriber.release()
        if self.tasks:
            _, pending = await asyncio.wait(self.tasks, timeout=1)
            assert not pending, "a catch-up outlives its stream"
            for task in self.tasks:
                task.result()


class Far(MemoryBroker):
    """A log that takes some turns of the loop to say where it ends, and many to be read."""

    async def top(self, *, fresh: bool = False) -> Position:
        await turns(3)
        top = await super().top()
        await turns(3)
        return top

    async def replay(self, after: Position, until: Position, filter: TopicFilter) -> Page:
        await turns(20)
        return await super().replay(after, until, filter)


# None: read with ``read``. Else a socket that is full after so many writes, always or never nearly full.
ways = pytest.mark.parametrize("room", [None, 1, 2, 1_000], ids=["read", "full", "nearly full", "free"])
stalling = pytest.mark.parametrize("room", [None, 1, 2], ids=["read", "full", "nearly full"])


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


# --- batches ---


def publication(offset: int, text: str = "x") -> Publication:
    return Publication(Position("e", offset), "message", (), f"data: {text}\n\n".encode(), 0.0)


async def test_a_batch_is_its_frames_joined_and_framed_as_one_chunk() -> None:
    batch = Batch.join([publication(3), publication(5), publication(9)])
    assert batch.data == b"id: e-3\ndata: x\n\nid: e-5\ndata: x\n\nid: e-9\ndata: x\n\n"
    assert batch.chunk == b"%x\r\n" % len(batch.data) + batch.data + b"\r\n"
    assert (batch.first, batch.top, batch.count) == (3, 9, 3)


@ways
async def test_a_lost_publication_is_a_gap_and_no_delivery(broker: MemoryBroker, room: int | None) -> None:
    stream = Stream(broker, room)
    await stream.begin()
    await stream.publish("1")
    for _ in range(2):
        await lose(broker)
    stream.subscriber.offer(Batch.join(await anext(stream.tail)))
    await stream.publish("4")
    events = await stream.read()
    assert [(event.type, (event.id or "").partition("-")[2]) for event in events[1:]] == [
        ("message", "1"),
        ("gap", "3"),
        ("message", "4"),
    ]
    assert (stream.totals.delivered, dict(stream.totals.gaps)) == (2, {"lost": 1})


# --- what is offered ---


@ways
async def test_the_greeting_comes_first_and_then_what_is_offered_in_order(
    broker: MemoryBroker, room: int | None
) -> None:
    stream = Stream(broker, room)
    await stream.begin()
    await stream.publish("a", "b")
    await stream.publish("c")
    events = await stream.read()
    assert [event.data for event in events] == ["hello", "a", "b", "c"]
    await stream.publish("d")
    assert await stream.texts() == ["d"]
    assert stream.totals.delivered == 4
    await stream.end()


@ways
async def test_what_was_offered_before_it_began_is_not_lost_and_not_doubled(
    broker: MemoryBroker, room: int | None
) -> None:
    stream = Stream(broker, room)
    positions = await stream.publish("a", "b", "c")
    await stream.publish("d")
    await stream.begin(positions[1])
    assert await stream.texts() == ["c", "d"]
    assert stream.totals.delivered == 2
    await stream.end()


@ways
async def test_a_queue_that_ran_over_before_it_began_loses_nothing(broker: MemoryBroker, room: int | None) -> None:
    stream = Stream(broker, room, queue=2)
    top = await broker.top()
    await stream.stalled(*"abcdef")
    stream.subscriber.begin(top, GREETING, behind=False)  # the log ended there when it was looked up
    if room is not None:
        stream.socket = Socket(room)
        stream.subscriber.attach(stream.socket)
    assert await stream.texts() == list("abcdef")
    assert stream.totals.lagging == 0
    await stream.end()


@ways
async def test_part_of_a_batch_that_was_read_from_the_log_comes_once(broker: MemoryBroker, room: int | None) -> None:
    stream = Stream(broker, room)
    start = await broker.top()
    for text in "ab":
        await broker.publish(Draft(Event(text)))
    await stream.begin(start)
    assert await stream.texts() == ["a", "b"]
    await stream.publish("c")  # the batch is a, b and c
    assert await stream.texts() == ["c"]
    await stream.end()


@ways
async def test_the_log_is_read_in_pages_and_then_what_is_new(broker: MemoryBroker, room: int | None) -> None:
    stream = Stream(broker, room)
    start = await broker.top()
    for number in range(1_000):
        await broker.publish(Draft(Event(str(number))))
    await anext(stream.tail)
    await stream.begin(start)
    await stream.publish("new")
    assert await stream.texts() == [*map(str, range(1_000)), "new"]
    await stream.end()


@ways
async def test_the_log_shows_only_what_the_client_may_see(broker: MemoryBroker, room: int | None) -> None:
    stream = Stream(broker, room)
    start = await broker.top()
    await broker.publish(Draft(Event("others"), to=frozenset(["you"])))
    await broker.publish(Draft(Event("mine"), to=frozenset(["you", "me"])))
    await broker.publish(Draft(Event("not mine"), exclude=frozenset(["me"])))
    await broker.publish(Draft(Event("all")))
    await stream.begin(start)
    assert await stream.texts() == ["mine", "all"]
    assert stream.totals.delivered == 2
    await stream.end()


# --- slow readers (D4, D5) ---


@stalling
async def test_a_queue_that_runs_over_is_dropped_and_the_log_read_in_order_instead(
    broker: MemoryBroker, room: int | None
) -> None:
    stream = Stream(broker, room, queue=3)
    await stream.begin()
    await stream.stalled(*"abcdefgh")
    assert (stream.totals.overflows, stream.totals.lagging) == (1, 1)
    assert await stream.texts() == list("abcdefgh")
    assert (stream.totals.overflows, stream.totals.lagging, stream.totals.delivered) == (1, 0, 8)
    await stream.publish("live again")
    assert await stream.texts() == ["live again"]
    await stream.end()


@stalling
async def test_a_reader_that_is_slow_again_and_again_gets_everything_once(
    broker: MemoryBroker, room: int | None
) -> None:
    stream = Stream(broker, room, queue=2)
    await stream.begin()
    expected: list[str] = []
    found: list[str] = []
    for turn in range(20):
        texts = [f"{turn}:{number}" for number in range(turn % 7)]
        await stream.stalled(*texts)
        expected += texts
        if turn % 3:
            found += await stream.texts()
    assert found + await stream.texts() == expected
    assert stream.totals.overflows > 2
    assert stream.totals.lagging == 0
    await stream.end()


@stalling
async def test_a_queue_that_runs_over_while_the_log_is_read_loses_nothing(
    broker: MemoryBroker, room: int | None
) -> None:
    stream = Stream(broker, room, queue=2)
    start = await broker.top()
    for number in range(600):
        await broker.publish(Draft(Event(str(number))))
    await anext(stream.tail)
    await stream.begin(start)
    texts, _ = await asyncio.gather(stream.texts(), stream.publish_meanwhile(*map(str, range(600, 700))))
    assert texts + await stream.texts() == [str(number) for number in range(700)]
    assert stream.totals.lagging == 0
    await stream.end()


@stalling
async def test_what_is_published_while_it_looks_where_the_log_ends_comes_once(room: int | None) -> None:
    """The order that is correctness: first be offered what is new, then look."""

    for late in range(12):
        stream = Stream(Far(), room, queue=3)
        await stream.begin()
        await stream.stalled(*"abcdef")
        texts, _ = await asyncio.gather(stream.texts(), stream.publish_meanwhile("g", "h", after=late))
        assert texts + await stream.texts() == list("abcdefgh"), late
        await stream.end()


@stalling
async def test_what_was_trimmed_meanwhile_is_told_as_a_gap_in_its_place(room: int | None) -> None:
    broker = MemoryBroker(history=3)
    stream = Stream(broker, room, queue=2)
    await stream.begin()
    positions = await stream.publish("a")
    await stream.read()
    await stream.stalled(*"bcdefghi")
    found = await stream.read()
    gap = next(event for event in found if event.type == "gap")
    told = json.loads(gap.data)
    assert told["reason"] == "trimmed"
    before = datas(found[: found.index(gap)])  # what the socket had taken already
    assert before == list("bcdefghi")[: len(before)]
    assert told["requested"] == str(Position(positions[0].epoch, 1 + len(before)))
    assert gap.id == str(await broker.oldest())
    assert datas(found[found.index(gap) :]) == ["g", "h", "i"]
    assert stream.totals.gaps == {"trimmed": 1}
    await stream.end()


@pytest.mark.parametrize(("limit", "size"), [((5, 10**9), 10), ((10**9, 50_000), 10_000), ((10**9, 50_000), 80_000)])
async def test_no_more_than_the_bound_and_one_event_ever_waits(limit: tuple[int, int], size: int) -> None:
    """D5, looked at from the client: what it gets at once never was more than that, however long it slept."""
    for published in range(1, 30):
        stream = Stream(MemoryBroker(), None, queue=limit[0], queue_bytes=limit[1])
        await stream.begin()
        await stream.subscriber.read()
        await stream.stalled(*["x" * size] * published)
        if stream.totals.overflows == 0:
            first = await stream.subscriber.read()
            event = size + 100
            assert len(first) <= min(limit[0] * event, limit[1] + event)
            assert len(EventDecoder().feed(first)) == published
        assert stream.subscriber._bytes <= limit[1] + size + 100
        await stream.end()


async def test_a_thousand_large_events_cost_a_stalled_reader_a_mebibyte() -> None:
    stream = Stream(MemoryBroker(), None, queue=1_000, queue_bytes=1024 * 1024)
    await stream.begin()
    most = 0
    for _ in range(1_000):
        await stream.publish("x" * 256 * 1024)
        most = max(most, stream.subscriber._bytes)
    assert 1024 * 1024 <= most <= 1024 * 1024 + 256 * 1024 + 100
    assert stream.totals.overflows == 1
    assert stream.subscriber._bytes == 0, "what is dropped does not wait for the reader"
    await stream.end()


async def test_a_reader_that_falls_behind_again_while_it_catches_up_is_still_lagging() -> None:
    stream = Stream(Far(), None, queue=2)
    await stream.begin()
    await stream.subscriber.read()
    await stream.stalled(*"abc")
    reading = asyncio.create_task(stream.subscriber.read())
    await turns(8)  # it has looked where the log ends
    await stream.stalled(*"defg")
    assert not reading.done()
    assert datas(stream.decoder.feed(await reading)) == ["a", "b", "c"]
    assert (stream.totals.lagging, stream.totals.overflows) == (1, 2)
    assert await stream.texts() == ["d", "e", "f", "g"]
    assert stream.totals.lagging == 0
    await stream.end()


async def test_a_stream_that_ends_while_it_lags_is_not_counted_any_more(broker: MemoryBroker) -> None:
    stream = Stream(broker, None, queue=1)
    await stream.begin()
    await stream.stalled(*"abc")
    assert stream.totals.lagging == 1
    stream.subscriber.release()
    stream.subscriber.release()
    assert stream.totals.lagging == 0
    await stream.stalled(*"defg")
    assert (stream.totals.lagging, stream.subscriber._bytes) == (0, 0)


# --- cursors and heartbeats ---


@ways
async def test_a_cursor_moves_the_last_event_id_and_is_no_event(broker: MemoryBroker, room: int | None) -> None:
    stream = Stream(broker, room)
    await stream.begin()
    await stream.publish("a")
    await stream.read()
    cursor = Position((await broker.top()).epoch, 50)
    stream.subscriber.offer_cursor(cursor)
    assert await stream.read() == []
    assert stream.decoder.last_event_id == str(cursor)
    assert stream.subscriber.position == cursor
    assert stream.totals.delivered == 1
    await stream.end()


@ways
async def test_a_cursor_never_goes_back(broker: MemoryBroker, room: int | None) -> None:
    stream = Stream(broker, room)
    await stream.begin()
    positions = await stream.publish("a", "b")
    stream.subscriber.offer_cursor(positions[0])
    assert await stream.texts() == ["a", "b"]
    assert stream.decoder.last_event_id == str(positions[1])
    assert stream.subscriber.position == positions[1]
    await stream.end()


@ways
async def test_a_heartbeat_is_a_comment_that_comes_in_its_turn(broker: MemoryBroker, room: int | None) -> None:
    stream = Stream(broker, room)
    await stream.begin()
    await stream.read()
    await asyncio.sleep(MOMENT)
    stream.subscriber.beat()
    data = await available(stream.subscriber) if stream.socket is None else stream.socket.take()
    assert data == notices.HEARTBEAT
    await stream.end()


@pytest.mark.parametrize("beats", [1, 1_000])
async def test_heartbeats_do_not_pile_up_at_a_full_socket(broker: MemoryBroker, beats: int) -> None:
    stream = Stream(broker, 1)
    await stream.begin()
    assert stream.socket is not None
    assert stream.socket.room == 0
    for _ in range(beats):
        stream.subscriber.beat()
    stream.socket.take()
    stream.socket.room = 10
    stream.subscriber.resume()
    assert stream.socket.take() == b""
    await stream.end()


# --- the names that it has ---


@pytest.mark.parametrize(
    ("grant", "names"),
    [
        (OPEN, ("me",)),
        (replace(OPEN, publish=None), ("me",)),
        (Grant(), ()),
        (Grant(client="me"), ("me",)),
        (Grant(client="m*", user="42"), ("me", "@42", "me@42")),
        (Grant(user="42"), ("@42", "me@42")),
    ],
)
def test_a_stream_has_the_names_that_its_grant_vouches_for(
    broker: MemoryBroker, grant: Grant, names: tuple[str, ...]
) -> None:
    subscriber = Subscriber(broker, Totals(), TopicFilter(), "me", (1, 1), grant=grant)
    assert subscriber.audience.names == names
    assert not subscriber.audience.sees(frozenset(), frozenset({"me"})), "it may be left out by its own name"


# --- the end ---


@ways
async def test_the_farewell_comes_after_everything_and_nothing_after_it(broker: MemoryBroker, room: int | None) -> None:
    stream = Stream(broker, room)
    await stream.begin()
    await stream.publish("a")
    stream.subscriber.close(CloseReason.DRAIN, notices.bye("drain", 3_000))
    events = await stream.read()
    assert [event.type for event in events] == ["welcome", "message", "bye"]
    if stream.socket is not None:
        assert stream.socket.ended
    await stream.stalled(*"bcdefghi")
    stream.subscriber.beat()
    stream.subscriber.offer_cursor(await broker.top())
    assert await stream.read() == []
    await stream.end()


async def test_what_is_offered_between_the_farewell_and_the_end_is_not_read(broker: MemoryBroker) -> None:
    stream = Stream(broker, None)
    await stream.begin()
    await stream.subscriber.read()
    stream.subscriber.close(CloseReason.DRAIN, notices.bye("drain", 3_000))
    assert EventDecoder().feed(await stream.subscriber.read())[0].type == "bye"
    await stream.stalled(*"abcdefghi")  # enough to fill the queue and run over, too
    async with asyncio.timeout(1):
        assert await stream.subscriber.read() == b""
        assert await stream.subscriber.read() == b""
    await stream.end()


@stalling
async def test_a_slow_reader_gets_the_rest_of_the_log_before_the_farewell(
    broker: MemoryBroker, room: int | None
) -> None:
    stream = Stream(broker, room, queue=2)
    await stream.begin()
    await stream.stalled(*"abcdef")
    stream.subscriber.close(CloseReason.DRAIN, notices.bye("drain", 3_000))
    events = await stream.read()
    assert datas(events) == list("abcdef")
    assert events[-1].type == "bye"
    await stream.end()


@ways
async def test_the_first_reason_to_close_counts(broker: MemoryBroker, room: int | None) -> None:
    stream = Stream(broker, room)
    await stream.begin()
    stream.subscriber.close(CloseReason.DRAIN, notices.bye("drain", 3_000))
    stream.subscriber.close(CloseReason.ERROR, notices.bye("other", 3_000))
    assert stream.subscriber.closing is CloseReason.DRAIN
    assert [event.type for event in await stream.read()] == ["welcome", "bye"]
    await stream.end()


@ways
async def test_a_close_without_farewell_just_ends(broker: MemoryBroker, room: int | None) -> None:
    stream = Stream(broker, room)
    await stream.begin()
    await stream.read()
    stream.subscriber.close(CloseReason.GONE)
    assert await stream.read() == []
    if stream.socket is None:
        assert await stream.subscriber.read() == b""
    else:
        assert stream.socket.ended
    await stream.end()


async def test_a_waiting_reader_hears_of_the_close(broker: MemoryBroker) -> None:
    stream = Stream(broker, None)
    await stream.begin()
    await stream.subscriber.read()
    reading = asyncio.create_task(stream.subscriber.read())
    await asyncio.sleep(MOMENT)
    stream.subscriber.close(CloseReason.DRAIN, b"data: bye\n\n")
    async with asyncio.timeout(1):
        assert await reading == b"data: bye\n\n"
    await stream.end()


async def test_iterating_gives_the_events_up_to_the_end(broker: MemoryBroker) -> None:
    stream = Stream(broker, None)
    await stream.begin()
    await stream.publish("a", "b")
    stream.subscriber.close(CloseReason.DRAIN, notices.bye("drain", 3_000))
    subscription = Subscription(stream.subscriber)
    assert [event.type async for event in subscription] == ["welcome", "message", "message", "bye"]
    await stream.end()


# --- sockets ---


async def test_a_writer_that_is_full_is_written_to_only_when_it_resumes(broker: MemoryBroker) -> None:
    stream = Stream(broker, 1)
    await stream.begin()
    assert stream.socket is not None
    await stream.stalled("a", "b", "c")
    assert stream.socket.take() == GREETING
    stream.socket.room = 1
    stream.subscriber.resume()
    parsed = whatwg.parse(stream.socket.take())
    assert [event.data for event in parsed.events] == ["a", "b", "c"], "all that waits goes in one write"
    await stream.end()


async def test_a_stream_that_was_cut_takes_nothing_more(broker: MemoryBroker) -> None:
    stream = Stream(broker, 1_000)
    await stream.begin()
    await stream.publish("a")
    stream.subscriber.cut()
    await stream.stalled(*"bcdefghi")
    stream.subscriber.beat()
    stream.subscriber.offer_cursor(await broker.top())
    events = await stream.read()
    assert [event.type for event in events] == ["welcome", "message"]
    assert stream.socket is not None
    assert stream.socket.ended
    await stream.end()


@pytest.mark.parametrize("room", [1, 2, 1_000])
async def test_a_log_that_fails_ends_the_stream_with_one_line_in_the_log(
    room: int, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(MemoryBroker):
        async def replay(self, after: Position, until: Position, filter: TopicFilter) -> Page:
            raise RuntimeError("secret")

    broker = Broken()
    start = await broker.top()
    await broker.publish(Draft(Event("secret")))
    stream = Stream(broker, room)
    with caplog.at_level(logging.INFO):
        await stream.begin(start)
        await stream.read()
    assert stream.socket is not None
    assert stream.socket.ended
    assert stream.subscriber.closing is CloseReason.ERROR
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "secret" not in caplog.text
    await stream.end()


async def test_a_catch_up_ends_with_its_stream(broker: MemoryBroker) -> None:
    stream = Stream(broker, 1)
    start = await broker.top()
    for number in range(2_000):
        await broker.publish(Draft(Event(str(number))))
    await stream.begin(start)
    await asyncio.sleep(MOMENT)
    assert any(not task.done() for task in stream.tasks) or stream.socket is not None
    await stream.end()


async def test_a_subscriber_without_owner_of_tasks_cannot_write(broker: MemoryBroker) -> None:
    subscriber = Subscriber(broker, Totals(), TopicFilter(), "me", (1, 1_000))
    subscriber.begin(await broker.top(), b"", behind=True)
    with pytest.raises(RuntimeError, match="tasks"):
        subscriber.attach(Socket())


# --- cancellation (E4) ---


def attempts() -> Iterator[tuple[int, bool]]:
    for number in range(1, 200):
        yield number, False
        yield number, True
    raise AssertionError("it always has one more await")


async def read_until(stream: Stream, texts: list[str], count: int) -> None:
    while len(texts) < count:
        texts += datas(stream.decoder.feed(await stream.subscriber.read()))


async def test_a_read_that_is_cancelled_anywhere_loses_nothing() -> None:
    """At its n-th await, for every n: at the end of the log, in a page, in the queue."""
    finished = 0
    for number, late in attempts():
        broker = DistantBroker([1, 2])
        stream, texts = Stream(broker, None, queue=2), list[str]()
        start = await broker.top()
        for text in "abc":
            await broker.publish(Draft(Event(text)))
        await anext(stream.tail)
        await stream.begin(start)
        async with asyncio.timeout(1), asyncio.TaskGroup() as tasks:
            tasks.create_task(stream.publish_meanwhile(*"defg"))
            was_cancelled = await cancel_at(number, read_until(stream, texts, 7), late=late)
            await read_until(stream, texts, 7)
        assert texts == list("abcdefg"), (number, late)
        await stream.end()
        finished += not was_cancelled
        if finished == 2:
            return
