"""One subscriber under everything that may happen to it, in any order and in the middle of anything, against a model.

The model is the log: what the client got is each publication that it may see, once and in order, or a gap in its place;
nothing comes after the end; and the mode changes only along the arrows of the table in ``Mode``.
"""

import asyncio
import inspect
import json
import re
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sse_app import notices
from sse_app.batch import Batch
from sse_app.brokers import Page
from sse_app.brokers.memory import MemoryBroker
from sse_app.errors import BrokerUnavailable
from sse_app.events import Event, EventDecoder
from sse_app.metrics import Totals
from sse_app.publication import Audience, Draft, Position, Publication
from sse_app.subscriber import CloseReason, Mode, Subscriber
from sse_app.testing import VirtualTimeLoop
from sse_app.topics import TopicFilter
from tests.support.peers import MOMENT, TroubledBroker, turns

ARROWS = {
    Mode.WAITING: {Mode.READY, Mode.BEHIND, Mode.ENDING, Mode.ENDED},
    Mode.READY: {Mode.WAITING, Mode.BEHIND, Mode.ENDED},
    Mode.BEHIND: {Mode.READING, Mode.WAITING, Mode.ENDING, Mode.ENDED},
    Mode.READING: {Mode.WAITING, Mode.OVERRUN, Mode.BEHIND, Mode.ENDING, Mode.ENDED},
    Mode.OVERRUN: {Mode.BEHIND, Mode.WAITING, Mode.ENDING, Mode.ENDED},
    Mode.ENDING: {Mode.ENDED},
    Mode.ENDED: set[Mode](),
}

GREETING = b"event: welcome\ndata: hello\n\n"
BYE = notices.bye("drain", 3_000)
REVOKED = notices.bye("revoked", 3_000)
ME = Audience(("me",))


class WatchedSubscriber(Subscriber):
    """A subscriber that refuses a change of mode that is not drawn."""

    __slots__ = ("taken",)
    taken: list[tuple[Mode, Mode]]

    def _enter(self, mode: Mode) -> None:
        assert mode in ARROWS[self._mode], f"{self._mode} -> {mode}"
        self.taken.append((self._mode, mode))
        super()._enter(mode)


class Log(TroubledBroker):
    """A log that answers some turns late, or not at all. ``failed``: it did so when the stream was to end."""

    def __init__(self, delay: int, history: int) -> None:
        super().__init__(history=history)
        self._delay = delay
        self.subscriber: Subscriber | None = None
        self.failed = False
        self.has_pages = True

    def check(self) -> None:
        if self.down and self.subscriber is not None and self.subscriber.closing:
            self.failed = True
        super().check()

    @property
    def end(self) -> Position:
        return Position(self._epoch, self._top)

    @property
    def start(self) -> Position:
        return Position(self._epoch, self._oldest - 1)

    async def top(self, *, fresh: bool = False) -> Position:
        await turns(self._delay)
        self.check()
        top = await MemoryBroker.top(self)
        await turns(self._delay)
        self.check()
        return top

    async def replay(self, after: Position, until: Position, topic_filter: TopicFilter) -> Page:
        await turns(self._delay)
        if not self.has_pages:
            raise BrokerUnavailable("The log is away.")
        page = await super().replay(after, until, topic_filter)
        await turns(self._delay)
        self.check()
        return page


class Connection:
    """A socket that is full after ``room`` writes. ``within`` is what happens to the subscriber within the next one."""

    def __init__(self, client: "SubscriberMachine", room: int) -> None:
        self._client = client
        self.room, self.ended = room, False
        self.within: Callable[[], None] | None = None
        self.writes_more_within = False  # so that it is for a socket that has room

    def write(self, batch: Batch) -> bool:
        assert not self.ended, "written after the end"
        assert not self._client.released, "written after the release"
        assert self.room > 0, "written to a full socket"
        self.room -= 1
        self._client.output += batch.data
        action, self.within = self.within, None
        if action is not None and (self.room or not self.writes_more_within):
            action()
        return self.room > 0

    def end(self, farewell: bytes = b"") -> None:
        assert not self.ended, "ended twice"
        assert not self._client.released, "written after the release"
        self._client.output += farewell
        self.ended = True


class SubscriberMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.begun = False

    @initialize(
        room=st.integers(0, 3),
        queue=st.tuples(st.integers(1, 3), st.sampled_from([60, 300, 10_000])),
        history=st.integers(1, 12),
        delay=st.sampled_from([0, 1, 3, 10, 30]),
        before=st.integers(0, 6),
        meanwhile=st.integers(0, 6),
        behind=st.booleans(),
    )
    def begin(
        self, room: int, queue: tuple[int, int], history: int, delay: int, before: int, meanwhile: int, behind: bool
    ) -> None:
        """A subscriber is made; some publications are offered to it before it begins."""
        self.log = Log(delay, history)
        self.published: dict[Position, Publication] = {}
        self.epochs = [self.log.end.epoch]
        self.totals, self.tasks = Totals(), list[asyncio.Task[Any]]()
        self.output, self.decoder = bytearray(), EventDecoder()
        self.received, self.size, self.cursor = 0, 0, Position("", 0)
        self.connection: Connection | None = None
        self.reading: asyncio.Task[bytes] | None = None
        self.released = self.ended = self.revoked = False
        self.offered_at_close: Position | None = None
        self.in_loop(self._begin(queue, before, meanwhile, behind))
        self.begun = True
        if room:
            self.attach(room)

    async def _begin(self, queue: tuple[int, int], before: int, meanwhile: int, behind: bool) -> None:
        self.record, self.tail = self.log.tail(), self.log.tail()
        await self._publish([True] * before)
        self.delivered = self.log.end
        if before:
            await anext(self.tail)
        self.subscriber = self.log.subscriber = WatchedSubscriber(
            self.log, self.totals, TopicFilter(), "me", queue, self.spawn
        )
        self.subscriber.taken = []
        await self._publish([True] * meanwhile)
        if meanwhile:
            await self._deliver()
        start = self.log.start if behind else self.log.end
        self.subscriber.begin(start, GREETING, behind=start != self.log.end)
        self.cursor = start

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        self.tasks.append(self.loop.create_task(work))
        return self.tasks[-1]

    def in_loop(self, work: Coroutine[Any, Any, object]) -> None:
        self.loop.run_until_complete(work)

    # The log and the hub

    @rule(visible=st.lists(st.sampled_from([True, True, False]), min_size=1, max_size=5), delivered=st.booleans())
    def publish(self, visible: list[bool], delivered: bool) -> None:
        self.in_loop(self._publish(visible))
        if delivered:
            self.in_loop(self._deliver())

    @rule(pauses=st.lists(st.integers(0, 6), min_size=3, max_size=8))
    def publish_one_by_one(self, pauses: list[int]) -> None:
        """A burst while the client is busy with something else, such as a page of the log."""
        self.in_loop(self._publish_one_by_one(pauses))

    async def _publish_one_by_one(self, pauses: list[int]) -> None:
        for pause in pauses:
            await self._publish([True])
            await self._deliver()
            await turns(pause)

    async def _publish(self, visible: list[bool]) -> None:
        """Append, each visible to the client or not; the hub learns of it when it delivers."""
        for mine in visible:
            down, self.log.down = self.log.down, False
            position = await self.log.publish(Draft(Event("x" * 20), to=frozenset([] if mine else ["you"])))
            self.log.down = down
            for item in await anext(self.record):
                self.published[item.position] = item
            assert position in self.published

    @rule()
    def deliver(self) -> None:
        """The hub offers what its tail announces; all begins anew where that does not follow what it knows."""
        if self.delivered != self.log.end:
            self.in_loop(self._deliver())

    async def _deliver(self) -> None:
        announced = await anext(self.tail)
        if not announced or announced[0].position != self.delivered.next():
            self.delivered = self.log.end
            self.subscriber.fall_behind()
        if announced:
            visible = [item for item in announced if item.visible_to(ME)]
            if visible and not self.released:
                self.subscriber.offer(Batch.join(visible))
            self.delivered = announced[-1].position

    @rule()
    def log_begins_anew(self) -> None:
        self.log.begin_anew()
        self.epochs.append(self.log.end.epoch)
        self.in_loop(self._forget_record())

    async def _forget_record(self) -> None:
        self.record = self.log.tail()

    @rule(down=st.booleans())
    def log_is_away(self, down: bool) -> None:
        self.log.down = down

    @rule()
    def offer_cursor(self) -> None:
        if not self.released and self.delivered.epoch == self.subscriber.position.epoch:
            self.in_loop(self._call(lambda: self.subscriber.offer_cursor(self.delivered)))

    @rule()
    def beat(self) -> None:
        if not self.released:
            self.in_loop(self._call(self.subscriber.beat))

    @rule()
    def fall_behind(self) -> None:
        self.in_loop(self._call(self.subscriber.fall_behind))

    @precondition(lambda self: self.begun and len(self.subscriber.taken) > 12)  # late, since they end the story
    @rule(how=st.sampled_from(["close", "close without the log", "end", "cut", "release"]))
    def end(self, how: str) -> None:
        if how == "close without the log":
            self.log.down = True
            self.fall_behind()
        actions = {"end": self._revoke, "cut": self.subscriber.cut, "release": self._release}
        self.in_loop(self._call(actions.get(how, self._close)))

    def _close(self) -> None:
        if self.offered_at_close is None:
            self.offered_at_close = self.delivered
        self.subscriber.close(CloseReason.DRAIN, BYE)

    def _revoke(self) -> None:
        self._take_output()  # what was written before is not taken back
        self.revoked = True
        self.subscriber.end(CloseReason.REVOKED, REVOKED)

    def _release(self) -> None:
        self.subscriber.release()
        self.released = True

    async def _call(self, act: Callable[[], object]) -> None:
        act()

    # The client

    @rule(count=st.integers(1, 12))
    def turn(self, count: int) -> None:
        self.in_loop(turns(count))

    @rule(seconds=st.sampled_from([MOMENT, 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.in_loop(asyncio.sleep(seconds))

    @precondition(lambda self: self.begun and self.connection is None and self.reading is None)
    @rule(count=st.integers(0, 12))
    def read(self, count: int) -> None:
        """A read begins; what happens next may happen in the middle of it."""
        self.reading = self.loop.create_task(self.subscriber.read())
        self.in_loop(turns(count))

    @precondition(lambda self: self.begun and self.reading is not None)
    @rule()
    def cancel_read(self) -> None:
        assert self.reading is not None
        self.reading.cancel()
        self.in_loop(asyncio.wait([self.reading]))

    @precondition(lambda self: self.begun and self.connection is not None)
    @rule(room=st.integers(1, 3))
    def socket_takes_more(self, room: int) -> None:
        connection = self.connection
        assert connection is not None
        if not connection.room:
            connection.room = room
            self.in_loop(self._call(self.subscriber.resume))

    @precondition(lambda self: self.begun and self.reading is None and not self.released)
    @rule(room=st.integers(1, 3))
    def attach(self, room: int) -> None:
        self.in_loop(self._call(lambda: self._attach(room)))

    def _attach(self, room: int) -> None:
        self.connection = Connection(self, room)
        self.subscriber.attach(self.connection)

    @precondition(lambda self: self.begun and self.connection is not None)
    @rule(action=st.sampled_from(["resume", "attach", "release", "close", "end", "cut"]))
    def something_happens_within_the_next_write(self, action: str) -> None:
        if action not in ("resume", "attach") and len(self.subscriber.taken) <= 12:
            return
        actions: dict[str, Callable[[], None]] = {
            "release": self._release,
            "close": self._close,
            "end": self._revoke,
            "cut": self.subscriber.cut,
            "resume": self.subscriber.resume,
            "attach": lambda: self._attach(2),
        }
        assert self.connection is not None
        self.connection.within = actions[action]
        self.connection.writes_more_within = action in ("close", "resume")

    # What has to hold

    @invariant()
    def client_gets_everything_once_and_in_order_or_is_told(self) -> None:
        if self.begun:
            if self.reading is not None and self.reading.done():
                if not self.reading.cancelled():
                    self.output += self.reading.result()
                self.reading = None
            self._take_output()

    def _take_output(self) -> None:
        data, self.output = bytes(self.output), bytearray()
        self.size += len(data)
        for event in self.decoder.feed(data):
            assert not self.ended, "something comes after the end"
            assert not self.revoked or event.type == "bye", "something comes after an end at once"
            if event.type == "gap":
                self._on_gap(event)
            elif event.type == "bye":
                self._on_bye()
            elif event.type == "message":
                self._on_message(event)
        if (position := Position.parse(self.decoder.last_event_id.encode())) and position != self.cursor:
            self._move(position)

    def _missing(self, until: Position) -> list[Position]:
        return [
            position
            for position, item in self.published.items()
            if position.epoch == self.cursor.epoch
            and self.cursor.offset < position.offset <= until.offset
            and item.visible_to(ME)
        ]

    def _move(self, position: Position) -> None:
        assert position.epoch == self.cursor.epoch, "another log without a gap"
        assert position.offset >= self.cursor.offset, "back"
        assert not self._missing(position), "left out in silence"
        self.cursor = position

    def _on_message(self, event: Event) -> None:
        position = Position.parse((event.id or "").encode())
        assert position is not None
        assert self.published[position].visible_to(ME)
        assert position.offset > self.cursor.offset, "twice"
        self._move(Position(position.epoch, position.offset - 1))
        self.cursor = position
        self.received += 1

    def _on_gap(self, event: Event) -> None:
        told = json.loads(event.data)
        requested, start = Position.parse(told["requested"].encode()), Position.parse((event.id or "").encode())
        assert requested is not None
        assert start is not None
        self._move(requested)
        if start.epoch == requested.epoch:
            assert told["reason"] == "trimmed"
            assert start.offset > requested.offset
            assert start.epoch != self.log.end.epoch or start.offset <= self.log.start.offset, "the log holds it"
        else:
            assert told["reason"] == "epoch"
            assert self.epochs.index(start.epoch) > self.epochs.index(requested.epoch)
        self.cursor = start

    def _on_bye(self) -> None:
        self.ended = True
        if self.revoked:
            return
        assert self.offered_at_close is not None
        if not self.log.failed and self.offered_at_close.epoch == self.cursor.epoch:
            assert not self._missing(self.offered_at_close), "closed before what was offered"

    @invariant()
    def what_is_counted_was_received(self) -> None:
        if self.begun:
            assert self.totals.delivered == self.received
            assert self.totals.lagging == self.subscriber._lagging

    @invariant()
    def each_mode_has_what_it_needs_and_no_more(self) -> None:
        if not self.begun:
            return
        subscriber, mode = self.subscriber, self.subscriber._mode
        if mode is Mode.READY:
            assert subscriber._writer is not None
            assert not any([subscriber._count, subscriber._greeting, subscriber.closing, subscriber._writable])
        if mode not in (Mode.READING, Mode.OVERRUN):
            assert subscriber._until is None
        if mode in (Mode.BEHIND, Mode.OVERRUN, Mode.ENDING, Mode.ENDED):
            assert (subscriber._count, subscriber._bytes) == (0, 0)
        if mode is Mode.ENDING:
            assert not subscriber._greeting
        if mode in (Mode.ENDING, Mode.ENDED):
            assert subscriber._writer is None
            assert not subscriber._lagging

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None and self.begun:
                self._come_to_an_end()
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.run_until_complete(asyncio.sleep(MOMENT))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    def _come_to_an_end(self) -> None:
        self.log.down = False
        self.deliver()
        before = -1, -1
        while before != (before := (self.size, len(self.subscriber.taken))):
            assert self.size < 1_000_000, "the stream never comes to rest"
            self._client_goes_on()
        if self.subscriber._mode is not Mode.ENDED:
            assert not self.subscriber.closing
            assert self.subscriber.position.epoch == self.log.end.epoch
            assert not self._missing(self.log.end)
        self._release()
        self.in_loop(asyncio.sleep(2.0))
        self.client_gets_everything_once_and_in_order_or_is_told()
        assert self.reading is None, "a reader waits for a stream that is over"
        assert all(task.done() and task.exception() is None for task in self.tasks)
        assert (self.totals.delivered, self.totals.lagging) == (self.received, 0)

    def _client_goes_on(self) -> None:
        if self.connection is not None:
            self.socket_takes_more(3)
        elif self.reading is None:
            self.read(0)
        self.in_loop(asyncio.sleep(2.0))
        self.client_gets_everything_once_and_in_order_or_is_told()


TestSubscriberMachine = pytest.mark.timeout(1_200)(SubscriberMachine.TestCase)  # seconds; the thorough run takes 100
TestSubscriberMachine.settings = settings(stateful_step_count=60)


def test_the_table_in_the_docstring_has_exactly_these_arrows() -> None:
    drawn: dict[Mode, set[Mode]] = {}
    mode = None
    for line in inspect.cleandoc(Mode.__doc__ or "").splitlines():
        if begin := re.match(r"([A-Z]+) +(written|queued|dropped)", line):
            mode = Mode[begin[1]]
            drawn[mode] = set()
        if mode is not None and (arrow := re.search(r" ([A-Z]+): ", line)):
            drawn[mode].add(Mode[arrow[1]])
    assert drawn == ARROWS


class Story:
    """A subscriber that reads with ``read``, one step at a time; its queue takes one publication."""

    def __init__(self) -> None:
        self.log = Log(delay=5, history=100)
        self.tail = self.log.tail()
        self.subscriber = WatchedSubscriber(self.log, Totals(), TopicFilter(), "me", (1, 10_000))
        self.subscriber.taken = []
        self.reading: asyncio.Task[bytes] | None = None

    async def reach(self, mode: Mode) -> None:
        """Go to a mode that reads from the log, and no further."""
        self.subscriber.begin(self.log.start, b"", behind=True)
        if mode is not Mode.BEHIND:
            self.reading = asyncio.create_task(self.subscriber.read())
            await turns(2)
        if mode is Mode.OVERRUN:
            await self.publish()
            await self.publish()
        assert self.subscriber._mode is mode

    async def publish(self) -> None:
        await self.log.publish(Draft(Event("x")))
        self.subscriber.offer(Batch.join(await anext(self.tail)))

    async def finish(self) -> bytes:
        return await (self.reading or self.subscriber.read())


@pytest.mark.virtual_time
@pytest.mark.parametrize("mode", [Mode.BEHIND, Mode.READING, Mode.OVERRUN])
async def test_a_stream_that_is_to_end_leaves_a_log_that_is_away(mode: Mode) -> None:
    story = Story()
    await story.reach(mode)
    story.log.down = True
    story.subscriber.close(CloseReason.DRAIN, BYE)
    assert await story.finish() == BYE
    assert story.subscriber.taken[-2:] == [(Mode.BEHIND, Mode.WAITING), (Mode.WAITING, Mode.ENDED)]


@pytest.mark.virtual_time
@pytest.mark.parametrize("mode", [Mode.BEHIND, Mode.READING, Mode.OVERRUN])
async def test_a_stream_that_is_released_leaves_the_log(mode: Mode) -> None:
    story = Story()
    await story.reach(mode)
    story.subscriber.release()
    assert story.subscriber.taken[-1] == (mode, Mode.ENDED)
    assert await story.finish() == b""


@pytest.mark.virtual_time
async def test_a_page_that_cannot_be_read_ends_the_reading_of_a_stream_that_is_to_end() -> None:
    for mode in (Mode.READING, Mode.OVERRUN):
        story = Story()
        await story.reach(mode)
        story.log.has_pages = False
        story.subscriber.close(CloseReason.DRAIN, BYE)
        assert await story.finish() == BYE
        assert story.subscriber.taken[-2:] == [(mode, Mode.WAITING), (Mode.WAITING, Mode.ENDED)]


@pytest.mark.virtual_time
@pytest.mark.parametrize("turns_before", [2, 12], ids=["while the end is looked up", "within a page"])
async def test_a_stream_that_is_told_to_go_on_from_the_log_asks_again_where_it_ends(turns_before: int) -> None:
    story = Story()
    await story.publish()
    await story.reach(Mode.READING)
    await turns(turns_before)
    assert (story.subscriber._until is None) == (turns_before == 2)
    story.subscriber.fall_behind()
    await story.finish()
    again = asyncio.create_task(story.subscriber.read())
    await turns(50)
    again.cancel()
    assert story.subscriber.taken == [
        (Mode.WAITING, Mode.BEHIND),
        (Mode.BEHIND, Mode.READING),
        (Mode.READING, Mode.BEHIND),
        (Mode.BEHIND, Mode.READING),
        (Mode.READING, Mode.WAITING),
    ]
